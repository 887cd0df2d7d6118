"""Schedules and grids against their definitions: identities, inverses, ends, refusals."""

import math
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config

from samplers.grids import check_grid, karras, log_snr_uniform, power, uniform
from samplers.schedules import CosineSchedule, DiscreteSchedule, RectifiedSchedule, Schedule

F64 = torch.float64
# A busy machine must not fail a property for being slow.
PROPERTY = settings(max_examples=30, deadline=None)
LINEAR = DiscreteSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64))
SCHEDULES = [
    pytest.param(CosineSchedule(), id="cosine"),
    pytest.param(RectifiedSchedule(), id="rectified"),
    pytest.param(LINEAR, id="discrete"),
]
unit_times = st.lists(st.floats(1e-3, 1 - 1e-3), min_size=1, max_size=5).map(
    lambda values: torch.tensor(values, dtype=F64)
)


@pytest.mark.parametrize("schedule", SCHEDULES)
@PROPERTY
@given(t=unit_times)
def test_log_snr_is_the_definition_and_has_its_inverse(schedule: Schedule, t: torch.Tensor) -> None:
    log_snr = schedule.log_snr(t)
    ratio = schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2
    torch.testing.assert_close(log_snr, ratio.log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.t_of_log_snr(log_snr), t, rtol=1e-9, atol=1e-12)


@PROPERTY
@given(t=unit_times)
def test_closed_forms(t: torch.Tensor) -> None:
    cosine, rectified = CosineSchedule(), RectifiedSchedule()
    torch.testing.assert_close(cosine.alpha(t), torch.cos(math.pi * t / 2), rtol=0, atol=1e-15)
    torch.testing.assert_close(cosine.sigma(t), torch.sin(math.pi * t / 2), rtol=0, atol=1e-15)
    assert torch.equal(rectified.alpha(t), 1 - t)
    assert torch.equal(rectified.sigma(t), t)
    for schedule in (cosine, LINEAR):
        power_of_x = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
        torch.testing.assert_close(power_of_x, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_data_end_is_exact_and_so_is_pure_noise(schedule: Schedule) -> None:
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    assert (schedule.alpha(zero), schedule.sigma(zero)) == (1, 0)
    assert schedule.log_snr(zero) == math.inf
    assert schedule.t_of_log_snr(torch.tensor([math.inf, -math.inf], dtype=F64)).tolist() == [0, 1]
    if not isinstance(schedule, DiscreteSchedule):
        assert (schedule.alpha(one), schedule.sigma(one)) == (0, 1)
        assert schedule.log_snr(one) == -math.inf


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(), (2,), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shape_and_dtype_are_kept(schedule: Schedule, shape: tuple, dtype: torch.dtype) -> None:
    t = torch.full(shape, 0.3, dtype=dtype)
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.t_of_log_snr):
        answer = method(t)
        assert (answer.shape, answer.dtype) == (t.shape, dtype)
        torch.testing.assert_close(answer.double(), method(t.double()), rtol=1e-5, atol=1e-6)


def test_discrete_schedule_is_diffusers_at_its_nodes() -> None:
    alphas_cumprod = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    schedule = DiscreteSchedule(alphas_cumprod)
    index = torch.arange(-1, 1000)
    t = schedule.time_of_index(index)
    assert torch.equal(schedule.index_of_time(t), index)
    assert torch.equal(schedule.index_of_time(t.float()), index)
    expected = torch.cat([torch.ones(1, dtype=F64), alphas_cumprod.double()])
    torch.testing.assert_close(schedule.alpha(t) ** 2, expected, rtol=1e-15, atol=0)
    halfway = schedule.alpha((t[1:] + t[:-1]) / 2) ** 2
    torch.testing.assert_close(halfway, (expected[1:] + expected[:-1]) / 2, rtol=1e-12, atol=0)
    linear = DDIMScheduler(beta_schedule="linear").alphas_cumprod.double()
    torch.testing.assert_close(LINEAR.alphas_cumprod, linear, rtol=1e-5, atol=0)


def test_zero_terminal_snr_is_allowed() -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    one = torch.ones((), dtype=F64)
    assert (schedule.alpha(one), schedule.sigma(one)) == (0, 1)
    assert schedule.log_snr(one) == -math.inf


@pytest.mark.parametrize("alphas", [[], [1.0, 0.5], [0.5, 0.5], [0.5, -0.1], [0.5, math.nan]])
def test_discrete_schedule_refuses(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        DiscreteSchedule(torch.tensor(alphas))


@pytest.mark.parametrize("schedule", SCHEDULES)
@PROPERTY
@given(num_steps=st.integers(1, 60))
def test_every_grid_falls_from_one_to_zero(schedule: Schedule, num_steps: int) -> None:
    for grid in (
        uniform(num_steps),
        power(num_steps, 2.5),
        log_snr_uniform(num_steps, schedule),
        karras(num_steps, schedule),
    ):
        check_grid(grid)
        assert grid.dtype == F64
        assert (len(grid), grid[0], grid[-1]) == (num_steps + 1, 1, 0)


def test_grids_are_what_they_say() -> None:
    assert uniform(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert power(4, 2.0).tolist() == [1, 0.5625, 0.25, 0.0625, 0]
    for schedule in (CosineSchedule(), RectifiedSchedule()):
        log_snr = schedule.log_snr(log_snr_uniform(9, schedule, low=-8.0, high=8.0))
        expected = torch.linspace(-6, 8, 8, dtype=F64)
        torch.testing.assert_close(log_snr[1:-1], expected, rtol=1e-9, atol=1e-9)
        # Karras et al. 2022, eq. 5, written as there.
        sigma = torch.exp(-schedule.log_snr(karras(9, schedule)) / 2)
        i = torch.arange(1, 9, dtype=F64)
        expected = (80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        torch.testing.assert_close(sigma[1:-1], expected, rtol=1e-9, atol=1e-9)


def test_bounds_beyond_the_schedule_are_drawn_in() -> None:
    # A discrete schedule ends at a finite log-SNR; a grid that asked for less must not fold there.
    start = LINEAR.log_snr(torch.ones((), dtype=F64)).item()
    grid = log_snr_uniform(5, LINEAR, low=-40.0, high=6.0)
    expected = torch.linspace(start, 6, 5, dtype=F64)
    torch.testing.assert_close(LINEAR.log_snr(grid)[:-1], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(karras(5, LINEAR, sigma_max=1e4), karras(5, LINEAR, sigma_max=1e6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(0), "num_steps=0"),
        (lambda: karras(-1, CosineSchedule()), "num_steps=-1"),
        (lambda: log_snr_uniform(0, CosineSchedule()), "num_steps=0"),
        (lambda: power(4, 0.0), "exponent=0.0"),
        (lambda: power(4, math.nan), "exponent=nan"),
        (lambda: log_snr_uniform(4, CosineSchedule(), low=3.0, high=3.0), "low=3.0, high=3.0"),
        (lambda: log_snr_uniform(4, CosineSchedule(), high=math.inf), "high=inf"),
        (lambda: karras(4, CosineSchedule(), sigma_min=0.0), "sigma_min=0.0"),
        (lambda: karras(4, CosineSchedule(), sigma_max=math.nan), "sigma_max=nan"),
        (lambda: karras(4, CosineSchedule(), rho=0.0), "rho=0.0"),
        (lambda: karras(4, LINEAR, sigma_min=1e3, sigma_max=1e4), "sigma_min=1000.0"),
        (lambda: check_grid(torch.ones(1, dtype=F64)), "got 1"),
        (lambda: check_grid(torch.tensor([0.0, 1.0], dtype=F64)), "fall strictly"),
        (lambda: check_grid(torch.tensor([1.0, 0.5, 0.5], dtype=F64)), "fall strictly"),
        (lambda: check_grid(torch.tensor([1.5, 0.0], dtype=F64)), "fall strictly"),
        (lambda: check_grid(torch.tensor([1.0, math.nan], dtype=F64)), "fall strictly"),
    ],
)
def test_bad_grids_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("grid", [torch.linspace(1, 0, 5), torch.ones(2, 3, dtype=F64)])
def test_a_grid_of_another_type_is_refused(grid: torch.Tensor) -> None:
    # Without the type checks of the test run, as for a user.
    config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="float64 times in one row"):
            check_grid(grid)
    finally:
        config.update("jaxtyping_disable", False)


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, samplers; assert 'torch' not in sys.modules; print(samplers.__distribution__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "diffusion4d"
