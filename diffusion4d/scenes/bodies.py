r"""Bodies that move: a small mesh and where its vertices are at every instant.

A body is made about one unit large, near the origin, standing on or floating above the floor z = 0 (z up).
This room holds the value and the rigid family; `articulated`, `elastic` and `cloth` have their own.
Shape letters:  T frames   V vertices   F triangles.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffusion4d.scenes import motion, shapes

Array = np.ndarray


@dataclass(frozen=True)
class Body:
    """Vertices over time (world axes, z up), triangles, rest positions (they carry the texture).

    `parts` numbers the vertices that move as one rigid piece (−1: the piece deforms). `smooth` asks for
    shading with interpolated normals. `grounded` bodies stay on the floor.
    """

    vertices: Float[Array, "T V 3"]
    faces: Int[Array, "F 3"]
    rest: Float[Array, "V 3"]
    parts: Int[Array, "V"]
    smooth: bool
    grounded: bool


def lifted(vertices_TV3: Float[Array, "T V 3"], clearance: float = 0.0) -> Float[Array, "T V 3"]:
    """The same motion, raised as a whole so that its lowest vertex is `clearance` above the floor."""
    return vertices_TV3 + np.array([0.0, 0.0, clearance - vertices_TV3[..., 2].min()])


def rigid(rng: np.random.Generator, u: Float[Array, "T"], num_vertices: int) -> Body:
    """A solid that slides, rolls, tumbles, is thrown, pushed to and fro, spun, swung or waved about."""
    mesh = shapes.primitive(rng, num_vertices)
    kind = rng.choice(
        ["slide", "roll", "tumble", "throw", "push", "spin", "swing", "wave", "float"],
        p=[0.14, 0.14, 0.1, 0.14, 0.12, 0.08, 0.08, 0.14, 0.06],
    )
    if kind == "roll":
        mesh = _rolling_shape(rng, num_vertices)
    elif rng.random() < 0.7:
        mesh = shapes.stretched(mesh, np.exp(rng.uniform(-0.7, 0.7, 3)))
    speed = motion.log_uniform(rng, 0.15, 3.0)
    smooth = len(mesh.vertices) != 24
    rotation_T33, position_T3 = _ROUTES[kind](rng, u, speed, mesh)
    vertices_TV3 = motion.moved(rotation_T33, position_T3, mesh.vertices)
    grounded = kind in ("slide", "roll", "push", "spin")
    clearance = 0.0 if grounded else float(rng.choice([0.0, rng.uniform(0, 1.0)]))
    parts = np.zeros(len(mesh.vertices), dtype=np.int64)
    return Body(lifted(vertices_TV3, clearance), mesh.faces, mesh.vertices, parts, smooth, grounded)


Route = tuple[Array, Array]


def _rolling_shape(rng: np.random.Generator, num_vertices: int) -> shapes.Mesh:
    """A ball or an apple, or a can or wheel on its side with its axis along y; the section in x, z is round."""
    if rng.random() < 0.6:
        ball = shapes.superquadric(num_vertices, 2.0)
        return shapes.roughened(rng, ball, rng.uniform(0, 0.06))
    can = shapes.superquadric(num_vertices, rng.uniform(4, 12), axial=True)
    width = rng.uniform(0.3, 2.0)
    return shapes.Mesh(can.vertices[:, [0, 2, 1]] * [1, width, 1], can.faces[:, ::-1])


def rolling(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """Rolling without slipping: the angle is the distance over the radius; friction may slow it down."""
    radius = 0.5 * np.ptp(mesh.vertices[:, 2])
    slowing = rng.choice([0.0, rng.uniform(0.3, 0.5)])
    distance_T = speed * (u - slowing * u**2)
    if rng.random() < 0.25:
        distance_T = 0.6 * speed * motion.gesture(rng, u, 1.5, 1)[:, 0]
    heading = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(heading), np.sin(heading), 0])
    spin = motion.about(np.array([0.0, 1.0, 0.0]), distance_T / radius + rng.uniform(0, 6))
    position_T3 = (distance_T - distance_T.mean())[:, None] * direction
    return motion.yaw(np.array(heading)) @ spin, position_T3


def _slide(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """A thing that travels upright and faces where it goes, as a car or a toy does."""
    heading_T, position_T3, _ = motion.ground_path(rng, u, speed, rng.normal() * 0.8)
    return motion.yaw(heading_T), position_T3


def _push(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """Pushed along the floor and back, with a little turning."""
    cycles = motion.log_uniform(rng, 0.4, 2.5)
    axis = motion.yaw(np.array(rng.uniform(0, 2 * np.pi)))[:, 0]
    along_T = 0.5 * min(speed, 1.5) * np.sin(motion.phase(rng, u, cycles))
    turn_T = rng.uniform(0, 0.5) * motion.gesture(rng, u, cycles, 1)[:, 0]
    return motion.yaw(turn_T + rng.uniform(0, 2 * np.pi)), along_T[:, None] * axis


def _spin(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """On a turntable."""
    turn = min(2.0 * speed, 9.0) * rng.choice([-1, 1])
    return motion.yaw(turn * u + rng.uniform(0, 2 * np.pi)), np.zeros((len(u), 3))


def _throw(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """A ballistic arc with a constant spin about a fixed axis (free flight of a nearly symmetric top)."""
    apex = rng.uniform(0.2, 0.8)
    fall = rng.uniform(0.5, 4.0) * min(speed, 1.5)
    velocity = speed * motion.yaw(np.array(rng.uniform(0, 2 * np.pi)))[:, 0]
    position_T3 = (u[:, None] - 0.5) * velocity
    position_T3[:, 2] = -fall * (u - apex) ** 2
    spin = motion.log_uniform(rng, 0.3, 10.0)
    tumble = motion.about(motion.unit_vector(rng), spin * u)
    return tumble @ motion.random_rotation(rng), position_T3


def _tumble(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """Turning over while it drifts, the axis wandering."""
    spin = motion.log_uniform(rng, 0.5, 9.0)
    tumble = motion.about(motion.unit_vector(rng), spin * u)
    rotation_T33, position_T3 = motion.wandering_pose(rng, u, 0.4 * speed, 0.4, 1.5)
    return rotation_T33 @ tumble, position_T3


def _swing(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """A pendulum: the body hangs from a point above it."""
    length = rng.uniform(0.7, 3.0)
    cycles = motion.log_uniform(rng, 0.4, 2.0)
    turn_T3 = np.zeros((len(u), 3))
    amplitude = min(1.0, speed / length)
    turn_T3[:, 0] = amplitude * np.sin(motion.phase(rng, u, cycles))
    turn_T3[:, 1] = 0.5 * rng.random() * amplitude * np.sin(motion.phase(rng, u, cycles))
    rotation_T33 = motion.yaw(np.array(rng.uniform(0, 2 * np.pi))) @ motion.rotation(turn_T3)
    return rotation_T33, rotation_T33 @ np.array([0, 0, -length])


def _wave(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """Held and moved by an unseen hand."""
    cycles = motion.log_uniform(rng, 0.5, 3.0)
    return motion.wandering_pose(rng, u, 0.3 * speed, rng.uniform(0, 1.2), cycles)


def _float(rng: np.random.Generator, u: Array, speed: float, mesh: shapes.Mesh) -> Route:
    """Almost at rest."""
    return motion.wandering_pose(rng, u, 0.06 * speed, 0.15 * speed, 1.5)


_ROUTES = {
    "slide": _slide,
    "roll": rolling,
    "tumble": _tumble,
    "throw": _throw,
    "push": _push,
    "spin": _spin,
    "swing": _swing,
    "wave": _wave,
    "float": _float,
}
