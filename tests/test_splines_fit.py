"""Weighted, penalised least-squares fits, against scipy, dense solves and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import make_lsq_spline
from torch.testing import assert_close

from diffusion4d.splines import BSpline, basis_matrix, fit, greville, knot_vector


def scene(
    batch: tuple[int, ...] = (3,), num_frames: int = 40, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random points, instants and soft weights, float64."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(*batch, num_frames, 2, dtype=torch.float64, generator=generator)
    u = torch.rand(num_frames, dtype=torch.float64, generator=generator).msort()
    weights = torch.rand(*batch, num_frames, dtype=torch.float64, generator=generator)
    return points, u, weights


@pytest.mark.parametrize(("degree", "num_ctrl"), [(1, 5), (2, 6), (3, 8), (5, 9)])
def test_fit_is_scipys(degree: int, num_ctrl: int) -> None:
    points, u, weights = scene()
    found = fit(points, u, num_ctrl, weights=weights, degree=degree)
    for n in range(3):
        # scipy weighs the residual, not its square.
        w = weights[n].sqrt().numpy()
        knots = knot_vector(num_ctrl, degree).numpy()
        expected = make_lsq_spline(u.numpy(), points[n].numpy(), knots, degree, w=w).c
        assert np.abs(found[n].numpy() - expected).max() <= 1e-11 * np.abs(expected).max()


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_penalised_fit_is_the_stacked_least_squares_problem(order: int, each: bool) -> None:
    points, u, weights = scene((1,))
    M, ridge = 8, 0.3
    if each:
        ridge = torch.linspace(0.1, 2, M - order, dtype=torch.float64)
    prior = torch.randn(1, M, 2, dtype=torch.float64)
    found = fit(points, u, M, weights=weights, ridge=ridge, penalty_order=order, prior=prior)
    # The differences are those of the derivative's control points, in units of the knot distance.
    differences = np.eye(M)
    for r in range(order):
        knots = knot_vector(M).numpy()[1 + r : -1 - r]
        gaps = knots[3 - r :] - knots[: r - 3]
        differences = (3 - r) / (5 * gaps[:, None]) * np.diff(differences, axis=0)
    root = weights[0].sqrt().numpy()[:, None]
    differences = np.sqrt(np.broadcast_to(ridge, (M - order,)))[:, None] * differences
    system = np.concatenate([root * basis_matrix(u, M).numpy(), differences])
    target = [root * points[0].numpy(), differences @ prior[0].numpy()]
    expected = np.linalg.lstsq(system, np.concatenate(target), rcond=None)[0]
    assert np.abs(found[0].numpy() - expected).max() <= 1e-11


def test_amid_the_knots_the_penalty_is_the_plain_difference() -> None:
    # Seen at its ends alone, the curve spreads the way between over its steps c_{m+1} − c_m so that
    # the sum of (f_m step_m)² is least: step_m ∝ 1 / f_m². On clamped cubic knots f is 3, 3/2, 1, …
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = fit(u[:, None], u, 9, ridge=0.01, penalty_order=1)
    steps = found[:, 0].diff()
    expected = torch.tensor([1 / 9, 4 / 9, 1, 1, 1, 1, 4 / 9, 1 / 9], dtype=torch.float64)
    assert_close(steps / steps[3], expected)


@settings(max_examples=40, deadline=None)
@given(degree=st.integers(0, 5), extra=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_a_spline_is_fitted_exactly(degree: int, extra: int, seed: int) -> None:
    M = degree + extra
    ctrl = torch.randn(M, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u = torch.linspace(0, 1, 6 * M, dtype=torch.float64)
    found = fit(BSpline.clamped(ctrl, degree).evaluate(u), u, M, degree=degree)
    assert_close(found, ctrl, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_batches_are_fits_side_by_side(batch: tuple[int, ...]) -> None:
    points, u, weights = scene(batch)
    prior = torch.randn(*batch, 7, 2, dtype=torch.float64)
    options = {"ridge": 0.1, "penalty_order": 1}
    found = fit(points, u, 7, weights=weights, prior=prior, **options)
    plain = fit(points, u, 7)
    assert found.shape == (*batch, 7, 2)
    for index in np.ndindex(batch):
        one = fit(points[index], u, 7, weights=weights[index], prior=prior[index], **options)
        assert_close(found[index], one)
        assert_close(plain[index], fit(points[index], u, 7))


def test_unit_weights_are_no_weights() -> None:
    points, u, weights = scene()
    assert_close(fit(points, u, 8, weights=torch.ones_like(weights)), fit(points, u, 8))


@pytest.mark.parametrize("hidden", [1e9, float("nan"), float("inf")])
def test_points_without_weight_are_not_read(hidden: float) -> None:
    points, u, weights = scene()
    weights[:, 10:20] = 0
    expected = fit(points, u, 8, weights=weights, ridge=1e-3)
    points[:, 10:20] = hidden
    points.requires_grad_()
    weights.requires_grad_()
    found = fit(points, u, 8, weights=weights, ridge=1e-3)
    assert torch.equal(found, expected)
    gradients = torch.autograd.grad(found.sum(), (points, weights))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_affine_invariance_without_ridge() -> None:
    points, u, weights = scene()
    linear, shift = torch.randn(2, 2).double(), torch.randn(2).double()
    moved = fit(points @ linear + shift, u, 8, weights=weights)
    assert_close(moved, fit(points, u, 8, weights=weights) @ linear + shift)


def test_first_differences_hold_the_last_position() -> None:
    u = torch.linspace(0, 1, 61, dtype=torch.float64)
    points = torch.tensor([0.3, -2.0], dtype=torch.float64).expand(61, 2)
    found = fit(points, u, 9, weights=(u < 0.3).double(), ridge=0.1, penalty_order=1)
    assert_close(found, points[:9], rtol=0, atol=1e-10)


def test_second_differences_cross_a_gap_and_go_on_in_a_straight_line() -> None:
    u = torch.linspace(0, 1, 61, dtype=torch.float64)
    velocity = torch.tensor([2.0, -1.0], dtype=torch.float64)
    for seen in (u < 0.3, u > 0.6, (u < 0.2) | (u > 0.7)):
        found = fit(u[:, None] * velocity, u, 9, weights=seen.double(), ridge=0.1, penalty_order=2)
        # Up to both ends, where plain differences of control points would bend the line.
        assert_close(found, greville(9)[:, None] * velocity, rtol=0, atol=1e-9)


def test_a_gap_between_two_motions_is_crossed_in_a_straight_line() -> None:
    u = torch.linspace(0, 1, 121, dtype=torch.float64)
    seen = (u < 0.2) | (u > 0.8)
    points = (u > 0.5).double()[:, None]
    curve = BSpline.clamped(fit(points, u, 33, weights=1e4 * seen, ridge=1.0, penalty_order=1))
    # Here all control points of influence are of no influence on what was seen.
    middle = torch.linspace(0.35, 0.65, 21, dtype=torch.float64)
    velocity = curve.derivative().evaluate(middle)
    assert_close(velocity, velocity[:1].expand(21, 1), rtol=0, atol=1e-9)
    assert 1.2 < velocity[0].item() < 2


def test_what_is_not_seen_falls_back_to_the_prior() -> None:
    prior = torch.randn(2, 8, 3, dtype=torch.float64)
    u = torch.linspace(0, 1, 20, dtype=torch.float64)
    hidden = torch.full((2, 20, 3), torch.nan, dtype=torch.float64)
    found = fit(hidden, u, 8, weights=torch.zeros(2, 20).double(), ridge=1e-3, prior=prior)
    assert_close(found, prior)
    # A large ridge pulls every control point there, a small one lets go.
    points, u, weights = scene((1,))
    near = fit(points, u, 8, weights=weights, ridge=1e6, prior=prior[:1, :, :2])
    assert_close(near, prior[:1, :, :2], rtol=0, atol=1e-4)
    free = fit(points, u, 8, weights=weights, ridge=1e-9, prior=prior[:1, :, :2])
    assert_close(free, fit(points, u, 8, weights=weights), rtol=0, atol=1e-5)


def test_gradients() -> None:
    points, u, weights = scene((2,), 12)
    prior = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    inputs = (points.requires_grad_(), weights.requires_grad_(), prior)

    def fitted(points: torch.Tensor, weights: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        return fit(points, u, 5, weights=weights, ridge=0.1, penalty_order=2, prior=prior)

    assert torch.autograd.gradcheck(fitted, inputs)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_float32_is_as_good_as_its_input(ridge: float) -> None:
    points, u, weights = scene((200,), 32)
    weights[:, 8:] = 0
    # The same numbers in both, so that what differs is the arithmetic.
    points, u, weights = points.float(), u.float(), weights.float()
    found = fit(points, u, 8, weights=weights, ridge=ridge)
    expected = fit(points.double(), u.double(), 8, weights=weights.double(), ridge=ridge)
    assert found.dtype == torch.float32
    assert_close(fit(points, u, 8), fit(points.double(), u.double(), 8).float())
    assert (found - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_undetermined_systems_are_refused() -> None:
    points, u, weights = scene()
    weights[1] = 0
    with pytest.raises(
        ValueError, match=r"determine 8 control points; got 1 of 3 systems singular"
    ):
        fit(points, u, 8, weights=weights)
    # Nothing seen leaves the position free under a penalty of differences.
    with pytest.raises(ValueError, match=r"ridge=0.1, penalty_order=1"):
        fit(points, u, 8, weights=weights, ridge=0.1, penalty_order=1)
    # Fewer instants than control points, and instants that miss the support of some of them.
    with pytest.raises(ValueError, match="1 of 1 systems singular"):
        fit(points[:, :7], u[:7], 8)
    # Also where rounding leaves a pivot that is a little above 0.
    for seed in (3, 4, 5):
        few, instants, weights = scene((200,), 7, seed)
        with pytest.raises(ValueError, match="200 of 200 systems singular"):
            fit(few, instants, 8, weights=weights)
    with pytest.raises(ValueError, match="singular"):
        fit(points, u / 2, 8)
    assert fit(points, u / 2, 8, ridge=1e-6).isfinite().all()


def test_bad_input_is_refused() -> None:
    points, u, weights = scene()
    with pytest.raises(ValueError, match=r"weights >= 0, got -0.5"):
        fit(points, u, 8, weights=torch.full_like(weights, -0.5))
    with pytest.raises(ValueError, match="weights >= 0, got nan"):
        fit(points, u, 8, weights=torch.full_like(weights, torch.nan))
    with pytest.raises(ValueError, match="ridge >= 0, got -1"):
        fit(points, u, 8, ridge=-1.0)
    with pytest.raises(ValueError, match="penalty_order <= degree=3, got 4"):
        fit(points, u, 8, penalty_order=4)
    with pytest.raises(ValueError, match="prior of 8 control points, got 5"):
        fit(points, u, 8, ridge=1.0, prior=torch.zeros(3, 5, 2).double())
    with pytest.raises(ValueError, match="num_ctrl > degree"):
        fit(points, u, 3)
    with pytest.raises(ValueError, match=r"every u in \[0, 1\]"):
        fit(points, 2 * u, 8)
