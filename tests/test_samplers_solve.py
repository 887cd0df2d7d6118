"""The loop, its noise, and guidance: reproducible, counted, and equal to the algebra."""

import contextlib
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config
from torch import Tensor

from samplers.grids import uniform
from samplers.guidance import cfg, corrected, descended, weighted
from samplers.kernels.update import Backend
from samplers.multistep import dpmpp_2m, unipc
from samplers.noise import SeededNoise
from samplers.predictions import Kind, from_prediction, target, to_x_0
from samplers.schedules import CosineSchedule, RectifiedSchedule, Schedule
from samplers.solve import Denoise, solve
from samplers.tables import Table, ancestral, ddim

F64 = torch.float64
# A busy machine must not fail a property for being slow.
PROPERTY = settings(max_examples=30, deadline=None)
KINDS: list[Kind] = ["sample", "epsilon", "v_prediction", "flow_prediction"]
seeds = st.integers(0, 2**63 - 1)


@contextlib.contextmanager
def untyped() -> Iterator[None]:
    """Without the type checks of the test run, as for a user."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


class Counted:
    """A denoiser that remembers the times at which it was asked."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.times: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        return torch.tanh(self.gain * x_t) + t


@PROPERTY
@given(seed=seeds, others=st.lists(seeds, max_size=3), step=st.integers(0, 1000))
def test_a_seed_is_alone_whatever_its_batch_mates(seed: int, others: list, step: int) -> None:
    alone, together = SeededNoise([seed], (3, 2)), SeededNoise([*others, seed], (3, 2))
    assert torch.equal(alone.initial()[0], together.initial()[-1])
    assert torch.equal(alone.at(step)[0], together.at(step)[-1])


@pytest.mark.parametrize("sampler", [ancestral, dpmpp_2m])
def test_a_hypothesis_is_alone_through_the_whole_loop(sampler) -> None:
    table = sampler(CosineSchedule(), uniform(5))

    def run(seeds: list[int]) -> Tensor:
        noise = SeededNoise(seeds, (7, 3))
        return solve(table, Counted(1.5), noise.initial(), noise)

    answer = run([3, 7])
    assert torch.equal(run([7])[0], answer[1])
    assert torch.equal(run([7, 5, 3])[2], answer[0])
    assert torch.equal(run([3, 7]), answer)
    assert not torch.equal(answer[0], answer[1])


def test_streams_are_separate_and_standard_normal() -> None:
    count = 20_000
    first, second = SeededNoise([0], (count,), dtype=F64), SeededNoise([1], (count,), dtype=F64)
    # Seeds that agree in their low 32 bits are different seeds.
    far = SeededNoise([2**32], (count,), dtype=F64)
    streams = [first.initial(), first.at(0), first.at(1), second.initial(), second.at(0)]
    streams = torch.cat([*streams, far.initial()])
    deviation = torch.corrcoef(streams) - torch.eye(6, dtype=F64)
    assert deviation.abs().max() < 4.5 / math.sqrt(count)
    assert streams.mean(1).abs().max() < 4 / math.sqrt(count)
    assert (streams.var(1) - 1).abs().max() < 4 * math.sqrt(2 / count)
    assert (streams.pow(4).mean(1) - 3).abs().max() < 4 * math.sqrt(96 / count)


def test_noise_does_not_depend_on_the_order_of_calls_or_on_precision() -> None:
    noise = SeededNoise([7, 8], (2, 3), dtype=F64)
    late, early = noise.at(5), noise.at(1)
    again = SeededNoise([7, 8], (2, 3), dtype=F64)
    assert torch.equal(again.at(1), early)
    assert torch.equal(again.at(5), late)
    single = SeededNoise([7, 8], (2, 3))
    assert single.at(5).dtype == torch.float32
    assert torch.equal(single.at(5), late.float())
    assert SeededNoise([7], ()).initial().shape == (1,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeededNoise([], (2,)), "at least one seed"),
        (lambda: SeededNoise([3, -1], (2,)), r"got \[3, -1\]"),
        (lambda: SeededNoise([1.5], (2,)), r"need integer seeds, got \[1.5\]"),
        (lambda: SeededNoise([3], (2,)).at(-1), "step=-1"),
    ],
)
def test_bad_seeds_are_refused(make, message: str) -> None:
    with untyped(), pytest.raises(ValueError, match=message):
        make()


def test_any_integers_are_seeds() -> None:
    expected = SeededNoise([3, 7], (2,)).initial()
    for seeds in (np.array([3, 7]), torch.tensor([3, 7])):
        with untyped():
            assert torch.equal(SeededNoise(seeds, (2,)).initial(), expected)  # type: ignore[arg-type]


def test_the_loop_is_its_formula() -> None:
    a, b, e = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.9, 1], [0.5, 0, 0.6]], dtype=F64)
    d = torch.tensor([[0, 0], [-0.3, 0], [0.2, 0.7]], dtype=F64)
    table = Table(uniform(3), a, b, d, e)
    noise = SeededNoise([4, 9], (2,), dtype=F64)
    denoise = Counted(0.8)
    x, answers = noise.initial(), [torch.zeros(2, 2, dtype=F64)] * 2
    for i in range(3):
        x_0 = torch.tanh(0.8 * x) + table.times[i]
        x = (
            a[i] * x
            + b[i] * x_0
            + d[i, 0] * answers[-1]
            + d[i, 1] * answers[-2]
            + e[i] * noise.at(i)
        )
        answers.append(x_0)
    seen: list[tuple[int, int]] = []
    answer = solve(table, denoise, noise.initial(), noise, lambda *done: seen.append(done))
    torch.testing.assert_close(answer, x, rtol=1e-14, atol=1e-14)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(torch.stack(denoise.times), uniform(3)[:-1])


@pytest.mark.parametrize(
    ("dtype", "time_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)],
)
def test_precision_is_that_of_the_sample(dtype: torch.dtype, time_dtype: torch.dtype) -> None:
    noise = SeededNoise([1], (4, 3), dtype=dtype)
    times: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return torch.tanh(x_t)

    table = ancestral(CosineSchedule(), uniform(3))
    answer = solve(table, denoise, noise.initial(), noise)
    assert answer.dtype == dtype
    assert {t.dtype for t in times} == {time_dtype}
    reference = SeededNoise([1], (4, 3), dtype=F64)
    expected = solve(table, denoise, reference.initial(), reference)
    torch.testing.assert_close(answer.double(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_gradients_flow_through_all_steps_and_the_input_stays() -> None:
    x_1 = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    before = x_1.clone()
    gain = torch.ones(3, dtype=F64, requires_grad=True)
    table = ddim(CosineSchedule(), uniform(2))
    solve(table, lambda x_t, t: gain * x_t, x_1).sum().backward()
    assert torch.equal(x_1, before)
    # x_0 = prod_i (a_i + b_i g) x_1, differentiated by the product rule at g = 1.
    factors = (table.a + table.b).tolist()
    slope = table.b[0] * factors[1] + table.b[1] * factors[0]
    torch.testing.assert_close(gain.grad, slope * x_1.sum(0))
    with torch.no_grad():
        assert not solve(table, lambda x_t, t: gain * x_t, x_1).requires_grad


def test_the_loop_refuses() -> None:
    schedule, x_1 = CosineSchedule(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="need noise, got None"):
        solve(ancestral(schedule, uniform(3)), Counted(1.0), x_1)
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(3,\)"):
        solve(ddim(schedule, uniform(3)), lambda x_t, t: x_t[0], x_1)
    for answer, message in (
        (None, "must return a tensor, got NoneType"),
        (0.5, "must return a tensor, got float"),
        (torch.zeros(2, 3, dtype=torch.int64), "floating-point tensor, got torch.int64"),
    ):
        with untyped(), pytest.raises(ValueError, match=message):
            solve(ddim(schedule, uniform(3)), lambda x_t, t, a=answer: a, x_1)  # type: ignore[arg-type]
    with untyped(), pytest.raises(ValueError, match=r"floating-point x_1, got torch\.int64"):
        solve(ddim(schedule, uniform(3)), Counted(1.0), x_1.long())


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize(
    "noise", [SeededNoise([1], (2,)), SeededNoise(range(5), (1,)), SeededNoise([1, 2], (5, 2))]
)
def test_items_never_share_a_draw(noise: SeededNoise, backend: Backend) -> None:
    table = ancestral(CosineSchedule(), uniform(4))
    got = re.escape(str((len(noise.seeds), *noise.shape)))
    with pytest.raises(ValueError, match=rf"need noise of the shape \(5, 2\), got {got}"):
        solve(table, Counted(1.0), torch.randn(5, 2), noise, backend=backend)


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(torch.float16, "reference"), (torch.float32, "reference"), (torch.float32, "blocked")],
)
def test_wider_answers_leave_the_dtype_of_the_sample(dtype: torch.dtype, backend: Backend) -> None:
    x_1 = SeededNoise([1, 2], (3,), dtype=dtype).initial()
    table = dpmpp_2m(CosineSchedule(), uniform(3))
    answer = solve(table, lambda x, t: torch.tanh(x.double()), x_1, backend=backend)
    assert answer.dtype == dtype
    exact = solve(table, lambda x, t: torch.tanh(x), x_1.double())
    torch.testing.assert_close(answer.double(), exact, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("sampler", [dpmpp_2m, unipc])
def test_a_denoiser_may_reuse_its_memory(sampler, backend: Backend) -> None:
    """As one compiled into a CUDA graph does: the answer before is gone once it is asked again."""
    table = sampler(CosineSchedule(), uniform(6))
    x_1 = SeededNoise([1, 2], (3,), dtype=F64).initial()
    memory = torch.empty_like(x_1)

    def reusing(gain: float) -> Denoise:
        return lambda x, t: memory.copy_(torch.tanh(gain * x) + t)

    expected = solve(table, Counted(0.8), x_1)
    assert torch.equal(
        solve(table, reusing(0.8), x_1, backend=backend),
        solve(table, Counted(0.8), x_1, backend=backend),
    )
    torch.testing.assert_close(solve(table, reusing(0.8), x_1, backend=backend), expected)
    # The two sides of guidance may be one network.
    guided, expected = cfg(reusing(0.8), reusing(0.3), 2.0), cfg(Counted(0.8), Counted(0.3), 2.0)
    torch.testing.assert_close(solve(table, guided, x_1), solve(table, expected, x_1))
    of = from_prediction(CosineSchedule(), "v_prediction")
    guided, expected = (
        cfg(of(a), of(b), 2.0)
        for a, b in ((reusing(0.8), reusing(0.3)), (Counted(0.8), Counted(0.3)))
    )
    torch.testing.assert_close(guided(x_1, table.times[1]), expected(x_1, table.times[1]))
    torch.testing.assert_close(
        solve(table, guided, x_1, backend=backend), solve(table, expected, x_1, backend=backend)
    )


def test_corrections_have_gradients() -> None:
    gain = torch.ones((), dtype=F64, requires_grad=True)
    x_1 = torch.ones(2, 3, dtype=F64)
    answer = solve(
        ddim(CosineSchedule(), uniform(1)), corrected(lambda x, t: x, lambda x: gain * x), x_1
    )
    answer.sum().backward()
    torch.testing.assert_close(gain.grad, torch.tensor(6.0, dtype=F64))


@PROPERTY
@given(scale=st.floats(-3, 8), a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_guidance_is_the_line_through_both(scale: float, a: float, b: float) -> None:
    x_t, t = torch.linspace(-1, 1, 5, dtype=F64), torch.tensor(0.4, dtype=F64)
    cond, uncond = Counted(a), Counted(b)
    guided = cfg(cond, uncond, scale)(x_t, t)
    expected = scale * Counted(a)(x_t, t) + (1 - scale) * Counted(b)(x_t, t)
    torch.testing.assert_close(guided, expected, rtol=1e-12, atol=1e-12)
    assert len(cond.times) == (scale != 0)
    assert len(uncond.times) == (scale != 1)


@pytest.mark.parametrize(("scale", "evaluations"), [(0.0, (0, 6)), (1.0, (6, 0)), (2.5, (6, 6))])
def test_guidance_costs_only_what_it_needs(scale: float, evaluations: tuple[int, int]) -> None:
    cond, uncond = Counted(1.0), Counted(2.0)
    x_1 = torch.ones(2, 3, dtype=F64)
    solve(dpmpp_2m(CosineSchedule(), uniform(6)), cfg(cond, uncond, scale), x_1)
    assert (len(cond.times), len(uncond.times)) == evaluations


def test_guided_gaussians_have_the_mean_the_algebra_says() -> None:
    # Two point masses at 1 and 3: x̂_0 is constant, so every sampler ends at 1 + w (3 − 1).
    x_1 = SeededNoise([0, 1], (4,), dtype=F64).initial()
    denoise = cfg(lambda x, t: torch.full_like(x, 3), lambda x, t: torch.ones_like(x), 1.5)
    for sampler in (ddim, dpmpp_2m):
        answer = solve(sampler(CosineSchedule(), uniform(7)), denoise, x_1)
        torch.testing.assert_close(answer, torch.full_like(x_1, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_bad_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="finite scale"):
        cfg(Counted(1.0), Counted(1.0), scale)


@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m, ancestral])
def test_a_least_squares_snap_is_met_exactly_and_moves_nothing_else(sampler) -> None:
    # Observed: A x_0 = y. The snap x_0 + A⁺ (y − A x_0) is the posterior mean for a flat prior.
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(2, 5, generator=generator, dtype=F64)
    inverse, observed = torch.linalg.pinv(matrix), torch.tensor([0.3, -0.8], dtype=F64)

    def snap(x_0: Tensor) -> Tensor:
        return x_0 + (observed - x_0 @ matrix.T) @ inverse.T

    noise = SeededNoise([1, 2, 3], (5,), dtype=F64)
    table = sampler(CosineSchedule(), uniform(6))
    shrink = CosineSchedule()

    def linear(x_t: Tensor, t: Tensor) -> Tensor:
        return shrink.alpha(t) * x_t

    answer = solve(table, corrected(linear, snap), noise.initial(), noise)
    free = solve(table, linear, noise.initial(), noise)
    torch.testing.assert_close(answer @ matrix.T, observed.expand(3, 2), rtol=0, atol=1e-12)
    # What was not observed, the null space of A, is sampled as without the snap.
    null = torch.eye(5, dtype=F64) - inverse @ matrix
    torch.testing.assert_close(answer @ null, free @ null, rtol=0, atol=1e-12)


def test_descent_is_the_posterior_mean_where_the_observation_is_weak() -> None:
    """x_0 ~ N(0, Σ), y = A x_0 + noise of deviation s: x̂_0 + σ² Σ Aᵀ (s² + σ² A Σ Aᵀ)⁻¹ (y − A x̂_0)."""
    generator = torch.Generator().manual_seed(5)
    factor, matrix = (torch.randn(n, 4, generator=generator, dtype=F64) for n in (4, 2))
    covariance, observed = factor @ factor.T, torch.tensor([0.7, -0.2], dtype=F64)
    schedule, t = CosineSchedule(), torch.tensor(0.6, dtype=F64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = torch.randn(3, 4, generator=generator, dtype=F64)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        # Noise has the covariance of the data, and α² + σ² = 1.
        return schedule.alpha(t) * x

    def answer(s: float) -> Tensor:
        def energy(x_0: Tensor) -> Tensor:
            return (x_0 @ matrix.T - observed).square().sum(-1) / (2 * s**2)

        halves = weighted([(0.5, energy), (0.5, energy)])
        return descended(denoise, halves, schedule, lambda g: g @ covariance)(x_t, t)

    def exact(s: float) -> Tensor:
        x_0 = alpha * x_t
        seen = matrix @ covariance @ matrix.T * sigma**2 + s**2 * torch.eye(2, dtype=F64)
        gain = sigma**2 * covariance @ matrix.T @ torch.linalg.inv(seen)
        return x_0 + (observed - x_0 @ matrix.T) @ gain.T

    for s in (30.0, 300.0):
        moved = exact(s) - alpha * x_t
        assert (answer(s) - exact(s)).abs().max() < 30 / s**2 * moved.abs().max()
    one = torch.ones((), dtype=F64)
    torch.testing.assert_close(
        descended(denoise, lambda x: x.sum(-1), schedule)(x_t, one), denoise(x_t, one)
    )


@pytest.mark.parametrize(
    ("weights", "message"), [([], "got none"), ([-1.0], "got -1"), ([math.inf], "got inf")]
)
def test_bad_weights_of_energies_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted([(weight, lambda x: x.sum(-1)) for weight in weights])


@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedSchedule()])
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(t=st.floats(1e-3, 1 - 1e-3))
def test_predictions_go_there_and_back(schedule: Schedule, kind: Kind, t: float) -> None:
    noise = SeededNoise([1, 2], (3, 2), dtype=F64)
    x_0, epsilon = noise.initial(), noise.at(0)
    time = torch.tensor(t, dtype=F64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    x_t = alpha * x_0 + sigma * epsilon
    prediction = target(kind, x_0, epsilon, alpha, sigma)
    torch.testing.assert_close(to_x_0(kind, prediction, x_t, alpha, sigma), x_0, atol=1e-11, rtol=0)
    denoise = from_prediction(schedule, kind)(lambda x, t: prediction)
    torch.testing.assert_close(denoise(x_t, time), x_0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_published_ones(kind: Kind) -> None:
    x_0, noise = torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.5, 3.0], dtype=F64)
    expected = {
        "sample": [2.0, -1.0],
        "epsilon": [0.5, 3.0],
        "v_prediction": [0.6 * 0.5 - 0.8 * 2, 0.6 * 3 + 0.8],
        "flow_prediction": [-1.5, 4.0],
    }[kind]
    alpha, sigma = torch.tensor(0.6, dtype=F64), torch.tensor(0.8, dtype=F64)
    answer = target(kind, x_0, noise, alpha, sigma)
    torch.testing.assert_close(answer, torch.tensor(expected, dtype=F64))


def test_each_item_may_have_its_own_time() -> None:
    schedule = CosineSchedule()
    denoise = from_prediction(schedule, "v_prediction")(lambda x_t, t: torch.cos(x_t))
    x_t = SeededNoise([1, 2, 3], (4, 2), dtype=F64).initial()
    t = torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    together = denoise(x_t, t)
    for k in range(3):
        torch.testing.assert_close(denoise(x_t[k : k + 1], t[k])[0], together[k])


def test_predictions_refuse() -> None:
    schedule, one = CosineSchedule(), torch.ones((), dtype=F64)
    denoise = from_prediction(schedule, "epsilon")(lambda x_t, t: x_t)
    with pytest.raises(ValueError, match="alpha > 0"):
        denoise(torch.ones(2, 3, dtype=F64), one)
    x = torch.ones(2, dtype=F64)
    with untyped():
        with pytest.raises(ValueError, match="v_prediction, flow_prediction, got 'v'"):
            from_prediction(schedule, "v")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got 'v'"):
            to_x_0("v", x, x, one, one)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="got 'v'"):
            target("v", x, x, one, one)  # type: ignore[arg-type]
