r"""Rotations that are a function of time as keys of glTF.

Local rotations are what neighbouring nodes make of it (`fields.motion`), no polynomial. Unit quaternions are
interpolated by a cubic spline over the keys (scipy's, not-a-knot), component by component, and normalised, which
CUBICSPLINE reproduces from its values and slopes (`gltf_motion`). Intervals between keys are halved until the rotations
in their middles are within `TOLERANCE` of the truth, at most `HALVINGS` times.

Shape letters:  N nodes   U instants   keys of an animation
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diffusion4d.export.gltf_motion import quaternions, short_way, triplets

TOLERANCE = 2e-5
"""rad, of the worst node in the middle between two keys."""
HALVINGS = 4

Rotations = Callable[[Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]]
"""Local rotations of N nodes at clip times u, in OpenCV's axes."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Rotations as CUBICSPLINE keys, and how well these hold between them."""

    times: Float32[np.ndarray, "keys"]
    """s."""
    curves: Float32[np.ndarray, "N 3*keys 4"]
    """In-tangent, value and out-tangent of every key, (x, y, z, w) in glTF's axes."""
    error: float
    """rad, the largest in the middle between two keys."""


def turns(rotations: Rotations, u: Float64[Tensor, "first"], seconds: float) -> Turns:
    """Keys of rotations: at these clip times, increasing, and at as many in between as they take.

    Args:
        seconds: that u from 0 to 1 takes.
    """
    from scipy.interpolate import CubicSpline

    known = _turned(rotations, u)
    for halving in range(HALVINGS + 1):
        # Signs have to be continuous over all keys, old and new.
        spline = CubicSpline(u.numpy(), short_way(known), axis=1)
        middle = (u[1:] + u[:-1]) / 2
        between = _turned(rotations, middle)
        error = float(_angle(spline(middle.numpy()), between).max())
        if error <= TOLERANCE or halving == HALVINGS:
            break
        u = torch.cat([u, middle])
        order = u.argsort()
        u, known = u[order], np.concatenate([known, between], 1)[:, order.numpy()]
    slope = spline(u.numpy(), 1) / seconds
    curves = triplets(spline(u.numpy()), slope, slope)
    return Turns((seconds * u.numpy()).astype(np.float32), curves, error)


def _turned(rotations: Rotations, u: Float64[Tensor, "U"]) -> Float64[np.ndarray, "N U 4"]:
    return quaternions(rotations(u).transpose(0, 1).double().numpy())


def _angle(
    found: Float[np.ndarray, "N U 4"], truth: Float[np.ndarray, "N U 4"]
) -> Float[np.ndarray, "N U"]:
    """Between rotations, rad; the first of any length. From the chord, for the small ones."""
    found = found / np.linalg.norm(found, axis=-1, keepdims=True)
    near = np.where((found * truth).sum(-1, keepdims=True) < 0, -truth, truth)
    return 4 * np.arcsin(np.clip(np.linalg.norm(found - near, axis=-1) / 2, 0, 1))
