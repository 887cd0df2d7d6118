r"""Hands: jointed fingers that close on a thing and lift it, push it along, or turn it.

A palm looks down; from it hang two to three phalanges a finger, with hinges whose axes are tangents of the palm's
rim, driven to target angles by springs of limited force: past contact they squeeze. The palm is welded to a handle that
follows a path, and fingers carry no weight of their own. The thing is held by contact and friction alone.
Shape letters:  T frames.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.data.simulation.stage import (
    STIFF,
    Drive,
    Model,
    Scene,
    State,
    along,
    numbers,
    solid_pieces,
)
from diffusion4d.scenes import motion

Array = np.ndarray
GRAVITY = 9.81
DENSITY = 300.0  # kg/m³, of what is handled
# A grip by friction slips slowly in a softened friction cone; an elliptic one with this ratio holds.
GRIP = 'cone="elliptic" impratio="10"'
FLOOR = f'<geom name="floor" type="plane" size="0 0 1" friction="0.7" {STIFF}/>'


@dataclass(frozen=True)
class Thing:
    """What is handled: its geoms, half its height and half its width (m), and about its mass (kg)."""

    geoms: tuple[str, ...]
    half_height: float
    half_width: float
    mass: float

    def body(self, place: Float[Array, "2"], turn: float) -> str:
        """A free body on the floor."""
        geoms = "".join(
            f'<geom {geom} density="{DENSITY}" friction="1.1 0.01 0.0005" condim="4" {STIFF}/>'
            for geom in self.geoms
        )
        where = f'pos="{numbers([*place, self.half_height])}" euler="0 0 {turn:.5g}"'
        return f'<body name="thing" {where}><freejoint/>{geoms}</body>'


def thing(rng: np.random.Generator, size: float) -> Thing:
    """A ball, egg, box, can, bar or bottle that a hand of that size (m) can hold."""
    width = size * rng.uniform(0.3, 0.55)
    height = size * rng.uniform(0.35, 0.7)
    mass = DENSITY * 8 * width**2 * height
    kind = str(rng.choice(["sphere", "ellipsoid", "box", "cylinder", "bottle"]))
    if kind == "sphere":
        return Thing((f'type="sphere" size="{width}"',), width, width, mass)
    if kind == "ellipsoid":
        half = [width, width * rng.uniform(0.7, 1.0), width * rng.uniform(0.7, 1.2)]
        return Thing((f'type="ellipsoid" size="{numbers(half)}"',), half[2], width, mass)
    if kind == "box":
        half = [0.85 * width, 0.85 * width * rng.uniform(0.6, 1.0), height]
        return Thing((f'type="box" size="{numbers(half)}"',), height, width, mass)
    can = f'type="cylinder" size="{width} {height}"'
    if kind == "cylinder":
        return Thing((can,), height, width, mass)
    neck = f'type="cylinder" size="{0.5 * width} {0.35 * height}" pos="0 0 {1.3 * height}"'
    return Thing((can, neck), height, width, mass)


@dataclass(frozen=True)
class Hand:
    """Fingers around the z axis; `open` and `closed` are the angles of all hinges (rad), in order."""

    text: str
    actuators: str
    length: float
    open: Float[Array, "A"]
    closed: Float[Array, "A"]


def hand(rng: np.random.Generator, size: float, hold: float) -> Hand:
    """A hand of about that size (m) whose fingers squeeze with about `hold` newtons."""
    count, joints = int(rng.integers(3, 6)), int(rng.integers(2, 4))
    rim = size * rng.uniform(0.45, 0.6)
    length = size * rng.uniform(1.0, 1.5)
    thick = size * rng.uniform(0.09, 0.14)
    if rng.random() < 0.5:
        azimuths = 2 * np.pi * np.arange(count) / count
    else:
        # A thumb and, opposite, the fingers beside one another.
        spread = rng.uniform(0.5, 0.7) * (np.arange(count - 1) - 0.5 * (count - 2))
        azimuths = np.concatenate([[np.pi], spread])
    shares = np.array([0.55, 0.45]) if joints == 2 else np.array([0.42, 0.32, 0.26])
    boxy = rng.random() < 0.4
    fingers, actuators = "", ""
    for finger, azimuth in enumerate(azimuths):
        out = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        place = numbers(rim * out)
        for joint, share in enumerate(shares):
            phalanx = length * share * rng.uniform(0.95, 1.05)
            name, slim = f"finger{finger}_{joint}", thick * (1 - 0.15 * joint)
            shape = f'type="capsule" size="{slim}" fromto="0 0 0 0 0 {-phalanx}"'
            if boxy:
                shape = (
                    f'type="box" size="{slim} {slim} {0.5 * phalanx}" pos="0 0 {-0.5 * phalanx}"'
                )
            turn = f'euler="0 0 {np.degrees(azimuth):.5g}"' if joint == 0 else ""
            fingers += (
                f'<body name="{name}" pos="{place}" {turn} gravcomp="1">'
                # About +y, so that a positive angle brings what hangs down towards −x: inwards.
                f'<joint name="{name}" axis="0 1 0" range="-70 120" limited="true" damping="{0.02 * hold * size:.5g}" '
                f'armature="{0.002 * size**2:.5g}"/>'
                f'<geom {shape} density="500" friction="1.3 0.01 0.0005" condim="4" {STIFF}/>'
            )
            actuators += (
                f'<position joint="{name}" kp="{2.0 * hold * size:.5g}" '
                f'forcerange="{-hold * size:.5g} {hold * size:.5g}" dampratio="1"/>'
            )
            place = f"0 0 {-phalanx:.7g}"
        fingers += "</body>" * joints
    palm = f'<geom type="cylinder" size="{rim + thick} {0.6 * thick}" pos="0 0 {0.4 * thick}" density="500"/>'
    if rng.random() < 0.6:
        palm += f'<geom type="capsule" size="{1.6 * thick}" fromto="0 0 {thick} 0 0 {0.8 * size}" density="500"/>'
    # The first hinges open outwards; the others are bent inwards a little, as a cage.
    opened = np.tile([-0.55, *[0.45] * (joints - 1)], count)
    closed = np.tile([0.9, *[0.8] * (joints - 1)], count)
    return Hand(palm + fingers, actuators, length, opened, closed)


@dataclass(frozen=True)
class Script:
    """Positions and rotation vectors of the palm, and how far the fingers are closed (0 … 1), over `seconds`."""

    palm: Float[Array, "T 6"]
    grip: Float[Array, "T"]
    seconds: float

    def drive(self, hand: Hand) -> Drive:
        """Moves the handle and sets the fingers' target angles."""
        from scipy.spatial.transform import Rotation

        def drive(model: Model, state: State) -> None:
            done = state.time / self.seconds
            palm_6 = along(self.palm, done)
            state.mocap_pos[0] = palm_6[:3]
            state.mocap_quat[0] = Rotation.from_rotvec(palm_6[3:]).as_quat(scalar_first=True)
            grip = along(self.grip[:, None], done)[0]
            state.ctrl[:] = hand.open + grip * (hand.closed - hand.open)

        return drive


TIMES = np.linspace(0, 1, 300)


def scene(hand: Hand, body: str, script: Script, lead: float) -> Scene:
    """A hand above the floor with that script, and the bodies that it meets."""
    start = numbers(script.palm[0, :3])
    world = (
        f'<worldbody>{FLOOR}<body name="handle" mocap="true" pos="{start}"/>'
        f'<body name="palm" pos="{start}" gravcomp="1"><freejoint/>{hand.text}</body>{body}</worldbody>'
        f'<equality><weld body1="palm" body2="handle" {STIFF}/></equality>'
        f"<actuator>{hand.actuators}</actuator>"
    )
    return Scene(
        world=world,
        pieces=lambda model: solid_pieces(model, 0.35),
        seconds=script.seconds - lead,
        drive=script.drive(hand),
        lead=lead,
        substeps=16,
        option=GRIP,
    )


def _reach(rng: np.random.Generator, made: Hand, held: Thing) -> float:
    """A height of the palm at which the opened fingers end a little above the floor, and it is clear of the thing."""
    return max(0.93 * made.length, 2.15 * held.half_height) + 0.1 * made.length * rng.random()


def grasp(rng: np.random.Generator) -> Scene:
    """Comes down over a thing, closes, lifts it, carries and swings it; sometimes lets go."""
    size = motion.log_uniform(rng, 0.08, 0.25)
    held = thing(rng, size)
    made = hand(rng, size, hold=30.0 * held.mass * GRAVITY)
    palm_T6 = np.zeros((len(TIMES), 6))
    low = _reach(rng, made, held)
    palm_T6[:, 2] = low + 0.8 * size * (1 - motion.transition(TIMES, 0.0, 0.25))
    palm_T6[:, 2] += size * rng.uniform(0.8, 2.2) * motion.transition(TIMES, 0.45, 0.8)
    carried_T = motion.transition(TIMES, 0.5, 0.75)
    palm_T6[:, :2] = (
        size * rng.uniform(0.2, 1.0) * motion.oscillation(rng, TIMES, 2.0, 2) * carried_T[:, None]
    )
    palm_T6[:, 3:] = (
        rng.uniform(0, 0.35) * motion.oscillation(rng, TIMES, 2.0, 3) * carried_T[:, None]
    )
    grip_T = motion.transition(TIMES, 0.25, 0.42)
    if rng.random() < 0.35:
        grip_T = grip_T - motion.transition(TIMES, 0.8, 0.9)
    script = Script(palm_T6, grip_T, float(rng.uniform(1.8, 2.8)))
    place = 0.06 * size * rng.normal(size=2)
    return scene(made, held.body(place, rng.uniform(0, 360)), script, lead=0.1)


def push(rng: np.random.Generator) -> Scene:
    """Comes from the side with half-closed fingers and shoves a thing along, over, or away."""
    size = motion.log_uniform(rng, 0.08, 0.25)
    held = thing(rng, size)
    made = hand(rng, size, hold=20.0 * held.mass * GRAVITY)
    heading = rng.uniform(0, 2 * np.pi)
    forward = np.array([np.cos(heading), np.sin(heading)])
    start, way = -2.6 * size, size * rng.uniform(3.6, 5.0)
    stroke_T = motion.transition(TIMES, rng.uniform(-0.3, 0.1), rng.uniform(0.7, 1.1))
    if rng.random() < 0.4:
        stroke_T = np.abs(np.sin(1.5 * np.pi * TIMES)) * rng.uniform(0.75, 1.0)
    palm_T6 = np.zeros((len(TIMES), 6))
    palm_T6[:, :2] = (start + way * stroke_T)[:, None] * forward
    palm_T6[:, 2] = _reach(rng, made, held)
    sway_T = motion.oscillation(rng, TIMES, 1.5, 1)[:, 0]
    palm_T6[:, 5] = heading + 0.3 * sway_T
    grip_T = np.full(len(TIMES), rng.uniform(0.3, 0.5)) + 0.1 * sway_T
    script = Script(palm_T6, grip_T, float(rng.uniform(1.2, 2.2)))
    place = 0.3 * size * rng.normal(size=2)
    return scene(made, held.body(place, rng.uniform(0, 360)), script, lead=0.1)


def turn(rng: np.random.Generator) -> Scene:
    """Closes on a thing and turns it: about the vertical where it stands, or in the air, over on its side."""
    size = motion.log_uniform(rng, 0.08, 0.25)
    held = thing(rng, size)
    made = hand(rng, size, hold=30.0 * held.mass * GRAVITY)
    palm_T6 = np.zeros((len(TIMES), 6))
    low = _reach(rng, made, held)
    turning_T = motion.transition(TIMES, 0.4, rng.uniform(0.7, 1.0))
    if rng.random() < 0.4:
        turning_T = np.sin(rng.uniform(1.0, 2.0) * np.pi * turning_T)
    lifted = rng.random() < 0.5
    palm_T6[:, 2] = low + 0.4 * size * (1 - motion.transition(TIMES, -0.1, 0.15))
    palm_T6[:, 2] += lifted * size * rng.uniform(0.8, 1.5) * motion.transition(TIMES, 0.35, 0.6)
    palm_T6[:, 5] = rng.choice([-1, 1]) * rng.uniform(0.9, 2.4) * turning_T
    if lifted:
        palm_T6[:, 3:5] = rng.uniform(0.3, 1.2) * motion.unit_vector(rng)[:2] * turning_T[:, None]
    script = Script(palm_T6, motion.transition(TIMES, 0.12, 0.32), float(rng.uniform(1.6, 2.6)))
    place = 0.05 * size * rng.normal(size=2)
    return scene(made, held.body(place, rng.uniform(0, 360)), script, lead=0.1)
