r"""The probability flow in coordinates in which it is simple: x̄ = x / scale, moved by a clock.

    dx̄/dc = (k x̄ − x̂_0) / m

                scale         clock c        k        m        source
    straight    α + σ         σ / (α + σ)    1        c        Liu et al. 2023: rectified flow
    exploding   α             σ / α          1        c        Karras et al. 2022, eq. 1 with σ/α as time
    circle      √(α² + σ²)    atan2(σ, α)    cos c    sin c    Salimans & Ho 2022, appendix D

All are the same flow, so in the limit of many steps they agree; a step of finite length is exact for another kind of
data in each: for a fixed x̂_0 in the first two, for standard normal data on the circle. At the data c = m = 0 and there
is no velocity; at pure noise the clock of "exploding" is infinite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Flow:
    """Scale, clock, k and m at every time of a grid."""

    scale: Float64[Tensor, "times"]
    clock: Float64[Tensor, "times"]
    k: Float64[Tensor, "times"]
    m: Float64[Tensor, "times"]


def straight(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Flow:
    """Straight lines from noise to data; on the rectified schedule the clock is t itself."""
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    clock = sigma / (alpha + sigma)
    return Flow(alpha + sigma, clock, torch.ones_like(clock), clock)


def exploding(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Flow:
    """Straight lines too, with the noise growing beside a fixed signal."""
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    clock = sigma / alpha
    return Flow(alpha, clock, torch.ones_like(clock), clock)


def circle(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Flow:
    """A turn from noise to data; on the cosine schedule the clock is π t / 2."""
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    scale = torch.hypot(alpha, sigma)
    return Flow(scale, torch.atan2(sigma, alpha), alpha / scale, sigma / scale)


Path = Literal["straight", "exploding", "circle"]

FLOWS: Final[dict[Path, Callable[[Schedule, Tensor], Flow]]] = {
    "straight": straight,
    "exploding": exploding,
    "circle": circle,
}


def euler_rows(flow: Flow) -> tuple[Float64[Tensor, "rows"], Float64[Tensor, "rows"]]:
    """Columns a and b of Euler's method: x̄_s = x̄_t + (c_s − c_t) (k_t x̄_t − x̂_0) / m_t."""
    step, k, m = flow.clock.diff(), flow.k[:-1], flow.m[:-1]
    # In this order a straight step to the data keeps exactly nothing of x_t.
    a = flow.scale[1:] / flow.scale[:-1] * (1 + step * k / m)
    return a, -flow.scale[1:] * step / m
