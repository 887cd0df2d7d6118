r"""Pinhole cameras.

OpenCV axes (x right, y down, z forward). Extrinsics are world-to-camera, X_cam = E X_world. Intrinsics
are (fx, fy, cx, cy) in pixels; pixel centres are at integer + 0.5, so the image spans [0, W] x [0, H].

Shape letters:  T frames   N points.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.errors import UserError

DEFAULT_FOV = 55.0
"""Field of view in degrees over the longer side of the image, where the user gives none."""


def intrinsics_from_fov(size: tuple[int, int], fov: float = DEFAULT_FOV) -> Float[Tensor, "4"]:
    """(fx, fy, cx, cy) in px of a centred camera whose field of view over the longer side is `fov`.

    Args:
        size: (H, W) in px.
        fov: degrees, over the longer side.

    Raises:
        UserError: the field of view is not within (0, 180) degrees.
    """
    if not 0 < fov < 180:
        raise UserError(f"need a field of view between 0 and 180 degrees, got {fov}")
    height, width = size
    focal = max(height, width) / 2 / math.tan(math.radians(fov) / 2)
    return torch.tensor([focal, focal, width / 2, height / 2])


def normalise(
    pixels: Float[Tensor, "*batch 2"], intrinsics: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 2"]:
    """Pixels to normalised image coordinates ((x - cx) / fx, (y - cy) / fy)."""
    return (pixels - intrinsics[..., 2:]) / intrinsics[..., :2]


def project(
    points: Float[Tensor, "*batch 3"], intrinsics: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 2"]:
    """Camera-frame points to pixels. A point at or behind the camera plane has no finite image."""
    return points[..., :2] / points[..., 2:] * intrinsics[..., :2] + intrinsics[..., 2:]


def unproject(
    pixels: Float[Tensor, "*batch 2"],
    depth: Float[Tensor, "*batch"],
    intrinsics: Float[Tensor, "*#batch 4"],
) -> Float[Tensor, "*batch 3"]:
    """Pixels at a depth (z, not distance) to camera-frame points."""
    rays = normalise(pixels, intrinsics)
    return torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * depth[..., None]


def transform(
    extrinsics: Float[Tensor, "*batch 4 4"], points: Float[Tensor, "*batch N 3"]
) -> Float[Tensor, "*batch N 3"]:
    """World points to each camera's frame: X_cam = R X_world + t."""
    return points @ extrinsics[..., :3, :3].mT + extrinsics[..., None, :3, 3]
