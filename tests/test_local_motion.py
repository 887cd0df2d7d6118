"""Local motion: the picture's first derivatives around a point, of its own surface alone."""

import math

import pytest
import torch
from torch import Tensor

from diffusion4d.evidence import Evidence
from diffusion4d.local_motion import local_motion

M = 6


def seen(ctrl_NM2: Tensor, weight: Tensor | None = None, focal: float = 1.0) -> Evidence:
    """Evidence of one clip with these control points, as shares of the picture."""
    return Evidence(
        ctrl=ctrl_NM2[None] / focal,
        weight=torch.ones(1, len(ctrl_NM2), M) if weight is None else weight,
        log_focal=torch.tensor([math.log(focal)]),
        focal_known=torch.ones(1),
    )


def patch(seed: int, middle: tuple[float, float], N: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * (torch.rand(N, 2, generator=generator) - 0.5) + torch.tensor(middle)


def carried(place_N2: Tensor, gradient_22: list[list[float]], shift: tuple[float, float]) -> Tensor:
    """Places that this affine motion carries away, more at every control point."""
    share = torch.linspace(0, 1, M)[:, None]
    moved = place_N2 @ torch.tensor(gradient_22).mT + torch.tensor(shift)
    return place_N2[:, None] + share * moved[:, None]


@pytest.mark.parametrize("focal", [0.7, 4.0])
def test_an_affine_motion_is_found_and_leaves_nothing(focal):
    gradient = [[0.1, -0.2], [0.05, 0.3]]
    found = local_motion(seen(carried(patch(0, (0.1, 0.0)), gradient, (0.02, 0.01)), focal=focal))
    wanted = torch.linspace(0, 1, M)[:, None] * torch.tensor(gradient).flatten()
    # The ridge shrinks a little.
    torch.testing.assert_close(found.gradient[0].mean(0), wanted, rtol=0.15, atol=5e-3)
    assert found.residual.abs().max() < 0.02


def test_two_bodies_side_by_side_keep_their_own_motions():
    left = carried(patch(0, (-0.1, 0.0)), [[0.3, 0.0], [0.0, 0.3]], (0.0, 0.25))
    right = carried(patch(1, (0.1, 0.0)), [[-0.3, 0.0], [0.0, 0.0]], (0.0, -0.25))
    found = local_motion(seen(torch.cat([left, right]))).gradient[0, :, -1]
    assert found[:40, 0].median() == pytest.approx(0.3, abs=0.06)
    assert found[40:, 0].median() == pytest.approx(-0.3, abs=0.06)


def test_what_was_not_seen_does_not_count():
    ctrl = carried(patch(0, (0.0, 0.0)), [[0.2, 0.0], [0.0, 0.2]], (0.0, 0.0))
    weight = torch.ones(1, 40, M)
    weight[:, ::2] = 0
    wild = ctrl.clone()
    wild[::2, 1:] += 0.04 * torch.randn(20, M - 1, 2, generator=torch.Generator().manual_seed(2))
    found = local_motion(seen(wild, weight)).gradient[0, 1::2, -1]
    blind = local_motion(seen(wild)).gradient[0, 1::2, -1]
    right = torch.tensor([0.2, 0.0, 0.0, 0.2])
    assert (found - right).square().mean() < 0.3 * (blind - right).square().mean()


def test_order_of_the_points_is_free_and_one_point_is_enough():
    ctrl = carried(patch(0, (0.0, 0.0)), [[0.2, 0.1], [0.0, 0.2]], (0.1, 0.0))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    plain, mixed = local_motion(seen(ctrl)), local_motion(seen(ctrl[order]))
    torch.testing.assert_close(mixed.gradient[0], plain.gradient[0, order], rtol=1e-3, atol=1e-4)
    lone = local_motion(seen(ctrl[:1]))
    assert lone.gradient.isfinite().all() and lone.gradient.abs().max() < 1e-3
    assert lone.residual.abs().max() < 1e-5
