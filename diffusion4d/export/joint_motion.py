r"""The motion of nodes as keys of a skeleton's joints: places from their splines, rotations from a function of time.

Places are cubic and so are their keys, without loss (`gltf_scene.spline_keys`). Rotations are what neighbouring nodes
make of it, no polynomial: unit quaternions are interpolated by a cubic spline over the keys (scipy's, not-a-knot),
component by component, and normalised, which CUBICSPLINE reproduces from its values and slopes. The keys are the
places' own, halved until the rotations in between are within `TURN_TOLERANCE` of the truth, at most `HALVINGS` times.

There are keys at the clip's frames too. The curves need none, but Blender keeps the values of keys alone and draws
tangents of its own through them: so it shows every frame as it is, and is off in between.

Shape letters:  N nodes   M control points   U instants   keys of an animation
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diffusion4d.export.gltf_scene import continuous, quaternions, spline_keys, triplets
from diffusion4d.export.skinned_glb import JointMotion
from diffusion4d.splines import BSpline

TURN_TOLERANCE = 2e-5
"""rad between the keys, at the worst node and instant that are looked at."""
HALVINGS = 4
"""How often the intervals between keys are halved at most."""


@dataclass(frozen=True)
class Turns:
    """Rotations as CUBICSPLINE keys, and how well these hold between them."""

    times: Float32[np.ndarray, "keys"]
    """s."""
    curves: Float32[np.ndarray, "N triplets 4"]
    error: float
    """rad, the largest in the middle between two keys."""


def joint_motion(
    spline: BSpline,
    rotations: Callable[[Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]],
    name: str,
    seconds: float,
    instants: Float64[Tensor, "T"],
) -> JointMotion:
    """The keys of N joints.

    Args:
        spline: of the nodes, control points [N, M, 3] in OpenCV's axes.
        rotations: of the nodes at clip times u, in the same axes.
        seconds: that u from 0 to 1 takes.
        instants: u of the frames. There is a key at each, beside those at the knots.
    """
    times, places = spline_keys(spline, seconds, instants)
    u = torch.from_numpy(times.astype(np.float64) / seconds).clamp(0, 1)
    turn = turns(rotations, u, seconds)
    return JointMotion(
        name,
        times,
        places,
        turn.times,
        turn.curves,
        {"turn_error_degrees": float(np.degrees(turn.error))},
    )


def turns(
    rotations: Callable[[Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]],
    u: Float64[Tensor, "keys"],
    seconds: float,
) -> Turns:
    """Keys of rotations, these clip times and as many in between as they take."""
    from scipy.interpolate import CubicSpline

    known = _turned(rotations, u)
    for halving in range(HALVINGS + 1):
        # Signs have to be continuous over all keys, old and new.
        spline = CubicSpline(u.numpy(), continuous(known), axis=1)
        middle = (u[1:] + u[:-1]) / 2
        between = _turned(rotations, middle)
        error = float(_angle(spline(middle.numpy()), between).max())
        if error <= TURN_TOLERANCE or halving == HALVINGS:
            break
        u = torch.cat([u, middle])
        order = u.argsort()
        u, known = u[order], np.concatenate([known, between], 1)[:, order.numpy()]
    slope = spline(u.numpy(), 1) / seconds
    curves = triplets(spline(u.numpy()), slope, slope)
    return Turns((seconds * u.numpy()).astype(np.float32), curves, error)


def _turned(
    rotations: Callable[[Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]], u: Float64[Tensor, "U"]
) -> Float64[np.ndarray, "N U 4"]:
    return quaternions(rotations(u).transpose(0, 1).double().numpy())


def _angle(
    found: Float[np.ndarray, "N U 4"], truth: Float[np.ndarray, "N U 4"]
) -> Float[np.ndarray, "N U"]:
    """Between rotations, rad; quaternions of any length and sign. From the chord, for the small ones."""
    found = found / np.linalg.norm(found, axis=-1, keepdims=True)
    near = np.where((found * truth).sum(-1, keepdims=True) < 0, -truth, truth)
    return 4 * np.arcsin(np.clip(np.linalg.norm(found - near, axis=-1) / 2, 0, 1))
