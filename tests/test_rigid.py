"""The largest rigid subset: exact on exact worlds, still before a still camera, and honest where there is none."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
import roma
import torch
from torch import Tensor

from priors import rigid
from priors.bundle import Fit, Seen

SIZE = (256, 320)
INTRINSICS = torch.tensor([300.0, 300.0, 160.0, 128.0], dtype=torch.float64)
T = 16


def path(turn: float = 6.0, travel: float = 0.25) -> Tensor:
    """World to camera: a smooth turn in degrees about a slanted axis, and a way to the side and ahead."""
    u = torch.linspace(0, 1, T, dtype=torch.float64)[:, None]
    axis = torch.tensor([0.3, 0.9, 0.1], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(T, 1, 1)
    poses[:, :3, :3] = roma.rotvec_to_rotmat(
        math.radians(turn) * torch.sin(1.5 * u) * axis / axis.norm()
    )
    poses[:, :3, 3] = travel * torch.cat([u, 0.2 * u**2, -0.5 * u], -1)
    return poses


def world(cameras: Tensor, still: int = 40, moving: int = 30) -> tuple[Tensor, Tensor]:
    """Points [1, N, T, 3] in each camera; the first `still` stand over the whole image, the others walk."""
    g = torch.Generator().manual_seed(3)
    pixels = torch.rand(still, 2, generator=g, dtype=torch.float64) * torch.tensor([320.0, 256.0])
    depth = 1 + torch.rand(still, 1, generator=g, dtype=torch.float64)
    rays = (pixels - INTRINSICS[2:]) / INTRINSICS[:2]
    ground = torch.cat([rays * depth, depth], -1)[:, None].expand(-1, T, -1)
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    body = 0.1 * torch.randn(moving, 1, 3, generator=g, dtype=torch.float64) + torch.tensor(
        [0.0, 0.0, 1.0]
    )
    walk = torch.stack([0.35 * u - 0.15, 0.1 * torch.sin(9 * u), 0.2 * u], -1)
    X = torch.cat([ground, body + walk])
    placed = torch.einsum("tij,ntj->nti", cameras[:, :3, :3], X) + cameras[:, :3, 3]
    static = torch.arange(still + moving) < still
    return placed[None], static


def degrees(found: Tensor, true: Tensor) -> Tensor:
    true = true[:, :3, :3].expand(*found.shape[:-2], 3, 3)
    return torch.rad2deg(roma.rotmat_geodesic_distance(found[..., :3, :3], true))


@pytest.mark.parametrize("travel", [0.25, 0.0])
def test_exact_worlds_give_exact_cameras(travel: float) -> None:
    cameras = path(travel=travel)
    points, static = world(cameras)
    motion = rigid.rigid_motion(points, torch.ones(points.shape[1:3]), INTRINSICS, SIZE)
    assert motion.moves
    assert motion.found.all()
    assert torch.equal(motion.static[0], static)
    # A few damped steps, not a limit.
    assert degrees(motion.extrinsics, cameras).max() < 1e-2
    torch.testing.assert_close(motion.extrinsics[0], cameras, atol=1e-3, rtol=0)
    # In the world of the first camera the still points are where that camera saw them.
    torch.testing.assert_close(motion.anchors[0, static], points[0, static, 0], atol=2e-3, rtol=0)


def test_depths_may_be_wrong_where_images_have_parallax() -> None:
    """Depth noise of 10 % leaves the cameras right to a few hundredths; a plain registration is off by degrees."""
    cameras = path()
    points, static = world(cameras)
    g = torch.Generator().manual_seed(0)
    noise = torch.exp(0.1 * torch.randn(4, *points.shape[1:3], 1, generator=g, dtype=torch.float64))
    noisy = points * noise
    motion = rigid.rigid_motion(noisy, torch.ones(points.shape[1:3]), INTRINSICS, SIZE)
    assert motion.found.all()
    assert (motion.static == static).float().mean() > 0.95
    seen = Seen.of(noisy, torch.ones(points.shape[1:3]), INTRINSICS, SIZE)
    plain = Fit.starting(seen, static.double().expand(4, -1)).rotation
    assert degrees(motion.extrinsics, cameras).mean() < 0.15 * degrees(plain, cameras).mean()


def test_a_still_camera_is_the_identity_to_the_bit() -> None:
    still = torch.eye(4, dtype=torch.float64).repeat(T, 1, 1)
    points, static = world(still)
    g = torch.Generator().manual_seed(1)
    # Tracks that wander by half a pixel, and depths of which every reconstruction has its own.
    wander = 0.5 / 300 * torch.randn(3, *points.shape[1:3], 2, generator=g, dtype=torch.float64)
    depth = torch.exp(0.1 * torch.randn(3, points.shape[1], 1, 1, generator=g, dtype=torch.float64))
    noisy = torch.cat(
        [points[..., :2] + wander * points[..., 2:], points[..., 2:].expand(3, -1, -1, -1)], -1
    )
    motion = rigid.rigid_motion(depth * noisy, torch.ones(points.shape[1:3]), INTRINSICS, SIZE)
    assert not motion.moves
    assert torch.equal(motion.extrinsics, still.expand(3, -1, -1, -1))
    assert (motion.static == static).all()


def test_the_largest_set_is_by_area_not_by_count() -> None:
    """Twelve points of the ground over the image outweigh forty on a thing that moves rigidly in its middle."""
    cameras = path()
    points, static = world(cameras, still=14, moving=40)
    motion = rigid.rigid_motion(points, torch.ones(points.shape[1:3]), INTRINSICS, SIZE)
    assert motion.found.all()
    assert torch.equal(motion.static[0], static)
    assert degrees(motion.extrinsics, cameras).max() < 3e-2


def test_points_without_a_rigid_set_have_none() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    start = torch.rand(40, 1, 3, generator=g, dtype=torch.float64) + torch.tensor([-0.5, -0.5, 1.0])
    way = torch.randn(40, 1, 3, generator=g, dtype=torch.float64) * u[:, None]
    motion = rigid.rigid_motion((start + 0.4 * way)[None], torch.ones(40, T), INTRINSICS, SIZE)
    assert not motion.found.any()


@pytest.mark.parametrize("count", [1, 5])
def test_a_few_points_are_no_world(count: int) -> None:
    points, _ = world(path())
    motion = rigid.rigid_motion(points[:, :count], torch.ones(count, T), INTRINSICS, SIZE)
    assert motion.moves
    assert not motion.found.any()
    # A single instant has no motion to speak of.
    one = rigid.rigid_motion(points[:, :, :1], torch.ones(points.shape[1], 1), INTRINSICS, SIZE)
    assert not one.moves
    assert one.static.all()


def test_what_turns_in_the_middle_is_not_taken_for_the_world() -> None:
    points, _ = world(path(), still=0 + 3, moving=40)
    motion = rigid.rigid_motion(points[:, 3:], torch.ones(40, T), INTRINSICS, SIZE)
    assert motion.moves
    assert not motion.found.any()


def test_hidden_instants_do_not_count() -> None:
    cameras = path()
    points, static = world(cameras)
    visibility = torch.ones(points.shape[1:3])
    visibility[::3, T // 2 :] = 0
    wrong = points.clone()
    wrong[0, ::3, T // 2 :, :2] += 0.05
    motion = rigid.rigid_motion(wrong, visibility, INTRINSICS, SIZE)
    assert torch.equal(motion.static[0], static)
    assert degrees(motion.extrinsics, cameras).max() < 0.1


def test_known_cameras_tell_what_stands_still() -> None:
    cameras = path()
    points, static = world(cameras)
    motion = rigid.standing(points, torch.ones(points.shape[1:3]), INTRINSICS, SIZE, cameras[None])
    assert torch.equal(motion.extrinsics[0], cameras)
    assert torch.equal(motion.static[0], static)
    torch.testing.assert_close(motion.anchors[0, static], points[0, static, 0], atol=1e-4, rtol=0)


def test_derivatives_are_those_of_the_residual() -> None:
    """One undamped step on exact data from a disturbed start removes the disturbance to second order."""
    cameras = path()
    points, _ = world(cameras, moving=0)
    seen = Seen.of(points, torch.ones(points.shape[1:3]), INTRINSICS, SIZE)
    ones = torch.ones(1, points.shape[1], dtype=torch.float64)
    errors = []
    for size in (1e-3, 1e-4):
        g = torch.Generator().manual_seed(0)
        exact = Fit.posed(seen, cameras[None])
        shift = exact.shift.clone()
        shift[:, 1:] += size * torch.randn(1, T - 1, 3, generator=g, dtype=torch.float64)
        start = dataclasses.replace(
            exact, shift=shift, anchor=points[:, :, 0], damping=torch.full((1,), 1e-12).double()
        )
        errors.append(float((start.stepped(seen, ones).shift - exact.shift).abs().max()) / size)
    # Quadratic convergence: ten times nearer, ten times the share that is removed (robust weights slow it a little).
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.05


def test_areas_and_hulls() -> None:
    pixels = torch.tensor([[64.0, 64.0], [192.0, 64.0], [64.0, 192.0], [192.0, 192.0]])
    torch.testing.assert_close(rigid.area_shares(pixels, (256, 256)), torch.full((4,), 0.25))
    assert rigid.hull_share(pixels, (256, 256)) == pytest.approx(0.25)
    assert rigid.hull_share(pixels[:2], (256, 256)) == 0
    assert rigid.hull_share(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), (8, 8)) == 0
    assert np.isclose(float(rigid.area_shares(torch.rand(7, 2) * 64, (64, 64)).sum()), 1)


def test_scales_of_mates_do_not_matter() -> None:
    """The nearest depth that is allowed is each reconstruction's own: mates a thousand times as large change no bit."""
    cameras = path()
    points, _ = world(cameras)
    seen = torch.ones(points.shape[1:3])
    alone = rigid.rigid_motion(points, seen, INTRINSICS, SIZE)
    mates = torch.cat([points, 1000 * points, 1000 * points])
    together = rigid.rigid_motion(mates, seen, INTRINSICS, SIZE)
    assert together.found.all()
    torch.testing.assert_close(together.extrinsics[:1], alone.extrinsics, atol=1e-9, rtol=0)
    assert degrees(together.extrinsics, cameras).max() < 1e-2


def test_what_was_never_seen_is_no_background() -> None:
    points, static = world(path())
    seen = torch.ones(points.shape[1:3])
    blind = rigid.rigid_motion(points, 0 * seen, INTRINSICS, SIZE)
    assert not blind.found.any()
    assert not blind.static.any()
    known = rigid.standing(points, 0 * seen, INTRINSICS, SIZE, path()[None])
    assert not known.found.any()
    # The others are judged as if those were not there.
    seen[::2] = 0
    half = rigid.rigid_motion(points, seen, INTRINSICS, SIZE)
    assert half.found.all()
    assert torch.equal(half.static[0], static & (torch.arange(len(static)) % 2 == 1))
    assert half.error[0, ::2].isinf().all()
    assert degrees(half.extrinsics, path()).max() < 1e-2


def test_what_does_not_fit_is_refused() -> None:
    points = torch.ones(1, 5, 4, 3).double()
    seen = torch.ones(5, 4)
    with pytest.raises(ValueError, match="need focal lengths above 0"):
        rigid.rigid_motion(points, seen, -INTRINSICS, SIZE)
    # The shape checker of the tests would be first, so the leaf's own message is asked for below it.
    with pytest.raises(ValueError, match=r"need visibility \[5, 4\], got \[3, 4\]"):
        Seen.of(points, torch.ones(3, 4), INTRINSICS, SIZE)
    with pytest.raises(ValueError, match=r"need points \[K, N, T, 3\], none of them 0, got \[5, 4"):
        Seen.of(points[0], seen, INTRINSICS, SIZE)
    with pytest.raises(ValueError, match=r"need intrinsics \[4\], got \[3\]"):
        Seen.of(points, seen, INTRINSICS[:3], SIZE)
    motion, standing = inspect.unwrap(rigid.rigid_motion), inspect.unwrap(rigid.standing)
    with pytest.raises(ValueError, match=r"need tracks \[5, 4, 2\], got \[4, 5, 2\]"):
        motion(points, seen, INTRINSICS, SIZE, torch.ones(4, 5, 2))
    still = torch.eye(4).double()
    for wrong in (
        still.expand(1, 3, 4, 4),
        still.expand(4, 4, 4),
        torch.nan * still.expand(1, 4, 4, 4),
    ):
        with pytest.raises(ValueError, match=r"need finite extrinsics \[1, 4, 4, 4\], got "):
            standing(points, seen, INTRINSICS, SIZE, wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    """One in one reconstruction must not quietly spoil all of them."""
    points, _ = world(path())
    seen = torch.ones(points.shape[1:3])
    spoilt = points.repeat(2, 1, 1, 1)
    spoilt[1, 3, 4, 0] = value
    with pytest.raises(ValueError, match="need finite points, got 1 numbers that are not"):
        rigid.rigid_motion(spoilt, seen, INTRINSICS, SIZE)
    for wrong in (value, 5.0, -0.1):
        bad = seen.clone()
        bad[2, 1] = wrong
        with pytest.raises(ValueError, match=r"need visibility in \[0, 1\]"):
            rigid.rigid_motion(points, bad, INTRINSICS, SIZE)
    for index, message in (
        (0, "focal lengths above 0|finite intrinsics"),
        (2, "finite intrinsics"),
    ):
        wrong = INTRINSICS.clone()
        wrong[index] = value
        with pytest.raises(ValueError, match=f"need ({message})"):
            rigid.rigid_motion(points, seen, wrong, SIZE)
