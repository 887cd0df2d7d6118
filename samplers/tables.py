r"""A sampler is a table: one row of coefficients a step, worked out once, in float64.

    x_s = a x_t + b x̂_0 + d x̂_0,prev + e ε,    x̂_0 = denoise(x_t, t),    ε ~ N(0, I)

with x̂_0,prev the denoiser's answer one step earlier. Predicting ε, v or a velocity changes nothing
here: those are linear in (x_t, x̂_0), see predictions.py.

    ddim        order 1, deterministic   Song et al. 2021a, eq. 12 with no noise
    ancestral   stochastic               Song et al. 2021a, eq. 16; η = 1 is Ho et al. 2020, eq. 7
    dpmpp_2m    order 2, deterministic   Lu et al. 2022 (DPM-Solver++), algorithm 2
    euler       order 1, deterministic   Euler on the straight path (Liu et al. 2023)
    angular     order 1, deterministic   Euler on the circle (velocity of Salimans & Ho 2022)

A step to t = 0 has a = d = e = 0 and b = 1: it returns the denoiser's answer. Only `angular` keeps a little of x_t.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.grids import check_grid
from samplers.schedules import Schedule


@dataclass(frozen=True, eq=False)
class Table:
    """Coefficients of S steps through S + 1 times, all float64.

    times: `[S+1]`, strictly falling within [0, 1]; step i goes from times[i] to times[i + 1].
    a, b, d, e: `[S]`, the weights of x_t, x̂_0, the previous x̂_0, and fresh noise. d[0] is 0.
    Raises ValueError for a bad grid or coefficients that are not finite.
    """

    times: Float64[Tensor, "times"]
    a: Float64[Tensor, "steps"]
    b: Float64[Tensor, "steps"]
    d: Float64[Tensor, "steps"]
    e: Float64[Tensor, "steps"]

    def __post_init__(self) -> None:
        check_grid(self.times)
        for name in ("a", "b", "d", "e"):
            column = getattr(self, name)
            if len(column) != self.num_steps:
                raise ValueError(
                    f"need one coefficient a step, got {name} of length {len(column)} "
                    f"for {self.num_steps} steps"
                )
            if not bool(column.isfinite().all()):
                raise ValueError(f"need finite coefficients, got {name}={column.tolist()}")
        if self.d[0] != 0:
            raise ValueError(f"the first step has no step before it: need d[0]=0, got {self.d[0]}")

    @property
    def num_steps(self) -> int:
        """The number of denoiser evaluations, too: one a step."""
        return len(self.times) - 1

    @property
    def is_stochastic(self) -> bool:
        return bool((self.e != 0).any())


def ddim(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Keep the noise that x_t and x̂_0 imply, at its new scale. First order.

    x_s = α_s x̂_0 + σ_s (x_t − α_t x̂_0) / σ_t. Raises ValueError for a bad grid.
    """
    check_grid(grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    a = sigma[1:] / sigma[:-1]
    b = alpha[1:] - alpha[:-1] * a
    return Table(grid, a, b, torch.zeros_like(a), torch.zeros_like(a))


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
    return Table(grid, a, b, torch.zeros_like(a), e)


def dpmpp_2m(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Extrapolate x̂_0 linearly in λ = log(α / σ) from the last two answers. Second order.

    With h = λ_s − λ_t and r = h_prev / h:
    x_s = (σ_s / σ_t) x_t + α_s (1 − e^{−h}) ((1 + 1/2r) x̂_0 − (1/2r) x̂_0,prev).
    Where λ is infinite there is nothing to extrapolate along, and the step is first order (`ddim`):
    the first, one that follows a start from pure noise, and one that ends at the data. On a uniform
    grid from such a start to the data the measured error falls as log S / S².
    Raises ValueError for a bad grid.
    """
    first_order = ddim(schedule, grid)
    log_snr = schedule.log_snr(grid)
    extrapolation = [0.0]
    for h_prev, h in itertools.pairwise((log_snr.diff() / 2).tolist()):
        finite = math.isfinite(h) and math.isfinite(h_prev)
        extrapolation.append(h / (2 * h_prev) if finite else 0.0)
    weight = torch.tensor(extrapolation, dtype=torch.float64)
    # first_order.b is α_s (1 − e^{−h}) written without λ, so it holds at the ends as well.
    b, d = first_order.b * (1 + weight), -first_order.b * weight
    return Table(grid, first_order.a, b, d, torch.zeros_like(b))


def euler(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Euler's method on the straight path from noise to data. First order.

    x / (α + σ) runs along the straight path at time r = σ / (α + σ), where the flow has velocity
    (x − x̂_0) / r; on the rectified schedule r = t. The path being straight for fixed x̂_0, this is
    `ddim` in other words, for every schedule; it exists so that flow-matching settings have their
    name, and a test holds the equality. Raises ValueError for a bad grid.
    """
    check_grid(grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    scale = alpha + sigma
    r = sigma / scale
    velocity_step = r.diff() / r[:-1]
    a = scale[1:] / scale[:-1] * (1 + velocity_step)
    b = -scale[1:] * velocity_step
    return Table(grid, a, b, torch.zeros_like(a), torch.zeros_like(a))


def angular(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """Euler's method on the circle from noise to data. First order, and exact where there is nothing to learn.

    With φ = atan2(σ, α), x̄ = x / sqrt(α² + σ²) turns with velocity v = dx̄/dφ = (cos φ x̄ − x̂_0) / sin φ
    (Salimans & Ho 2022, appendix D), and a step is x̄_s = x̄_t − (φ_t − φ_s) v. For standard normal data v = 0
    and any number of steps gives samples of unit variance, while S steps of `ddim` shrink their deviation to
    cos(π / 2S)^S: .71 at S = 2, .86 at 8. So where data are nearly standard normal, such as whitened residuals,
    few steps keep their spread. Raises ValueError for a bad grid.
    """
    check_grid(grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    scale = torch.hypot(alpha, sigma)
    turn = -torch.atan2(sigma, alpha).diff()
    cos, sin = (alpha / scale)[:-1], (sigma / scale)[:-1]
    a = scale[1:] / scale[:-1] * (1 - turn * cos / sin)
    b = scale[1:] * turn / sin
    return Table(grid, a, b, torch.zeros_like(a), torch.zeros_like(a))
