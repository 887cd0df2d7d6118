"""B-spline curves: every way to evaluate, refine or re-express a curve gives the same curve."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline as ScipyBSpline
from scipy.interpolate import CubicHermiteSpline, insert
from torch.testing import assert_close

from diffusion4d.splines import BSpline, de_casteljau, hermite, knot_vector

SIZES = [(1, 2), (1, 5), (2, 3), (2, 7), (3, 4), (3, 8), (3, 21), (4, 9), (6, 13)]
BATCHES = [(), (2,), (1, 2)]


def random_curve(degree: int, num_ctrl: int, batch: tuple[int, ...] = (), seed: int = 0) -> BSpline:
    generator = torch.Generator().manual_seed(seed)
    ctrl = torch.randn(*batch, num_ctrl, 3, dtype=torch.float64, generator=generator)
    return BSpline.clamped(ctrl, degree)


def uneven_curve() -> BSpline:
    """Cubic, on [−1, 2], with a double, a triple and a quadruple knot: C¹, C⁰, and a jump."""
    inner = torch.tensor([-0.6, 0, 0, 0.3, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9, 1.5], dtype=torch.float64)
    knots = torch.cat([torch.full((4,), -1.0), inner, torch.full((4,), 2.0)])
    return BSpline(random_curve(3, 15).ctrl, knots, 3)


def instants(curve: BSpline, count: int = 150) -> torch.Tensor:
    """Random instants of the curve's domain, and every knot."""
    low, high = curve.breaks[0], curve.breaks[-1]
    inside = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.cat([low + (high - low) * inside, curve.knots]).msort()


def scipys(curve: BSpline) -> ScipyBSpline:
    return ScipyBSpline(curve.knots.numpy(), np.moveaxis(curve.ctrl.numpy(), -2, 0), curve.degree)


def assert_same_curve(found: BSpline, expected: BSpline, atol: float = 1e-12) -> None:
    u = instants(found)
    assert_close(found.evaluate(u), expected.evaluate(u), rtol=0, atol=atol)


CURVES = [random_curve(p, m) for p, m in SIZES] + [uneven_curve()]


@pytest.mark.parametrize("curve", CURVES)
def test_evaluation_is_scipys(curve: BSpline) -> None:
    u = instants(curve)
    assert np.abs(curve.evaluate(u).numpy() - scipys(curve)(u.numpy())).max() <= 1e-12


@pytest.mark.parametrize("curve", CURVES)
def test_de_casteljau_is_the_basis(curve: BSpline) -> None:
    u = instants(curve)
    assert_close(curve.evaluate_de_casteljau(u), curve.evaluate(u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("curve", [random_curve(p, m) for p, m in SIZES])
def test_derivatives_are_scipys(curve: BSpline) -> None:
    u = instants(curve)
    for order in range(curve.degree + 1):
        found = curve.derivative(order).evaluate(u).numpy()
        expected = scipys(curve).derivative(order)(u.numpy())
        # The size of a derivative grows with the inverse knot distance to the order.
        assert np.abs(found - expected).max() <= 1e-12 * max(1, np.abs(expected).max())


def test_derivative_is_autograds() -> None:
    curve = uneven_curve()
    u = torch.linspace(-0.99, 1.99, 40, dtype=torch.float64, requires_grad=True)
    for axis in range(3):
        (slope,) = torch.autograd.grad(curve.evaluate(u)[:, axis].sum(), u)
        assert_close(curve.derivative().evaluate(u.detach())[:, axis], slope)


@pytest.mark.parametrize("batch", BATCHES)
def test_batches_are_curves_side_by_side(batch: tuple[int, ...]) -> None:
    curve = random_curve(3, 8, batch)
    u = torch.linspace(0, 1, 7, dtype=torch.float64)
    left, right = curve.split(0.37)
    parts = [curve.insert(0.5), curve.elevate(), curve.derivative(), left, right]
    assert curve.evaluate(u).shape == (*batch, 7, 3)
    assert curve.evaluate_de_casteljau(u).shape == (*batch, 7, 3)
    assert curve.bezier().shape == (*batch, 5, 4, 3)
    for index in np.ndindex(batch):
        one = BSpline.clamped(curve.ctrl[index])
        assert_close(curve.evaluate(u)[index], one.evaluate(u))
        assert_close(curve.evaluate_de_casteljau(u)[index], one.evaluate_de_casteljau(u))
        one_left, one_right = one.split(0.37)
        ones = [one.insert(0.5), one.elevate(), one.derivative(), one_left, one_right]
        for all_of_them, expected in zip(parts, ones, strict=True):
            assert_close(all_of_them.ctrl[index], expected.ctrl)


def test_each_curve_may_have_its_own_instants() -> None:
    curve = random_curve(3, 8, (2, 3))
    u = torch.rand(2, 3, 5, dtype=torch.float64)
    values = curve.evaluate(u)
    for index in np.ndindex(2, 3):
        assert_close(values[index], BSpline.clamped(curve.ctrl[index]).evaluate(u[index]))


@settings(max_examples=40, deadline=None)
@given(degree=st.integers(0, 5), extra=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_affine_invariance(degree: int, extra: int, seed: int) -> None:
    curve = random_curve(degree, degree + extra, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    linear = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    shift = torch.randn(3, dtype=torch.float64, generator=generator)
    moved = BSpline(curve.ctrl @ linear + shift, curve.knots, degree)
    u = instants(curve, 20)
    for way in ("evaluate", "evaluate_de_casteljau"):
        found, original = getattr(moved, way)(u), getattr(curve, way)(u)
        assert_close(found, original @ linear + shift, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_ends_are_interpolated_with_the_end_tangents(degree: int) -> None:
    curve = random_curve(degree, 9)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    # Rounding can not enter here: the end rows of the basis are exactly those of the identity.
    assert torch.equal(curve.evaluate(ends), curve.ctrl[[0, -1]])
    rate = degree * (9 - degree)
    tangents = rate * torch.stack([curve.ctrl[1] - curve.ctrl[0], curve.ctrl[-1] - curve.ctrl[-2]])
    assert_close(curve.derivative().evaluate(ends), tangents)


@pytest.mark.parametrize(("degree", "num_ctrl"), [(2, 6), (3, 8), (4, 11)])
def test_smooth_at_interior_knots_and_no_smoother(degree: int, num_ctrl: int) -> None:
    curve = random_curve(degree, num_ctrl)
    segments = curve.bezier()
    width = curve.breaks.diff()[:, None]
    for order in range(degree + 1):
        # The order-th differences at a segment's ends are its one-sided derivatives there, but for
        # a factor that all segments share.
        differences = segments.diff(n=order, dim=-2)
        before = differences[:-1, -1] / width[:-1] ** order
        after = differences[1:, 0] / width[1:] ** order
        if order < degree:
            assert_close(before, after, rtol=1e-10, atol=1e-10)
        else:
            assert ((before - after).abs().amax(-1) > 1e-3).all()


def test_inserted_knots_are_scipys() -> None:
    curve = random_curve(3, 8)
    tck = (curve.knots.numpy(), [curve.ctrl[:, axis].numpy() for axis in range(3)], 3)
    for u, times in ((0.31, 1), (0.4, 1), (0.77, 3)):
        found = curve.insert(u, times)
        knots, ctrl, _ = insert(u, tck, times)
        assert np.abs(found.knots.numpy() - knots).max() == 0
        # FITPACK pads its coefficient arrays with zeros up to the number of knots.
        expected = np.stack(ctrl, -1)[: 8 + times]
        assert np.abs(found.ctrl.numpy() - expected).max() <= 1e-12


@settings(max_examples=60, deadline=None)
@given(
    degree=st.integers(0, 5),
    extra=st.integers(1, 8),
    u=st.floats(0.01, 0.99),
    on_knot=st.booleans(),
    data=st.data(),
)
def test_insert_split_and_elevate_keep_the_curve(
    degree: int, extra: int, u: float, on_knot: bool, data: st.DataObject
) -> None:
    curve = random_curve(degree, degree + extra)
    if on_knot and len(curve.breaks) > 2:
        u = data.draw(st.sampled_from(curve.breaks[1:-1].tolist()))
    present = int((curve.knots == u).sum())
    times = data.draw(st.integers(0, degree + 1 - present))

    finer = curve.insert(u, times)
    assert finer.ctrl.shape[-2] == degree + extra + times
    assert_same_curve(finer, curve)
    assert_same_curve(curve.elevate(), curve)
    assert_same_curve(finer.elevate(), curve)

    left, right = curve.split(u)
    assert left.breaks[-1].item() == right.breaks[0].item() == u
    # At u itself the left piece is continuous from the left, the curve from the right.
    before, after = instants(left), instants(right)
    before = before[before < u]
    assert_close(left.evaluate(before), curve.evaluate(before), rtol=0, atol=1e-12)
    assert_close(right.evaluate(after), curve.evaluate(after), rtol=0, atol=1e-12)
    if degree > 0:
        assert_close(left.ctrl[-1], right.ctrl[0], rtol=0, atol=1e-12)


def test_uneven_curves_are_kept_too() -> None:
    curve = uneven_curve()
    assert_same_curve(curve.insert(-0.6, 2).insert(1.1), curve)
    assert_same_curve(curve.elevate().elevate(), curve)
    left, right = curve.split(0.3)
    assert_same_curve(right, curve)
    assert_close(left.evaluate(left.breaks[-1:])[0], right.ctrl[0])


def test_elevation_of_one_segment_is_beziers() -> None:
    curve = random_curve(3, 4)
    b = curve.ctrl
    expected = torch.stack(
        [b[0], (b[0] + 3 * b[1]) / 4, (2 * b[1] + 2 * b[2]) / 4, (3 * b[2] + b[3]) / 4, b[3]]
    )
    assert_close(curve.elevate().ctrl, expected, rtol=0, atol=1e-14)
    assert curve.elevate().knots.tolist() == knot_vector(5, 4).tolist()


def test_de_casteljau_is_bernsteins_sum() -> None:
    b = torch.randn(2, 4, 3, dtype=torch.float64)
    s = torch.rand(5, 1, dtype=torch.float64)
    bernstein = torch.stack([(1 - s) ** 3, 3 * s * (1 - s) ** 2, 3 * s**2 * (1 - s), s**3], -1)
    assert_close(de_casteljau(b, s), torch.einsum("tci,bid->tbd", bernstein, b))
    assert de_casteljau(b[:, :1], s).shape == (5, 2, 3)


@pytest.mark.parametrize("way", ["evaluate", "evaluate_de_casteljau"])
def test_gradients(way: str) -> None:
    ctrl = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.0, 0.13, 0.48, 0.9, 1.0], dtype=torch.float64)
    inside = u[1:-1].clone().requires_grad_()

    def value(ctrl: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return getattr(BSpline.clamped(ctrl), way)(u)

    assert torch.autograd.gradcheck(lambda ctrl: value(ctrl, u), ctrl)
    assert torch.autograd.gradcheck(value, (ctrl, inside))


def test_gradients_through_every_operation() -> None:
    ctrl = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.2, 0.4], dtype=torch.float64)

    def chain(ctrl: torch.Tensor) -> torch.Tensor:
        return BSpline.clamped(ctrl).insert(0.3).elevate().split(0.45)[0].derivative().evaluate(u)

    assert torch.autograd.gradcheck(chain, ctrl)


@pytest.mark.parametrize("num_ctrl", [4, 8, 40])
def test_float32_error_is_a_few_roundings(num_ctrl: int) -> None:
    curve = random_curve(3, num_ctrl, (50,))
    single = BSpline.clamped(curve.ctrl.float())
    # Comparing with the float64 curve through the rounded points leaves the arithmetic's own error.
    truth = BSpline.clamped(single.ctrl.double())
    u = torch.rand(200, dtype=torch.float64)
    expected = truth.evaluate(u)
    size = single.ctrl.abs().max()
    for values in (single.evaluate(u), single.evaluate_de_casteljau(u)):
        assert values.dtype == torch.float32
        assert (values - expected).abs().max() <= 1e-6 * size
    # u rounded to float32 moves a point by up to its speed times 6e-8.
    speed = truth.derivative().evaluate(u).norm(dim=-1).max()
    assert (single.evaluate(u.float()) - expected).abs().max() <= 1e-6 * size + 3e-7 * speed
    refined = single.elevate().insert(0.3)
    assert refined.ctrl.dtype == torch.float32
    assert (refined.evaluate(u) - expected).abs().max() <= 2e-6 * size


@pytest.mark.parametrize(("degree", "num_ctrl"), [(1, 5), (2, 6), (3, 4), (3, 9)])
@pytest.mark.parametrize("batch", BATCHES)
def test_hermite_keys_reproduce_the_curve(
    degree: int, num_ctrl: int, batch: tuple[int, ...]
) -> None:
    curve = random_curve(degree, num_ctrl, batch)
    keys, values, incoming, outgoing = hermite(curve)
    assert keys.tolist() == curve.breaks.tolist()
    u = instants(curve)
    u = u[~torch.isin(u, keys[1:-1])]
    for k in range(len(keys) - 1):
        here = u[(u >= keys[k]) & (u <= keys[k + 1])]
        # One segment at a time, so that the tangents may differ from side to side as in glTF.
        piece = CubicHermiteSpline(
            keys[k : k + 2].numpy(),
            torch.stack([values[..., k, :], values[..., k + 1, :]]).numpy(),
            torch.stack([outgoing[..., k, :], incoming[..., k + 1, :]]).numpy(),
        )
        expected = np.moveaxis(piece(here.numpy()), 0, -2)
        assert np.abs(curve.evaluate(here).numpy() - expected).max() <= 1e-12


def test_hermite_tangents_are_the_velocity_and_agree_where_it_is_continuous() -> None:
    curve = random_curve(3, 9)
    keys, values, incoming, outgoing = hermite(curve)
    assert_close(values, curve.evaluate(keys))
    assert_close(incoming, curve.derivative().evaluate(keys), rtol=0, atol=1e-12)
    assert_close(outgoing, incoming, rtol=0, atol=1e-12)


def test_hermite_tangents_part_at_a_triple_knot() -> None:
    curve = uneven_curve().split(0.9)[0]
    keys, _, incoming, outgoing = hermite(curve)
    parted = (incoming - outgoing).norm(dim=-1) > 1e-6
    assert keys[parted].tolist() == [0.3]


def test_bad_input_is_refused() -> None:
    curve = random_curve(3, 8)
    with pytest.raises(ValueError, match="12 knots for 8 control points of degree 3, got 11"):
        BSpline(curve.ctrl, curve.knots[:-1], 3)
    for i, value in ((5, 0.1), (3, 0.1), (4, 0.0), (6, torch.nan)):
        knots = curve.knots.clone()
        knots[i] = value
        with pytest.raises(ValueError, match="repeated exactly 4 times, got"):
            BSpline(curve.ctrl, knots, 3)
    with pytest.raises(ValueError, match="got M=8, P=8"):
        BSpline(curve.ctrl, torch.zeros(17), 8)
    with pytest.raises(ValueError, match="got order=4, degree=3"):
        curve.derivative(4)
    with pytest.raises(ValueError, match="strictly between 0 and 1, got 1"):
        curve.insert(1.0)
    with pytest.raises(ValueError, match="at most degree \\+ 1 = 4 times, got 1 \\+ 4"):
        curve.insert(0.4, 4)
    with pytest.raises(ValueError, match="strictly between"):
        curve.split(0.0)
    for way in (curve.evaluate, curve.evaluate_de_casteljau):
        with pytest.raises(ValueError, match=r"every u in \[0, 1\], got values from 0.5 to 1.5"):
            way(torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"degree 1, 2 or 3 .* got 4"):
        hermite(curve.elevate())
    with pytest.raises(ValueError, match="continuous curve"):
        hermite(uneven_curve())


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_halved_spans_keep_the_curve_and_stay_uniform(degree: int) -> None:
    curve = BSpline.clamped(torch.randn(2, 7, 3, dtype=torch.float64), degree)
    fine = curve.halved()
    assert fine.ctrl.shape == (2, 2 * (7 - degree) + degree, 3)
    assert_close(fine.knots, knot_vector(fine.ctrl.shape[1], degree))
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    assert_close(fine.evaluate(u), curve.evaluate(u), rtol=0, atol=1e-13)
