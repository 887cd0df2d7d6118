r"""Piles: rigid things that fall, collide, hide one another and come to rest; and rows of dominoes.

Bodies start apart from one another; contacts are inelastic to bouncy (damping ratio of the contact's spring), with
Coulomb friction.
Shape letters:  N bodies.
"""

import numpy as np
from jaxtyping import Float

from diffusion4d.data.simulation.stage import (
    Drive,
    Model,
    Scene,
    State,
    numbers,
    quaternion,
    solid_pieces,
)
from diffusion4d.scenes import motion

Array = np.ndarray
GRAVITY = 9.81


def _solid(rng: np.random.Generator, size: float) -> str:
    """Attributes of a ball, egg, box, plank, can, disc or bar that fits in a ball of radius `size` (m)."""
    kind = str(rng.choice(["sphere", "ellipsoid", "box", "plank", "cylinder", "disc", "capsule"]))
    small, middle = size * rng.uniform(0.2, 0.35), size * rng.uniform(0.4, 0.57)
    return {
        "sphere": f'type="sphere" size="{size * rng.uniform(0.5, 0.9)}"',
        "ellipsoid": f'type="ellipsoid" size="{numbers(size * rng.uniform(0.4, 0.9, 3))}"',
        "box": f'type="box" size="{numbers(size * rng.uniform(0.35, 0.57, 3))}"',
        "plank": f'type="box" size="{numbers([0.8 * size, middle, 0.6 * small])}"',
        "cylinder": f'type="cylinder" size="{middle} {0.75 * size}"',
        "disc": f'type="cylinder" size="{0.85 * size} {0.6 * small}"',
        "capsule": f'type="capsule" size="{small} {0.65 * size}"',
    }[kind]


def _touch(rng: np.random.Generator) -> str:
    """Friction and bounce of all contacts of a scene."""
    bounce = rng.choice([1.0, rng.uniform(0.15, 0.6)])
    return f'friction="{rng.uniform(0.3, 1.0):.4g}" solref="0.01 {bounce:.4g}" solimp="0.95 0.99 0.002"'


def _scene(bodies: str, touch: str, seconds: float, begin: Drive) -> Scene:
    floor = f'<geom name="floor" type="plane" size="0 0 1" {touch}/>'
    return Scene(
        world=f"<worldbody>{floor}{bodies}</worldbody>",
        pieces=lambda model: solid_pieces(model, 0.55),
        seconds=seconds,
        drive=begin,
        substeps=12,
    )


class Throw:
    """Gives every free body its velocity (m/s) and spin (rad/s) at the first step."""

    def __init__(self, velocity_N6: Float[Array, "N 6"]):
        self.velocity_N6 = velocity_N6

    def __call__(self, model: Model, state: State) -> None:
        if state.time == 0:
            state.qvel[:] = self.velocity_N6.ravel()


def pile(rng: np.random.Generator) -> Scene:
    """Three to eight things rain on to one place, or are thrown together from around it."""
    size = motion.log_uniform(rng, 0.08, 0.4)
    count, thrown = int(rng.integers(3, 9)), bool(rng.random() < 0.4)
    touch, bodies = _touch(rng), ""
    velocity_N6 = np.concatenate(
        [0.3 * rng.normal(size=(count, 3)) * [1, 1, 0], 2.0 * rng.normal(size=(count, 3))], -1
    )
    heights, height = [], size
    for _ in range(count):
        heights.append(height * 1.05)
        height += size * rng.uniform(0.6, 1.4) if thrown else size * rng.uniform(2.05, 2.4)
    for index in range(count):
        place = np.array([*(0.6 * size * rng.normal(size=2)), heights[index]])
        if thrown:
            azimuth = 2 * np.pi * (index + 0.6 * rng.random()) / count
            ring = size * max(2.2, 0.55 * count)
            place[:2] = ring * np.array([np.cos(azimuth), np.sin(azimuth)])
            # Fast enough to meet in the middle before or just after they land.
            flight = max(0.25, (2 * heights[index] / GRAVITY) ** 0.5)
            velocity_N6[index, :2] -= place[:2] / flight * rng.uniform(0.5, 0.9)
        bodies += (
            f'<body pos="{numbers(place)}" quat="{quaternion(rng)}"><freejoint/>'
            f'<geom {_solid(rng, size)} density="500" {touch}/></body>'
        )
    fall = (2 * heights[-1] / GRAVITY) ** 0.5
    return _scene(bodies, touch, float(fall + rng.uniform(0.6, 1.1)), Throw(velocity_N6))


def topple(rng: np.random.Generator) -> Scene:
    """A tower or a wall of blocks is hit by a ball."""
    size = motion.log_uniform(rng, 0.05, 0.25)
    half = size * np.array([1.0, rng.uniform(0.6, 1.0), rng.uniform(0.5, 0.9)])
    columns = int(rng.integers(1, 4))
    rows = int(rng.integers(3, 7 if columns == 1 else 5))
    touch, bodies = _touch(rng), ""
    for row in range(rows):
        for column in range(columns):
            x = 2.06 * half[0] * (column - 0.5 * (columns - 1)) + 0.05 * size * rng.normal()
            place = [x, 0.08 * size * rng.normal(), half[2] * (2.005 * row + 1.001)]
            lean = f'euler="0 0 {3 * rng.normal():.4g}"'
            bodies += (
                f'<body pos="{numbers(place)}" {lean}><freejoint/>'
                f'<geom type="box" size="{numbers(half)}" density="400" {touch}/></body>'
            )
    radius = size * rng.uniform(0.7, 1.2)
    height = rng.uniform(0.3, 0.9) * 2 * half[2] * rows
    flight = rng.uniform(0.15, 0.3)
    speed = motion.log_uniform(rng, 4.0, 9.0) * (GRAVITY * size) ** 0.5 * 0.5
    start = np.array(
        [rng.normal() * 0.3 * half[0] * columns, -half[1] - radius - speed * flight, height]
    )
    bodies += (
        f'<body pos="{numbers(start)}"><freejoint/><geom type="sphere" size="{radius}" '
        f'density="{rng.uniform(1000, 2000) * columns}" {touch}/></body>'
    )
    velocity_N6 = np.zeros((rows * columns + 1, 6))
    # Thrown so that it is again at its first height when it arrives.
    velocity_N6[-1, :3] = [0, speed, 0.5 * GRAVITY * flight]
    return _scene(bodies, touch, float(flight + rng.uniform(0.8, 1.3)), Throw(velocity_N6))


def dominoes(rng: np.random.Generator) -> Scene:
    """A row of tiles along an arc; the first is pushed."""
    tall = motion.log_uniform(rng, 0.05, 0.25)
    half = tall * np.array([rng.uniform(0.06, 0.12), rng.uniform(0.22, 0.32), 0.5])
    count = int(rng.integers(6, 15))
    gap, bend = tall * rng.uniform(0.35, 0.6), rng.uniform(-0.16, 0.16)
    touch = 'friction="0.4" solref="0.01 1" solimp="0.95 0.99 0.002"'
    place, heading, bodies = np.zeros(2), 0.0, ""
    for _ in range(count):
        bodies += (
            f'<body pos="{numbers([*place, half[2]])}" euler="0 0 {np.degrees(heading):.5g}"><freejoint/>'
            f'<geom type="box" size="{numbers(half)}" density="800" {touch}/></body>'
        )
        place = place + gap * np.array([np.cos(heading + bend / 2), np.sin(heading + bend / 2)])
        heading += bend
    velocity_N6 = np.zeros((count, 6))
    # A spin about the lower front edge, enough to tip over it.
    spin = rng.uniform(2.5, 4.0) * (GRAVITY / tall) ** 0.5 * 0.4
    velocity_N6[0] = [spin * half[2], 0, 0, 0, spin, 0]
    seconds = 0.45 + count * 0.075 * (tall / 0.1) ** 0.5
    return _scene(bodies, touch, float(np.clip(seconds, 0.9, 2.6)), Throw(velocity_N6))
