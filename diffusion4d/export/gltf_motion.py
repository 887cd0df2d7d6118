r"""What moves in a glTF scene of hypotheses: curves as keys, cameras, channels.

Between two keys, t_d seconds apart and with s in [0, 1] along, a glTF CUBICSPLINE is the cubic Hermite
curve of its ends (glTF 2.0, appendix C.5): values v, out-tangents b, in-tangents a, per second,

    p(s) = (2s³−3s²+1) v_i + (s³−2s²+s) t_d b_i + (−2s³+3s²) v_{i+1} + (s³−s²) t_d a_{i+1}.

A cubic piece is its end points and end velocities, so keys at the distinct knots reproduce the spline
without loss (`splines.hermite`). Cutting a span adds keys and changes nothing of that. But Blender's
importer keeps the values alone and draws tangents of its own through them, so each span is cut in
`SPLITS`. Measured in Blender 5.0 on a lively fan (positions up to 2): 0.0081 RMS error uncut,
0.0028, 0.0004 and 0.0001 in 2, 4 and 8 parts.

Axes: glTF is x right, y up, z back, so every coordinate is converted, diag(1, −1, −1) x; a root
rotation would leave the numbers in the file in other axes than its reader expects.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from diffusion4d.errors import UserError
from diffusion4d.export.gltf import Buffer
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import BSpline, hermite
from diffusion4d.surfaces.mesh import AXES

SPLITS = 4
"""Key intervals per knot span."""
NEAR = 1e-6
"""Keys closer than this in u are one."""


def require_playable(hypotheses: Hypotheses, seconds: float) -> None:
    """Raises UserError unless the curves are keys of glTF and the clip has a length."""
    if hypotheses.degree > 3:
        raise UserError(f"need degree <= 3 for glTF's CUBICSPLINE, got {hypotheses.degree}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"need a clip of positive length, got {seconds} s")


def keyframes(
    hyp: Hypotheses, seconds: float, instants: Float[torch.Tensor, "I"] | None = None
) -> tuple[Float32[np.ndarray, "keys"], Float32[np.ndarray, "K N 3*keys 3"]]:
    """Key times in s, and each trajectory's triplets (in-tangent, value, out-tangent) of every key.

    Args:
        instants: u of keys beside those at the knots; `SPLITS` of every span by default.
    """
    spline = BSpline(hyp.control_points.double(), hyp.knots, hyp.degree)
    if instants is None:
        shares = torch.arange(1, SPLITS, dtype=torch.float64) / SPLITS
        low, high = spline.breaks[:-1, None], spline.breaks[1:, None]
        instants = (low + (high - low) * shares).flatten()
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
) -> Float32[np.ndarray, "*batch 3*keys width"]:
    """In-tangent, value and out-tangent of every key, as CUBICSPLINE has them; tangents are per second."""
    output = np.stack([arriving, value, leaving], -2).astype(np.float32)
    # Nothing arrives at the first key or leaves the last: zeros, as the specification asks.
    output[..., 0, 0, :] = output[..., -1, 2, :] = 0
    return output.reshape(*output.shape[:-3], -1, output.shape[-1])


def scene_extras(hyp: Hypotheses, seconds: float) -> dict[str, Any]:
    """What a reader needs to know of the numbers, for the scene."""
    return {
        "units": hyp.units,
        "frame": hyp.frame,
        "seconds": seconds,
        "intrinsics_px": hyp.intrinsics.tolist(),
        "size_px": list(hyp.size),
    }


def camera(hyp: Hypotheses, scale: float) -> dict[str, Any]:
    """glTF has no principal point: the image is taken as centred, as it is but in cropped clips."""
    fx, fy, _, _ = hyp.intrinsics.tolist()
    height, width = hyp.size
    lens = {
        "yfov": 2 * math.atan(height / (2 * fy)),
        "aspectRatio": (width / fx) / (height / fy),
        "znear": 0.01 * scale,
        "zfar": 1000 * scale,
    }
    return {"type": "perspective", "name": "camera", "perspective": lens}


def add_cameras(
    hyp: Hypotheses, names: Sequence[str], document: dict[str, Any], buffer: Buffer, seconds: float
) -> None:
    """One camera for all hypotheses; and one for each, below its node, where they differ."""
    nodes = document["nodes"]
    shared = hyp.extrinsics.ndim == 3
    path_T44 = hyp.extrinsics if shared else hyp.extrinsics[hyp.rank()[0]]
    document["scenes"][0]["nodes"].append(len(nodes))
    times = _camera_times(hyp, buffer, seconds)
    # Where points are given as each instant's camera sees them, it stays at the origin.
    moves = hyp.frame == "world"
    animation = document["animations"][0]
    _camera_node("camera", [(animation, path_T44)] if moves else [], document, buffer, times)
    if shared or not moves:
        return
    parents = {node["name"]: node for node in nodes}
    for name, path_T44 in zip(names, hyp.extrinsics, strict=True):
        parents[name]["children"].append(len(nodes))
        _camera_node(f"{name}_camera", [(animation, path_T44)], document, buffer, times)


def add_camera_to_each(
    hyp: Hypotheses, document: dict[str, Any], buffer: Buffer, seconds: float
) -> None:
    """One camera, which every hypothesis' own animation moves along that hypothesis' path."""
    scene = document["scenes"][document["scene"]]
    scene["nodes"].append(len(document["nodes"]))
    paths = [*zip(document["animations"], hyp.cameras, strict=True)]
    times = _camera_times(hyp, buffer, seconds)
    _camera_node("camera", paths if hyp.frame == "world" else [], document, buffer, times)


def _camera_times(hyp: Hypotheses, buffer: Buffer, seconds: float) -> int | None:
    if hyp.frame == "camera" or hyp.num_frames == 1:
        return None
    return buffer.add((seconds * hyp.times.numpy()).astype(np.float32), bounds=True)


def _camera_node(
    name: str,
    paths: Sequence[tuple[dict[str, Any], Float32[torch.Tensor, "T 4 4"]]],
    document: dict[str, Any],
    buffer: Buffer,
    times: int | None,
) -> None:
    """A node with the camera, and its way (world to camera) in each of some animations."""
    # The clip's camera is the last of the document's, which may have others.
    node: dict[str, Any] = {"name": name, "camera": len(document["cameras"]) - 1}
    index = len(document["nodes"])
    document["nodes"].append(node)
    for animation, extrinsics_T44 in paths:
        pose_T44 = torch.linalg.inv(extrinsics_T44.double()).numpy()
        place = pose_T44[:, :3, 3] * AXES
        turn = quaternions(pose_T44[:, :3, :3])
        if "translation" not in node:
            node |= {"translation": place[0].tolist(), "rotation": turn[0].tolist()}
        if times is None:
            continue
        for channel, values in (("translation", place), ("rotation", turn)):
            output = buffer.add(values.astype(np.float32))
            sampler = {"input": times, "interpolation": "LINEAR", "output": output}
            animate(animation, index, channel, sampler)


def animate(animation: dict[str, Any], node: int, path: str, sampler: dict[str, Any]) -> None:
    """One more channel: this sampler drives this path of this node."""
    target = {"node": node, "path": path}
    animation["channels"].append({"sampler": len(animation["samplers"]), "target": target})
    animation["samplers"].append(sampler)


def quaternions(rotations: Float[np.ndarray, "*batch T 3 3"]) -> Float[np.ndarray, "*batch T 4"]:
    """Rotations in OpenCV's axes as glTF's quaternions (x, y, z, w), the short way from one to the next."""
    turned = AXES[:, None] * rotations.reshape(-1, 3, 3) * AXES
    return short_way(Rotation.from_matrix(turned).as_quat().reshape(*rotations.shape[:-2], 4))


def short_way(turn: Float[np.ndarray, "*batch T 4"]) -> Float[np.ndarray, "*batch T 4"]:
    """q and −q are one rotation, but the way between neighbours must be the short one."""
    sign = np.where((turn[..., 1:, :] * turn[..., :-1, :]).sum(-1) < 0, -1, 1)
    first = np.ones_like(turn[..., :1, 0])
    return turn * np.cumprod(np.concatenate([first, sign], -1), -1)[..., None]
