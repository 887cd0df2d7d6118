r"""What is scored: points of rendered worlds, encoders by name, hits and their intervals.

Shape letters:  F key frames   N points.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffusion4d.frame_pairs import key_pixels
from diffusion4d.scenes.rendered import RenderedWorlds, load_rendered
from diffusion4d.token_tracks import SIDE
from priors.dinov3 import Encoder, load_encoder
from priors.preprocessing import Preprocessing
from priors.tiny import tiny_config
from priors.tokens import TokenGrid

THRESHOLDS = (4.0, 8.0)
WIDE = 32.0
"""px at 256 px shorter side: two tokens."""

Encode = Callable[[Tensor, Tensor], TokenGrid]


@dataclasses.dataclass(frozen=True)
class World:
    """A clip of key frames with its points that frame 0 shows, px of the images."""

    images: Tensor
    u: Tensor
    queries: Float[Tensor, "N 2"]
    truth: Float[Tensor, "F N 2"]
    seen: Tensor

    @classmethod
    def of(cls, stack: RenderedWorlds, b: int) -> "World":
        """World b of a stack."""
        at_start = stack.worlds.visible[b, :, 0]
        truth = key_pixels(stack.take(torch.tensor([b])))[0, at_start].transpose(0, 1)
        seen = stack.worlds.visible[b, at_start][:, stack.frames].T
        return cls(
            stack.images[b], (stack.frames / stack.frames[-1]).float(), truth[0], truth, seen
        )


def some_worlds(folder: Path, count: int) -> list[World]:
    """The first worlds of each shape in turn, `count` together.

    Raises:
        ValueError: the folder has fewer.
    """
    stacks = load_rendered(sorted(folder.glob("[0-9]*-depth*.safetensors")))
    order = sorted((b, s) for s, stack in enumerate(stacks) for b in range(len(stack)))
    if len(order) < count:
        raise ValueError(f"need {count} rendered worlds, got {len(order)} in {folder}")
    return [World.of(stacks[s], b) for b, s in order[:count]]


def raw_pixels(frames: Tensor, u: Tensor) -> TokenGrid:
    """Each patch's own pixels as its token, less their mean."""
    pixels = Preprocessing(size=(SIDE, SIDE))(frames, 16)
    values = functional.unfold(pixels, 16, stride=16).mT
    grid = (pixels.shape[-2] // 16, pixels.shape[-1] // 16)
    size = (frames.shape[-2], frames.shape[-1])
    return TokenGrid(values - values.mean(-1, keepdim=True), grid, size, u)


def encoders() -> dict[str, Encode]:
    """By name: the packaged one, its architecture with random weights, raw pixels."""
    from transformers import DINOv3ViTModel

    torch.manual_seed(0)
    random = DINOv3ViTModel(tiny_config()).eval()
    return {
        "tiny": load_encoder("tiny").at_size((SIDE, SIDE)).encode,
        "random weights": Encoder(random, Preprocessing(size=(SIDE, SIDE)), "random").encode,
        "raw pixels": raw_pixels,
    }


@dataclasses.dataclass
class Tally:
    """Hits of one method, world by world."""

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    claims: list[Tensor] = dataclasses.field(default_factory=list)
    good: list[Tensor] = dataclasses.field(default_factory=list)

    def add(self, world: World, tracks: Tensor, visibility: Tensor | None = None) -> None:
        """Count a world's answers in the frames after the first."""
        error = (tracks - world.truth).norm(dim=-1)[1:]
        seen = world.seen[1:]
        wide = ((world.truth - world.truth[:1]).norm(dim=-1)[1:] > WIDE) & seen
        row: dict[str, float] = {}
        for group, mask in (("all", seen), ("wide", wide)):
            row[f"{group} points"] = int(mask.sum())
            for limit in THRESHOLDS:
                row[f"{group} pck{limit:.0f}"] = int((error[mask] <= limit).sum())
        self.rows.append(row)
        if visibility is not None:
            self.claims.append(visibility[1:].flatten())
            self.good.append((seen & (error <= THRESHOLDS[-1])).flatten())

    def score(self, draws: int) -> dict[str, object]:
        """PCK with 95 % bootstrap intervals over worlds; AUC of visibility as a sign of "seen and within 8 px"."""
        picks = np.random.default_rng(0).integers(0, len(self.rows), (draws, len(self.rows)))
        out: dict[str, object] = {}
        for group in ("all", "wide"):
            count = np.array([row[f"{group} points"] for row in self.rows])
            out[f"{group} points"] = int(count.sum())
            for limit in THRESHOLDS:
                hits = np.array([row[f"{group} pck{limit:.0f}"] for row in self.rows])
                spread = hits[picks].sum(1) / np.maximum(count[picks].sum(1), 1)
                low, high = np.quantile(spread, (0.025, 0.975))
                value = hits.sum() / max(count.sum(), 1)
                out[f"{group} pck{limit:.0f}"] = [round(float(x), 3) for x in (value, low, high)]
        if self.claims:
            out["auc"] = round(auc(torch.cat(self.claims), torch.cat(self.good)), 3)
        return out


def auc(score: Tensor, label: Tensor) -> float:
    """The share of pairs (good, bad) that the score ranks rightly; ties count half."""
    from scipy.stats import rankdata

    ranks, good = rankdata(score.numpy()), label.numpy()
    positives, negatives = good.sum(), (~good).sum()
    return float(
        (ranks[good].sum() - positives * (positives + 1) / 2) / max(positives * negatives, 1)
    )
