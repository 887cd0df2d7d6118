r"""What do the packaged encoder's tokens tell about objects it never saw?

Two questions, on rendered worlds of held-out actors:

    where is this point in another frame?   A visible point's feature in one key frame is compared with every place of
        another; PCK counts the answers within 8 and 16 px (at 256 px shorter side).
    how deep is each pixel?   The head's pointmap against the exact one, up to a factor an image: AbsRel and the share
        with delta < 1.25 over all pixels that show a surface, and AbsRel at visible points that move.

Baselines of the first: raw pixels of a patch, the same network with random weights, the same place again, chance. Of
the second: one depth for the whole image, and the mean map of the training worlds (what the place in the image tells).

    .venv/bin/python experiments/encoder/run.py --held-out FOLDER --pool FOLDER

Intervals are 95 % bootstrap over worlds. Shape letters:  F key frames   N points   y, x depth map.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffusion4d.atomic import replace_when_done
from diffusion4d.frame_pairs import key_pixels
from diffusion4d.scenes.rendered import RenderedWorlds, load_rendered
from priors.correspondence import chance_pck, match_points
from priors.dinov3 import Encoder, load_encoder
from priors.pointmaps import Pointmapper, depth_errors, load_pointmapper, without_scale
from priors.preprocessing import Preprocessing
from priors.tiny import tiny_config
from priors.tokens import TokenGrid

PAIRS = {"near": (0, 1), "middle": (0, 2), "wide": (0, -1)}
"""Places of two key frames among the F."""
THRESHOLDS = (8, 16)
REFERENCE = 256
"""Shorter side of the image in which pixels are counted."""
MEAN_MAP = (16, 16)
FEATURES = ("encoder", "raw pixels", "random weights")
MAPS = ("encoder", "mean map", "flat")

Encode = Callable[[Tensor, Tensor], TokenGrid]
Table = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Score an encoder's correspondences and pointmaps."""

    held_out: Path
    """Folder of rendered worlds that are scored."""
    pool: Path
    """Folder of rendered worlds the encoder was trained on: the mean map is theirs."""
    encoder: str = "tiny"
    out: Path = Path(__file__).parent / "results.json"
    draws: int = 1000
    """Of the bootstrap."""


def raw_pixels(frames: Float[Tensor, "F 3 H W"], u: Float[Tensor, "F"]) -> TokenGrid:
    """Each patch's own pixels as its token, normalised as the encoder gets them."""
    pixels = Preprocessing(size=(128, 128))(frames, 16)
    grid = (pixels.shape[-2] // 16, pixels.shape[-1] // 16)
    size = (frames.shape[-2], frames.shape[-1])
    return TokenGrid(functional.unfold(pixels, 16, stride=16).mT, grid, size, u)


def random_weights() -> Encode:
    """The same architecture, never trained."""
    from transformers import DINOv3ViTModel

    torch.manual_seed(0)
    model = DINOv3ViTModel(tiny_config()).eval()
    return Encoder(model, Preprocessing(size=(128, 128)), "random").encode


def matching_errors(
    stacks: Sequence[RenderedWorlds], encoders: dict[str, Encode]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """For each pair of frames and world: px errors of each method, and whether a point moved far or its body moves."""
    found: dict[str, list[dict[str, np.ndarray]]] = {pair: [] for pair in PAIRS}
    for stack in stacks:
        pixels = key_pixels(stack)
        seen = stack.worlds.visible[:, :, stack.frames]
        u = stack.frames / stack.frames[-1]
        size = (stack.images.shape[-2], stack.images.shape[-1])
        scale = REFERENCE / min(size)
        limits = torch.tensor(THRESHOLDS) / scale
        for b in range(len(stack)):
            tokens = {name: encode(stack.images[b], u) for name, encode in encoders.items()}
            features = {name: grid.sample(pixels[b]) for name, grid in tokens.items()}
            for pair, (i, j) in PAIRS.items():
                both = seen[b, :, i] & seen[b, :, j]
                truth = pixels[b, both, j]
                if len(truth) == 0:
                    continue
                stay = (pixels[b, both, i] - truth).norm(dim=-1) * scale
                errors = {"same place": stay}
                for name, grid in tokens.items():
                    asked = functional.normalize(features[name][both, i], dim=-1)
                    place = match_points(asked, grid.values[j], grid.grid, grid.size)
                    errors[name] = (place - truth).norm(dim=-1) * scale
                chance = chance_pck(limits, truth, size)
                found[pair].append(
                    {
                        **{name: error.numpy() for name, error in errors.items()},
                        "far": (stay > THRESHOLDS[-1]).numpy(),
                        "moving": stack.worlds.moving[b, both].numpy(),
                        "chance": chance.numpy(),
                    }
                )
    return found


def pck_table(worlds: list[dict[str, np.ndarray]], draws: int) -> dict[str, object]:
    """PCK of each method over all points of all worlds, and the encoder's over raw pixels' with its interval."""
    table: dict[str, object] = {"worlds": len(worlds)}
    picks = np.random.default_rng(0).integers(0, len(worlds), (draws, len(worlds)))
    for group in ("all", "far", "moving"):
        masks = [np.ones(len(w["far"]), bool) if group == "all" else w[group] for w in worlds]
        count = np.array([mask.sum() for mask in masks])
        rows: dict[str, object] = {"points": int(count.sum())}
        for k, limit in enumerate(THRESHOLDS):
            hits = {
                name: np.array(
                    [(w[name][m] <= limit).sum() for w, m in zip(worlds, masks, strict=True)]
                )
                for name in (*FEATURES, "same place")
            }
            row = {name: round(float(h.sum() / count.sum()), 4) for name, h in hits.items()}
            chance = sum(w["chance"][k] * n for w, n in zip(worlds, count, strict=True))
            row["chance"] = round(float(chance / count.sum()), 4)
            # One hit at least, so that the ratio is finite on a handful of worlds.
            base = np.maximum(hits["raw pixels"][picks].sum(1), 1)
            ratio = hits["encoder"][picks].sum(1) / base
            row["ratio"] = round(float(hits["encoder"].sum() / max(hits["raw pixels"].sum(), 1)), 3)
            low, high = np.quantile(ratio, (0.025, 0.975))
            row["ratio_low"], row["ratio_high"] = round(float(low), 3), round(float(high), 3)
            rows[f"pck{limit}"] = row
        table[group] = rows
    return table


def mean_map(stacks: Sequence[RenderedWorlds]) -> Float[Tensor, "1 y x"]:
    """Mean log depth, median 0 in each image, of where in the image a pixel is."""
    total, count = torch.zeros(MEAN_MAP), torch.zeros(MEAN_MAP)
    for stack in stacks:
        maps = stack.depth.flatten(0, 1).float().log()
        maps = maps - maps.flatten(1).nanmedian(1).values[:, None, None]
        small = functional.interpolate(maps[:, None], size=MEAN_MAP, mode="nearest-exact")[:, 0]
        total += small.nansum(0)
        count += small.isfinite().sum(0)
    return (total / count.clamp_min(1))[None]


def pointmap_errors(
    stacks: Sequence[RenderedWorlds], mapper: Pointmapper, average: Float[Tensor, "1 y x"]
) -> dict[str, dict[str, np.ndarray]]:
    """For each method: a world's AbsRel and delta over pixels, and AbsRel at its visible points that move."""
    scores = {name: {"abs_rel": [], "delta": [], "moving": []} for name in MAPS}
    for stack in stacks:
        pixels = key_pixels(stack)
        seen = stack.worlds.visible[:, :, stack.frames] & stack.worlds.moving[..., None]
        z = stack.worlds.points[:, :, stack.frames, 2]
        extent = torch.tensor([stack.images.shape[-1], stack.images.shape[-2]])
        for b in range(len(stack)):
            truth = stack.depth[b].float().log()
            valid = truth.isfinite()
            size = (truth.shape[-2], truth.shape[-1])
            guesses = {
                "encoder": mapper.log_depth(stack.images[b]),
                "mean map": average.expand(len(truth), -1, -1),
                "flat": torch.zeros(len(truth), 1, 1),
            }
            for name, guess in guesses.items():
                fine = functional.interpolate(
                    guess[:, None], size=size, mode="bilinear", align_corners=False
                )[:, 0]
                errors = depth_errors(fine, truth, valid)
                for measure in ("abs_rel", "delta"):
                    scores[name][measure].append(errors[measure].nanmean().item())
                # The factor is the image's; the points are read off the same map.
                factor = (without_scale(fine, truth, valid) - fine + truth)[valid]
                owner = torch.arange(len(truth))[:, None, None].expand_as(truth)[valid]
                shift = torch.stack(
                    [factor[owner == f].nanmedian() for f in range(len(truth))]
                ).nan_to_num()
                where = (2 * pixels[b] / extent - 1).transpose(0, 1)[:, :, None]
                at = functional.grid_sample(
                    fine[:, None], where, padding_mode="border", align_corners=False
                )[:, 0, :, 0].T
                off = (at + shift - z[b].log()).expm1().abs()[seen[b]]
                scores[name]["moving"].append(off.mean().item())
    return {
        name: {measure: np.array(values) for measure, values in measures.items()}
        for name, measures in scores.items()
    }


def map_table(scores: dict[str, dict[str, np.ndarray]], draws: int) -> Table:
    """Means over worlds with intervals."""
    table: Table = {}
    for name, measures in scores.items():
        table[name] = {}
        for measure, values in measures.items():
            kept = values[np.isfinite(values)]
            picks = np.random.default_rng(0).integers(0, len(kept), (draws, len(kept)))
            low, high = np.quantile(kept[picks].mean(1), (0.025, 0.975))
            table[name][measure] = {
                "mean": round(float(kept.mean()), 4),
                "low": round(float(low), 4),
                "high": round(float(high), 4),
            }
    return table


def shards(folder: Path) -> list[Path]:
    """The rendered shards of a folder.

    Raises:
        ValueError: there are none.
    """
    found = sorted(folder.glob("*-depth*.safetensors"))
    if not found:
        raise ValueError(f"need rendered worlds with depth maps, got none in {folder}")
    return found


def main(settings: Settings) -> dict[str, object]:
    """Score, write, and return what was written."""
    encoder = load_encoder(settings.encoder)
    encoders: dict[str, Encode] = {
        "encoder": encoder.encode,
        "raw pixels": raw_pixels,
        "random weights": random_weights(),
    }
    held_out = load_rendered(shards(settings.held_out))
    with torch.no_grad():
        matches = matching_errors(held_out, encoders)
        average = mean_map(load_rendered(shards(settings.pool)))
        maps = pointmap_errors(held_out, load_pointmapper(settings.encoder), average)
    results: dict[str, object] = {
        "fingerprint": encoder.fingerprint,
        "worlds": sum(len(stack) for stack in held_out),
        "frames": held_out[0].frames.tolist(),
        "correspondence": {
            pair: pck_table(worlds, settings.draws) for pair, worlds in matches.items()
        },
        "pointmaps": map_table(maps, settings.draws),
    }
    with replace_when_done(settings.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(tyro.cli(Settings)), indent=1))
