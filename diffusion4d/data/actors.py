r"""Actors and their motions: meshes that move as something real does.

Axes of an actor: z up, right-handed, about one unit large (the largest extent of its median pose is about 1), near the
origin (horizontally) when a motion begins; where it stands on a floor, that floor is z = 0. All motions of an actor
share its vertices, so a motion is nothing but positions over time.
Shape letters:  T frames   V vertices   F triangles.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

Array = np.ndarray
Split = Literal["train", "held-out", "test"]
SPLITS: tuple[Split, ...] = ("train", "held-out", "test")
"""train: feeds packaged weights. held-out: never trained on, for scores. test: a licence for experiments only."""


@dataclass(frozen=True)
class Motion:
    """Positions of an actor's vertices at `fps` frames a second. `loops`: the last frame is the first one again."""

    name: str
    vertices: Float32[Array, "T V 3"]
    fps: float
    loops: bool

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return (len(self.vertices) - 1) / self.fps


@dataclass(frozen=True)
class Actor:
    """A mesh that has motions, and what is known about it.

    group: quadruped, fish, dinosaur, creature, mech, humanoid, bird, reptile, mocap, simulated, …
    source, licence: where it comes from and the licence as stated there.
    rest: where vertices are at rest; carries the texture. part: number of the rigid piece a vertex belongs to; −1 where
    the surface deforms. smooth: shaded with interpolated normals. grounded: stands on the floor z = 0.
    weight: odds relative to others of its group.
    """

    name: str
    group: str
    species: str
    source: str
    licence: str
    split: Split
    rest: Float32[Array, "V 3"]
    faces: Int32[Array, "F 3"]
    part: Int32[Array, "V"]
    smooth: bool
    grounded: bool
    weight: float
