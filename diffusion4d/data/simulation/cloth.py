r"""Cloth: flags and curtains in gusts, sheets that fall over things, towels swung by two corners.

A sheet of W × H metres is a triangulated grid with membrane stiffness E t (N/m) and bending rigidity
D = E t³ / (12 (1 − ν²)) (N m). From the two that a seed chooses,  t² = 12 (1 − ν²) D / (E t).
Air pushes on a triangle of area A, normal n and velocity v with (quadratic drag of a plate, Hoerner 1965)

    f = ρ/2 · A · (C_n |u·n| (u·n) n + C_t |u| u_t),      u = wind − v,  u_t = u − (u·n) n      (1)

a third at each corner. The wind's swirls travel with it, which is what makes a flag flap.
Shape letters:  V vertices   F triangles.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from diffusion4d.data.simulation.stage import (
    STIFF,
    Model,
    Scene,
    State,
    along,
    flex_piece,
    numbers,
    quaternion,
    solid_pieces,
)
from diffusion4d.scenes import motion

Array = np.ndarray
AIR = 1.2  # kg/m³
DRAG, SKIN = 1.2, 0.05  # C_n and C_t of (1)
POISSON = 0.25


class Sheet:
    """A grid of cloth: how many corners, how large, how heavy and how stiff. MJCF text by `element`."""

    def __init__(self, rng: np.random.Generator, corners: tuple[int, int], width: float):
        self.corners = corners
        self.spacing = width / (corners[0] - 1)
        self.width, self.height = width, self.spacing * (corners[1] - 1)
        self.mass = motion.log_uniform(rng, 0.1, 0.5) * self.width * self.height
        self.membrane = motion.log_uniform(rng, 100.0, 500.0)  # N/m
        self.bending = motion.log_uniform(rng, 3e-6, 1e-3) * width**2  # N m
        self.damping = motion.log_uniform(rng, 0.001, 0.01)  # s

    def element(self, placing: str, pins: str = "", rubs: bool = False) -> str:
        """A flexcomp called `cloth`, flat in x–y before `placing`; `rubs`: it collides, with itself too."""
        thickness = (12 * (1 - POISSON**2) * self.bending / self.membrane) ** 0.5
        touch = 'selfcollide="auto" friction="0.5"' if rubs else 'contype="0" conaffinity="0"'
        return (
            f'<flexcomp name="cloth" type="grid" dim="2" count="{self.corners[0]} {self.corners[1]} 1" '
            f'spacing="{numbers([self.spacing] * 3)}" mass="{self.mass:.6g}" {placing} '
            f'radius="{0.12 * self.spacing:.6g}">{pins}<contact condim="3" {touch} {STIFF}/>'
            f'<elasticity young="{self.membrane / thickness:.6g}" poisson="{POISSON}" '
            f'thickness="{thickness:.6g}" elastic2d="both" damping="{self.damping:.6g}"/></flexcomp>'
        )


def air_force(
    vertices_V3: Float[Array, "V 3"],
    velocity_V3: Float[Array, "V 3"],
    faces_F3: Int[Array, "F 3"],
    wind_F3: Float[Array, "F 3"] | Float[Array, "3"],
) -> Float[Array, "V 3"]:
    """The force of moving air on every vertex (N), equation (1)."""
    corner_F33 = vertices_V3[faces_F3]
    normal_F3 = np.cross(corner_F33[:, 1] - corner_F33[:, 0], corner_F33[:, 2] - corner_F33[:, 0])
    double_area_F1 = np.linalg.norm(normal_F3, axis=-1, keepdims=True)
    normal_F3 = normal_F3 / np.maximum(double_area_F1, 1e-12)
    u_F3 = wind_F3 - velocity_V3[faces_F3].mean(1)
    through_F1 = (u_F3 * normal_F3).sum(-1, keepdims=True)
    along_F3 = u_F3 - through_F1 * normal_F3
    speed_F1 = np.linalg.norm(u_F3, axis=-1, keepdims=True)
    push_F3 = DRAG * np.abs(through_F1) * through_F1 * normal_F3 + SKIN * speed_F1 * along_F3
    push_F3 *= 0.25 * AIR * double_area_F1
    force_V3 = np.zeros_like(vertices_V3)
    np.add.at(force_V3, faces_F3, push_F3[:, None] / 3)
    return force_V3


class Air:
    """Acts on the flex `cloth` before every step. `wind` maps (time, points) to the air's velocity there."""

    def __init__(self, wind: Callable[[float, Array], Array]):
        self.wind = wind

    def __call__(self, model: Model, state: State) -> None:
        """Forces onto the vertices' sliding joints: a vertex that has three is free, a pinned one has none."""
        body_V = model.flex_vertbodyid
        free_V = model.body_dofnum[body_V] == 3
        dof_V3 = model.body_dofadr[body_V[free_V]][:, None] + np.arange(3)
        vertices_V3 = state.flexvert_xpos
        velocity_V3 = np.zeros_like(vertices_V3)
        velocity_V3[free_V] = state.qvel[dof_V3]
        faces_F3 = model.flex_elem.reshape(-1, 3)
        wind_F3 = self.wind(state.time, vertices_V3[faces_F3].mean(1))
        force_V3 = air_force(vertices_V3, velocity_V3, faces_F3, wind_F3)
        state.qfrc_applied[dof_V3] = force_V3[free_V]


def gusts(rng: np.random.Generator, speed: float, heading: Array, size: float) -> Callable:
    """Wind that swells and carries swirls of about `size` metres along with it."""
    swell, when = rng.uniform(0.1, 0.6), rng.uniform(0, 2 * np.pi, 2)
    rate = rng.uniform(0.3, 1.2, 2)
    side = np.cross([0, 0, 1.0], heading)
    wave_43 = rng.normal(size=(4, 3)) * 2 * np.pi / size * rng.uniform(0.3, 0.9, (4, 1))
    turn_43 = rng.uniform(0.1, 0.4, (4, 1)) * (
        rng.normal(size=(4, 1)) * side + 0.4 * rng.normal(size=(4, 3))
    )
    phase_4 = rng.uniform(0, 2 * np.pi, 4)

    def wind(time: float, points_F3: Array) -> Array:
        strength = speed * (1 + swell * np.sin(2 * np.pi * rate * time + when).mean())
        swirl_F3 = np.sin((points_F3 - speed * time * heading) @ wave_43.T + phase_4) @ turn_43
        return strength * (heading + swirl_F3)

    return wind


def flag(rng: np.random.Generator) -> Scene:
    """A flag on a pole, or a curtain or banner by its upper edge or corners, in gusts."""
    long, short = int(rng.integers(13, 19)), int(rng.integers(9, 14))
    sheet = Sheet(rng, (long, short), motion.log_uniform(rng, 0.5, 2.0))
    # The grid's x runs along its longer side; y is turned upwards.
    held = rng.choice(["side", "side", "top", "corners"])
    last_x, last_y = long - 1, short - 1
    pins = {
        "side": f'<pin gridrange="0 0 0 {last_y}"/>',
        "top": f'<pin gridrange="0 {last_y} {last_x} {last_y}"/>',
        "corners": f'<pin grid="0 {last_y} {last_x} {last_y}"/>',
    }[str(held)]
    heading = np.array([1.0, 0, 0]) if held == "side" else np.array([0, 1.0, 0])
    heading = motion.yaw(np.array(rng.uniform(-0.5, 0.5))) @ heading
    # A flag flaps at about speed / width; a small one in a strong wind would be a blur at 30 frames a second.
    speed = motion.log_uniform(rng, 2.0, 6.0) * min(1.0, sheet.width) ** 0.5
    speed *= 1.0 if held == "side" else 0.6
    world = f"""<worldbody>{sheet.element('euler="90 0 0"', pins)}</worldbody>"""
    return Scene(
        world=world,
        pieces=lambda model: [flex_piece(model)],
        seconds=float(rng.uniform(1.5, 3.0)),
        drive=Air(gusts(rng, speed, heading, sheet.width)),
        lead=0.5,
        grounded=False,
    )


def drape(rng: np.random.Generator) -> Scene:
    """A sheet falls over a ball, a box, a can or a post, and on to the floor."""
    size = motion.log_uniform(rng, 0.4, 1.5)
    sheet = Sheet(rng, (15, int(rng.integers(11, 16))), size)
    radius = size * rng.uniform(0.13, 0.28)
    half = size * rng.uniform(0.15, 0.3, 3)
    turn = f'euler="0 0 {rng.uniform(0, 360):.4g}"'
    kind = str(rng.choice(["sphere", "box", "cylinder", "capsule"]))
    thing, top = {
        "sphere": (f'type="sphere" size="{radius}" pos="0 0 {radius}"', 2 * radius),
        "box": (f'type="box" size="{numbers(half)}" pos="0 0 {half[2]}" {turn}', 2 * half[2]),
        "cylinder": (f'type="cylinder" size="{radius} {half[2]}" pos="0 0 {half[2]}"', 2 * half[2]),
        "capsule": (
            f'type="capsule" size="{0.5 * radius}" fromto="{numbers([-radius, 0, half[2]])} '
            f'{numbers([radius, 0, half[2] * rng.uniform(0.8, 1.2)])}"',
            1.3 * half[2] + 0.5 * radius,
        ),
    }[kind]
    x, y = rng.normal(size=2) * 0.12 * size
    height = top + size * rng.uniform(0.15, 0.5)
    placing = f'pos="{x} {y} {height}" quat="{quaternion(rng, 0.25)}"'
    world = f"""<worldbody><geom name="floor" type="plane" size="0 0 1" friction="0.6" {STIFF}/>
    <geom name="thing" {thing} friction="0.5" {STIFF}/>{sheet.element(placing, rubs=True)}</worldbody>"""
    return Scene(
        world=world,
        pieces=lambda model: [flex_piece(model), *solid_pieces(model)],
        seconds=float(rng.uniform(0.7, 1.0) + (2 * height / 9.81) ** 0.5),
        drive=Air(lambda time, points: np.zeros(3)),
    )


def towel(rng: np.random.Generator) -> Scene:
    """A towel held at two corners by hands that swing, shake and cross."""
    long, short = int(rng.integers(13, 18)), int(rng.integers(9, 14))
    sheet = Sheet(rng, (long, short), motion.log_uniform(rng, 0.4, 1.5))
    seconds = float(rng.uniform(1.5, 3.0))
    # The two upper corners; a vertex's number in the grid is x · (count in y) + y.
    held = {"left": short - 1, "right": long * short - 1}
    start_23 = np.array(
        [[-sheet.width / 2, 0, sheet.height / 2], [sheet.width / 2, 0, sheet.height / 2]]
    )
    cycles = rng.uniform(0.5, 1.4) * seconds
    times = np.linspace(0, 1, 200)
    together = motion.oscillation(rng, times, cycles, 3)[:, None]
    apart = motion.oscillation(rng, times, cycles, 6).reshape(-1, 2, 3)
    path_T23 = sheet.width * (0.35 * together * [0.7, 1.0, 0.6] + 0.12 * apart)
    # The hands start where the corners are and never pull further apart than the cloth is wide.
    path_T23 = (path_T23 - path_T23[:1]) * motion.transition(times, -0.1, 0.25)[:, None, None]
    path_T23[:, :, 0] += 0.5 * sheet.width * rng.uniform(0.1, 0.3) * np.array([1, -1]) * np.minimum(
        1, 5 * times
    )[:, None]  # fmt: skip
    path_T23 = path_T23 + start_23
    hands = "".join(
        f'<body name="{name}" mocap="true" pos="{numbers(start)}"/>'
        for name, start in zip(held, start_23, strict=True)
    )
    ties = "".join(
        f'<connect body1="cloth_{vertex}" body2="{name}" anchor="0 0 0" {STIFF}/>'
        for name, vertex in held.items()
    )
    air = Air(lambda time, points: np.zeros(3))

    def drive(model: Model, state: State) -> None:
        air(model, state)
        hands_6 = along(path_T23.reshape(-1, 6), state.time / (seconds + 0.2))
        state.mocap_pos[:] = hands_6.reshape(2, 3)

    placing = 'euler="90 0 0"'
    return Scene(
        world=f"<worldbody>{hands}{sheet.element(placing)}</worldbody><equality>{ties}</equality>",
        pieces=lambda model: [flex_piece(model)],
        seconds=seconds,
        drive=drive,
        lead=0.2,
        grounded=False,
    )
