"""Pinhole cameras against closed forms."""

import math

import pytest
import torch

from diffusion4d import cameras
from diffusion4d.errors import UserError

F64 = torch.float64
CAMERA = torch.tensor([300.0, 280.0, 170.0, 110.0], dtype=F64)


def test_project_undoes_unproject():
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand((2, 5, 2), generator=g, dtype=F64) * 300
    depth = torch.rand((2, 5), generator=g, dtype=F64) + 0.5
    points = cameras.unproject(pixels, depth, CAMERA.expand(2, 5, 4))
    torch.testing.assert_close(points[..., 2], depth)
    torch.testing.assert_close(cameras.project(points, CAMERA.expand(2, 5, 4)), pixels)
    # The same ray at twice the depth has the same image.
    torch.testing.assert_close(cameras.project(2 * points, CAMERA.expand(2, 5, 4)), pixels)


def test_x_goes_right_and_y_goes_down():
    point = torch.tensor([0.5, 0.25, 2.0], dtype=F64)
    expected = torch.tensor([170 + 300 * 0.25, 110 + 280 * 0.125], dtype=F64)
    torch.testing.assert_close(cameras.project(point, CAMERA), expected)


@pytest.mark.parametrize("size", [(100, 200), (200, 100)])
def test_field_of_view_spans_the_longer_side(size):
    # tan(45 deg) = 1: half the longer side is seen at focal length = half the longer side.
    torch.testing.assert_close(
        cameras.intrinsics_from_fov(size, 90.0),
        torch.tensor([100.0, 100.0, size[1] / 2, size[0] / 2]),
    )
    camera = cameras.intrinsics_from_fov(size, 40.0)
    border = cameras.normalise(torch.tensor([0.0, 0.0]), camera)
    assert border.abs().max().item() == pytest.approx(math.tan(math.radians(20)), rel=1e-6)


def test_the_middle_of_the_image_is_the_optical_axis():
    # Of 3 x 5 pixels the middle one has its centre at (2.5, 1.5): centres are at +0.5.
    camera = cameras.intrinsics_from_fov((3, 5))
    axis = cameras.unproject(torch.tensor([2.5, 1.5]), torch.tensor(3.0), camera)
    torch.testing.assert_close(axis, torch.tensor([0.0, 0.0, 3.0]))


def test_transform_is_the_homogeneous_product():
    g = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn((4, 3, 3), generator=g, dtype=F64))
    pose = torch.eye(4, dtype=F64).repeat(4, 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation, torch.randn((4, 3), generator=g, dtype=F64)
    points = torch.randn((4, 6, 3), generator=g, dtype=F64)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    expected = torch.einsum("tij,tnj->tni", pose, homogeneous)[..., :3]
    torch.testing.assert_close(cameras.transform(pose, points), expected)


@pytest.mark.parametrize("fov", [0.0, -10.0, 180.0, math.nan])
def test_a_field_of_view_out_of_range_is_refused(fov):
    with pytest.raises(UserError, match="between 0 and 180"):
        cameras.intrinsics_from_fov((10, 10), fov)
