"""Any denoise(x_t, t) will do: a mixture of slanted Gaussians in the plane, whose denoiser is Bayes' rule.

x_t of component j is N(α μ_j, α² Σ_j + σ² I), so E[x_0 | x_t, j] = μ_j + α Σ_j (α² Σ_j + σ² I)⁻¹ (x_t − α μ_j).
"""

import pytest
import torch
from torch import Tensor

from samplers.grids import log_snr_uniform
from samplers.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from samplers.noise import SeededNoise
from samplers.schedules import CosineSchedule, RectifiedSchedule, Schedule
from samplers.singlestep import dpmpp_2s, heun
from samplers.solve import Denoise, solve
from samplers.tables import ancestral, ddim

F64 = torch.float64
WEIGHTS = torch.tensor([0.55, 0.15, 0.3], dtype=F64)
MEANS = torch.tensor([[0.0, 1.4], [-1.3, -0.6], [1.2, -0.9]], dtype=F64)
COVARIANCES = torch.tensor(
    [[[0.09, 0.04], [0.04, 0.03]], [[0.02, 0.0], [0.0, 0.06]], [[0.04, -0.03], [-0.03, 0.05]]],
    dtype=F64,
)
SAMPLES = 4000


def mixture(schedule: Schedule) -> Denoise:
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        spread = alpha**2 * COVARIANCES + sigma**2 * torch.eye(2, dtype=F64)
        off = x_t[..., None, :] - alpha * MEANS
        solved = torch.linalg.solve(spread, off[..., None])[..., 0]
        likely = WEIGHTS.log() - spread.logdet() / 2 - (off * solved).sum(-1) / 2
        posterior = MEANS + alpha * (COVARIANCES @ solved[..., None])[..., 0]
        return (torch.softmax(likely, -1)[..., None] * posterior).sum(-2)

    return denoise


@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedSchedule()])
@pytest.mark.parametrize(
    "sampler", [ddim, ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, unipc, heun]
)
def test_weights_means_and_covariances_come_back(sampler, schedule: Schedule) -> None:
    noise = SeededNoise([5], (SAMPLES, 2), dtype=F64)
    first_order = sampler in (ddim, ancestral)
    table = sampler(schedule, log_snr_uniform(120 if first_order else 40, schedule))
    x_0 = solve(table, mixture(schedule), noise.initial(), noise).squeeze(0)
    component = torch.cdist(x_0, MEANS).argmin(1)
    for j, weight in enumerate(WEIGHTS.tolist()):
        inside = x_0[component == j]
        # Four standard errors of a share, of a mean and of a covariance, and a little for the steps.
        error = 4 * (weight * (1 - weight) / SAMPLES) ** 0.5 + 0.003
        assert abs(len(inside) / SAMPLES - weight) < error
        deviation = COVARIANCES[j].diagonal().sqrt()
        assert ((inside.mean(0) - MEANS[j]).abs() < 5 * deviation / len(inside) ** 0.5).all()
        allowed = 6 * torch.outer(deviation, deviation) * (2 / len(inside)) ** 0.5
        assert ((inside.T.cov() - COVARIANCES[j]).abs() < allowed).all()
