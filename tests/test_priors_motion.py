"""Energies of motion against quadrature, closed forms and their invariances; the classical baselines."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import roma
import torch
from fans import fan
from scipy.integrate import quad
from torch import Tensor
from unchecked import unchecked

from diffusion4d.motion_energies import energies_of, motion_energies, order
from diffusion4d.splines import BSpline, basis_matrix, gram_matrix, knot_vector
from priors import motion, rigidity
from priors.cosines import cosine_basis, high_frequency_energy, low_frequency
from priors.low_rank import (
    beyond_rank,
    nuclear_norm,
    points_of,
    shape_matrix,
    shrunk,
    truncated,
)
from priors.motion import background_motion, on_control_points, smoothness, speeding, uneven_pace
from priors.rigidity import as_rigid_as_possible, nearest, stretch

F64 = torch.float64


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
@pytest.mark.parametrize(("degree", "order"), [(3, 0), (3, 1), (3, 2), (3, 3), (2, 1), (1, 0)])
def test_smoothness_is_the_integral(batch, degree, order):
    knots = knot_vector(7, degree)
    ctrl = some(*batch, 5, 7, 3)
    energy = smoothness(ctrl, gram_matrix(knots, degree, order))
    # Adaptive quadrature of the evaluated curve, which is smooth between the breaks.
    curve = BSpline(ctrl, knots, degree).derivative(order)

    def squared(u: float) -> float:
        return curve.evaluate(torch.tensor([u], dtype=F64)).square().sum().item() / 5

    pairs = itertools.pairwise(curve.breaks.tolist())
    integral = sum(quad(squared, low, high)[0] for low, high in pairs)
    assert energy.sum().item() == pytest.approx(integral, rel=1e-9)
    assert energy.shape == batch


def test_gram_of_a_straight_line_and_its_null_space():
    from diffusion4d.splines import greville

    line = (greville(6)[:, None] * torch.tensor([3.0, 0.0, 4.0], dtype=F64))[None]
    knots = knot_vector(6)
    assert smoothness(line, gram_matrix(knots, 3, 1)).item() == pytest.approx(25)
    assert smoothness(line, gram_matrix(knots, 3, 2)).item() == pytest.approx(0, abs=1e-12)
    # Of 6 functions the linear ones, two of them, have no second derivative.
    assert torch.linalg.matrix_rank(gram_matrix(knots, 3, 2)) == 4
    with pytest.raises(ValueError, match="order=4"):
        gram_matrix(knots, 3, 4)


def moved(points: Tensor, seed: int = 3) -> Tensor:
    """Another rigid motion at every instant but the first."""
    T = points.shape[-2]
    turn = roma.rotvec_to_rotmat(some(T, 3, seed=seed))
    turn[0] = torch.eye(3)
    place = some(T, 3, seed=seed + 1)
    return torch.einsum("tij,...tj->...ti", turn, points) + place


def test_rigid_motion_costs_nothing_and_changes_nothing():
    shape = some(20, 3)
    graph = nearest(shape, 5)
    rigid = moved(shape[:, None].expand(20, 7, 3))
    assert as_rigid_as_possible(rigid, graph) < 1e-20
    assert stretch(rigid, graph) < 1e-20
    points = some(2, 20, 7, 3)
    for energy in (as_rigid_as_possible, stretch):
        torch.testing.assert_close(energy(moved(points), graph), energy(points, graph))
        torch.testing.assert_close(energy(5 * points, graph), energy(points, graph))
    # A mirror image keeps all lengths, and is no rotation.
    mirrored = torch.cat([points[..., :1, :], -points[..., 1:, :]], -2)
    torch.testing.assert_close(stretch(mirrored, graph), stretch(points, graph))
    still = shape[:, None].expand(20, 2, 3).clone()
    still[:, 1] *= -1
    assert as_rigid_as_possible(still, graph) > 0.1


def test_uniform_growth_has_the_energy_of_its_edges():
    shape = some(15, 3)
    graph = nearest(shape, 4)
    grown = torch.stack([shape, 1.3 * shape], 1)
    # Half the instants have every edge longer by 0.3 of itself.
    for energy in (as_rigid_as_possible, stretch):
        assert energy(grown, graph).item() == pytest.approx(0.3**2 / 2)


def test_the_graph_is_that_of_the_nearest():
    places = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert nearest(places, 2).index.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"got k={k} for 4 points"):
            nearest(places, k)


def test_natural_curves_have_an_even_pace():
    angle = torch.linspace(0, 3, 25, dtype=F64)
    circle = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)[None]
    assert uneven_pace(circle).item() == pytest.approx(0, abs=1e-12)
    # Steps of 1 and 3: mean 2, mean square 5.
    halting = torch.tensor([0.0, 1.0, 4.0, 5.0, 8.0], dtype=F64)[None, :, None] * torch.eye(3)[0]
    assert uneven_pace(halting).item() == pytest.approx(5 / 4 - 1)
    assert uneven_pace(torch.zeros(2, 3, 4, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_what_hardly_moves_rests(unit: float) -> None:
    """Rounding has no pace: no energy and no pull, whatever the unit. What moves keeps its own."""
    place = unit * torch.tensor([0.7, -0.4, 1.2], dtype=F64)
    for noise in (1e-7, 1e-6):
        still = (place + noise * unit * some(1, 2, 12, 3)).requires_grad_()
        energy = uneven_pace(still)
        (slope,) = torch.autograd.grad(energy.sum(), still)
        assert 0 < energy.item() < (noise / 1e-4) ** 2
        # The pull falls with the noise; without a floor it would rise as its inverse, to a million.
        assert unit * slope.abs().max() < 1e7 * noise
    # Nearer to rest is nearer to 0; far from it nothing is taken off.
    shake = some(1, 2, 12, 3)
    paces = [uneven_pace(place + s * unit * shake).item() for s in (0, 1e-6, 1e-5, 1e-4, 1e-2)]
    assert paces == sorted(paces)
    assert paces[0] == 0
    steps = shake.diff(dim=2).norm(dim=-1)
    plain = steps.var(-1, correction=0) / steps.mean(-1).square()
    assert paces[-1] == pytest.approx(plain.mean().item(), rel=1e-3)
    # In single precision a place that is written down again and again stays at rest.
    assert uneven_pace((place + 1e-8 * unit * shake).float()) < 1e-5


def test_shapes_that_do_not_fit_are_named():
    paths = some(2, 4, 6, 3)
    plain, shapes = unchecked(motion), unchecked(rigidity)
    for wrong in (paths[..., :1, :], paths[..., :2], paths[0, 0]):
        with pytest.raises(
            ValueError, match=r"need points \[\*K, N, T, 3\] at T >= 2 instants, got"
        ):
            plain.uneven_pace(wrong)
    with pytest.raises(ValueError, match=r"need u \[6\] of the points' instants, got \[5\]"):
        plain.speeding(paths, torch.linspace(0, 1, 5), 1.0)
    with pytest.raises(ValueError, match="need limit >= 0 and increasing u, got nan"):
        plain.speeding(paths, torch.linspace(0, 1, 6), math.nan)
    with pytest.raises(ValueError, match=r"need weights \[4\], got \[7\]"):
        plain.background_motion(paths, torch.ones(7))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="one of them above"):
            plain.background_motion(paths, torch.tensor([1.0, bad, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"need gram \[6, 6\], got \[5, 5\]"):
        plain.smoothness(paths, torch.eye(5))
    with pytest.raises(ValueError, match="need 5 control points, got 6"):
        plain.on_control_points(
            plain.uneven_pace, basis_matrix(torch.linspace(0, 1, 8, dtype=F64), 5)
        )(paths)
    graph = shapes.nearest(some(5, 3), 2)
    for energy in (shapes.as_rigid_as_possible, shapes.stretch):
        with pytest.raises(
            ValueError, match=r"need points \[\*K, 5, T, 3\] of the graph, got \[2, 4"
        ):
            energy(paths, graph)
    with pytest.raises(ValueError, match=r"need places \[N, dim\], got \[2, 5, 3\]"):
        shapes.nearest(some(2, 5, 3), 2)


def test_speed_above_the_limit_and_no_other_costs():
    u = torch.tensor([0.0, 0.25, 1.0], dtype=F64)
    # Speeds 4 and 8/3.
    points = torch.tensor([0.0, 1.0, 3.0], dtype=F64)[None, :, None] * torch.eye(3)[1]
    assert speeding(points, u, 4.0).item() == 0
    assert speeding(points, u, 3.0).item() == pytest.approx(1 / 2)
    for bad, when in ((-1.0, u), (1.0, u.flip(0))):
        with pytest.raises(ValueError, match="need limit >= 0 and increasing u"):
            speeding(points, when, bad)


def test_background_stays_where_it_is():
    points = some(2, 4, 6, 3)
    points[:, :2] = points[:, :2, :1]
    weights = torch.tensor([1.0, 3.0, 0.0, 0.0])
    assert background_motion(points, weights).abs().max() < 1e-20
    around = points[:, 2] - points[:, 2].mean(1, keepdim=True)
    expected = around.square().sum(-1).mean(-1) / 4
    mixed = torch.tensor([0.0, 3.0, 1.0, 0.0])
    torch.testing.assert_close(background_motion(points, mixed), expected)
    for bad in (-weights, 0 * weights):
        with pytest.raises(ValueError, match="one of them above"):
            background_motion(points, bad)


def test_gradients():
    basis = basis_matrix(torch.linspace(0, 1, 6, dtype=F64), 5)
    graph = nearest(some(6, 3), 3)
    weights = torch.arange(6, dtype=F64)
    energies = [
        lambda c: smoothness(c, gram_matrix(knot_vector(5), 3, 2)),
        on_control_points(uneven_pace, basis),
        on_control_points(lambda x: speeding(x, torch.linspace(0, 1, 6), 0.1), basis),
        on_control_points(lambda x: background_motion(x, weights), basis),
        on_control_points(lambda x: as_rigid_as_possible(x, graph), basis),
        on_control_points(lambda x: stretch(x, graph), basis),
        on_control_points(lambda x: high_frequency_energy(x, 3), basis),
        on_control_points(lambda x: beyond_rank(x, 2), basis),
        on_control_points(nuclear_norm, basis),
    ]
    for energy in energies:
        assert torch.autograd.gradcheck(energy, some(2, 6, 5, 3).requires_grad_())


def test_cosines_are_the_discrete_cosine_transform():
    from scipy.fft import dct

    points = some(3, 8, 3)
    basis = cosine_basis(8, 8)
    ours = basis.mT @ points
    np.testing.assert_allclose(ours.numpy(), dct(points.numpy(), axis=1) / 2)
    torch.testing.assert_close(low_frequency(points, 8), points)
    low = low_frequency(points, 3)
    torch.testing.assert_close(low_frequency(low, 3), low)
    assert high_frequency_energy(low, 3).item() == pytest.approx(0, abs=1e-20)
    # Pythagoras.
    whole = points.square().sum(-1).mean()
    assert (high_frequency_energy(points, 3) + low.square().sum(-1).mean()).item() == (
        pytest.approx(whole.item())
    )
    with pytest.raises(ValueError, match="got 9 for 8 frames"):
        cosine_basis(8, 9)


def test_mixes_of_two_shapes_have_rank_six():
    shapes, weights = some(2, 20, 3), some(9, 2, seed=1)
    turn = roma.rotvec_to_rotmat(some(9, 3, seed=2))
    points = torch.einsum("tb,tij,bnj->nti", weights, turn, shapes) + some(9, 3, seed=4)
    torch.testing.assert_close(points_of(shape_matrix(points)), points)
    assert shape_matrix(points)[4].tolist() == points[:, 1, 1].tolist()
    assert beyond_rank(points, 6).item() < 1e-20
    assert beyond_rank(points, 5).item() > 1e-4
    torch.testing.assert_close(truncated(points, 6), points)
    # What truncation leaves out is what the energy counts.
    for rank in (0, 2, 5):
        rest = (points - truncated(points, rank)).square().sum(-1).mean()
        assert rest.item() == pytest.approx(beyond_rank(points, rank).item())


def test_shrinkage_minimises_its_objective():
    points, price = some(10, 4, 3), 1.5
    best = shrunk(points, price)

    def objective(candidate: Tensor) -> float:
        value = (candidate - points).square().sum() / 2 + price * nuclear_norm(
            candidate
        ) * math.sqrt(40)
        return value.item()

    for seed in range(20):
        for size in (1e-3, 0.1):
            assert objective(best + size * some(10, 4, 3, seed=seed)) > objective(best)
    torch.testing.assert_close(shrunk(points, 0.0), points)
    torch.testing.assert_close(shrunk(points, 1e3), points.mean(0, keepdim=True).expand(10, 4, 3))
    with pytest.raises(ValueError, match="got -1"):
        shrunk(points, -1.0)
    for function in (truncated, beyond_rank):
        with pytest.raises(ValueError, match="got -1"):
            function(points, -1)


def test_energies_of_hypotheses_rank_them():
    hyp = fan(3, 8)
    shaken = hyp.control_points.clone()
    shaken[0] += 0.2 * some(*shaken.shape[1:]).float()
    shaken[1] += 0.1 * some(*shaken.shape[1:]).float()
    hyp = dataclasses.replace(hyp, control_points=shaken)
    found = motion_energies(hyp)
    assert sorted(found) == [
        "cosines",
        "pace",
        "rank",
        "rigidity",
        "smoothness",
        "speed",
        "stretch",
    ]
    for name in ("cosines", "pace", "rigidity", "smoothness", "stretch"):
        assert order(hyp, found[name]).tolist() == [2, 1, 0], name
    # Eight points have rank 7 after centring.
    assert energies_of(hyp, found["rank"]).max() < 1e-10
    middles = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    bending = hyp.spline.derivative(2).evaluate(middles)
    torch.testing.assert_close(
        energies_of(hyp, found["smoothness"]),
        bending.square().sum(-1).mean((1, 2)),
        rtol=1e-3,
        atol=0,
    )
    assert sorted(motion_energies(fan(2, 1))) == ["cosines", "pace", "smoothness", "speed"]


def test_speed_and_background_of_hypotheses():
    """Speed limit in units of the clip; background as told, or as the hypotheses agree on."""
    hyp = fan(3, 8)
    points, u = hyp.evaluate(), hyp.times
    for limit in (0.1, 1.0):
        found = energies_of(hyp, motion_energies(hyp, speed_limit=limit)["speed"])
        torch.testing.assert_close(found, speeding(points, u, limit), rtol=1e-4, atol=1e-7)
    # What one hypothesis of the fan adds in drift is above its own top speed.
    fastest = (points[0].diff(dim=-2).norm(dim=-1) / u.diff()).max().item()
    over = energies_of(hyp, motion_energies(hyp, speed_limit=1.001 * fastest)["speed"])
    assert over[0] == 0 < over[2]
    assert "background" not in motion_energies(hyp)
    weights = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 2.0])
    found = energies_of(hyp, motion_energies(hyp, background=weights)["background"])
    torch.testing.assert_close(found, background_motion(points, weights), rtol=1e-4, atol=1e-7)
    static = torch.zeros(3, 8, dtype=torch.bool)
    static[:, 1] = static[0, 2] = True
    told = dataclasses.replace(hyp, static=static)
    found = energies_of(told, motion_energies(told)["background"])
    agreed = torch.tensor([0.0, 3, 1, 0, 0, 0, 0, 0])
    torch.testing.assert_close(found, background_motion(points, agreed), rtol=1e-4, atol=1e-7)
    nothing = dataclasses.replace(hyp, static=torch.zeros_like(static))
    assert "background" not in motion_energies(nothing)
    for energy in motion_energies(told).values():
        ctrl = told.control_points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(ctrl).sum(), ctrl)
        assert slope.isfinite().all()
    with pytest.raises(ValueError, match="one of them above"):
        motion_energies(hyp, background=-weights)
    with pytest.raises(ValueError, match="need speed_limit >= 0, got nan"):
        motion_energies(hyp, speed_limit=math.nan)
