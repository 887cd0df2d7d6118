r"""A flow through space that carries the nodes: the diffeomorphic alternative to skinning.

    dx/du = v_θ(x, u),   x(0) = a point at rest,   x' = x(u)                                                (1)

v_θ is a small network with bounded slope, so the flow is smooth, has the flow backwards in time for its inverse and
folds nothing over, in exact arithmetic and for steps small enough; a coarse triangle in it still may turn over. Two
surfaces that touch cannot part, either: a field of space knows no surface. Fitted by multiple shooting: from true nodes
at random instants over one frame, then over more, then from the first frame over all of them,

    min_θ Σ ‖x(u_{i+s}; x(u_i) = p_n(u_i)) − p_n(u_{i+s})‖²                                                 (2)

Inputs are (x, u) and sines and cosines of them (Tancik et al. 2020, "Fourier features"), in the nodes' box. Integrated
by torchdiffeq with Runge-Kutta steps of order four, one a frame; `adjoint` gets gradients from an ODE backwards in time
(Chen et al. 2018) in memory that does not grow with the steps, else through the solver.

Shape letters:  T frames   N nodes   V points
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion4d.errors import UserError

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(u, x) → dx/du, u a scalar or one for every row of x."""


@dataclass(frozen=True)
class Fit:
    """How a velocity field is fitted."""

    width: int = 96
    depth: int = 3
    waves: int = 4
    """Random frequencies of space and time."""
    scale: tuple[float, float] = (1.0, 8.0)
    """Standard deviations of the frequencies of space and of time, half cycles of the box and of the clip."""
    stages: tuple[tuple[int, int], ...] = ((1, 2000), (4, 250))
    """Frames that a shoot lasts and how many optimiser steps it has; then all frames for `last` steps."""
    last: int = 10
    batch: int = 1024
    rate: float = 1e-2
    adjoint: bool = False


class VelocityField(nn.Module):
    """v_θ, in coordinates in which the nodes' box has a half diagonal of 1."""

    centre: Tensor
    size: Tensor
    waves: Tensor

    def __init__(self, centre: Tensor, half: Tensor, fit: Fit, generator: torch.Generator) -> None:
        super().__init__()
        count = fit.waves * 8
        self.register_buffer("centre", centre)
        self.register_buffer("size", half)
        spread = torch.tensor([*[fit.scale[0]] * 3, fit.scale[1]])[:, None]
        waves = spread * math.pi / 2 * torch.randn(4, count, generator=generator)
        self.register_buffer("waves", waves.to(centre))
        widths = [4 + 2 * count, *[fit.width] * fit.depth, 3]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after, dtype=centre.dtype)
            bound = math.sqrt(3 / before) if after != 3 else 0.1 * math.sqrt(1 / before)
            with torch.no_grad():
                drawn = torch.rand(after, before, generator=generator) * 2 - 1
                layer.weight.copy_(bound * drawn)
                layer.bias.zero_()
            layers += [layer, nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, u: Tensor, x: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        time = (2 * u - 1).expand(len(x), 1) if u.ndim == 0 else 2 * u[:, None] - 1
        at = torch.cat([(x - self.centre) / self.size, time.to(x)], 1)
        turned = at @ self.waves
        return self.size * self.net(torch.cat([at, turned.sin(), turned.cos()], 1))


def flow(
    velocity: Velocity | nn.Module,
    points: Float[Tensor, "V 3"],
    times: Float[Tensor, "T"],
    *,
    adjoint: bool = False,
    substeps: int = 1,
) -> Float[Tensor, "T V 3"]:
    """Where points that are at their places at times[0] are at all of them; times may run backwards.

    Args:
        adjoint: gradients by the adjoint equation; needs a velocity that is a module.
        substeps: Runge-Kutta steps between two times.

    Raises:
        UserError: torchdiffeq is not installed.
    """
    finer = _finer(times.to(points), substeps)
    # The solver's own fixed grid would be spaced from the first time on; ours has every instant on it.
    moved = _solver(adjoint)(velocity, points, finer, method="rk4")
    return moved[::substeps]


def fit_velocity(
    nodes: Float[Tensor, "T N 3"], *, seed: int, settings: Fit | None = None
) -> VelocityField:
    """A field whose flow carries the first frame's nodes along their paths; frames are evenly spaced in u.

    Raises:
        UserError: torchdiffeq is not installed.
        ValueError: fewer than two frames.
    """
    T = len(nodes)
    if T < 2:
        raise ValueError(f"need at least 2 frames, got {T}")
    settings = settings or Fit()
    generator = torch.Generator().manual_seed(seed)
    low, high = nodes.amin((0, 1)), nodes.amax((0, 1))
    half = ((high - low).norm() / 2).clamp_min(1e-12)
    field = VelocityField((low + high) / 2, half, settings, generator).to(nodes)
    stages = [s for s in settings.stages if s[0] < T - 1] + [(T - 1, settings.last)]
    steps = sum(count for _, count in stages)
    optimiser = torch.optim.Adam(field.parameters(), settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps), 1e-5)
    for span, count in stages:
        for _ in range(count):
            optimiser.zero_grad()
            loss = _miss(field, nodes, span, settings, generator) / half**2
            loss.backward()
            nn.utils.clip_grad_norm_(field.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return field.requires_grad_(False)


def _miss(
    field: VelocityField,
    nodes: Float[Tensor, "T N 3"],
    span: int,
    settings: Fit,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Eq. (2) over random shoots of `span` frames, their time the same s in [0, 1]."""
    T, N, _ = nodes.shape
    rows = min(settings.batch, (T - span) * N)
    start = torch.randint(T - span, (rows,), generator=generator)
    which = torch.randint(N, (rows,), generator=generator)
    if span == T - 1:
        start, which = torch.zeros(N, dtype=torch.int64), torch.arange(N)
    shoots = _Shoots(field, (start / (T - 1)).to(nodes), span / (T - 1))
    s = torch.linspace(0, 1, span + 1, dtype=nodes.dtype, device=nodes.device)
    moved = flow(shoots, nodes[start, which], s, adjoint=settings.adjoint)
    target = nodes[start + torch.arange(span + 1)[:, None], which]
    return (moved - target)[1:].square().sum(-1).mean()


class _Shoots(nn.Module):
    """Rows that start at times of their own and share s: dx/ds = v(x, u_0 + s Δ) Δ."""

    def __init__(self, field: VelocityField, start: Float[Tensor, "P"], length: float) -> None:
        super().__init__()
        self.field, self.length = field, length
        self.start = start

    def forward(self, s: Tensor, x: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        return self.length * self.field(self.start + s * self.length, x)


def _finer(times: Float[Tensor, "T"], substeps: int) -> Float[Tensor, "finer"]:
    share = torch.arange(substeps, dtype=times.dtype, device=times.device) / substeps
    between = times[:-1, None] + times.diff()[:, None] * share
    return torch.cat([between.flatten(), times[-1:]])


def _solver(adjoint: bool) -> Any:
    try:
        import torchdiffeq
    except ModuleNotFoundError as error:
        raise UserError(
            "a velocity field needs torchdiffeq: pip install 'diffusion4d[fields]'"
        ) from error
    return torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
