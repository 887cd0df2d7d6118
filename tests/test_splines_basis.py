"""B-spline bases and the maps between them, against scipy and the properties that define them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline as ScipyBSpline

from diffusion4d.splines import basis_functions, basis_matrix, greville, knot_vector

SIZES = [(0, 1), (0, 4), (1, 2), (1, 5), (2, 3), (2, 7), (3, 4), (3, 8), (3, 21), (4, 9), (6, 13)]
sizes = st.integers(0, 6).flatmap(lambda p: st.tuples(st.just(p), st.integers(p + 1, p + 12)))
instants = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def instants_with_knots(num_ctrl: int, degree: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.cat([torch.from_numpy(rng.random(200)), knot_vector(num_ctrl, degree)]).msort()


def test_knots_are_clamped_and_equidistant() -> None:
    expected = [0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    assert knot_vector(8).tolist() == expected
    assert knot_vector(8).dtype == torch.float64
    assert knot_vector(3, degree=0).tolist() == [0, 1 / 3, 2 / 3, 1]


@pytest.mark.parametrize(("degree", "num_ctrl"), SIZES)
def test_basis_is_scipys_design_matrix(degree: int, num_ctrl: int) -> None:
    u = instants_with_knots(num_ctrl, degree)
    expected = ScipyBSpline.design_matrix(u.numpy(), knot_vector(num_ctrl, degree).numpy(), degree)
    assert np.abs(basis_matrix(u, num_ctrl, degree).numpy() - expected.toarray()).max() <= 1e-12


def test_basis_on_uneven_and_repeated_knots_is_scipys() -> None:
    knots = torch.tensor(
        [0, 0, 0, 0, 0.1, 0.1, 0.5, 0.5, 0.5, 0.9, 2, 2, 2, 2], dtype=torch.float64
    )
    u = torch.linspace(0, 2, 301, dtype=torch.float64)
    expected = ScipyBSpline.design_matrix(u.numpy(), knots.numpy(), 3).toarray()
    assert np.abs(basis_functions(u, knots, 3).numpy() - expected).max() <= 1e-12


@settings(max_examples=60, deadline=None)
@given(size=sizes, u=instants)
def test_partition_of_unity_and_local_support(size: tuple[int, int], u: list[float]) -> None:
    degree, num_ctrl = size
    basis = basis_matrix(torch.tensor(u, dtype=torch.float64), num_ctrl, degree)
    assert basis.shape == (len(u), num_ctrl)
    assert (basis >= 0).all()
    assert ((basis > 0).sum(-1) <= degree + 1).all()
    torch.testing.assert_close(basis.sum(-1), torch.ones(len(u)).double(), rtol=0, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(size=sizes.filter(lambda size: size[0] > 0), u=instants)
def test_greville_abscissae_reproduce_the_parameter(size: tuple[int, int], u: list[float]) -> None:
    degree, num_ctrl = size
    u_T = torch.tensor(u, dtype=torch.float64)
    found = basis_matrix(u_T, num_ctrl, degree) @ greville(num_ctrl, degree)
    torch.testing.assert_close(found, u_T, rtol=0, atol=1e-13)


def test_greville_abscissae_of_degree_0_are_the_middles() -> None:
    assert greville(4, degree=0).tolist() == [0.125, 0.375, 0.625, 0.875]


def test_ends_belong_to_the_first_and_last_control_point() -> None:
    basis = basis_matrix(torch.tensor([0.0, 1.0]), 8)
    assert torch.equal(basis, torch.eye(8)[[0, 7]])


def test_float32_error_is_a_few_roundings() -> None:
    for num_ctrl in (4, 8, 40):
        u = torch.rand(500, generator=torch.Generator().manual_seed(0)).msort()
        single, truth = basis_matrix(u, num_ctrl), basis_matrix(u.double(), num_ctrl)
        assert single.dtype == torch.float32
        # u and the knots are rounded to 6e-8 of 1, and a basis function rises by at most M.
        assert (single - truth).abs().max() <= 2e-7 * num_ctrl


def test_basis_is_differentiable_in_u() -> None:
    u = torch.tensor([0.05, 0.31, 0.77, 0.99], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: basis_matrix(u, 8), u)
    assert torch.autograd.gradgradcheck(lambda u: basis_matrix(u, 8), u)


def test_basis_keeps_any_shape_of_u() -> None:
    u = torch.rand(2, 5, 3)
    flat = basis_functions(u.flatten(), knot_vector(6), 3)
    assert torch.equal(basis_functions(u, knot_vector(6), 3), flat.reshape(2, 5, 3, 6))
    assert basis_matrix(torch.zeros(0), 6).shape == (0, 6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="num_ctrl > degree, got num_ctrl=3, degree=3"):
        knot_vector(3)
    with pytest.raises(ValueError, match="got num_ctrl=3, degree=-1"):
        knot_vector(3, -1)
    with pytest.raises(ValueError, match=r"every u in \[0, 1\], got values from -0.5 to 1"):
        basis_matrix(torch.tensor([-0.5, 1.0]), 8)
    with pytest.raises(ValueError, match="every u in"):
        basis_matrix(torch.tensor([0.5, torch.nan]), 8)
    with pytest.raises(ValueError, match=r"float32 or float64, got torch.bfloat16"):
        basis_matrix(torch.tensor([0.5]).bfloat16(), 8)
