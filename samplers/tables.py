r"""A sampler is a table: one row of coefficients a step, worked out once, in float64.

    x_s = a x_t + b x̂_0 + Σ_j d_j x̂_0^(−j) + e ε,    x̂_0 = denoise(x_t, t),    ε ~ N(0, I)

with x̂_0^(−j) the denoiser's answer j rows earlier. Predicting ε, v or a velocity changes nothing here: those
are linear in (x_t, x̂_0), see predictions.py. A row is one evaluation, whatever the method:

    tables.py       ddim           order 1   Song et al. 2021a, eq. 12 with no noise; DPM-Solver++(1S)
                    ancestral      noise     Song et al. 2021a, eq. 16; η = 1 is Ho et al. 2020, eq. 7 (DDPM)
                    euler          order 1   Euler on the straight path (Liu et al. 2023)
                    angular        order 1   Euler on the circle (velocity of Salimans & Ho 2022)
                    renoised       noise     to the data and back, along the circle (Song et al. 2023, algorithm 1)
    multistep.py    dpmpp_2m       order 2   Lu et al. 2022 (DPM-Solver++), algorithm 2
                    dpmpp_2m_sde   noise     the same, eq. 18
                    unipc          order p+1 Zhao et al. 2023, corrector included
    singlestep.py   heun           order 2   Karras et al. 2022, algorithm 1 without churn, on three paths
                    dpmpp_2s       order 2   Lu et al. 2022, algorithm 1
    from_diffusers.py                        any linear scheduler of diffusers

Multistep methods need earlier answers, which is what d is for. A method that evaluates twice a step, or that
corrects its last step once the next answer is known, seems to need an earlier x as well. It does not: x_t went into
the x at hand by a row that is known, so it can be put as that x less earlier answers, and d takes those.

Of the rows here one to t = 0 has a = d = e = 0 and b = 1: it returns the denoiser's answer. Only `angular` and
`renoised` keep a little of x_t.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.flows import circle, euler_rows, straight
from samplers.grids import check_grid
from samplers.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Table:
    """Coefficients of S rows, all float64.

    times: `[S+1]`, within [0, 1], never rising; row i asks the denoiser at times[i] and arrives at times[i + 1].
        A method that asks twice at one time has that time twice.
    a, b, e: `[S]`, the weights of x_t, x̂_0 and fresh noise.
    d: `[S, lags]`, the weights of earlier answers, the latest first. Row i has only i of them: d[i, i:] is 0.
    Raises ValueError for bad times, or coefficients of another shape or dtype, not finite, or of answers not yet given.
    """

    times: Float64[Tensor, "times"]
    a: Float64[Tensor, "rows"]
    b: Float64[Tensor, "rows"]
    d: Float64[Tensor, "rows lags"]
    e: Float64[Tensor, "rows"]

    def __post_init__(self) -> None:
        times = self.times
        if times.dim() != 1 or len(times) < 2 or times.dtype != torch.float64:
            raise ValueError(
                "need at least 2 float64 times in one row, "
                f"got {times.dtype} of shape {tuple(times.shape)}"
            )
        # All comparisons are false for NaN, so NaN is refused as well.
        if not (bool((times.diff() <= 0).all()) and bool(((times >= 0) & (times <= 1)).all())):
            raise ValueError(f"need times within [0, 1] that never rise, got {times.tolist()}")
        for name in ("a", "b", "d", "e"):
            column = getattr(self, name)
            if column.dim() != (2 if name == "d" else 1) or len(column) != self.num_steps:
                need = "[S, lags]" if name == "d" else "[S]"
                raise ValueError(
                    f"need one coefficient a step, {name} {need} with S={self.num_steps}, "
                    f"got {name} of shape {tuple(column.shape)}"
                )
            if column.dtype != torch.float64:
                raise ValueError(f"need float64 coefficients, got {name} of {column.dtype}")
            if not bool(column.isfinite().all()):
                raise ValueError(f"need finite coefficients, got {name}={column.tolist()}")
        if bool((self.d.triu() != 0).any()):
            raise ValueError(
                f"row i has i rows before it: need d[i, i:] = 0, got d={self.d.tolist()}"
            )

    @property
    def num_steps(self) -> int:
        """The number of rows, and of denoiser evaluations: one a row."""
        return len(self.times) - 1

    @property
    def lags(self) -> int:
        """How many earlier answers the rows reach back to."""
        return self.d.shape[1]

    @property
    def is_stochastic(self) -> bool:
        return bool((self.e != 0).any())


def memoryless(
    times: Float64[Tensor, "times"],
    a: Float64[Tensor, "rows"],
    b: Float64[Tensor, "rows"],
    e: Float64[Tensor, "rows"] | None = None,
) -> Table:
    """A table whose rows use the present answer alone; deterministic without e."""
    return Table(times, a, b, a.new_zeros(len(a), 0), torch.zeros_like(a) if e is None else e)


def ddim(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Keep the noise that x_t and x̂_0 imply, at its new scale. First order.

    x_s = α_s x̂_0 + σ_s (x_t − α_t x̂_0) / σ_t. Raises ValueError for a bad grid.
    """
    check_grid(grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    a = sigma[1:] / sigma[:-1]
    b = alpha[1:] - alpha[:-1] * a
    return memoryless(grid, a, b)


def ancestral(
    schedule: Schedule,
    grid: Float64[Tensor, "times"],
    eta: float = 1.0,
    data_variance: float = 0.0,
) -> Table:
    """Replace a share of the implied noise by fresh noise.

    At eta = 1 a step draws from q(x_s | x_t, x_0) of the Markov chain, for any schedule; eta = 0 is
    `ddim`. That takes x̂_0 for known, so few steps lose spread. `data_variance` v adds the variance that
    x_0 has around x̂_0 if data are N(·, v): v σ_t² / (α_t² v + σ_t²). With v = 1 a step is exact for
    standard normal data, in any number of steps; for α² + σ² = 1 that is the larger of the two variances
    of Ho et al. 2020, sec. 3.2 (v = 0 is the smaller). Noise is then drawn in the last step too.
    Raises ValueError unless 0 ≤ eta ≤ 1 and 0 ≤ data_variance < ∞, or for a bad grid.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"need 0 <= eta <= 1, got eta={eta}")
    if not 0 <= data_variance < math.inf:
        raise ValueError(f"need a finite data_variance >= 0, got {data_variance}")
    check_grid(grid)
    alpha, sigma, log_snr = schedule.alpha(grid), schedule.sigma(grid), schedule.log_snr(grid)
    # fresh² = σ_s² (1 − SNR_t / SNR_s); expm1 keeps its digits when the step is short.
    renewed = -torch.expm1(log_snr[:-1] - log_snr[1:])
    a = sigma[1:] * (1 - eta**2 * renewed).sqrt() / sigma[:-1]
    b = alpha[1:] - alpha[:-1] * a
    alpha_t, sigma_t = alpha[:-1].square(), sigma[:-1].square()
    unknown = data_variance * sigma_t / (alpha_t * data_variance + sigma_t)
    e = (eta**2 * sigma[1:].square() * renewed + b.square() * unknown).sqrt()
    return memoryless(grid, a, b, e)


def euler(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Euler's method on the straight path from noise to data (`flows.straight`). First order.

    The path being straight for fixed x̂_0, this is `ddim` in other words, for every schedule; it exists so that
    flow-matching settings have their name, and a test holds the equality. Raises ValueError for a bad grid.
    """
    check_grid(grid)
    return memoryless(grid, *euler_rows(straight(schedule, grid)))


def angular(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Euler's method on the circle (`flows.circle`). First order, and exact where there is nothing to learn.

    For standard normal data nothing moves there and any number of steps gives samples of unit variance, while S steps
    of `ddim` shrink their deviation to cos(π / 2S)^S: .71 at S = 2, .86 at 8. So where data are nearly standard
    normal, such as whitened residuals, few steps keep their spread. Raises ValueError for a bad grid.
    """
    check_grid(grid)
    return memoryless(grid, *euler_rows(circle(schedule, grid)))


def renoised(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Go all the way to the data by one step of `angular`, then put fresh noise on; the last step puts none on.

    x_s = α_s (x̄_t − φ_t v) + σ_s ε: the sampler of a consistency model whose velocity is the mean over the rest of the
    circle (`distillation.py`). Exact for standard normal data with v = 0, in any number of steps.
    Raises ValueError for a bad grid.
    """
    check_grid(grid)
    flow = circle(schedule, grid)
    turn, k, m = (x[:-1] for x in (flow.clock, flow.k, flow.m))
    alpha, sigma = schedule.alpha(grid)[1:], schedule.sigma(grid)[1:]
    a = alpha / flow.scale[:-1] * (1 - turn * k / m)
    return memoryless(grid, a, alpha * turn / m, sigma)
