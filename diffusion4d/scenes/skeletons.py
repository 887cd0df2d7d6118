r"""Skeletons at rest: trees of limbs, each a tapered capsule that moves as one rigid piece.

A limb hangs at `joint`, given in its parent's rest axes relative to the parent's own joint, and reaches to
`joint + tip`. At rest all axes agree with the body's (x forward, y left, z up), so a pose is one rotation a limb.
Proportions are drawn at random around those of people, quadrupeds, birds, hands, arms, snakes, or of no known animal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion

Array = np.ndarray
Vector = Sequence[float | int] | Array


@dataclass(frozen=True)
class Limb:
    """One rigid link. `radii` at its start, middle and end; `flatness` scales the section along the forward axis."""

    name: str
    parent: int
    joint: Float[Array, "3"]
    tip: Float[Array, "3"]
    radii: Float[Array, "3"]
    flatness: float = 1.0


@dataclass(frozen=True)
class Skeleton:
    """Limbs in an order where parents come first; limb 0 is the root."""

    kind: str
    limbs: tuple[Limb, ...]

    def index(self, name: str) -> int:
        """The number of the limb of that name; KeyError if there is none."""
        for number, limb in enumerate(self.limbs):
            if limb.name == name:
                return number
        raise KeyError(name)


class _Builder:
    """Collects limbs by name while a skeleton is written down."""

    def __init__(self) -> None:
        self.limbs: list[Limb] = []

    def add(
        self, name: str, parent: str, joint: Vector, tip: Vector, radii: Vector, flat: float = 1.0
    ) -> None:
        numbers = {limb.name: number for number, limb in enumerate(self.limbs)}
        joint, tip, radii = (np.array(vector, dtype=float) for vector in (joint, tip, radii))
        self.limbs.append(Limb(name, numbers.get(parent, -1), joint, tip, radii, float(flat)))


def human(rng: np.random.Generator) -> Skeleton:
    """A person about one unit tall, from child to tall adult, thin to stout."""
    leg, arm, torso = 0.47 * np.exp(rng.normal(size=3) * [0.06, 0.08, 0.06]) * [1, 0.72, 0.62]
    stout = float(np.exp(rng.normal() * 0.2))
    shoulder, hip = 0.105 * float(np.exp(rng.normal() * 0.1)), 0.05
    head = 0.065 * float(np.exp(rng.normal() * 0.12))
    make = _Builder()
    r = 0.075 * stout
    make.add("pelvis", "", (0, 0, 0), (0, 0, 0.3 * torso), (r, 1.1 * r, r), 0.7)
    make.add(
        "spine", "pelvis", (0, 0, 0.3 * torso), (0, 0, 0.72 * torso), (r, 1.15 * r, 0.85 * r), 0.65
    )
    make.add("neck", "spine", (0, 0, 0.75 * torso), (0, 0, 0.07), (0.035, 0.033, 0.033))
    make.add(
        "head", "neck", (0, 0, 0.07), (0.01, 0, 1.4 * head), (0.7 * head, head, 0.8 * head), 1.1
    )
    r = 0.03 * stout**0.7
    for side, y in (("left", 1.0), ("right", -1.0)):
        make.add(
            f"{side} upper arm", "spine", (0, y * (shoulder + r), 0.7 * torso),
            (0, 0, -0.5 * arm), (1.1 * r, 1.1 * r, 0.8 * r),
        )  # fmt: skip
        make.add(
            f"{side} forearm", f"{side} upper arm", (0, 0, -0.5 * arm),
            (0, 0, -0.45 * arm), (0.85 * r, 0.85 * r, 0.6 * r),
        )  # fmt: skip
        make.add(
            f"{side} hand", f"{side} forearm", (0, 0, -0.46 * arm),
            (0.01, 0, -0.2 * arm), (0.6 * r, 0.9 * r, 0.6 * r), 0.6,
        )  # fmt: skip
    r = 0.05 * stout**0.7
    for side, y in (("left", 1.0), ("right", -1.0)):
        make.add(
            f"{side} thigh", "pelvis", (0, y * hip, 0), (0, 0, -0.5 * leg), (1.1 * r, r, 0.75 * r)
        )
        make.add(
            f"{side} shin", f"{side} thigh", (0, 0, -0.5 * leg),
            (0, 0, -0.46 * leg), (0.75 * r, 0.8 * r, 0.45 * r),
        )  # fmt: skip
        make.add(
            f"{side} foot", f"{side} shin", (-0.01, 0, -0.47 * leg),
            (0.11, 0, -0.015), (0.028, 0.03, 0.022), 0.9,
        )  # fmt: skip
    return Skeleton("human", tuple(make.limbs))


def quadruped(rng: np.random.Generator) -> Skeleton:
    """A four-legged animal about one unit long: cat to dog to horse to something with a long neck."""
    leg = 0.42 * motion.log_uniform(rng, 0.5, 1.4)
    neck = 0.22 * motion.log_uniform(rng, 0.5, 2.0)
    rise = rng.uniform(0.2, 1.1)
    girth = 0.115 * motion.log_uniform(rng, 0.7, 1.3)
    make = _Builder()
    make.add("rump", "", (-0.25, 0, 0), (0.26, 0, 0), (girth * 0.9, girth, girth), 1.1)
    make.add(
        "chest", "rump", (0.27, 0, 0), (0.24, 0, 0.02), (girth, 1.08 * girth, 0.9 * girth), 1.1
    )
    make.add(
        "neck", "chest", (0.22, 0, 0.05), (neck * np.cos(rise), 0, neck * np.sin(rise)),
        (0.65 * girth, 0.5 * girth, 0.5 * girth),
    )  # fmt: skip
    make.add(
        "head", "neck", (neck * np.cos(rise), 0, neck * np.sin(rise)),
        (rng.uniform(0.1, 0.2), 0, -0.05), (0.6 * girth, 0.5 * girth, 0.3 * girth),
    )  # fmt: skip
    tail = rng.uniform(0.06, 0.2)
    slope = rng.uniform(-0.9, 0.6)
    droop = (-tail * np.cos(slope), 0.0, tail * np.sin(slope))
    make.add("tail 0", "rump", (-0.06, 0, 0.04), droop, (0.03, 0.024, 0.022))
    make.add("tail 1", "tail 0", droop, droop, (0.022, 0.018, 0.012))
    width, thick = 0.6 * girth, 0.05 * motion.log_uniform(rng, 0.6, 1.2)
    for end, parent, x in (("front", "chest", 0.18), ("hind", "rump", 0.02)):
        bend = 0.12 if end == "hind" else -0.05
        for side, y in (("left", 1.0), ("right", -1.0)):
            name = f"{side} {end}"
            knee = (bend * leg, 0.0, -0.5 * leg)
            ankle = (-bend * leg, 0.0, -0.42 * leg)
            make.add(
                f"{name} thigh", parent, (x, y * width, -0.3 * girth), knee,
                (1.3 * thick, thick, 0.65 * thick),
            )  # fmt: skip
            make.add(
                f"{name} shin",
                f"{name} thigh",
                knee,
                ankle,
                (0.65 * thick, 0.5 * thick, 0.4 * thick),
            )
            make.add(
                f"{name} foot", f"{name} shin", ankle, (0.04, 0, -0.05 * leg),
                (0.5 * thick, 0.5 * thick, 0.45 * thick),
            )  # fmt: skip
    return Skeleton("quadruped", tuple(make.limbs))


def bird(rng: np.random.Generator) -> Skeleton:
    """A flying animal, wings spread along y."""
    span = rng.uniform(0.35, 0.6)
    chord = rng.uniform(0.06, 0.12)
    make = _Builder()
    make.add("body", "", (-0.15, 0, 0), (0.3, 0, 0), (0.06, 0.1, 0.06))
    make.add("head", "body", (0.33, 0, 0.03), (0.1, 0, 0.01), (0.05, 0.055, 0.02))
    make.add("tail 0", "body", (-0.02, 0, 0), (-0.2, 0, 0), (0.04, 0.07, 0.1), 0.2)
    for side, y in (("left", 1.0), ("right", -1.0)):
        make.add(
            f"{side} wing", "body", (0.18, 0.06 * y, 0.03), (0, y * 0.5 * span, 0),
            (chord, chord * 1.1, chord), 0.15,
        )  # fmt: skip
        make.add(
            f"{side} wing tip", f"{side} wing", (0, y * 0.5 * span, 0), (-0.06, y * 0.55 * span, 0),
            (chord, 0.8 * chord, 0.35 * chord), 0.15,
        )  # fmt: skip
    return Skeleton("bird", tuple(make.limbs))


def hand(rng: np.random.Generator) -> Skeleton:
    """A forearm and hand about one unit long, fingers along z, palm facing x."""
    make = _Builder()
    finger = 0.36 * float(np.exp(rng.normal() * 0.1))
    thick = 0.036 * float(np.exp(rng.normal() * 0.15))
    make.add("forearm", "", (0, 0, -0.4), (0, 0, 0.38), (0.1, 0.095, 0.075), 0.85)
    make.add("palm", "forearm", (0, 0, 0.4), (0, 0, 0.26), (0.09, 0.13, 0.14), 0.35)
    for number, (y, share) in enumerate(
        zip((0.11, 0.04, -0.03, -0.1), (0.9, 1.0, 0.95, 0.75), strict=True)
    ):
        parent, joint = "palm", (0.0, y, 0.29)
        for segment, part in enumerate((0.44, 0.31, 0.25)):
            name = f"finger {number} {segment}"
            length = part * share * finger
            r = thick * (1 - 0.12 * segment)
            make.add(name, parent, joint, (0, 0.02 * y, length), (r, 0.95 * r, 0.9 * r))
            parent, joint = name, (0.0, 0.02 * y, length)
    parent, joint = "palm", (0.03, 0.12, 0.08)
    for segment, length in enumerate((0.16, 0.13)):
        name, r = f"thumb {segment}", thick * (1.2 - 0.15 * segment)
        tip = (0.35 * length, 0.6 * length, 0.7 * length)
        make.add(name, parent, joint, tip, (r, r, 0.85 * r))
        parent, joint = name, tip
    return Skeleton("hand", tuple(make.limbs))


def arm(rng: np.random.Generator) -> Skeleton:
    """A reaching chain of a few links on a base, with two fingers at its end."""
    count = int(rng.integers(2, 5))
    radius = rng.uniform(0.05, 0.11)
    make = _Builder()
    parent, joint = "", (0.0, 0.0, 0.0)
    for number in range(count):
        length = rng.uniform(0.7, 1.3) / count
        r = radius * (1 - 0.15 * number)
        make.add(f"link {number}", parent, joint, (0, 0, length), (r, r, 0.85 * r))
        parent, joint = f"link {number}", (0.0, 0.0, length)
    for side, x in (("left", 1.0), ("right", -1.0)):
        make.add(f"{side} finger", parent, joint, (0.06 * x, 0, 0.16), (0.03, 0.03, 0.02))
    return Skeleton("arm", tuple(make.limbs))


def chain(rng: np.random.Generator) -> Skeleton:
    """A snake, worm, rope or tail along −x."""
    count = int(rng.integers(8, 14))
    radius = motion.log_uniform(rng, 0.02, 0.07)
    length = 1.2 / count
    make = _Builder()
    parent, joint = "", (0.6, 0.0, 0.0)
    for number in range(count):
        r = radius * (0.35 + 0.65 * np.sin(np.pi * (0.25 + 0.7 * number / count)))
        make.add(f"link {number}", parent, joint, (-length, 0, 0), (r, r, r))
        parent, joint = f"link {number}", (-length, 0.0, 0.0)
    return Skeleton("chain", tuple(make.limbs))


def tree(rng: np.random.Generator) -> Skeleton:
    """Six to thirteen limbs in no known arrangement: plants, lamps, insects, things nobody has seen."""
    make = _Builder()
    make.add("link 0", "", (0, 0, 0), (0, 0, 0.4), (0.09, 0.1, 0.08))
    for number in range(1, int(rng.integers(6, 14))):
        parent = make.limbs[int(rng.integers(0, number))]
        length = rng.uniform(0.15, 0.4)
        direction = motion.unit_vector(rng) + 0.7 * np.array(parent.tip) / 0.3
        tip = length * direction / np.linalg.norm(direction)
        joint = rng.uniform(0.5, 1.0) * np.array(parent.tip)
        r = rng.uniform(0.02, 0.06)
        make.add(
            f"link {number}", parent.name, joint, tip,
            (1.1 * r, r, 0.8 * r), rng.uniform(0.5, 1.0),
        )  # fmt: skip
    return Skeleton("tree", tuple(make.limbs))
