r"""What stands still: floor, walls, hills, furniture.

Placed after the movers and the camera, so that nothing stands in the way of a body, or of a camera beyond what an
ordinary occluder would. World axes, z up.
Shape letters:  V vertices   F triangles.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion, shapes

Array = np.ndarray
SETTINGS = ("room", "outdoors", "tabletop", "void")
_ODDS = (0.4, 0.35, 0.17, 0.08)


@dataclass(frozen=True)
class Prop:
    """A still object: its mesh in world coordinates, and whether to shade it smoothly."""

    mesh: shapes.Mesh
    smooth: bool


@dataclass(frozen=True)
class Stage:
    """The free space: movers stay within `radius` of `centre` (horizontally) and below `top`; cameras pass through
    `camera` positions.
    """

    centre: Float[Array, "3"]
    radius: float
    top: float
    camera: Float[Array, "T 3"]

    @property
    def reach(self) -> float:
        """Horizontal distance of the farthest camera from the centre, at least the movers' radius."""
        away = np.linalg.norm((self.camera - self.centre)[:, :2], axis=-1).max()
        return max(float(away), self.radius)


def random_scenery(rng: np.random.Generator, setting: str, stage: Stage) -> list[Prop]:
    """Floor, walls and props for one of SETTINGS."""
    props: list[Prop] = []
    if setting == "void":
        if rng.random() < 0.7:
            props.append(_wall(rng, stage, motion.log_uniform(rng, 1.3, 4.0), 0.0))
        return props
    rough = {"room": 0.0, "tabletop": 0.0, "outdoors": rng.uniform(0.0, 0.25)}[setting]
    # Far ground and walls are few: depths beyond the bodies' would rule every score.
    extent = {"room": 3.0, "tabletop": 2.0, "outdoors": 3.5}[setting]
    if setting == "outdoors" and rng.random() < 0.15:
        extent = 9.0
    props.append(_ground(rng, stage, rough, extent))
    if setting == "room" or rng.random() < 0.4:
        near = {"room": 2.5, "tabletop": 3.0, "outdoors": 4.0}[setting]
        props.append(_wall(rng, stage, motion.log_uniform(rng, 1.05, near), 0.0))
        if rng.random() < 0.5:
            side = rng.choice([-1, 1]) * rng.uniform(0.9, 1.7)
            props.append(_wall(rng, stage, motion.log_uniform(rng, 1.2, near), side))
    for number in range(int(rng.integers(0, 9))):
        prop = _furniture(rng, stage, hides=number == 0 and rng.random() < 0.3)
        if prop is not None:
            props.append(prop)
    return props


def _ground(rng: np.random.Generator, stage: Stage, rough: float, extent: float) -> Prop:
    """A plane under the movers that may turn into gentle hills beyond them and the camera."""
    mesh = shapes.sheet(25, 25)
    # Cells grow outwards, so that a wide floor is still fine near the movers.
    plane = 2 * mesh.vertices[:, :2]
    half = extent * (stage.reach + stage.radius)
    plane = np.sign(plane) * np.abs(plane) ** 1.7 * half
    away = np.linalg.norm(plane, axis=-1) / (1.2 * stage.reach)
    waves = rng.normal(size=(2, 6)) * rng.uniform(0.5, 3.0) / stage.reach
    hills = np.sin(plane @ waves + rng.uniform(0, 2 * np.pi, 6)).mean(-1)
    height = rough * stage.reach * hills * motion.transition(away, 1.0, 3.0)
    small = 0.02 * rough * stage.radius * np.sin(plane @ waves * 9).mean(-1)
    vertices = np.stack([*(plane + stage.centre[:2]).T, height + small - 0.002], -1)
    return Prop(shapes.Mesh(vertices, mesh.faces), True)


def _wall(rng: np.random.Generator, stage: Stage, distance: float, side: float) -> Prop:
    """An upright wall beyond the movers, seen from the camera; `side` (rad) turns it about the movers."""
    away = stage.centre - stage.camera.mean(0)
    heading = float(np.arctan2(away[1], away[0])) + side
    clear = stage.radius + (0.0 if side == 0 else abs(np.sin(side)) * 0.5 * stage.reach)
    place = stage.centre[:2] + distance * clear * np.array([np.cos(heading), np.sin(heading)])
    facing = heading + 0.35 * rng.normal()
    normal = np.array([np.cos(facing), np.sin(facing)])
    if (place - stage.centre[:2]) @ normal < stage.radius or (
        (place - stage.camera[:, :2]) @ normal
    ).min() < 0.2 * stage.reach:
        facing = heading
    mesh = shapes.sheet(9, 9)
    width = 8 * (stage.reach + distance * stage.radius)
    height = width if rng.random() < 0.7 else rng.uniform(0.5, 2.0) * max(stage.top, stage.radius)
    along = np.array([-np.sin(facing), np.cos(facing)])
    across = mesh.vertices[:, :1] * width * along + place
    up = (mesh.vertices[:, 1:2] + 0.5) * height - (0.5 * height if height == width else 0.0)
    return Prop(shapes.Mesh(np.concatenate([across, up], -1), mesh.faces), False)


def _furniture(rng: np.random.Generator, stage: Stage, hides: bool) -> Prop | None:
    """A standing object beside the movers, or None where it would stand in the camera.

    One that `hides` is thin and stands between the camera and the movers, somewhat aside: a pole, a plant, a chair.
    """
    simple = shapes.primitive(rng, 90)
    mesh = shapes.stretched(simple, np.exp(rng.uniform(-0.9, 0.9, 3)))
    size = stage.radius * motion.log_uniform(rng, 0.25, 2.5)
    heading, turn = rng.uniform(0, 2 * np.pi), motion.yaw(np.array(rng.uniform(0, 2 * np.pi)))
    vertices = size * mesh.vertices @ turn.T
    footprint = np.linalg.norm(vertices[:, :2], axis=-1).max()
    gap = stage.radius + footprint + rng.exponential(0.6) * stage.reach
    if hides:
        vertices = vertices * [0.3, 0.3, 1.2]
        footprint = 0.3 * footprint
        towards = (stage.camera.mean(0) - stage.centre)[:2]
        heading = np.arctan2(towards[1], towards[0]) + 0.5 * rng.normal()
        gap = stage.radius + footprint + rng.uniform(0, 0.3) * stage.reach
    place = gap * np.array([np.cos(heading), np.sin(heading)]) + stage.centre[:2]
    vertices = vertices + np.array([*place, -vertices[:, 2].min()])
    near = np.linalg.norm(stage.camera[:, :2] - place, axis=-1).min()
    if near < footprint + (0.15 if hides else 0.3) * stage.reach:
        return None
    return Prop(shapes.Mesh(vertices, mesh.faces), len(mesh.vertices) != 24)


def random_setting(rng: np.random.Generator) -> str:
    """One of SETTINGS."""
    return str(rng.choice(SETTINGS, p=_ODDS))
