r"""The loops that are compared: the way diffusers and a flow-matching peer sample, ours, and everything between.

    diffusers      a scheduler object with `step`; classifier-free guidance by a batch of two; every hypothesis is an
                   item of the batch with evidence and patch tokens of its own, embedded again, keys and values too, at
                   every step; eager, float32
    single sample  four Euler steps; all that depends on the clip is computed again for every sample
    ours           `sampling.sample`

`GAINS` walks from the first to ours, one gain at a time. The image encoder runs in none of them.

Shape letters:  B clips   K hypotheses   N points   M control points   T frames.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from diffusion4d import denoiser, sampling
from diffusion4d.denoiser import ClipDenoiser
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evaluation.cases import Case
from diffusion4d.evidence import Evidence, Tokens
from diffusion4d.hypotheses import REFERENCE_SIDE
from diffusion4d.loops import PLAIN, Loop
from diffusion4d.snap import doubted, snap
from diffusion4d.splines import basis_matrix
from samplers.kernels.decode import positions
from samplers.predictions import to_x_0
from samplers.solve import solve
from samplers.tables import Table

GUIDANCE = 1.5
"""Of the loops that double their batch; it does not change what they cost."""

TOKENS = (6, 96)
"""Key frames and patches of one: what the packaged encoder makes of a video."""

Draw = Callable[[Sequence[int]], Float[Tensor, "K N M 3"]]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A clip as its networks take it, and how it is sampled."""

    network: TrajectoryDiT
    regressor: TrajectoryDiT | None
    evidence: Evidence
    case: Case
    table: Table

    def prepared(self) -> ClipDenoiser:
        """Everything that depends on the clip alone."""
        return denoiser.prepare(self.network, self.evidence, self.regressor)

    def finish(
        self, ctrl: Float[Tensor, "K N M 3"], seeds: Sequence[int]
    ) -> Float[Tensor, "K N T 3"]:
        """Snapped to the tracks and decoded to trajectories, the same for every loop."""
        clip = self.case.clip
        pixel = min(clip.size) / REFERENCE_SIDE / self.case.intrinsics[:2].mean().item()
        rays = doubted(self.case.rays, pixel, seeds)
        ctrl = snap(ctrl, rays, clip.visibility, clip.u)
        return self.case.scaled(positions(ctrl, basis_matrix(clip.u, ctrl.shape[-2])))


def with_tokens(evidence: Evidence, channels: int) -> Evidence:
    """Patch tokens of the shape a video has, with random values: what they say does not change the cost."""
    (F, L), N = TOKENS, evidence.ctrl.shape[1]
    g = torch.Generator().manual_seed(0)
    values = torch.randn(1, F, L, channels, generator=g)
    places = torch.rand(1, F, L, 3, generator=g) - 0.5
    at_points = torch.randn(1, N, channels, generator=g)
    return dataclasses.replace(evidence, tokens=Tokens(values, places, at_points))


def repeated(evidence: Evidence, count: int) -> Evidence:
    """Every hypothesis with evidence of its own, as items of a batch."""

    def again(x: Tensor) -> Tensor:
        return x.repeat(count, *(1,) * (x.dim() - 1))

    tokens = evidence.tokens
    return Evidence(
        again(evidence.ctrl),
        again(evidence.weight),
        again(evidence.log_focal),
        again(evidence.focal_known),
        None
        if tokens is None
        else Tokens(again(tokens.values), again(tokens.positions), again(tokens.at_points)),
    )


def doubled(evidence: Evidence) -> Evidence:
    """A batch of two halves: as it is, and with empty tokens."""
    both = repeated(evidence, 2)
    if both.tokens is None:
        return both
    B = len(evidence.ctrl)
    keep = (torch.arange(2 * B) < B).to(both.ctrl)
    tokens = Tokens(
        both.tokens.values * keep[:, None, None, None],
        both.tokens.positions,
        both.tokens.at_points * keep[:, None, None],
    )
    return dataclasses.replace(both, tokens=tokens)


class BatchOfTwo:
    """Velocity of K hypotheses with guidance by a doubled batch, everything embedded again at every call."""

    def __init__(self, bench: Bench, count: int, guidance: float) -> None:
        self._network, self._guidance = bench.network, guidance
        self._evidence = doubled(repeated(bench.evidence, count))
        anchor = bench.prepared().anchor
        stacked = None if anchor is None else anchor.stacked()
        self._anchor = None if stacked is None else stacked.expand(2 * count, -1, -1, -1)

    def __call__(self, x_t: Float[Tensor, "K N M 3"], t: float) -> Float[Tensor, "K N M 3"]:
        conditioning = self._network.condition(self._evidence, self._anchor)
        both = torch.cat([x_t, x_t])[:, None]
        times = torch.full((len(both), 1), t)
        given, empty = self._network(both, times, conditioning).squeeze(1).chunk(2)
        return empty + self._guidance * (given - empty)


def noise_for(clip: ClipDenoiser, seeds: Sequence[int]) -> sampling.CorrelatedNoise:
    """The noise every loop starts from."""
    return sampling.CorrelatedNoise.of(clip, seeds)


@torch.no_grad()
def diffusers_loop(
    bench: Bench, seeds: Sequence[int], steps: int, guidance: float = GUIDANCE
) -> Float[Tensor, "K N T 3"]:
    """DDIM by diffusers' own scheduler on its cosine schedule."""
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    clip = bench.prepared()
    velocity = BatchOfTwo(bench, len(seeds), guidance)
    x = noise_for(clip, seeds).initial()
    for step in scheduler.timesteps:
        # The network's time is the angle on the circle, of which diffusers' cosine is a slightly other one.
        t = math.acos(math.sqrt(float(scheduler.alphas_cumprod[step]))) * 2 / math.pi
        x = scheduler.step(velocity(x, t), int(step), x, return_dict=False)[0]
    return bench.finish(clip.decode(x[None]).squeeze(0), seeds)


@torch.no_grad()
def table_loop(bench: Bench, seeds: Sequence[int]) -> Float[Tensor, "K N T 3"]:
    """A table and `solve` in the scheduler's place; the rest as before."""
    clip = bench.prepared()
    velocity = BatchOfTwo(bench, len(seeds), GUIDANCE)
    schedule, kind = denoiser.path_of(bench.network)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x_0 = to_x_0(kind, velocity(x_t, float(t)), x_t, alpha, sigma)
        return x_0.clamp(-denoiser.LIMIT, denoiser.LIMIT)

    noise = noise_for(clip, seeds)
    residual = solve(bench.table, denoise, noise.initial(), noise)
    return bench.finish(clip.decode(residual[None]).squeeze(0), seeds)


@torch.no_grad()
def single_samples(bench: Bench, seeds: Sequence[int], steps: int = 4) -> Float[Tensor, "K N T 3"]:
    """One sample after the other, four Euler steps each, with all that depends on the clip computed again."""
    table = sampling.table_for("euler", steps)
    return torch.cat([ours(bench, [seed], table=table) for seed in seeds])


@torch.no_grad()
def ours(
    bench: Bench,
    seeds: Sequence[int],
    *,
    loop: Loop = PLAIN,
    guidance: float = 1.0,
    chunk: int | None = None,
    table: Table | None = None,
) -> Float[Tensor, "K N T 3"]:
    """`sampling.sample`, from evidence to trajectories."""
    return sampling.sample(
        bench.prepared(),
        seeds,
        table or bench.table,
        loop=loop,
        chunk=chunk,
        guidance=guidance,
        finish=bench.finish,
    )
