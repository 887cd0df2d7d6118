"""The trajectory-basis lifter on scenes whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from diffusion4d.evaluation import trajectory_basis as lifter

F64 = torch.float64


def rotations(T: int, degrees: float) -> Tensor:
    """[T, 3, 3]: turning about the vertical, nodding a little; the first is the identity."""
    angle = torch.linspace(0, math.radians(degrees), T, dtype=F64)
    nod = 0.3 * angle.sin()
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones(T), torch.zeros(T)
    yaw = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], -1).unflatten(-1, (3, 3))
    c, s = nod.cos(), nod.sin()
    pitch = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))
    return pitch.double() @ yaw.double()


def box(N: int, size: float = 0.15, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.rand((N, 3), generator=g, dtype=F64) - 0.5) * 2 * size


def seen_from(world_NT3: Tensor, rotation_T33: Tensor, away: float = 1.0) -> Tensor:
    """Camera-frame points of a camera that turns about a centre at this depth."""
    turned = torch.einsum("tij,ntj->nti", rotation_T33, world_NT3)
    return turned + torch.tensor([0.0, 0.0, away], dtype=F64)


@pytest.fixture(autouse=True)
def _little_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths of scenes that determine them are not to be shrunk."""
    monkeypatch.setattr(lifter, "HELD", 1e-4)


@pytest.mark.parametrize("degrees", [30.0, -45.0])
def test_a_rigid_scene_gets_its_depth_and_not_the_mirrored_one(degrees):
    T, N = 16, 40
    points = seen_from(box(N)[:, None].expand(N, T, 3), rotations(T, degrees))
    rays = points[..., :2] / points[..., 2:]
    seen = torch.ones(N, T, dtype=F64)
    depth, filled = lifter.lift(rays, seen)
    truth = points[..., 2] / points[:, 0, 2].median()
    # A weak-perspective camera: errors of second order in the size of the scene.
    assert (depth - truth).abs().median() < 0.03
    relief = torch.stack([depth.flatten() - 1, truth.flatten() - 1])
    assert torch.corrcoef(relief)[0, 1] > 0.97
    torch.testing.assert_close(filled, rays)


def test_what_was_hidden_is_filled_in():
    T, N = 16, 40
    points = seen_from(box(N)[:, None].expand(N, T, 3), rotations(T, 40.0))
    rays = points[..., :2] / points[..., 2:]
    seen = torch.ones(N, T, dtype=F64)
    seen[::4, 10:] = 0
    held = torch.where(seen[..., None] > 0, rays, rays[:, 9:10])
    _, filled = lifter.lift(held, seen)
    hidden = seen == 0
    before = (held - rays).norm(dim=-1)[hidden].mean()
    after = (filled - rays).norm(dim=-1)[hidden].mean()
    assert after < 0.4 * before
    torch.testing.assert_close(filled[~hidden], rays[~hidden])


def test_a_still_camera_and_scene_tell_no_depth():
    g = torch.Generator().manual_seed(0)
    rays = torch.rand((20, 1, 2), generator=g, dtype=F64).expand(20, 8, 2) - 0.5
    depth, filled = lifter.lift(rays, torch.ones(20, 8, dtype=F64))
    assert torch.equal(depth, torch.ones(20, 8, dtype=F64))
    assert torch.equal(filled, rays)


def test_the_upgrade_makes_rows_orthogonal():
    g = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 1.5, 9, dtype=F64)
    cameras = scale[:, None, None] * rotations(9, 60.0)[:, :2]
    mixed = cameras @ torch.randn((3, 3), generator=g, dtype=F64)
    upgrade = lifter.metric_upgrade(mixed)
    assert upgrade is not None
    rotation, found = lifter.euclidean(mixed @ upgrade)
    torch.testing.assert_close(found, scale)
    # Known up to the mirror image.
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=F64)
    expected = rotations(9, 60.0)
    either = torch.stack([expected, mirror[:, None] * expected * mirror])
    assert (rotation - either).abs().amax((-3, -2, -1)).min() < 1e-6


def test_cosines_are_found_where_the_camera_moves_enough(monkeypatch):
    # Points that move as the basis does, seen by a camera that turns all the way round them.
    monkeypatch.setattr(lifter, "LAMBDA", 1e-9)
    monkeypatch.setattr(lifter, "HELD", 1e-9)
    T, N = 24, 10
    rotation = rotations(T, 360.0)
    time = (torch.arange(T, dtype=F64) + 0.5) / T
    way = torch.stack([torch.cos(math.pi * k * time) for k in (0, 1)], -1)
    g = torch.Generator().manual_seed(0)
    world = torch.einsum("td,ndj->ntj", way, torch.rand((N, 2, 3), generator=g, dtype=F64) - 0.5)
    points = seen_from(world, rotation, away=4.0)
    found = lifter.cosine_trajectories(
        points[..., :2] / points[..., 2:],
        torch.ones(N, T, dtype=F64),
        rotation,
        torch.tensor([0.0, 0.0, 4.0], dtype=F64).expand(T, 3),
    )
    torch.testing.assert_close(found, points, atol=1e-4, rtol=0)


def test_two_points_tell_no_depth():
    g = torch.Generator().manual_seed(0)
    rays = torch.rand((2, 8, 2), generator=g, dtype=F64)
    depth, filled = lifter.lift(rays, torch.ones(2, 8, dtype=F64))
    assert torch.equal(depth, torch.ones(2, 8, dtype=F64))
    assert torch.equal(filled, rays)
