r"""Cameras: lenses, where they stand, and how they move.

A camera at position o looking at a point has OpenCV axes z = (target − o)/‖·‖, x = z × up, y = z × x, turned by a
small roll; E = [R | −R o] with rows x, y, z maps world to camera. Kinds: static, pan, dolly, orbit, handheld,
tracking; a moving camera may shake as a hand does on top.
Shape letters:  T frames.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion

Array = np.ndarray
KINDS = ("static", "pan", "dolly", "orbit", "handheld", "tracking")
_ODDS = (0.45, 0.1, 0.1, 0.09, 0.16, 0.1)
# Fields of view, degrees: tele (almost orthographic), usual, wide.
_FIELDS = ((15.0, 35.0), (35.0, 75.0), (75.0, 100.0))
_FIELD_ODDS = (0.27, 0.6, 0.13)


@dataclass(frozen=True)
class Lens:
    """Image size (H, W) px, its shorter side 256, and the focal length in px; the centre is the image's."""

    size: tuple[int, int]
    focal: float

    @property
    def half_angle(self) -> float:
        """Half the field of view over the shorter side, rad."""
        return float(np.arctan(0.5 * min(self.size) / self.focal))

    @property
    def intrinsics(self) -> Array:
        """(fx, fy, cx, cy) px, float32."""
        height, width = self.size
        return np.array([self.focal, self.focal, width / 2, height / 2], dtype=np.float32)


def random_lens(rng: np.random.Generator) -> Lens:
    """Field of view 15–100° over the longer side, mostly 35–75°, often tele; landscape, square or portrait."""
    aspect = float(rng.choice([1.0, 4 / 3, 3 / 2, 16 / 9, 1.9]))
    longer = 2 * round(128 * aspect)
    size = (longer, 256) if rng.random() < 0.3 else (256, longer)
    low, high = _FIELDS[int(rng.choice(len(_FIELDS), p=_FIELD_ODDS))]
    fov = np.radians(motion.log_uniform(rng, low, high))
    return Lens(size, float(0.5 * longer / np.tan(0.5 * fov)))


def look_at(
    position_T3: Float[Array, "T 3"], target_T3: Float[Array, "T 3"], roll_T: Float[Array, "T"]
) -> Float[Array, "T 4 4"]:
    """World-to-camera matrices of cameras that look at targets; up is +z, roll (rad) about the viewing direction."""
    z = target_T3 - position_T3
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    y = np.cross(z, x)
    cos, sin = np.cos(roll_T)[:, None], np.sin(roll_T)[:, None]
    rotation = np.stack([cos * x + sin * y, cos * y - sin * x, z], 1)
    extrinsics = np.zeros((len(z), 4, 4))
    extrinsics[:, :3, :3] = rotation
    extrinsics[:, :3, 3] = -np.einsum("tij,tj->ti", rotation, position_T3)
    extrinsics[:, 3, 3] = 1
    return extrinsics


@dataclass(frozen=True)
class Viewpoint:
    """A camera's path: where it is and what it looks at (world axes), and its world-to-camera matrices."""

    kind: str
    position: Float[Array, "T 3"]
    target: Float[Array, "T 3"]
    extrinsics: Float[Array, "T 4 4"]


def random_viewpoint(
    rng: np.random.Generator,
    u: Float[Array, "T"],
    lens: Lens,
    subject_T3: Float[Array, "T 3"],
    radius: float,
    floor: bool,
) -> Viewpoint:
    """Watch a subject of that radius whose middle moves along `subject`; stay above the floor if there is one."""
    kind = str(rng.choice(KINDS, p=_ODDS))
    fill = motion.log_uniform(rng, 0.35, 1.2)
    distance = max(radius / np.sin(fill * lens.half_angle), 1.25 * radius)
    tilt = np.radians(rng.choice([rng.normal(12, 12), rng.uniform(20, 75)], p=[0.75, 0.25]))
    tilt = float(np.clip(tilt, -0.3, 1.35))
    azimuth = rng.uniform(0, 2 * np.pi)
    num_frames = len(u)
    middle = subject_T3[int(rng.integers(num_frames))] * 0.5 + subject_T3.mean(0) * 0.5
    # The subject is seldom exactly in the middle of the picture.
    aside = distance * np.tan(lens.half_angle) * rng.normal(size=3) * 0.2
    target_T3 = np.repeat((middle + aside)[None], num_frames, 0)
    azimuth_T, tilt_T, distance_T = (np.full(num_frames, x) for x in (azimuth, tilt, distance))
    size = motion.log_uniform(rng, 0.1, 1.0)
    path_T3 = motion.gesture(rng, u, 0.8, 3) if rng.random() < 0.5 else _steady(rng, u, 3)
    if kind == "orbit":
        azimuth_T = azimuth + 0.9 * size * path_T3[:, 0]
        tilt_T = np.clip(tilt + 0.25 * size * path_T3[:, 1], -0.3, 1.4)
        distance_T = distance * np.exp(0.15 * size * path_T3[:, 2])
    if kind == "tracking":
        follow = rng.uniform(0.5, 1.0)
        target_T3 = target_T3 + follow * (subject_T3 - middle)
    position_T3 = target_T3 + distance_T[:, None] * np.stack(
        [np.cos(tilt_T) * np.cos(azimuth_T), np.cos(tilt_T) * np.sin(azimuth_T), np.sin(tilt_T)], -1
    )
    if kind == "tracking":
        position_T3 = position_T3 - rng.choice([0.0, rng.random()]) * follow * (subject_T3 - middle)
    if kind == "dolly":
        step_T3 = 0.35 * size * distance * path_T3 * rng.uniform(0, 1, 3) * [1, 1, 0.4]
        position_T3 = position_T3 + step_T3
        target_T3 = target_T3 + rng.choice([0.0, 1.0]) * step_T3
    if kind == "pan":
        turn = 0.45 * size * lens.half_angle * path_T3 * [1, 1, 0.5]
        target_T3 = target_T3 + distance * turn
    roll_T = np.full(num_frames, 0.03 * rng.normal() if rng.random() < 0.8 else 0.25 * rng.normal())
    if kind == "handheld" or (kind != "static" and rng.random() < 0.5):
        shake = motion.log_uniform(rng, 0.15, 1.0) * (1.0 if kind == "handheld" else 0.4)
        count = int(rng.integers(5, 11))
        position_T3 = position_T3 + 0.03 * shake * distance * motion.drift(rng, u, count, 3)
        target_T3 = target_T3 + 0.03 * shake * distance * motion.drift(rng, u, count, 3)
        roll_T = roll_T + 0.02 * shake * motion.drift(rng, u, count, 1)[:, 0]
    if floor:
        lowest = position_T3[:, 2].min()
        position_T3[:, 2] += max(0.0, 0.08 * distance - lowest)
    return Viewpoint(kind, position_T3, target_T3, look_at(position_T3, target_T3, roll_T))


def _steady(rng: np.random.Generator, u: Array, channels: int) -> Array:
    """Uniform motion through zero at mid-clip: what a slider or a walking cameraman does."""
    return (u[:, None] - 0.5) * 2 * np.clip(rng.normal(size=channels), -1.5, 1.5)
