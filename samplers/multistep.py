r"""Tables that use earlier answers: multistep methods in λ = log(α / σ).

With the answer held fixed the flow is solved exactly: a step t → s of length h = λ_s − λ_t gives
(σ_s / σ_t) x_t + α_s (1 − e^{−h}) x̂_0, which is `ddim`. Higher orders put a polynomial through the last answers in
place of the fixed one. Where λ is infinite (pure noise, the data) there is nothing to lay a polynomial along: the first
step, one that leaves pure noise, one that follows it and one that ends at the data are of first order, as are their
corrections. On a uniform grid from pure noise to the data the measured error of dpmpp_2m falls as log S / S².
"""

import itertools
import math

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.grids import check_grid
from samplers.schedules import Schedule
from samplers.tables import Table, ancestral, ddim


def dpmpp_2m(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """DPM-Solver++(2M): x̂_0 extrapolated linearly in λ to the middle of the step. Second order.

    With r = h_prev / h: x_s = (σ_s / σ_t) x_t + α_s (1 − e^{−h}) ((1 + 1/2r) x̂_0 − (1/2r) x̂_0,prev), Lu et al. 2022,
    algorithm 2. Raises ValueError for a bad grid.
    """
    return _extrapolated(ddim(schedule, grid), schedule)


def dpmpp_2m_sde(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """SDE-DPM-Solver++(2M): the same extrapolation in a step of `ancestral`, Lu et al. 2022, eq. 18.

    Its mean is of second order; its noise is that of the Markov chain, as `ancestral` has it. Raises ValueError for a
    bad grid.
    """
    return _extrapolated(ancestral(schedule, grid), schedule)


def _extrapolated(first_order: Table, schedule: Schedule) -> Table:
    log_snr = schedule.log_snr(first_order.times)
    weights = [0.0]
    for h_prev, h in itertools.pairwise((log_snr.diff() / 2).tolist()):
        finite = math.isfinite(h) and math.isfinite(h_prev)
        weights.append(h / (2 * h_prev) if finite else 0.0)
    weight = torch.tensor(weights, dtype=torch.float64)
    # first_order.b holds the factor of x̂_0 written without λ, so it is right at the ends as well.
    b, d = first_order.b * (1 + weight), -first_order.b * weight
    return Table(first_order.times, first_order.a, b, d[:, None], first_order.e)


def unipc(schedule: Schedule, grid: Float64[Tensor, "times"], order: int = 2) -> Table:
    """UniPC-p with B(h) = e^h − 1, a predictor and a corrector for one evaluation a step. Order p + 1.

    The answer at t_i both corrects the step that led there and predicts the next one:

        x_i^c   = x_i − α_i B Σ_k w_k (x̂_{i−k} − x̂_{i−1})        k = 0, 2, 3, …
        x_{i+1} = (σ_{i+1} / σ_i) x_i^c + α_{i+1} (1 − e^{−h}) x̂_i − α_{i+1} B Σ_k v_k (x̂_{i−k} − x̂_i)

    with weights that make polynomials up to degree p exact (Zhao et al. 2023, eq. 3 and 9). Corrected and predicted x
    start from the same x, so they differ by answers alone, and the two lines together are one row. Raises ValueError
    for a bad grid or an order outside 1 … 3.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"need an order out of 1, 2, 3, got order={order}")
    check_grid(grid)
    first_order = ddim(schedule, grid)
    alpha, lambdas = schedule.alpha(grid).tolist(), (schedule.log_snr(grid) / 2).tolist()
    S = len(grid) - 1
    # Row i's weights of x̂_i, x̂_{i−1}, …; the correction reaches one answer further back than the predictor.
    weights = torch.zeros(S, order + 1, dtype=torch.float64)
    weights[:, 0] = first_order.b
    a = first_order.a
    num_points = 0
    step: _Step | None = None
    for i in range(S):
        if step is not None:
            weights[i, : order + 1] += a[i] * step.correction(order + 1)
        finite = math.isfinite(lambdas[i]) and math.isfinite(lambdas[i + 1])
        # Answers at finite λ so far, this one included, are what a polynomial may pass through.
        num_points = num_points + 1 if math.isfinite(lambdas[i]) else 0
        step = None
        if finite:
            p = min(order, num_points)
            step = _Step(alpha[i + 1], lambdas[i + 1], lambdas[i - p + 1 : i + 1][::-1])
            weights[i, : order + 1] += step.prediction(order + 1)
    return Table(grid, a, weights[:, 0], weights[:, 1:], torch.zeros_like(a))


class _Step:
    """What UniPC-p adds to the first-order step to λ_s, in weights of answers; `lambdas` are λ_t, then earlier ones."""

    def __init__(self, alpha_s: float, lambda_s: float, lambdas: list[float]) -> None:
        h = lambda_s - lambdas[0]
        self.ratios = [(earlier - lambdas[0]) / h for earlier in lambdas[1:]]
        self.factor = -alpha_s * math.expm1(-h)
        # φ_{k+1}(−h) k! / B, the moments that the weights have to meet.
        p = len(lambdas)
        nodes = torch.tensor([*self.ratios, 1.0], dtype=torch.float64)
        self.system = torch.stack([nodes**k for k in range(p)])
        phi, moments = math.expm1(-h) / -h - 1, []
        for k in range(1, p + 1):
            moments.append(phi * math.factorial(k) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(k + 1)
        self.moments = torch.tensor(moments, dtype=torch.float64)

    def _predictor(self) -> list[float]:
        if len(self.ratios) == 1:
            return [0.5]
        size = len(self.ratios)
        return torch.linalg.solve(self.system[:size, :size], self.moments[:size]).tolist()

    def _corrector(self) -> list[float]:
        if not self.ratios:
            return [0.5]
        return torch.linalg.solve(self.system, self.moments).tolist()

    def prediction(self, size: int) -> Float64[Tensor, "{size}"]:
        """Seen from the row that takes the step: weights of x̂_i, x̂_{i−1}, …"""
        weights = torch.zeros(size, dtype=torch.float64)
        for k, (rho, ratio) in enumerate(zip(self._predictor(), self.ratios, strict=True), 1):
            weights[k] += self.factor * rho / ratio
            weights[0] -= self.factor * rho / ratio
        return weights

    def correction(self, size: int) -> Float64[Tensor, "{size}"]:
        """Seen from the row after it, whose answer is x̂_i: corrected less predicted x."""
        *earlier, arrived = self._corrector()
        weights = torch.zeros(size, dtype=torch.float64)
        weights[:2] += self.factor * arrived * torch.tensor([1.0, -1.0], dtype=torch.float64)
        old = self._predictor()
        for k, (new, rho, ratio) in enumerate(zip(earlier, old, self.ratios, strict=True), 2):
            weights[k] += self.factor * (new - rho) / ratio
            weights[1] -= self.factor * (new - rho) / ratio
        return weights
