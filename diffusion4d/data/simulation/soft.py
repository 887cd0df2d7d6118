r"""Soft bodies: jellies, balls and pillows that are dropped, poked, sent down a slope, or rolled.

A star-shaped surface is carried by a lattice of trilinear cells (Faloutsos et al. 1997: free-form deformation with
dynamics); the finite elements are the cells, the triangles follow. With density ρ, size L, Young's modulus E and
fall height h, what one sees depends on

    sag = ρ g L / E   (how far it sinks under its own weight),      dent = √(ρ g h / E)   (how far on impact)

so a seed chooses those and E follows. The slowest ringing lasts about L √(ρ / E); damping is relative to it.
Shape letters:  V vertices   F triangles.
"""

import numpy as np

from diffusion4d.data.simulation.stage import (
    STIFF,
    Drive,
    Model,
    Scene,
    State,
    along,
    flex_piece,
    numbers,
    quaternion,
    solid_pieces,
)
from diffusion4d.scenes import motion, shapes

Array = np.ndarray
GRAVITY = 9.81
DENSITY = 1000.0
FLOOR = f'<geom name="floor" type="plane" size="0 0 1" friction="0.8" {STIFF}/>'


def jelly(
    rng: np.random.Generator,
    mesh: shapes.Mesh,
    placing: str,
    fall: float = 0.0,
    friction: float = 0.8,
    poisson: float = 0.4,
) -> str:
    """A flexcomp of that surface, soft enough to see and stiff enough to survive a fall of `fall` metres."""
    size = float(np.ptp(mesh.vertices, axis=0).max())
    sag = min(motion.log_uniform(rng, 0.015, 0.2), 0.35 * size / (size + 2 * fall))
    young = DENSITY * GRAVITY * size / sag
    damping = motion.log_uniform(rng, 0.01, 0.06) * size * (DENSITY / young) ** 0.5
    # Tetrahedra from the centre to every triangle fill a star-shaped surface.
    points_V3 = np.concatenate([mesh.vertices, np.zeros((1, 3))])
    centre_F1 = np.full((len(mesh.faces), 1), len(mesh.vertices))
    # MuJoCo wants a positive volume: outward triangles, seen from the centre, turn the other way.
    tetrahedra_F4 = np.concatenate([mesh.faces, centre_F1], -1)[:, [0, 2, 1, 3]]
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    mass = DENSITY * float(np.einsum("fi,fi->f", a, np.cross(b, c)).sum()) / 6
    return (
        f'<flexcomp name="jelly" type="direct" dim="3" dof="trilinear" cellcount="3 3 3" {placing} '
        f'point="{numbers(points_V3)}" element="{" ".join(map(str, tetrahedra_F4.ravel()))}" '
        f'mass="{mass:.6g}" radius="{0.002 * size:.6g}">'
        f'<contact selfcollide="none" condim="3" friction="{friction:.4g}" {STIFF}/>'
        f'<elasticity young="{young:.6g}" poisson="{poisson:.4g}" damping="{damping:.6g}"/></flexcomp>'
    )


def blob(rng: np.random.Generator, size: float, stretch: float = 0.35) -> shapes.Mesh:
    """A ball, an egg, a cushion, a cube or a lump, `size` metres across."""
    kind = rng.choice(["ball", "cube", "cushion", "can", "lump"], p=[0.2, 0.3, 0.15, 0.15, 0.2])
    power = {"ball": 2.0, "cube": rng.uniform(4, 9), "cushion": 3.0, "can": 6.0, "lump": 2.5}[
        str(kind)
    ]
    mesh = shapes.superquadric(int(rng.integers(140, 260)), power, axial=kind == "can")
    mesh = shapes.roughened(rng, mesh, 0.1 if kind == "lump" else 0.0)
    scale = size * np.exp(stretch * rng.uniform(-1, 1, 3))
    if kind == "cushion":
        scale[2] *= 0.5
    return shapes.Mesh(mesh.vertices * scale, mesh.faces)


class Begin:
    """Sets the lattice's velocities at the first step and does nothing afterwards."""

    def __init__(self, velocity: Array, spin: Array, centre: Array):
        self.velocity, self.spin, self.centre = velocity, spin, centre

    def __call__(self, model: Model, state: State) -> None:
        if state.time > 0:
            return
        free = np.flatnonzero(model.body_dofnum == 3)
        arm_N3 = state.xpos[free] - self.centre
        state.qvel[model.body_dofadr[free][:, None] + np.arange(3)] = self.velocity + np.cross(
            self.spin, arm_N3
        )


def _scene(world: str, seconds: float, drive: Drive) -> Scene:
    return Scene(
        world=f"<worldbody>{world}</worldbody>",
        pieces=lambda model: [flex_piece(model), *solid_pieces(model)],
        seconds=seconds,
        drive=drive,
    )


def drop(rng: np.random.Generator) -> Scene:
    """Falls, perhaps turning and drifting, bounces and wobbles; sometimes on the edge of a step."""
    size = motion.log_uniform(rng, 0.3, 1.2)
    mesh = blob(rng, size)
    fall = size * rng.uniform(0.3, 1.5)
    height = float(np.linalg.norm(mesh.vertices, axis=-1).max()) + fall
    step = ""
    if rng.random() < 0.35:
        half = size * rng.uniform([0.3, 0.3, 0.1], [0.6, 0.6, 0.3])
        x, y = rng.uniform(-0.5, 0.5, 2) * size
        step = f'<geom type="box" size="{numbers(half)}" pos="{x} {y} {half[2]}" {STIFF}/>'
        height += 2 * half[2]
    start = np.array([0, 0, height])
    drift = rng.normal(size=3) * [0.8, 0.8, 0.0] * size
    spin = rng.normal(size=3) * rng.choice([0.0, 3.0])
    placing = f'pos="{numbers(start)}" quat="{quaternion(rng)}"'
    world = FLOOR + step + jelly(rng, mesh, placing, fall)
    seconds = float((2 * fall / GRAVITY) ** 0.5 + rng.uniform(0.8, 1.5))
    return _scene(world, seconds, Begin(drift, spin, start))


def poke(rng: np.random.Generator) -> Scene:
    """Stands on the floor; a finger comes, presses or strikes it once or twice, and leaves."""
    size = motion.log_uniform(rng, 0.2, 1.0)
    mesh = blob(rng, size, 0.2)
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    finger = size * rng.uniform(0.06, 0.14)
    seconds = float(rng.uniform(1.2, 2.5))
    # From a side or from above, towards a point near the middle.
    lean = rng.uniform(0.15, 1.5)
    away = motion.yaw(np.array(rng.uniform(0, 2 * np.pi))) @ [np.cos(lean), 0, np.sin(lean)]
    aim = np.array([0, 0, -low[2]]) + 0.15 * size * rng.uniform(-1, 1, 3)
    times = np.linspace(0, 1, 100)
    strokes = rng.integers(1, 3)
    wave_T = np.abs(np.sin(np.pi * strokes * times)) ** rng.uniform(0.8, 2.0)
    reach = float((mesh.vertices @ away).max())
    depth = rng.uniform(0.25, 0.6) * reach
    distance_T = reach + finger + 0.3 * size - (0.3 * size + depth) * wave_T
    path_T3 = aim + distance_T[:, None] * away
    path_T3[:, 2] = np.maximum(path_T3[:, 2], 1.2 * finger)
    tip = f'<geom type="capsule" size="{finger}" fromto="0 0 0 {numbers(0.6 * size * away)}" friction="0.8" {STIFF}/>'
    world = (
        FLOOR
        + f'<body name="finger" mocap="true" pos="{numbers(path_T3[0])}">{tip}</body>'
        + jelly(rng, mesh, f'pos="0 0 {-low[2] + 0.004 * high[2]}"', depth)
    )

    def drive(model: Model, state: State) -> None:
        state.mocap_pos[0] = along(path_T3, state.time / seconds)

    return _scene(world, seconds, drive)


def slide(rng: np.random.Generator) -> Scene:
    """Set down on a ramp that it slides or tips down, on to the floor."""
    size = motion.log_uniform(rng, 0.3, 1.0)
    mesh = blob(rng, size, 0.25)
    return _ramp(rng, mesh, size, slope=rng.uniform(0.3, 0.65), friction=rng.uniform(0.03, 0.3))


def roll(rng: np.random.Generator) -> Scene:
    """A soft ball, egg or can that rolls: over the floor, or down a ramp."""
    size = motion.log_uniform(rng, 0.3, 1.2)
    mesh = shapes.superquadric(int(rng.integers(140, 260)), 2.0)
    mesh = shapes.roughened(rng, mesh, rng.uniform(0, 0.06))
    scale = size * np.array([1.0, rng.uniform(0.7, 1.4), 1.0])
    mesh = shapes.Mesh(mesh.vertices * scale, mesh.faces)
    if rng.random() < 0.4:
        return _ramp(rng, mesh, size, slope=rng.uniform(0.15, 0.4), friction=1.0)
    radius = -float(mesh.vertices[:, 2].min())
    seconds = float(rng.uniform(1.0, 1.8))
    speed = float(rng.uniform(1.0, 3.0) * size / seconds)
    start = np.array([0, 0, radius * 1.005])
    begin = Begin(np.array([speed, 0, 0]), np.array([0, speed / radius, 0]), start)
    world = FLOOR + jelly(rng, mesh, f'pos="{numbers(start)}"', 0.2 * size, friction=1.0)
    return _scene(world, seconds, begin)


def _ramp(
    rng: np.random.Generator, mesh: shapes.Mesh, size: float, slope: float, friction: float
) -> Scene:
    """A board leans at `slope` (rad), its lower edge on the floor; the body starts near its upper end."""
    half = np.array([rng.uniform(1.2, 1.8), rng.uniform(0.5, 0.8), 0.04]) * size
    tilt = motion.about(np.array([0.0, 1.0, 0.0]), np.array(slope))
    board = np.array([0, 0, half[0] * np.sin(slope) + half[2]])
    lowest = float(mesh.vertices[:, 2].min())
    start = board + tilt @ [-0.6 * half[0], 0, half[2] - lowest + 0.01 * size]
    going = tilt @ [rng.uniform(0.2, 1.0) * (GRAVITY * size) ** 0.5 * 0.4, 0, 0]
    world = (
        f'{FLOOR}<geom type="box" size="{numbers(half)}" pos="{numbers(board)}" '
        f'euler="0 {np.degrees(slope):.5g} 0" friction="0.01" {STIFF}/>'
        + jelly(
            rng,
            mesh,
            f'pos="{numbers(start)}" euler="0 {np.degrees(slope):.5g} 0"',
            half[0] * np.sin(slope),
            friction,
        )
    )
    return _scene(world, float(rng.uniform(1.2, 2.0)), Begin(going, np.zeros(3), start))
