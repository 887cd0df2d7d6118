r"""Rotations that are a function of time as keys of glTF.

Local rotations are what neighbouring nodes make of it (`fields.motion`), no polynomial. Unit quaternions are
interpolated by a cubic spline over the keys (scipy's, not-a-knot), component by component, and normalised, which
CUBICSPLINE reproduces from its values and slopes (`gltf_motion`). A node's intervals between keys are halved until its
rotations in their middles are within `TOLERANCE` of the truth, at most `HALVINGS` times: a few nodes turn fast.

Shape letters:  N nodes   U instants   keys of an animation
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from diffusion4d.export.gltf_motion import quaternions, short_way, triplets

TOLERANCE = 1e-4
"""rad in the middle between two keys."""
HALVINGS = 4

Rotations = Callable[[Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]]
"""Local rotations of N nodes at clip times u, in OpenCV's axes."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Rotations of some nodes as CUBICSPLINE keys, and how well these hold between them."""

    nodes: Int64[np.ndarray, "some"]
    times: Float32[np.ndarray, "keys"]
    """s."""
    curves: Float32[np.ndarray, "some 3*keys 4"]
    """In-tangent, value and out-tangent of every key, (x, y, z, w) in glTF's axes."""
    error: float
    """rad, the largest in the middle between two keys."""


def turns(rotations: Rotations, u: Float64[Tensor, "first"], seconds: float) -> list[Turns]:
    """Keys of all nodes' rotations: at these clip times, increasing, and at as many in between as they take.

    Args:
        seconds: that u from 0 to 1 takes.

    Returns:
        Nodes with as many keys together, those with the fewest first.
    """
    from scipy.interpolate import CubicSpline

    known = _turned(rotations, u)
    left = np.arange(len(known))
    found = []
    for halving in range(HALVINGS + 1):
        # Signs have to be continuous over all keys, old and new.
        spline = CubicSpline(u.numpy(), short_way(known), axis=1)
        middle = (u[1:] + u[:-1]) / 2
        between = _turned(rotations, middle)[left]
        error = _angle(spline(middle.numpy()), between).max(1)
        good = (error <= TOLERANCE) | (halving == HALVINGS)
        if good.any():
            slope = spline(u.numpy(), 1)[good] / seconds
            curves = triplets(spline(u.numpy())[good], slope, slope)
            times = (seconds * u.numpy()).astype(np.float32)
            found.append(Turns(left[good], times, curves, float(error[good].max())))
        left = left[~good]
        if not len(left):
            break
        u = torch.cat([u, middle])
        order = u.argsort()
        known = np.concatenate([known, between], 1)[~good][:, order.numpy()]
        u = u[order]
    return found


def _turned(rotations: Rotations, u: Float64[Tensor, "U"]) -> Float64[np.ndarray, "N U 4"]:
    return quaternions(rotations(u).transpose(0, 1).double().numpy())


def _angle(
    found: Float[np.ndarray, "N U 4"], truth: Float[np.ndarray, "N U 4"]
) -> Float[np.ndarray, "N U"]:
    """Between rotations, rad; the first of any length. From the chord, for the small ones."""
    found = found / np.linalg.norm(found, axis=-1, keepdims=True)
    near = np.where((found * truth).sum(-1, keepdims=True) < 0, -truth, truth)
    return 4 * np.arcsin(np.clip(np.linalg.norm(found - near, axis=-1) / 2, 0, 1))
