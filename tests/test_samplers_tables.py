"""Step tables against exact flows: order of convergence, variances, mode weights, Bayes' rule.

Oracles: data N(μ, v) has E[x_0 | x_t] = μ + α v (x_t − α μ) / (α² v + σ²), and its probability flow
keeps the standard score of x_t; a mixture of Gaussians has the responsibility-weighted mean of these.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config
from torch import Tensor

from samplers.grids import karras, log_snr_uniform, uniform
from samplers.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from samplers.noise import SeededNoise
from samplers.schedules import CosineSchedule, DiscreteSchedule, RectifiedSchedule, Schedule
from samplers.singlestep import dpmpp_2s, heun
from samplers.solve import solve
from samplers.tables import Table, ancestral, angular, ddim, euler, renoised

F64 = torch.float64
# A busy machine must not fail a property for being slow.
PROPERTY = settings(max_examples=30, deadline=None)
LINEAR = DiscreteSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64))
CONTINUOUS = [
    pytest.param(CosineSchedule(), id="cosine"),
    pytest.param(RectifiedSchedule(), id="rectified"),
]
SCHEDULES = [*CONTINUOUS, pytest.param(LINEAR, id="discrete")]


def heun_circle(schedule: Schedule, grid: Tensor) -> Table:
    return heun(schedule, grid, "circle")


def heun_exploding(schedule: Schedule, grid: Tensor) -> Table:
    return heun(schedule, grid, "exploding")


def unipc_1(schedule: Schedule, grid: Tensor) -> Table:
    return unipc(schedule, grid, 1)


def unipc_3(schedule: Schedule, grid: Tensor) -> Table:
    return unipc(schedule, grid, 3)


@dataclass(frozen=True)
class Mixture:
    """Σ_j w_j N(μ_j, v_j) in one dimension, elementwise; one component is a plain Gaussian."""

    schedule: Schedule
    weights: Tensor
    means: Tensor
    variances: Tensor

    @classmethod
    def of(cls, schedule: Schedule, *components: tuple[float, float, float]) -> "Mixture":
        return cls(schedule, *torch.tensor(components, dtype=F64).T)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The standard deviation of each component of x_t, and α."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return (alpha**2 * self.variances + sigma**2).sqrt(), alpha

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        scale, alpha = self.scales(t)
        score = (x_t[..., None] - alpha * self.means) / scale
        responsibility = torch.softmax(self.weights.log() - scale.log() - score**2 / 2, -1)
        component_mean = self.means + alpha * self.variances * score / scale
        return (responsibility * component_mean).sum(-1)

    def flow(self, x_t: Tensor, t: float, s: float) -> Tensor:
        """The exact probability flow from t to s; one component only."""
        scale_t, alpha_t = self.scales(torch.tensor(t, dtype=F64))
        scale_s, alpha_s = self.scales(torch.tensor(s, dtype=F64))
        return alpha_s * self.means + (x_t - alpha_t * self.means) * scale_s / scale_t


def orders(sampler, oracle: Mixture, start: float, end: float, counts: tuple[int, ...]) -> Tensor:
    """log2 of the error's fall from each step count to the next, its double."""
    x_1 = torch.tensor([[-1.7, -0.4], [0.3, 2.1]], dtype=F64)
    errors = []
    for count in counts:
        grid = torch.linspace(start, end, count + 1, dtype=F64)
        answer = solve(sampler(oracle.schedule, grid), oracle.denoise, x_1)
        errors.append((answer - oracle.flow(x_1, start, end)).abs().max())
    logs = torch.stack(errors).log2()
    return logs[:-1] - logs[1:]


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize("variance", [0.3, 2.0])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (ddim, 1),
        (euler, 1),
        (angular, 1),
        (dpmpp_2m, 2),
        (dpmpp_2s, 2),
        (heun, 2),
        (heun_circle, 2),
        (heun_exploding, 2),
        (unipc_1, 2),
        (unipc, 3),
    ],
)
def test_order_of_convergence(sampler, order: int, schedule: Schedule, variance: float) -> None:
    oracle = Mixture.of(schedule, (1.0, 0.7, variance))
    measured = orders(sampler, oracle, 0.95, 0.05, (160, 320, 640, 1280))
    torch.testing.assert_close(measured[-1].item(), float(order), rtol=0, atol=0.03)
    torch.testing.assert_close(
        measured, torch.full((3,), float(order), dtype=F64), rtol=0, atol=0.13
    )


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_unipc_of_third_order_is_of_fourth(schedule: Schedule) -> None:
    # Beyond 160 steps its error reaches that of float64.
    oracle = Mixture.of(schedule, (1.0, 0.7, 0.3))
    measured = orders(unipc_3, oracle, 0.95, 0.05, (80, 160, 320))
    torch.testing.assert_close(measured, torch.full((2,), 4.0, dtype=F64), rtol=0, atol=0.22)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_order_over_the_whole_road(schedule: Schedule) -> None:
    oracle = Mixture.of(schedule, (1.0, 0.7, 0.3))
    counts = (320, 640, 1280)
    first = orders(ddim, oracle, 1.0, 0.0, counts)
    torch.testing.assert_close(first, torch.ones(2, dtype=F64), rtol=0, atol=0.02)
    # With an infinite log-SNR at either end the extrapolation costs a logarithm: n^-2 log n.
    # Heun asks where the flow is smooth on both paths, so only its last step is of first order.
    for sampler in (heun, heun_circle):
        second = orders(sampler, oracle, 1.0, 0.0, counts)
        torch.testing.assert_close(second, torch.full((2,), 2.0, dtype=F64), rtol=0, atol=0.02)
    second = orders(dpmpp_2m, oracle, 1.0, 0.0, counts)
    log_n = torch.tensor(counts, dtype=F64).log().log2()
    torch.testing.assert_close(second, 2 - log_n.diff(), rtol=0, atol=0.12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid_of", [karras, log_snr_uniform, lambda n, schedule: uniform(n)])
def test_few_steps_of_second_order_beat_first(schedule: Schedule, grid_of) -> None:
    oracle = Mixture.of(schedule, (1.0, 0.7, 0.3))
    x_1 = torch.linspace(-2, 2, 9, dtype=F64)
    grid = grid_of(20, schedule)
    exact = oracle.flow(x_1, 1.0, 0.0)
    first, second = (
        (solve(sampler(schedule, grid), oracle.denoise, x_1) - exact).abs().max()
        for sampler in (ddim, dpmpp_2m)
    )
    assert second < first / 2


@st.composite
def falling_times(draw: st.DrawFn) -> Tensor:
    gaps = draw(st.lists(st.floats(0.05, 1), min_size=3, max_size=9))
    times = torch.tensor(gaps, dtype=F64).cumsum(0)
    lowest = draw(st.sampled_from([0.0, 0.01]))
    highest = draw(st.sampled_from([1.0, 0.99]))
    unit = (times - times[0]) / (times[-1] - times[0])
    grid = (lowest + (highest - lowest) * unit).flip(0)
    grid[0], grid[-1] = highest, lowest
    return grid


def tables_of(schedule: Schedule, grid: Tensor, eta: float) -> list[Table]:
    samplers = (ddim, dpmpp_2m, dpmpp_2m_sde, euler, unipc, unipc_3)
    return [*(sampler(schedule, grid) for sampler in samplers), ancestral(schedule, grid, eta)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@PROPERTY
@given(grid=falling_times(), eta=st.floats(0, 1))
def test_a_known_answer_keeps_its_marginals(schedule: Schedule, grid: Tensor, eta: float) -> None:
    # If the denoiser always says c, then x_t = α c + σ ε must give x_s = α_s c + σ_s ε': the mean
    # and the variance of every row follow.
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    for table in tables_of(schedule, grid, eta):
        mean = table.a * alpha[:-1] + table.b + table.d.sum(1)
        torch.testing.assert_close(mean, alpha[1:], rtol=0, atol=1e-12)
        variance = (table.a * sigma[:-1]) ** 2 + table.e**2
        torch.testing.assert_close(variance, sigma[1:] ** 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [heun, dpmpp_2s])
@PROPERTY
@given(grid=falling_times())
def test_two_evaluations_a_step_keep_the_marginals(
    sampler, schedule: Schedule, grid: Tensor
) -> None:
    table = sampler(schedule, grid)
    alpha = schedule.alpha(table.times)
    mean = table.a * alpha[:-1] + table.b + table.d.sum(1)
    torch.testing.assert_close(mean, alpha[1:], rtol=0, atol=1e-9)
    sigma = schedule.sigma(table.times)
    torch.testing.assert_close(table.a * sigma[:-1], sigma[1:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@PROPERTY
@given(grid=falling_times())
def test_named_limits(schedule: Schedule, grid: Tensor) -> None:
    first = ddim(schedule, grid)
    for other in (euler(schedule, grid), ancestral(schedule, grid, eta=0.0)):
        assert other.lags == 0
        for column in "abe":
            expected = getattr(first, column)
            torch.testing.assert_close(getattr(other, column), expected, rtol=1e-12, atol=1e-12)
        assert not other.is_stochastic
    for table in tables_of(schedule, grid, 1.0):
        last = [
            *(column[-1].item() for column in (table.a, table.b, table.e)),
            *table.d[-1].tolist(),
        ]
        assert (last == [0, 1, 0] + [0] * table.lags) == (grid[-1] == 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_rows_are_bayes_rule(schedule: Schedule) -> None:
    grid = torch.tensor([0.9, 0.6, 0.2, 0.01], dtype=F64)
    table = ancestral(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    for i in range(3):
        # Given x_0: x_s ~ N(α_s x_0, σ_s²), and x_t = (α_t / α_s) x_s + independent noise.
        ratio = alpha[i] / alpha[i + 1]
        gain = ratio * sigma[i + 1] ** 2 / sigma[i] ** 2
        torch.testing.assert_close(table.a[i], gain)
        torch.testing.assert_close(table.b[i], alpha[i + 1] - gain * alpha[i])
        variance = sigma[i + 1] ** 2 - gain * ratio * sigma[i + 1] ** 2
        torch.testing.assert_close(table.e[i] ** 2, variance)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_standard_normal_data_keep_their_spread(schedule: Schedule, num_steps: int) -> None:
    oracle = Mixture.of(schedule, (1.0, 0.0, 1.0))
    x_1 = torch.tensor([-1.7, 0.3, 2.1], dtype=F64)
    grid = uniform(num_steps)
    torch.testing.assert_close(solve(angular(schedule, grid), oracle.denoise, x_1), x_1)
    turns = torch.atan2(schedule.sigma(grid), schedule.alpha(grid)).diff()
    shrunk = solve(ddim(schedule, grid), oracle.denoise, x_1)
    torch.testing.assert_close(shrunk, turns.cos().prod() * x_1)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize("num_steps", [1, 2, 8])
@pytest.mark.parametrize("variance", [0.3, 1.0])
def test_ancestral_with_the_data_variance_is_exact(
    schedule, num_steps: int, variance: float
) -> None:
    oracle = Mixture.of(schedule, (1.0, 0.0, variance))
    table = ancestral(schedule, uniform(num_steps), data_variance=variance)
    var = torch.ones((), dtype=F64)
    for a, b, e, t in zip(table.a, table.b, table.e, table.times[:-1], strict=True):
        var = (a + b * oracle.denoise(torch.ones((), dtype=F64), t)) ** 2 * var + e**2
    torch.testing.assert_close(var.item(), variance)


def test_ancestral_refuses_a_bad_variance() -> None:
    with pytest.raises(ValueError, match="data_variance >= 0, got -1"):
        ancestral(CosineSchedule(), uniform(4), data_variance=-1.0)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_keeps_the_variance_of_a_gaussian(schedule: Schedule, eta: float) -> None:
    variance = 0.3
    oracle = Mixture.of(schedule, (1.0, 0.0, variance))

    def predicted(num_steps: int) -> float:
        # For a linear denoiser x̂_0 = k x_t a row maps the variance to (a + b k)² var + e².
        table = ancestral(schedule, uniform(num_steps), eta)
        var = torch.ones((), dtype=F64)
        for a, b, e, t in zip(table.a, table.b, table.e, table.times[:-1], strict=True):
            k = oracle.denoise(torch.ones((), dtype=F64), t)
            var = (a + b * k) ** 2 * var + e**2
        return var.item()

    num_items = 20_000
    noise = SeededNoise([5], (num_items,), dtype=F64)
    table = ancestral(schedule, uniform(40), eta)
    drawn = solve(table, oracle.denoise, noise.initial(), noise).var().item()
    # The relative standard error of a Gaussian's sample variance is sqrt(2 / n).
    assert abs(drawn / predicted(40) - 1) < 4 * (2 / num_items) ** 0.5
    # And the closed form itself tends to the data's variance, at first order.
    coarse, fine = predicted(200) - variance, predicted(400) - variance
    assert abs(fine) < 0.02 * variance
    torch.testing.assert_close(coarse / fine, 2.0, rtol=0, atol=0.1)


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize(
    "sampler",
    [
        ddim,
        dpmpp_2m,
        dpmpp_2m_sde,
        dpmpp_2s,
        unipc,
        euler,
        angular,
        heun,
        heun_circle,
        ancestral,
        lambda s, g: ancestral(s, g, 0.5),
    ],
)
def test_a_mixture_gets_its_weights_back(sampler, schedule: Schedule) -> None:
    oracle = Mixture.of(schedule, (0.15, -1.5, 0.01), (0.6, 0.2, 0.02), (0.25, 1.4, 0.01))
    num_items = 4_000
    noise = SeededNoise([11], (num_items,), dtype=F64)
    grid = log_snr_uniform(150, schedule)
    x_0 = solve(sampler(schedule, grid), oracle.denoise, noise.initial(), noise)
    mode = (x_0[..., None] - oracle.means).abs().argmin(-1)
    for j, weight in enumerate(oracle.weights.tolist()):
        share = (mode == j).double().mean().item()
        # Four binomial standard errors, and 0.003 for the discretisation.
        assert abs(share - weight) < 4 * (weight * (1 - weight) / num_items) ** 0.5 + 0.003
        inside = x_0[mode == j]
        torch.testing.assert_close(inside.mean(), oracle.means[j], rtol=0, atol=0.03)
        torch.testing.assert_close(inside.std(), oracle.variances[j].sqrt(), rtol=0.12, atol=0)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_bad_eta_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta={eta}"):
        ancestral(CosineSchedule(), uniform(4), eta)


@pytest.mark.parametrize(
    "sampler",
    [ddim, renoised, ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, euler, angular, heun, unipc],
)
def test_bad_grids_are_refused(sampler) -> None:
    for grid in ([0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.0], [2.0, 0.0]):
        with pytest.raises(ValueError, match="need"):
            sampler(CosineSchedule(), torch.tensor(grid, dtype=F64))


def moments(table: Table, oracle: Mixture, mean: float) -> tuple[float, float]:
    """Mean and variance after a table's rows, for a Gaussian and thus a denoiser k x_t + c."""
    (scale, _), zero = oracle.scales(table.times), torch.zeros((), dtype=F64)
    first, second = torch.tensor([mean, 0, 1], dtype=F64), torch.zeros(3, 3, dtype=F64)
    second[0, 0] = scale[0].squeeze() ** 2
    earlier = table.d.sum(1)
    for i, t in enumerate(table.times[:-1]):
        c = oracle.denoise(zero, t)
        k = oracle.denoise(zero + 1, t) - c
        # (x_t, x̂_0 of the row before, 1), whose first two are jointly Gaussian.
        step = torch.zeros(3, 3, dtype=F64)
        step[0] = torch.stack([table.a[i] + table.b[i] * k, earlier[i], table.b[i] * c])
        step[1, 0], step[1, 2], step[2, 2] = k, c, 1
        first, second = step @ first, step @ second @ step.T
        second[0, 0] += table.e[i] ** 2
    return first[0].item(), second[0, 0].item()


@pytest.mark.parametrize("schedule", CONTINUOUS)
@pytest.mark.parametrize(("sampler", "order"), [(ancestral, 1), (dpmpp_2m_sde, 2)])
def test_order_of_the_variance(sampler, order: int, schedule: Schedule) -> None:
    oracle = Mixture.of(schedule, (1.0, 0.7, 0.3))
    ends = torch.tensor([0.7, 0.4], dtype=F64)
    scale, alpha = oracle.scales(ends)
    errors = []
    for count in (80, 160, 320):
        table = sampler(schedule, torch.linspace(0.7, 0.4, count + 1, dtype=F64))
        mean, variance = moments(table, oracle, (alpha[0] * 0.7).item())
        # E[x_s | x_t] is linear in E[x_0 | x_t], so the mean is right at any number of steps.
        torch.testing.assert_close(mean, (alpha[1] * 0.7).item())
        errors.append(variance - scale[1].item() ** 2)
    measured = -torch.tensor(errors, dtype=F64).abs().log2().diff()
    torch.testing.assert_close(
        measured, torch.full((2,), float(order), dtype=F64), rtol=0, atol=0.01
    )


def test_heun_and_unipc_refuse() -> None:
    schedule, grid = CosineSchedule(), uniform(4)
    with pytest.raises(ValueError, match=r"alpha > 0 at the first time, got 0 at t=1\.0"):
        heun(schedule, grid, "exploding")
    with pytest.raises(ValueError, match="got order=4"):
        unipc(schedule, grid, 4)
    # Without the type checks of the test run, as for a user.
    config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="straight, exploding, circle, got 'bent'"):
            heun(schedule, grid, "bent")  # type: ignore[arg-type]
    finally:
        config.update("jaxtyping_disable", False)


def test_two_evaluations_at_one_time_are_two_rows() -> None:
    table = heun(RectifiedSchedule(), uniform(2))
    assert table.times.tolist() == [1.0, 0.5, 0.5, 0.0]
    assert (table.num_steps, table.lags, table.is_stochastic) == (3, 1, False)
    # x_m = (x_1 + x̂) / 2; then x_m + (v_m − v_1) (−1/2) / 2 with v = (x − x̂) / t: the answers' difference alone.
    assert table.a.tolist() == [0.5, 1.0, 0.0]
    assert table.b.tolist() == [0.5, 0.5, 1.0]
    assert table.d.flatten().tolist() == [0.0, -0.5, 0.0]


def test_a_table_checks_its_columns() -> None:
    zero, one = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    none = torch.zeros(2, 0, dtype=F64)
    with pytest.raises(ValueError, match=r"a \[S\] with S=2, got a of shape \(1,\)"):
        Table(uniform(2), one[:1], one[:1], none[:1], one[:1])
    # Without the type checks of the test run, as for a user.
    config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"got a of shape \(2, 3\)"):
            Table(uniform(2), torch.zeros(2, 3, dtype=F64), one, none, zero)
        with pytest.raises(ValueError, match=r"d \[S, lags\] with S=2, got d of shape \(2,\)"):
            Table(uniform(2), zero, one, zero, zero)
        with pytest.raises(ValueError, match=r"float64 coefficients, got b of torch\.float32"):
            Table(uniform(2), zero, one.float(), none, zero)
        with pytest.raises(ValueError, match=r"whole num_steps, got num_steps=2\.5"):
            uniform(2.5)  # type: ignore[arg-type]
    finally:
        config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="finite coefficients, got e"):
        Table(uniform(2), zero, one, none, one / 0)
    with pytest.raises(ValueError, match=r"d\[i, i:\] = 0"):
        Table(uniform(2), zero, one, one[:, None], zero)
    with pytest.raises(ValueError, match="never rise"):
        Table(uniform(2).flip(0), zero, one, none, zero)
    with pytest.raises(
        ValueError, match=r"at least 2 float64 times in one row, got torch.float64 of shape \(1,\)"
    ):
        Table(one[:1], zero[:0], zero[:0], none[:0], zero[:0])
