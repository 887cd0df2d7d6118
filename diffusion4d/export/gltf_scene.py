r"""What every animated glTF scene of ours shares: its axes, splines as keys, channels, and the clip's camera.

Between two keys, t_d seconds apart and with s in [0, 1] along, a glTF CUBICSPLINE is the cubic Hermite
curve of its ends (glTF 2.0, appendix C.5): values v, out-tangents b, in-tangents a, per second,

    p(s) = (2s³−3s²+1) v_i + (s³−2s²+s) t_d b_i + (−2s³+3s²) v_{i+1} + (s³−s²) t_d a_{i+1}.

A cubic piece is its end points and end velocities, so keys at the distinct knots reproduce the spline
without loss (`splines.hermite`). Cutting a span adds keys and changes nothing of that. But Blender's
importer keeps the values alone and draws tangents of its own through them, so each span is cut in
`SPLITS`. Measured in Blender 5.0 on a lively fan (positions up to 2): 0.0081 RMS error uncut,
0.0028, 0.0004 and 0.0001 in 2, 4 and 8 parts.

Axes: glTF is x right, y up, z back, so every coordinate is converted, A = diag(1, −1, −1): x ↦ A x and, for
rotations, R ↦ A R A. A root rotation would leave the numbers in the file in other axes than its reader expects.

Shape letters:  T frames   keys of an animation
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from scipy.spatial.transform import Rotation
from torch import Tensor

from diffusion4d.errors import UserError
from diffusion4d.export.gltf import Buffer
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import BSpline, hermite

SPLITS = 4
"""Key intervals per knot span."""
NEAR = 1e-6
"""Keys closer than this in u are one."""
AXES = np.array([1.0, -1.0, -1.0])
"""OpenCV's axes as glTF's, and back."""


def require_animatable(degree: int, seconds: float) -> None:
    """Raises UserError for a degree above 3, which no glTF interpolation holds, or a clip without length."""
    if degree > 3:
        raise UserError(f"need degree <= 3 for glTF's CUBICSPLINE, got {degree}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"need a clip of positive length, got {seconds} s")


def spline_keys(
    spline: BSpline, seconds: float, instants: Float64[Tensor, "T"] | None = None
) -> tuple[Float32[np.ndarray, "keys"], Float32[np.ndarray, "*batch triplets 3"]]:
    """Key times in s, and each curve's triplets (in-tangent, value, out-tangent) of every key, in glTF's axes.

    Args:
        instants: u of keys besides those at the knots, where a reader that draws its own tangents is exact as well;
            `SPLITS` of each span by default.
    """
    if instants is None:
        between = torch.arange(1, SPLITS, dtype=torch.float64) / SPLITS
        low, high = spline.breaks[:-1, None], spline.breaks[1:, None]
        instants = (low + (high - low) * between).flatten()
    for u in instants.tolist():
        if float((spline.breaks - u).abs().min()) > NEAR:
            spline = spline.insert(u)
    keys, value, arriving, leaving = hermite(spline)
    output = triplets(
        value.numpy() * AXES, arriving.numpy() * AXES / seconds, leaving.numpy() * AXES / seconds
    )
    return (seconds * keys).float().numpy(), output


def triplets(
    value: Float[np.ndarray, "*batch keys width"],
    arriving: Float[np.ndarray, "*batch keys width"],
    leaving: Float[np.ndarray, "*batch keys width"],
) -> Float32[np.ndarray, "*batch triplets width"]:
    """(in-tangent, value, out-tangent) of every key, as CUBICSPLINE stores them; tangents are per second."""
    output = np.stack([arriving, value, leaving], -2).astype(np.float32)
    # Nothing arrives at the first key or leaves the last: zeros, as the specification asks.
    output[..., 0, 0, :] = output[..., -1, 2, :] = 0
    return output.reshape(*output.shape[:-3], -1, output.shape[-1])


def quaternions(rotations: Float[np.ndarray, "*batch 3 3"]) -> Float64[np.ndarray, "*batch 4"]:
    """(x, y, z, w) in glTF's axes of rotations in OpenCV's."""
    turned = AXES[:, None] * rotations.reshape(-1, 3, 3) * AXES
    return Rotation.from_matrix(turned).as_quat().reshape(*rotations.shape[:-2], 4)


def continuous(turn: Float[np.ndarray, "*batch keys 4"]) -> Float[np.ndarray, "*batch keys 4"]:
    """The same rotations, each quaternion with the sign that is nearer to the one before.

    q and −q are one rotation, but the way between neighbours must be the short one.
    """
    sign = np.where((turn[..., 1:, :] * turn[..., :-1, :]).sum(-1) < 0, -1, 1)
    first = np.ones_like(turn[..., :1, 0])
    return turn * np.cumprod(np.concatenate([first, sign], -1), -1)[..., None]


def animate(animation: dict[str, Any], node: int, path: str, sampler: dict[str, Any]) -> None:
    """Add a channel for one property of a node."""
    target = {"node": node, "path": path}
    animation["channels"].append({"sampler": len(animation["samplers"]), "target": target})
    animation["samplers"].append(sampler)


def camera(hyp: Hypotheses, scale: float) -> dict[str, Any]:
    """The lens; glTF has no principal point: the image is taken as centred, as it is but in cropped clips."""
    fx, fy, _, _ = hyp.intrinsics.tolist()
    height, width = hyp.size
    lens = {
        "yfov": 2 * math.atan(height / (2 * fy)),
        "aspectRatio": (width / fx) / (height / fy),
        "znear": 0.01 * scale,
        "zfar": 1000 * scale,
    }
    return {"type": "perspective", "name": "camera", "perspective": lens}


def median_depth(hyp: Hypotheses) -> float:
    """What lengths in the file are measured by."""
    return float(hyp.camera_points()[..., 2].median().abs().clamp_min(1e-3))


def camera_times(hyp: Hypotheses, buffer: Buffer, seconds: float) -> int | None:
    """The accessor of the frames' times in s; None where the camera does not move."""
    if hyp.frame == "camera" or hyp.num_frames == 1:
        return None
    return buffer.add((seconds * hyp.times.numpy()).astype(np.float32), bounds=True)


def camera_node(
    name: str, path_T44: Float[Tensor, "T 4 4"] | None, number: int = 0
) -> dict[str, Any]:
    """A node that stands where the camera stood first; None is the origin, as for points in each camera's own frame."""
    node: dict[str, Any] = {"name": name, "camera": number}
    if path_T44 is not None:
        place, turn = _poses(path_T44[:1])
        node |= {"translation": place[0].tolist(), "rotation": turn[0].tolist()}
    return node


def animate_camera(
    animation: dict[str, Any],
    node: int,
    path_T44: Float[Tensor, "T 4 4"],
    buffer: Buffer,
    times: int,
) -> None:
    """Move a camera's node along its path, world to camera at every frame."""
    place, turn = _poses(path_T44)
    for channel, values in (("translation", place), ("rotation", turn)):
        output = buffer.add(values.astype(np.float32))
        sampler = {"input": times, "interpolation": "LINEAR", "output": output}
        animate(animation, node, channel, sampler)


def _poses(
    path_T44: Float[Tensor, "T 4 4"],
) -> tuple[Float64[np.ndarray, "T 3"], Float64[np.ndarray, "T 4"]]:
    pose_T44 = torch.linalg.inv(path_T44.double()).numpy()
    return pose_T44[:, :3, 3] * AXES, continuous(quaternions(pose_T44[:, :3, :3]))


def scene_extras(hyp: Hypotheses, seconds: float) -> dict[str, Any]:
    """What a reader of the file cannot see otherwise."""
    return {
        "units": hyp.units,
        "frame": hyp.frame,
        "seconds": seconds,
        "intrinsics_px": hyp.intrinsics.tolist(),
        "size_px": list(hyp.size),
    }
