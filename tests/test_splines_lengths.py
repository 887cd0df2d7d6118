"""Arc length and its inverse, against closed forms and scipy's adaptive quadrature."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import BSpline as ScipyBSpline
from torch.testing import assert_close

from diffusion4d.splines import BSpline, arc_length, fit, greville, natural_parameter, parameter_at


def smooth_curve(batch: tuple[int, ...] = (), seed: int = 0) -> BSpline:
    """A drift with wiggles, which never rests."""
    generator = torch.Generator().manual_seed(seed)
    wiggle = 0.1 * torch.randn(*batch, 8, 3, dtype=torch.float64, generator=generator)
    drift = greville(8)[:, None] * torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)
    return BSpline.clamped(drift + wiggle)


def circle() -> BSpline:
    """A quarter of the unit circle, to about 1e-9."""
    u = torch.linspace(0, 1, 400, dtype=torch.float64)
    angle = u * torch.pi / 2
    points = torch.stack([angle.cos(), angle.sin()], -1)
    return BSpline.clamped(fit(points, u, 40, degree=5), 5)


def test_a_straight_line_is_as_long_as_it_is() -> None:
    direction = torch.tensor([3.0, 4.0, 12.0], dtype=torch.float64)
    line = BSpline.clamped(greville(7)[:, None] * direction)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert_close(arc_length(line, u), 13 * u, rtol=0, atol=1e-12)
    assert_close(parameter_at(line, 13 * u), u, rtol=0, atol=1e-14)


def test_a_circle_is_as_long_as_its_angle() -> None:
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert_close(arc_length(circle(), u), u * torch.pi / 2, rtol=0, atol=1e-8)
    assert_close(natural_parameter(circle(), u), u, rtol=0, atol=1e-8)


def test_a_parabola_has_its_closed_form() -> None:
    # p(u) = (u, u²) in degree 2, raised to 3 and cut: the length is ∫ √(1 + 4u²).
    ctrl = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]], dtype=torch.float64)
    parabola = BSpline.clamped(ctrl, 2).elevate().insert(0.5)
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    expected = u / 2 * (1 + 4 * u**2).sqrt() + torch.asinh(2 * u) / 4
    assert_close(arc_length(parabola, u), expected, rtol=0, atol=1e-12)


def test_length_is_scipys_quadrature() -> None:
    curve = smooth_curve()
    velocity = ScipyBSpline(curve.knots.numpy(), curve.ctrl.numpy(), 3).derivative()
    breaks = curve.breaks.tolist()
    for u in (0.1, 0.2, 0.55, 1.0):
        inner = [b for b in breaks if 0 < b < u]
        expected, _ = quad(
            lambda v: np.linalg.norm(velocity(v)), 0, u, points=inner, epsabs=1e-12, limit=200
        )
        found = arc_length(curve, torch.tensor([u], dtype=torch.float64)).item()
        assert abs(found - expected) <= 1e-8


def test_length_converges_geometrically_in_the_nodes() -> None:
    curve, end = smooth_curve((20,)), torch.ones(1, dtype=torch.float64)
    truth = arc_length(curve, end, num_nodes=64)
    errors = [(arc_length(curve, end, num_nodes=q) - truth).abs().max() for q in (4, 8, 16)]
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 100
    assert errors[2] < 1e-8


@settings(max_examples=25, deadline=None)
@given(
    degree=st.integers(1, 4),
    extra=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_the_parameter_inverts_the_length(
    degree: int, extra: int, seed: int, fractions: list[float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ctrl = torch.randn(2, degree + extra, 2, dtype=torch.float64, generator=generator)
    curve = BSpline.clamped(ctrl, degree)
    total = arc_length(curve, torch.ones(1, dtype=torch.float64))
    length = total * torch.tensor(fractions, dtype=torch.float64).msort()
    u = parameter_at(curve, length)
    assert ((u >= 0) & (u <= 1)).all()
    assert (u.diff(dim=-1) >= -1e-12).all()
    assert_close(arc_length(curve, u), length, rtol=0, atol=1e-10)


def test_a_natural_curve_moves_at_constant_speed() -> None:
    curve = smooth_curve((2, 3))
    fraction = torch.linspace(0, 1, 2001, dtype=torch.float64)
    steps = curve.evaluate(natural_parameter(curve, fraction)).diff(dim=-2).norm(dim=-1)
    # Chords of a curved arc are shorter than it by a part that falls with their square.
    assert (steps / steps.mean(-1, keepdim=True) - 1).abs().max() < 1e-3
    ends = natural_parameter(curve, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert_close(ends, torch.tensor([0.0, 1.0]).double().expand(2, 3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_batches_are_curves_side_by_side(batch: tuple[int, ...]) -> None:
    curve = smooth_curve(batch)
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    length, natural = arc_length(curve, u), natural_parameter(curve, u)
    own = arc_length(curve, natural)
    assert length.shape == natural.shape == own.shape == (*batch, 5)
    for index in np.ndindex(batch):
        one = BSpline.clamped(curve.ctrl[index])
        assert_close(length[index], arc_length(one, u))
        assert_close(natural[index], natural_parameter(one, u))
        assert_close(own[index], arc_length(one, natural[index]))


def test_other_domains_keep_their_parameter() -> None:
    curve = smooth_curve()
    _, right = curve.split(0.4)
    u = torch.linspace(0.4, 1, 7, dtype=torch.float64)
    assert_close(arc_length(right, u), arc_length(curve, u) - arc_length(curve, u[:1]))
    assert_close(parameter_at(right, arc_length(right, u)), u)


def test_pauses_and_points_that_never_move() -> None:
    position = torch.tensor([0, 1, 2, 2, 2, 2, 2, 3, 4], dtype=torch.float64)
    still = torch.full((9,), 7.0, dtype=torch.float64)
    ctrl = torch.stack([position, still], 0)[..., None].requires_grad_()
    curve = BSpline.clamped(ctrl)
    u = natural_parameter(curve, torch.linspace(0, 1, 5, dtype=torch.float64))
    # Half way is where the pause begins, at the knot after which four control points agree.
    assert_close(curve.evaluate(u)[0, :, 0], torch.linspace(0, 4, 5).double(), rtol=0, atol=1e-9)
    assert 0.25 < u[0, 2] <= 1 / 3 + 1e-3
    assert_close(u[1], torch.linspace(0, 1, 5).double())
    (gradient,) = torch.autograd.grad(arc_length(curve, u.detach()).sum() + u.sum(), ctrl)
    assert gradient.isfinite().all()


def test_gradients() -> None:
    ctrl = smooth_curve((2,)).ctrl.requires_grad_()
    u = torch.tensor([0.11, 0.5, 0.93], dtype=torch.float64, requires_grad=True)
    length = torch.tensor([0.3, 1.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, u: arc_length(BSpline.clamped(c), u), (ctrl, u))
    assert torch.autograd.gradcheck(
        lambda c, s: parameter_at(BSpline.clamped(c), s), (ctrl, length)
    )
    assert torch.autograd.gradcheck(
        lambda c: natural_parameter(BSpline.clamped(c), u.detach()), (ctrl,)
    )


def test_float32_error_is_a_few_roundings() -> None:
    curve = smooth_curve((50,))
    single = BSpline.clamped(curve.ctrl.float())
    truth = BSpline.clamped(single.ctrl.double())
    u = torch.linspace(0, 1, 20)
    assert arc_length(single, u).dtype == torch.float32
    assert (arc_length(single, u) - arc_length(truth, u.double())).abs().max() <= 3e-6
    natural = natural_parameter(single, u)
    assert natural.dtype == torch.float32
    assert (natural - natural_parameter(truth, u.double())).abs().max() <= 1e-5


def test_bad_input_is_refused() -> None:
    curve = smooth_curve()
    total = arc_length(curve, torch.ones(1, dtype=torch.float64)).item()
    for length in (-0.1, total + 0.1, float("nan")):
        with pytest.raises(ValueError, match=r"need lengths in \[0, 3\."):
            parameter_at(curve, torch.tensor([length], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"need fractions in \[0, 1\], got \[0.5, 1.25\]"):
        natural_parameter(curve, torch.tensor([0.5, 1.25]))
    with pytest.raises(ValueError, match=r"every u in \[0, 1\]"):
        arc_length(curve, torch.tensor([1.5]))
    with pytest.raises(ValueError, match="got degree 3, num_nodes 0"):
        arc_length(curve, torch.tensor([0.5]), num_nodes=0)
