"""Parallax: what a smooth motion of the picture explains is gone, and what is left tells depths."""

import math

import pytest
import torch
from torch import Tensor

from diffusion4d.evidence import Evidence
from diffusion4d.parallax import DIRECTIONS, parallax

M = 8


def seen(ctrl_NM2: Tensor, weight: Tensor | None = None, focal: float = 1.0) -> Evidence:
    """Evidence of one clip with these control points, as shares of the picture."""
    N = len(ctrl_NM2)
    return Evidence(
        ctrl=ctrl_NM2[None] / focal,
        weight=torch.ones(1, N, M) if weight is None else weight,
        log_focal=torch.tensor([math.log(focal)]),
        focal_known=torch.ones(1),
    )


def places(N: int, seed: int = 0) -> Tensor:
    return torch.rand(N, 2, generator=torch.Generator().manual_seed(seed)) - 0.5


def smooth(place_N2: Tensor, seed: int = 1) -> Tensor:
    """A motion of the picture that is quadratic in the place, other coefficients at every control point."""
    x, y = place_N2.unbind(-1)
    design = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)
    field = 0.1 * torch.randn(6, M, 2, generator=torch.Generator().manual_seed(seed))
    field[:, 0] = 0
    return place_N2[:, None] + torch.einsum("nk,kmi->nmi", design, field)


def test_a_motion_of_the_whole_picture_leaves_nothing():
    ctrl = smooth(places(64))
    left = parallax(seen(ctrl)).residual
    assert left.square().mean().sqrt() < 0.03 * (ctrl - ctrl[:, :1]).square().mean().sqrt()


@pytest.mark.parametrize("focal", [0.5, 1.0, 4.0])
def test_under_a_camera_that_travels_the_strongest_direction_is_inverse_depth(focal):
    place = places(64)
    generator = torch.Generator().manual_seed(3)
    nearness = 1 / (1 + 2 * torch.rand(64, generator=generator))
    way = torch.linspace(0, 0.2, M)
    shift = torch.stack([way, 0.3 * way], -1)
    ctrl = smooth(place) + nearness[:, None, None] * shift
    left = parallax(seen(ctrl, focal=focal))
    x, y = place.unbind(-1)
    design = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)
    rest = nearness - design @ torch.linalg.lstsq(design, nearness[:, None]).solution[:, 0]
    found = left.coordinates[0, :, 0]
    agreement = torch.corrcoef(torch.stack([found, rest]))[0, 1].abs()
    assert agreement > 0.95
    # One camera that travels straight on leaves one direction.
    assert left.strength[0, 0] > left.strength[0, 1] + math.log(10)


def test_what_moves_by_itself_hardly_changes_what_is_left_of_the_rest():
    ctrl = smooth(places(64))
    disturbed = ctrl.clone()
    disturbed[:16, 1:] += 0.3
    left = parallax(seen(disturbed)).residual[0]
    assert left[16:].square().mean().sqrt() < 0.02
    assert left[:16, -1].mean() > 0.25


def test_points_hidden_throughout_do_not_count():
    ctrl = smooth(places(64))
    disturbed = ctrl.clone()
    disturbed[:30, 1:] += torch.randn(30, M - 1, 2, generator=torch.Generator().manual_seed(5))
    weight = torch.ones(1, 64, M)
    weight[:, :30] = 0
    left = parallax(seen(disturbed, weight)).residual[0]
    assert left[30:].square().mean().sqrt() < 0.02


def test_order_of_points_is_free_and_time_reversed_motion_has_the_same_coordinates():
    ctrl = smooth(places(40)) + 0.1 * torch.randn(
        40, 1, 1, generator=torch.Generator().manual_seed(7)
    ) * torch.linspace(0, 1, M).unsqueeze(-1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(8))
    first, second = parallax(seen(ctrl)), parallax(seen(ctrl[order]))
    torch.testing.assert_close(first.residual[:, order], second.residual, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        first.coordinates[:, order, 0], second.coordinates[..., 0], rtol=1e-2, atol=1e-3
    )
    # The opposite motion: the same directions, and the sign is settled by the picture.
    opposite = ctrl[:, :1] - (ctrl - ctrl[:, :1])
    third = parallax(seen(opposite))
    torch.testing.assert_close(
        first.coordinates[..., 0], third.coordinates[..., 0], rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("N", [1, 2, 5])
def test_few_points_and_none_that_move(N):
    place = places(N)
    still = parallax(seen(place[:, None].expand(N, M, 2).clone()))
    assert still.residual.abs().max() == 0
    moving = parallax(seen(smooth(place)))
    for left in (still, moving):
        assert left.coordinates.shape == (1, N, DIRECTIONS)
        for value in (left.residual, left.coordinates, left.strength):
            assert value.isfinite().all()
