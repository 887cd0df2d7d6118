r"""Smooth random motion in clip time.

Every motion of a generated world is built from three kinds of signal in u ∈ [0, 1]:

    oscillation   Σ_k a_k sin(2π f_k u + φ_k),  f_k ≤ `cycles`
    drift         a cubic B-spline with few random control points
    transition    a quintic step from 0 to 1 between two times (Flash & Hogan 1985: minimum jerk)

so that the bandwidth is known beforehand: a clip shows 1–2 s of life, at most about three cycles, which a cubic
spline with a dozen control points represents. Rotations come from axis–angle by Rodrigues' formula.
Shape letters:  T frames   V vertices   D channels.
World axes of a generated scene before the camera is placed: z up, a body faces +x, its left is +y.
"""

import numpy as np
from jaxtyping import Float
from scipy.interpolate import BSpline

Array = np.ndarray


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform in [log low, log high]."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def oscillation(
    rng: np.random.Generator, u: Float[Array, "T"], cycles: float, channels: int
) -> Float[Array, "T D"]:
    """Three sinusoids a channel, none faster than `cycles` over the clip; the peak is at most 1."""
    freq_3D = cycles * rng.uniform(0.15, 1.0, (3, channels))
    weight_3D = rng.uniform(0.1, 1.0, (3, channels))
    weight_3D /= weight_3D.sum(0)
    phase_3D = rng.uniform(0, 2 * np.pi, (3, channels))
    return (weight_3D * np.sin(2 * np.pi * freq_3D * u[:, None, None] + phase_3D)).sum(1)


def drift(
    rng: np.random.Generator, u: Float[Array, "T"], num_ctrl: int, channels: int
) -> Float[Array, "T D"]:
    """A clamped cubic B-spline through noise, centred: the slow wandering of a hand or a held camera."""
    degree = min(3, num_ctrl - 1)
    knots = np.concatenate(
        [np.zeros(degree), np.linspace(0, 1, num_ctrl - degree + 1), np.ones(degree)]
    )
    curve_TD = BSpline(knots, rng.normal(size=(num_ctrl, channels)), degree)(u)
    return curve_TD - curve_TD.mean(0)


def transition(u: Float[Array, "T"], start: float, stop: float) -> Float[Array, "T"]:
    """Minimum-jerk step: 0 before `start`, 1 after `stop`, two continuous derivatives."""
    s = np.clip((u - start) / (stop - start), 0.0, 1.0)
    return s**3 * (10.0 - 15.0 * s + 6.0 * s**2)


def random_transition(rng: np.random.Generator, u: Float[Array, "T"]) -> Float[Array, "T"]:
    """A transition that takes 40–140 % of the clip, so that it may begin before or end after it."""
    duration = rng.uniform(0.4, 1.4)
    start = rng.uniform(min(0.0, 1.0 - duration), max(0.0, 1.0 - duration))
    return transition(u, start, start + duration)


def gesture(
    rng: np.random.Generator, u: Float[Array, "T"], cycles: float, channels: int
) -> Float[Array, "T D"]:
    """Whatever bodies do: oscillate, wander, or go once from one pose to another. About unit size."""
    kind = rng.choice(["oscillation", "drift", "transition"], p=[0.4, 0.35, 0.25])
    if kind == "oscillation":
        return oscillation(rng, u, cycles, channels)
    if kind == "drift":
        return 0.8 * drift(rng, u, int(rng.integers(4, 5 + max(1, round(1.5 * cycles)))), channels)
    signs_D = rng.normal(size=channels)
    return signs_D * (random_transition(rng, u)[:, None] - rng.uniform(0, 1))


def phase(rng: np.random.Generator, u: Float[Array, "T"], cycles: float) -> Float[Array, "T"]:
    """The angle of a periodic movement: `cycles` turns over the clip with a slightly uneven tempo."""
    uneven = rng.uniform(0, 0.25) * np.sin(2 * np.pi * (0.7 * u + rng.uniform()))
    return 2 * np.pi * (cycles * u + rng.uniform()) + uneven


def rotation(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3 3"]:
    """Rodrigues: axis times angle (rad) → rotation matrix."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    # sin(a)/a and (1 − cos a)/a² by sinc, which stays exact at a = 0.
    first, second = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def about(axis: Float[Array, "3"], angle: Float[Array, "*batch"]) -> Float[Array, "*batch 3 3"]:
    """Rotation by `angle` (rad) about a unit axis."""
    return rotation(angle[..., None] * axis)


def yaw(angle: Float[Array, "*batch"]) -> Float[Array, "*batch 3 3"]:
    """Rotation by `angle` (rad) about the vertical."""
    return about(np.array([0.0, 0.0, 1.0]), angle)


def unit_vector(rng: np.random.Generator) -> Float[Array, "3"]:
    """A direction, uniform on the sphere."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def random_rotation(rng: np.random.Generator) -> Float[Array, "3 3"]:
    """A rotation, uniform over SO(3) (the axis of a normal quaternion)."""
    w, *xyz = rng.normal(size=4)
    xyz = np.array(xyz)
    norm = np.linalg.norm(xyz)
    return rotation(2 * np.arctan2(norm, w) * xyz / norm)


def moved(
    rotation_T33: Float[Array, "T 3 3"],
    position_T3: Float[Array, "T 3"],
    vertices_V3: Float[Array, "V 3"],
) -> Float[Array, "T V 3"]:
    """A rigid body's vertices along a path in SE(3)."""
    return np.einsum("tij,vj->tvi", rotation_T33, vertices_V3) + position_T3[:, None]


def wandering_pose(
    rng: np.random.Generator, u: Float[Array, "T"], reach: float, turn: float, cycles: float
) -> tuple[Float[Array, "T 3 3"], Float[Array, "T 3"]]:
    """A free path in SE(3): about `reach` (length) of travel and `turn` (rad) of rotation."""
    start = random_rotation(rng)
    return (
        rotation(turn * gesture(rng, u, cycles, 3)) @ start,
        reach * gesture(rng, u, cycles, 3),
    )


def ground_path(
    rng: np.random.Generator, u: Float[Array, "T"], travel: float, turn: float
) -> tuple[Float[Array, "T"], Float[Array, "T 3"], Float[Array, "T"]]:
    """Walking over the floor: heading (rad), position and distance gone, all smooth, centred at mid-clip.

    `travel` is the length of the way, `turn` the change of heading (rad); the speed varies smoothly, and may
    begin or end at rest.
    """
    pace_T = u.copy()
    if rng.random() < 0.4:
        # Setting off or stopping, slowly enough that a gait that keeps step with the ground stays within its bandwidth.
        start = rng.uniform(-0.5, 0.3)
        pace_T = 0.4 * u + 0.6 * transition(u, start, start + rng.uniform(0.7, 1.4))
    heading_T = rng.uniform(0, 2 * np.pi) + turn * (0.6 * (pace_T - 0.5) + 0.4 * pace_T**2)
    distance_T = travel * pace_T
    middle = 0.5 * (heading_T[1:] + heading_T[:-1])
    step = np.diff(distance_T)[:, None] * np.stack([np.cos(middle), np.sin(middle)], -1)
    position_T3 = np.zeros((len(u), 3))
    position_T3[1:, :2] = np.cumsum(step, 0)
    position_T3 -= position_T3[len(u) // 2]
    return heading_T, position_T3, distance_T
