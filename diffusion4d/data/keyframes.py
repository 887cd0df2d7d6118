r"""Values between key frames, as glTF 2.0 (Khronos 2021, § 3.11 and appendix C) defines them.

For t_k ≤ t ≤ t_{k+1}, s = (t − t_k)/d, d = t_{k+1} − t_k; before the first key and after the last, the value there.

    STEP          v_k
    LINEAR        (1 − s) v_k + s v_{k+1}; unit quaternions along the shorter great circle
    CUBICSPLINE   (2s³ − 3s² + 1) v_k + d (s³ − 2s² + s) b_k + (−2s³ + 3s²) v_{k+1} + d (s³ − s²) a_{k+1}          (1)
                  with a key's in-tangent a and out-tangent b; quaternions are normalised afterwards

Shape letters:  K keys   T instants   D components.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Interpolation = Literal["STEP", "LINEAR", "CUBICSPLINE"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("STEP", "LINEAR", "CUBICSPLINE")


@dataclass(frozen=True)
class Keyframes:
    """Key times (s) and, for each, (in-tangent, value, out-tangent); tangents matter to CUBICSPLINE only.

    Raises:
        ValueError: times that do not increase.
    """

    times: Float[Array, "K"]
    values: Float[Array, "K 3 D"]
    interpolation: Interpolation
    quaternions: bool

    def __post_init__(self) -> None:
        if not (np.diff(self.times) > 0).all():
            raise ValueError("need key times that increase, got some that do not")

    def at(self, times_T: Float[Array, "T"]) -> Float[Array, "T D"]:
        """The value at these times (s)."""
        if len(self.times) == 1:
            return np.repeat(self.values[:, 1], len(times_T), 0)
        t = np.clip(times_T, self.times[0], self.times[-1])
        if self.interpolation == "STEP":
            return self.values[np.searchsorted(self.times, t, side="right") - 1, 1]
        k = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 2)
        d = (self.times[k + 1] - self.times[k])[:, None]
        s = (t - self.times[k])[:, None] / d
        low, high = self.values[k, 1], self.values[k + 1, 1]
        if self.interpolation == "LINEAR":
            return slerp(low, high, s) if self.quaternions else (1 - s) * low + s * high
        value = (
            (2 * s**3 - 3 * s**2 + 1) * low
            + d * (s**3 - 2 * s**2 + s) * self.values[k, 2]
            + (3 * s**2 - 2 * s**3) * high
            + d * (s**3 - s**2) * self.values[k + 1, 0]
        )  # eq. (1)
        return unit(value) if self.quaternions else value


def unit(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Normalised; rotations are stored rounded."""
    return quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)


def slerp(
    low: Float[Array, "T 4"], high: Float[Array, "T 4"], s: Float[Array, "T 1"]
) -> Float[Array, "T 4"]:
    """Along the shorter great circle from one unit quaternion to another."""
    low, high = unit(low), unit(high)
    high = np.where((low * high).sum(-1, keepdims=True) < 0, -high, high)
    # From the chord, since the arc cosine of a number near 1 has lost its digits.
    angle = 2 * np.arctan2(
        np.linalg.norm(high - low, axis=-1, keepdims=True),
        np.linalg.norm(high + low, axis=-1, keepdims=True),
    )
    sine = np.sin(angle)
    near = sine < 1e-9
    safe = np.where(near, 1.0, sine)
    share_low = np.where(near, 1 - s, np.sin((1 - s) * angle) / safe)
    share_high = np.where(near, s, np.sin(s * angle) / safe)
    return unit(share_low * low + share_high * high)


def rotation_matrices(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """Rotation matrices of unit quaternions (x, y, z, w)."""
    x, y, z, w = np.moveaxis(unit(quaternion), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)
