"""From a prepared clip to K sampled sets of control points.

Hypothesis k draws from `seeds[k]` alone, so it is the same whichever others are sampled beside it (to
rounding: a matrix product of another shape may add in another order). Hypotheses go through the network in
chunks, so memory does not grow with K but for the answer.

Shape letters:  K hypotheses   N points   M control points.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.config import SamplerName
from diffusion4d.denoiser import LIMIT, SCHEDULE, ClipDenoiser, noise_of, path_of
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.loops import PLAIN, Loop, precision_of, ready
from diffusion4d.memory import CHUNK_ROWS
from diffusion4d.noise import GROUP_OF_AXIS, Factors
from samplers import grids, multistep, singlestep, tables
from samplers.guidance import Descended, cfg
from samplers.noise import Noise, SeededNoise
from samplers.predictions import Prediction, from_prediction
from samplers.schedules import Schedule
from samplers.solve import Denoise, solve

RESIDUAL_VARIANCE = 1.0
"""What is diffused is whitened. Without this, 8 ancestral steps of an untrained network keep .79 of the deviation."""

NUM_STEPS = 8
RECTIFIED_STEPS = 4
"""Of Euler's method on the straight path, where a network was trained on that."""

Finish = Callable[[Tensor, Sequence[int]], Tensor]
"""Control points of a chunk [K, N, M, 3] and the seeds of its hypotheses to what is kept of them."""

Guide = Callable[[Denoise, Sequence[int]], Denoise]
"""The denoiser of some hypotheses, and their seeds, to another one: posterior guidance."""


def usual(network: TrajectoryDiT) -> tuple[SamplerName, int]:
    """Sampler and steps unless others are asked for: those a network was trained through, else 8 ancestral ones.

    On the rectified path it is 4 steps of Euler's method.
    """
    if network.config["path"] == "rectified":
        return "euler", RECTIFIED_STEPS
    steps = network.config["trained_steps"]
    return ("ancestral", NUM_STEPS) if steps is None else (network.config["trained_sampler"], steps)


def check_sampler(name: str) -> None:
    """
    Raises:
        UserError: an unknown sampler.
    """
    if name not in get_args(SamplerName):
        raise UserError(f"need a sampler out of {', '.join(get_args(SamplerName))}, got {name!r}")


def table_for(name: SamplerName, num_steps: int, schedule: Schedule = SCHEDULE) -> tables.Table:
    """The sampler's table on the schedule the network was trained with (`denoiser.path_of`).

    num_steps is the number of rows, each an evaluation. Heun takes two a step but for the last one, 2S the
    DPM-Solver++ but for the first and the last one: they have as many steps as fit, so for some numbers one row less.

    Raises:
        UserError: an unknown sampler, or fewer than one step.
    """
    check_sampler(name)
    if num_steps < 1:
        raise UserError(f"need at least 1 inference step, got {num_steps}")
    grid = grids.uniform(num_steps)
    match name:
        case "angular":
            return tables.angular(schedule, grid)
        case "ancestral":
            return tables.ancestral(schedule, grid, data_variance=RESIDUAL_VARIANCE)
        case "ddim":
            return tables.ddim(schedule, grid)
        case "dpmpp_2m":
            return multistep.dpmpp_2m(schedule, grid)
        case "dpmpp_2m_sde":
            return multistep.dpmpp_2m_sde(schedule, grid)
        case "dpmpp_2s":
            return singlestep.dpmpp_2s(schedule, grids.uniform(num_steps // 2 + 1))
        case "euler":
            return tables.euler(schedule, grid)
        case "heun":
            # On the circle nothing moves where nothing is to be learnt, and its clock is finite at pure noise.
            return singlestep.heun(schedule, grids.uniform((num_steps + 1) // 2), "circle")
        case "renoised":
            return tables.renoised(schedule, grid)
        case "unipc":
            return multistep.unipc(schedule, grid)


def seeds_from(seed: int, num_hypotheses: int) -> list[int]:
    """One seed a hypothesis; the first k of them are the same however many are asked for.

    Raises:
        UserError: a negative seed or fewer than one hypothesis.
    """
    if num_hypotheses < 1:
        raise UserError(f"need at least 1 hypothesis, got {num_hypotheses}")
    if seed < 0:
        raise UserError(f"need a seed of at least 0, got {seed}")
    return np.random.SeedSequence(seed).generate_state(num_hypotheses, np.uint32).tolist()


@dataclasses.dataclass(frozen=True)
class CorrelatedNoise:
    """Seeded white noise with the covariance of a clip's residuals.

    temperature: factors on image-plane offsets and on depth. scales: of the hypotheses, all 1 by default.
    """

    white: SeededNoise
    factors: Factors
    temperature: Sequence[float] = (1.0, 1.0)
    scales: Float[Tensor, "K"] | None = None

    @classmethod
    def of(cls, clip: ClipDenoiser, seeds: Sequence[int]) -> "CorrelatedNoise":
        """The noise that the clip's network was trained with and is sampled at."""
        _, N, M, _ = clip.evidence.ctrl.shape
        # Beside the seeds of the noise itself, which are below 2^32, and of the doubts about tracks.
        normal = SeededNoise([seed + 2**33 for seed in seeds], ()).initial()
        return cls(
            SeededNoise(seeds, (N, M, 3)),
            clip.factors,
            clip.network.config["temperature"],
            noise_of(clip.network).scales(normal),
        )

    def initial(self) -> Float[Tensor, "K N M 3"]:
        """The noise at t = 1."""
        return self._correlate(self.white.initial())

    def at(self, step: int) -> Float[Tensor, "K N M 3"]:
        """The fresh noise of a step."""
        return self._correlate(self.white.at(step))

    def _correlate(self, white: Tensor) -> Tensor:
        white = white.to(self.factors.points)
        white = white * white.new_tensor([self.temperature[group] for group in GROUP_OF_AXIS])
        if self.scales is not None:
            white = white * self.scales.to(white)[:, None, None, None]
        return self.factors.correlate(white[None]).squeeze(0)


@torch.no_grad()
def sample(
    clip: ClipDenoiser,
    seeds: Sequence[int],
    table: tables.Table,
    progress: Callable[[int, int], None] | None = None,
    *,
    loop: Loop = PLAIN,
    chunk: int | None = None,
    guidance: float = 1.0,
    finish: Finish | None = None,
    guide: Guide | None = None,
) -> Float[Tensor, "K N _ 3"]:
    """Control points of one clip's hypotheses, camera frame, scene units.

    Args:
        clip: prepared evidence of one clip (B = 1).
        progress: called with (denoiser evaluations done, in all).
        loop: how the network is run (`loops.choose`).
        chunk: hypotheses at once (`memory.plan`); as many as fill `memory.CHUNK_ROWS` rows by default.
        guidance: away from what the network says without patch tokens (`samplers.guidance.cfg`). 1 is the network
            itself, and costs nothing; anything else but 0 takes two evaluations a step.
        finish: done to every chunk as it comes, such as snapping it to the tracks.
        guide: posterior guidance (`posterior.py`): the denoiser of some hypotheses, and their seeds, to another one. A
            gradient through the network needs the plain loop, and a table of two rows or more: at t = 1 it moves
            nothing, and a model that takes one step asks nowhere else.

    Raises:
        UserError: guidance by a gradient that no row of the table would let move anything.
    """
    N = clip.evidence.ctrl.shape[1]
    chunk = max(1, CHUNK_ROWS // N) if chunk is None else chunk
    chunks = [seeds[i : i + chunk] for i in range(0, len(seeds), chunk)]
    total = len(chunks) * table.num_steps
    denoise = _denoiser(clip, loop, table, guidance)
    backend = "blocked" if loop.name == "fused" else "reference"

    parts = []
    for index, chosen in enumerate(chunks):
        noise: Noise = CorrelatedNoise.of(clip, chosen)

        def report(done: int, _: int, before: int = index * table.num_steps) -> None:
            if progress is not None:
                progress(before + done, total)

        guided = denoise if guide is None else guide(denoise, chosen)
        if isinstance(guided, Descended) and not guided.moves(table):
            raise UserError(
                "guidance by a gradient moves nothing at t = 1, where x_t is noise alone: need at least 2 steps, "
                f"got {table.num_steps}"
            )
        residual = solve(table, guided, noise.initial(), noise, report, backend)
        ctrl = clip.decode(residual[None]).squeeze(0)
        parts.append(ctrl if finish is None else finish(ctrl, chosen))
    return torch.cat(parts)


def _denoiser(clip: ClipDenoiser, loop: Loop, table: tables.Table, guidance: float) -> Prediction:
    """The clip's network in this loop, guided where that is asked for; `solve` clips within its update."""
    schedule, kind = path_of(clip.network)

    def of(which: ClipDenoiser) -> Prediction:
        prepared = ready(which, loop, table.times)

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            with precision_of(loop, x_t.device):
                return prepared.velocity(x_t[None], t).squeeze(0)

        return from_prediction(schedule, kind)(velocity)

    mixed = of(clip) if guidance == 1 else cfg(of(clip), of(clip.without_tokens()), guidance)
    return dataclasses.replace(cast("Prediction", mixed), limit=LIMIT)


@torch.no_grad()
def answer(clip: ClipDenoiser) -> Float[Tensor, "1 N M 3"]:
    """The one answer of a "mean" network: control points, camera frame, scene units."""
    mean = clip.network(None, None, clip.conditioning).float()
    return clip.decode(mean).squeeze(0)
