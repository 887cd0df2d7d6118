r"""Where do consistency energies hold, and do they find the better hypothesis?

Three questions, asked of rendered held-out worlds (their key frames), with the packaged model and encoder.

*Holds.* At the true pixels of a visible point and at pixels `away` px aside (the same way for all points, eight ways),
is the energy of the pair (anchor, key frame) lower at the truth? The share of pairs where it is: 1 is perfect, 0.5
chance. Pictures as they are; with light that changes over the clip (a slope of brightness across the picture that turns
round, and a gain); with colours that change (channels change places step by step); for pairs of a wide baseline (the
anchor's neighbourhood is stretched or turned by `WIDE` or more) against narrow ones.

*Ranks.* K hypotheses of each world are ranked, the truth unseen, by reprojection (what `rank()` does), each consistency
energy, and priors that know no picture:

    occlusion        `priors.consistency.occlusion`: does a hypothesis hide what was not seen, and show what was
    background       the mean error of the best-fitting half of its points as one rigid set (`priors.rigid`)
    stretch          relative change of the distances of neighbours (anchor frame, 6 nearest)
    jerk             mean squared third difference of its control points
    centre           distance to the mean of all hypotheses

The error of a hypothesis is its mean distance to the truth over points and frames, both with a median anchor depth of
1. What is told is the top-ranked one's error over the mean of all: 1 is a blind choice. Beside it what the best would
have ("oracle"). "Seen alone" ranks by what was seen and nothing else (κ = 0).

*Backward.* One backward pass of all energies together, or one each with every slope brought to unit length: what they
take, and what ten steps of a line search down each of them reach (`down`).

    python experiments/consistency/run.py FOLDER        rendered held-out worlds

Shape letters:  K hypotheses   N points   M control points   T frames   F key frames.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from pictures import true_views
from torch import Tensor

from diffusion4d import consistency, denoiser, sampling, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.evaluation.cases import Case, rendered_clips
from diffusion4d.evaluation.clips import TrueClip
from diffusion4d.hypotheses import REFERENCE_SIDE
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.rendered import load_rendered
from diffusion4d.snap import doubted, snap
from priors import consistency as pairs
from priors.dinov3 import Encoder, load_encoder
from priors.rigid import rigid_motion

WIDE = 0.4
"""|A − 1| of a neighbourhood's affine map from which a baseline counts as wide."""
COMBINED = {"photometric": 1.0, "semantic": 1.0, "occlusion": 1.0}
"""Weights of standardised energies: one share each, chosen before anything was measured."""
FIRST_STEP = 0.02
"""Length of the first step tried, over all control points of a hypothesis (median anchor depth 1)."""
HALVINGS = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure consistency energies on rendered worlds."""

    rendered: tyro.conf.Positional[Path]
    """Folder of rendered held-out worlds."""
    model: str = "tiny"
    encoder: str = "tiny"
    out: Path = Path(__file__).parent / "results.json"
    part: Literal["all", "backward"] = "all"
    """backward: measure the backward passes alone, on the clips of `out`, and put them in their place."""
    worlds: int = 96
    points: int = 64
    hypotheses: int = 16
    away: float = 6.0
    """px at a shorter side of 256 px."""


def lit(images: Float[Tensor, "F 3 h w"]) -> Float[Tensor, "F 3 h w"]:
    """A slope of brightness across the picture that turns round over the clip, and a gain that falls to 0.6."""
    F, _, _, w = images.shape
    across = torch.linspace(-1, 1, w)
    share = torch.linspace(0, 1, F)[:, None, None, None]
    return (images * (1 - 0.4 * share) * (1 + 0.5 * (1 - 2 * share) * across)).clamp(0, 1)


def tinted(images: Float[Tensor, "F 3 h w"]) -> Float[Tensor, "F 3 h w"]:
    """Red becomes green, green blue, blue red, little by little."""
    share = torch.linspace(0, 1, len(images))[:, None, None, None]
    return torch.lerp(images, images.roll(1, 1), share)


def held(case: Case, encoder: Encoder, images: Tensor, away: float) -> list[dict]:
    """For every change of the pictures and every energy: hits and pairs, narrow and wide."""
    clip = case.clip
    assert clip.frames is not None
    shown = clip.visible[:, clip.frames] & clip.visible[:, clip.frames[:1]]
    angles = torch.arange(8) * (torch.pi / 4)
    shift = away * min(clip.size) / REFERENCE_SIDE * torch.stack([angles.cos(), angles.sin()], -1)
    found = []
    for change, altered in (("none", images), ("light", lit(images)), ("colour", tinted(images))):
        views, pixels = true_views(case, encoder, altered)
        near = pairs.nearest(pixels[:, 0], 6)
        maps = pairs.affine_maps(pixels, near)
        wide = (maps - torch.eye(2)).norm(dim=(-2, -1)) > WIDE
        tried = pixels.repeat(9, 1, 1, 1)
        # Only the key frame's pixel is moved: the anchor's is where the point was asked for.
        tried[1:, :, 1:] += shift[:, None, None]
        step = min(clip.size) / REFERENCE_SIDE
        assert views.features is not None
        values = {
            "photometric": pairs.photometric_pairs(altered, tried, clip.size),
            "patch, shifted": pairs.patch_pairs(altered, tried, clip.size, None, 3, step),
            "patch, carried": pairs.patch_pairs(altered, tried, clip.size, None, 3, step, maps),
            "semantic": pairs.semantic_pairs(views.features, tried, clip.size),
        }
        for name, value in values.items():
            hits = (value[0] < value[1:]).double().mean(0)
            # The anchor against itself is no pair.
            for baseline, chosen in (("narrow", shown & ~wide), ("wide", shown & wide)):
                kept = chosen[:, 1:]
                found.append(
                    {
                        "change": change,
                        "energy": name,
                        "baseline": baseline,
                        "hits": float(hits[:, 1:][kept].sum()),
                        "pairs": int(kept.sum()),
                    }
                )
    return found


def hypotheses(pipe: Diffusion4DPipeline, case: Case, K: int) -> Float[Tensor, "K N M 3"]:
    """Sampled from the tracks, snapped to them and scaled as every method's answers are."""
    num_ctrl = pipe.transformer.config["num_ctrl"]
    prepared = denoiser.prepare(pipe.transformer, case.evidence(num_ctrl), pipe.regressor)
    table = sampling.table_for(*sampling.usual(pipe.transformer))
    seeds = sampling.seeds_from(case.seed, K)
    ctrl = sampling.sample(prepared, seeds, table)
    pixel = min(case.clip.size) / REFERENCE_SIDE / case.intrinsics[:2].mean().item()
    ctrl = snap(ctrl, doubted(case.rays, pixel, seeds), case.clip.visibility, case.clip.u)
    return ctrl / ctrl[:, :, 0, 2].median(-1).values[:, None, None, None]


def priors_of(
    ctrl: Float[Tensor, "K N M 3"], points: Float[Tensor, "K N T 3"], case: Case
) -> dict[str, Tensor]:
    """Scores that know no picture, lower is better."""
    clip = case.clip
    images = case.project(points)
    miss = (images - clip.tracks).norm(dim=-1)[:, clip.visibility >= 0.5]
    motion = rigid_motion(points, clip.visibility, case.intrinsics.double(), clip.size)
    half = motion.error.sort(dim=1).values[:, : points.shape[1] // 2]
    near = pairs.nearest(clip.tracks[:, 0], 6)
    edges = (points[:, near] - points[:, :, None]).norm(dim=-1)
    change = edges / edges[..., :1].clamp_min(1e-3) - 1
    return {
        "reprojection": miss.median(1).values,
        "background": half.mean(1),
        "stretch": change.square().mean((1, 2, 3)).sqrt(),
        "jerk": ctrl.diff(n=3, dim=2).square().mean((1, 2, 3)),
        "centre": (points - points.mean(0)).norm(dim=-1).mean((1, 2)),
    }


@torch.no_grad()
def ranked(pipe: Diffusion4DPipeline, encoder: Encoder, case: Case, images: Tensor, K: int) -> dict:
    """Every ranker's top choice: its error over the mean error."""
    ctrl = hypotheses(pipe, case, K)
    points = splines.basis_matrix(case.clip.u, ctrl.shape[-2]) @ ctrl
    known = case.masks[0]
    error = (points - case.truth).norm(dim=-1)[:, known].mean(1)
    views, _ = true_views(case, encoder, images)
    of_pictures = consistency.energies(views)
    scores = {name: energy(ctrl) for name, energy in of_pictures.items()}
    blind = consistency.energies(dataclasses.replace(views, shown=0.0))
    scores["photometric, seen alone"] = blind["photometric"](ctrl)
    scores["semantic, seen alone"] = blind["semantic"](ctrl)
    scores["combined"] = sum(
        (w * standardised(scores[name]) for name, w in COMBINED.items()), torch.zeros(K)
    )
    scores |= priors_of(ctrl, points, case)
    scores["centre, stretch, background"] = sum(
        (standardised(scores[name]) for name in ("centre", "stretch", "background")), torch.zeros(K)
    )
    scores["oracle"] = error
    mean = float(error.mean())
    row: dict = {
        "mean_error": mean,
        "hidden": float((case.clip.visibility < 0.5).float().mean()),
        "top": {name: float(error[int(s.argmin())]) / mean for name, s in scores.items()},
        "correlation": {name: rank_correlation(s, error) for name, s in scores.items()},
        "spread": {
            name: float(scores[name].std() / scores[name].abs().mean().clamp_min(1e-9))
            for name in (*of_pictures, "photometric, seen alone", "semantic, seen alone")
        },
    }
    return row


def standardised(scores: Tensor) -> Tensor:
    """Over the hypotheses of one clip."""
    return (scores - scores.mean()) / scores.std().clamp_min(1e-9)


def rank_correlation(scores: Tensor, error: Tensor) -> float:
    """Spearman's."""
    first, second = (x.argsort().argsort().double() for x in (scores, error))
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def down(
    known: Mapping[str, consistency.ControlEnergy],
    ctrl: Float[Tensor, "K N M 3"],
    how: Literal["joint", "each"],
    steps: int = 10,
) -> tuple[Float[Tensor, "K N M 3"], int]:
    """Steps down the slopes of all energies, and how often the energies were taken for that.

    Both ways go down one sum, Σ_j w_j E_j with w_j one over the mean E_j of the start, so that every energy has the
    same share: "joint" along its slope, "each" along the sum of the unit slopes. Every hypothesis has its own step,
    twice the last one's, halved until it lowers the sum; one that no halving lowers stays where it is.
    """
    with torch.no_grad():
        weights = {name: 1 / float(energy(ctrl).mean()) for name, energy in known.items()}
    shares = weights if how == "joint" else dict.fromkeys(known, 1.0)

    @torch.no_grad()
    def total(x: Tensor) -> Tensor:
        return torch.stack([w * known[n](x) for n, w in weights.items()]).sum(0)

    x, length_K = ctrl, torch.full((len(ctrl),), FIRST_STEP / 2).to(ctrl)
    lowest_K, taken = total(x), 1
    for _ in range(steps):
        slope = consistency.slopes(known, shares, x, how)
        slope = slope / slope.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-12)
        start, length_K, done = x, 2 * length_K, torch.zeros(len(x), dtype=torch.bool)
        for _ in range(HALVINGS):
            tried = start - length_K[:, None, None, None] * slope
            sum_K = total(tried)
            lower = (sum_K < lowest_K) & ~done
            taken += 1
            x = torch.where(lower[:, None, None, None], tried, x)
            lowest_K, done = torch.where(lower, sum_K, lowest_K), done | lower
            if bool(done.all()):
                break
            length_K = torch.where(done, length_K, length_K / 2)
    return x, taken


def backward(pipe: Diffusion4DPipeline, encoder: Encoder, case: Case, images: Tensor) -> dict:
    """One joint backward pass against one each: time, and what ten steps down each reach and take."""
    ctrl = hypotheses(pipe, case, 8)
    views, _ = true_views(case, encoder, images)
    known = consistency.energies(views)
    known = {name: known[name] for name in ("photometric", "patch", "semantic")}
    weights = dict.fromkeys(known, 1.0)
    spent: dict[str, list[float]] = {"joint": [], "each": []}
    # Interleaved, since the machine is shared.
    for _ in range(8):
        for how in ("joint", "each"):
            begun = time.process_time()
            consistency.slopes(known, weights, ctrl, how)
            spent[how].append(time.process_time() - begun)
    reached: dict = {}
    for how in ("joint", "each"):
        begun = time.process_time()
        x, taken = down(known, ctrl, how)
        seconds = time.process_time() - begun
        with torch.no_grad():
            before = torch.stack([energy(ctrl) for energy in known.values()])
            after = torch.stack([energy(x) for energy in known.values()])
        ratio = after.mean(1) / before.mean(1)
        reached[how] = {
            "energy_after_over_before": dict(zip(known, ratio.tolist(), strict=True)),
            "sum_after_over_before": float((after / before.mean(1, keepdim=True)).mean()),
            "seconds": seconds,
            "energies_taken": taken,
        }
    ratio = float(np.median(spent["each"]) / np.median(spent["joint"]))
    return {"each_over_joint_seconds": ratio, **reached}


def case_of(clip: TrueClip, index: int) -> tuple[Case, Float[Tensor, "F 3 h w"]]:
    assert clip.images is not None
    case = Case.of(dataclasses.replace(clip, focal_known=True), index)
    return case, clip.images.float() / 255


def again(pipe: Diffusion4DPipeline, encoder: Encoder, clips: list[TrueClip], out: Path) -> None:
    """The backward passes of results that are there."""
    told = json.loads(out.read_text())
    for index, row in enumerate(told["clips"]):
        if "backward" in row:
            row["backward"] = backward(pipe, encoder, *case_of(clips[index], index))
    with replace_when_done(out) as temporary:
        temporary.write_text(json.dumps(told, indent=0) + "\n")


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    shards = sorted(settings.rendered.glob("[0-9]*.safetensors"))
    if not shards:
        raise SystemExit(f"need shards of rendered worlds, found none in {settings.rendered}")
    pipe = Diffusion4DPipeline.from_pretrained(settings.model)
    encoder = load_encoder(settings.encoder)
    clips = itertools.islice(
        rendered_clips(load_rendered(shards), num_points=settings.points), settings.worlds
    )
    if settings.part == "backward":
        again(pipe, encoder, list(clips), settings.out)
        return
    rows = []
    for index, clip in enumerate(clips):
        case, images = case_of(clip, index)
        row: dict = {"ranks": ranked(pipe, encoder, case, images, settings.hypotheses)}
        if index % 4 == 0:
            row["holds"] = held(case, encoder, images, settings.away)
        if index % 24 == 0:
            row["backward"] = backward(pipe, encoder, case, images)
        rows.append(row)
        told = {"model": settings.model, "encoder": settings.encoder, "worlds": len(rows)}
        told |= {
            "points": settings.points,
            "hypotheses": settings.hypotheses,
            "away": settings.away,
        }
        # Written as it goes: a run that is stopped has an answer about what it saw.
        with replace_when_done(settings.out) as temporary:
            temporary.write_text(json.dumps({"settings": told, "clips": rows}, indent=0) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
