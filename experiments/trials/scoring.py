"""Samples of a trial's network on held-out clips and their scores.

Samples are snapped to the tracks as observed, without the pipeline's doubt about these: the same for all trials.

Shape letters:  B clips   K samples   N points   M control points   T frames.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from spaces import Space, Trial, Way
from torch import Tensor

from diffusion4d import cameras, metrics, sampling, splines
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.noise import Factors
from diffusion4d.scenes.batches import Example
from diffusion4d.snap import snap
from diffusion4d.train import seeded
from samplers import tables
from samplers.solve import solve

SUBSETS = ("all", "occluded")
LEVEL = 0.9
SAMPLES = 19
"""So that 90 % is the interval from the least to the greatest."""
NEAREST = 0.05
"""A sample's median anchor depth is taken for at least this when it is scaled."""

Scores = dict[str, dict[str, list[float | None]]]
"""subset -> metric -> a value for each clip, None where the subset holds nothing."""


@dataclasses.dataclass(frozen=True)
class BatchNoise:
    """Noise of K samples of each clip; the same for every trial, but for its covariance."""

    factors: Factors
    shape: tuple[int, ...]
    seed: int

    def initial(self) -> Float[Tensor, "B K N M 3"]:
        return self.at(-1)

    def at(self, step: int) -> Float[Tensor, "B K N M 3"]:
        generator = seeded(self.seed, step + 1, 2)
        return self.factors.correlate(torch.randn(self.shape, generator=generator))


def table_of(way: Way, trial: Trial) -> tables.Table:
    """The sampler's table on the trial's own path."""
    return sampling.table_for(*way, trial.schedule)


@torch.no_grad()
def answers(
    network: TrajectoryDiT, space: Space, trial: Trial, way: Way, example: Example, seed: int
) -> Float[Tensor, "B K N T 3"]:
    """Samples, snapped to the tracks and scaled to a median anchor depth of 1."""
    B, N, M, _ = example.ctrl.shape
    with torch.autocast("cpu", torch.bfloat16):
        clips = space.prepare(network, example.evidence, trial)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return clips.denoise(x_t, t)

    noise = BatchNoise(clips.clip.factors, (B, SAMPLES, N, M, 3), seed)
    ctrl = clips.decode(solve(table_of(way, trial), denoise, noise.initial(), noise))
    rays = cameras.normalise(example.tracks, example.intrinsics[:, None, None])
    snapped = [
        snap(c, y, v, example.u) for c, y, v in zip(ctrl, rays, example.visibility, strict=True)
    ]
    ctrl = torch.stack(snapped)
    scale = ctrl[:, :, :, 0, 2].median(-1).values.clamp_min(NEAREST)
    return splines.basis_matrix(example.u, M) @ (ctrl / scale[..., None, None, None])


def score(samples: Float[Tensor, "K N T 3"], example: Example, index: int) -> dict[str, list]:
    """Of one clip, by subset; None where that holds nothing."""
    truth, visible = example.points[index], example.visible[index]
    masks = torch.stack([torch.ones_like(visible), ~visible])
    inside = metrics.covered(samples, truth, LEVEL).float().mean(-1)
    spread, skill = metrics.spread_and_skill(samples, truth, masks)
    rows = {
        "energy": metrics.energy_score(samples, truth, masks),
        "coverage": (inside * masks).sum((-2, -1)) / masks.sum((-2, -1)),
        "variance": spread,
        "squared_error": skill,
    }
    return {
        name: [round(v, 6) if math.isfinite(v) else None for v in row.tolist()]
        for name, row in rows.items()
    }


def score_all(
    network: TrajectoryDiT, space: Space, trial: Trial, way: Way, scenes: Sequence[Example]
) -> Scores:
    """Of all clips."""
    held: Scores = {subset: {} for subset in SUBSETS}
    for number, example in enumerate(scenes):
        drawn = answers(network, space, trial, way, example, number)
        for index, samples in enumerate(drawn):
            for name, values in score(samples, example, index).items():
                for subset, value in zip(SUBSETS, values, strict=True):
                    held[subset].setdefault(name, []).append(value)
    return held
