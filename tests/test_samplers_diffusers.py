"""A step table on diffusers' own schedule and time steps gives diffusers' own answer."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from samplers.grids import uniform
from samplers.guidance import corrected
from samplers.multistep import dpmpp_2m
from samplers.noise import SeededNoise
from samplers.predictions import Kind, from_prediction
from samplers.schedules import DiscreteSchedule, RectifiedSchedule
from samplers.solve import Denoise, solve
from samplers.tables import ancestral, ddim, euler

# diffusers hands torch tensors to np.array; its arithmetic is what matters here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

F64 = torch.float64
KINDS: list[Kind] = ["epsilon", "sample", "v_prediction"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISE = SeededNoise([1, 2, 3], (5, 3), dtype=F64)


class Network:
    """A toy trained on discrete steps: a nonlinear x̂_0, answered as `kind`, written out by hand."""

    def __init__(self, schedule: DiscreteSchedule, kind: Kind) -> None:
        self.schedule, self.kind = schedule, kind

    def __call__(self, x_t: Tensor, index: Tensor) -> Tensor:
        alpha_squared = self.schedule.alphas_cumprod[int(index)]
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        x_0 = 0.8 * torch.tanh(1.5 * x_t) + 0.1 * torch.cos(x_t.flip(-1)) + index / 5000
        noise = (x_t - alpha * x_0) / sigma
        return {"epsilon": noise, "sample": x_0, "v_prediction": alpha * noise - sigma * x_0}[
            self.kind
        ]

    def denoiser(self) -> Denoise:
        return from_prediction(self.schedule, self.kind)(
            lambda x_t, t: self(x_t, self.schedule.index_of_time(t))
        )


def grid_of(schedule: DiscreteSchedule, timesteps: Tensor) -> Tensor:
    """diffusers' integer time steps, then clean data."""
    return schedule.time_of_index(torch.cat([timesteps.long(), torch.tensor([-1])]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(kind: Kind, spacing: str) -> None:
    scheduler = DDIMScheduler(
        **BETAS, prediction_type=kind, timestep_spacing=spacing, clip_sample=False
    )
    # diffusers takes the step before to be 1000 // S earlier, which is where trailing steps lie only
    # for S that divide 1000.
    scheduler.set_timesteps(10)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    network = Network(schedule, kind)
    expected = NOISE.initial()
    for index in scheduler.timesteps:
        expected = scheduler.step(network(expected, index), index, expected).prev_sample
    table = ddim(schedule, grid_of(schedule, scheduler.timesteps))
    answer = solve(table, network.denoiser(), NOISE.initial())
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ancestral_is_ddim_with_eta(kind: Kind, eta: float) -> None:
    scheduler = DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(12)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    network = Network(schedule, kind)
    expected = NOISE.initial()
    for step, index in enumerate(scheduler.timesteps):
        expected = scheduler.step(
            network(expected, index), index, expected, eta=eta, variance_noise=NOISE.at(step)
        ).prev_sample
    table = ancestral(schedule, grid_of(schedule, scheduler.timesteps), eta)
    answer = solve(table, network.denoiser(), NOISE.initial(), NOISE)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


def test_ancestral_has_the_mean_and_variance_of_ddpm() -> None:
    scheduler = DDPMScheduler(**BETAS, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(12)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    table = ancestral(schedule, grid_of(schedule, scheduler.timesteps))
    for step, index in enumerate(scheduler.timesteps[:-1]):
        variance = scheduler._get_variance(index)
        torch.testing.assert_close(table.e[step] ** 2, variance.double(), rtol=1e-4, atol=1e-6)
    # At its last step diffusers adds no noise, and neither does the table.
    assert table.e[-1] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [8, 20])
def test_dpmpp_2m(kind: Kind, num_steps: int) -> None:
    # 8 and 20 lie on either side of diffusers' "fewer than 15 steps" rule for the last step.
    scheduler = DPMSolverMultistepScheduler(
        **BETAS, prediction_type=kind, algorithm_type="dpmsolver++", solver_type="midpoint"
    )
    scheduler.set_timesteps(num_steps)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    network = Network(schedule, kind)
    expected = NOISE.initial()
    for index in scheduler.timesteps:
        expected = scheduler.step(network(expected, index), index, expected).prev_sample
    table = dpmpp_2m(schedule, grid_of(schedule, scheduler.timesteps))
    answer = solve(table, network.denoiser(), NOISE.initial())
    assert table.d[1:-1].max() < 0  # every inner step extrapolates
    torch.testing.assert_close(answer, expected.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_euler_discrete(kind: Kind) -> None:
    scheduler = EulerDiscreteScheduler(**BETAS, prediction_type=kind)
    # Ten steps over 0 … 999 are whole numbers, 111 apart.
    scheduler.set_timesteps(10)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    network = Network(schedule, kind)
    grid = grid_of(schedule, scheduler.timesteps)
    # diffusers walks x / α, so that its noise level is σ / α.
    expected = NOISE.initial() / schedule.alpha(grid[0])
    for index in scheduler.timesteps:
        x_t = scheduler.scale_model_input(expected, index)
        expected = scheduler.step(network(x_t, index), index, expected).prev_sample
    answer = solve(euler(schedule, grid), network.denoiser(), NOISE.initial())
    torch.testing.assert_close(answer, expected.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", [euler, ddim])
def test_flow_match_euler(sampler) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    num_steps = 9
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps).tolist())

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * x_t) + x_t.flip(-1) * t - 0.3

    expected = NOISE.initial()
    for index in scheduler.timesteps:
        output = velocity(expected, index.double() / 1000)
        expected = scheduler.step(output, index, expected).prev_sample
    schedule = RectifiedSchedule()
    denoise = from_prediction(schedule, "flow_prediction")(velocity)
    answer = solve(sampler(schedule, uniform(num_steps)), denoise, NOISE.initial())
    torch.testing.assert_close(answer, expected.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "total", "mean"), [("epsilon", 172.0067, 0.223967), ("v_prediction", 52.5302, 0.0684)]
)
def test_the_sums_of_diffusers_own_ddim_test(kind: Kind, total: float, mean: float) -> None:
    schedule = DiscreteSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64))
    sample = (torch.arange(768, dtype=F64).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        index = schedule.index_of_time(t)
        return x_t * index / (index + 1)

    grid = schedule.time_of_index(torch.tensor([*range(900, -1, -100), -1]))
    denoise = corrected(from_prediction(schedule, kind)(network), lambda x_0: x_0.clamp(-1, 1))
    answer = solve(ddim(schedule, grid), denoise, sample)
    assert abs(answer.abs().sum().item() - total) < 1e-2
    assert abs(answer.abs().mean().item() - mean) < 1e-3
