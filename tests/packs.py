"""Actors of a few boxes, whose motions are known in closed form, and packs of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.pack import write_actor

CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float) - 0.5
BOX = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ],
    np.int32,
)
"""Triangles of a box with these corners, seen counter-clockwise from outside."""


def boxes(places: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [..., 8 B, 3] of boxes of one size with middles [..., B, 3], and their triangles."""
    vertices = places[..., :, None, :] + CORNERS * size
    faces = np.concatenate([BOX + 8 * i for i in range(places.shape[-2])])
    return vertices.reshape(*places.shape[:-2], -1, 3), faces


def box_actor(name: str = "box", split: str = "train", group: str = "thing") -> Actor:
    """A box of 1 x 0.6 x 0.4 that stands on the floor."""
    rest, faces = boxes(np.array([[0, 0, 0.2]]), np.array([1, 0.6, 0.4]))
    return Actor(
        *(name, group, "box", "made here", "CC0", split),
        rest.astype(np.float32), faces, np.zeros(8, np.int32), False, True, 1.0,
    )  # fmt: skip


def moving(
    actor: Actor, path: Callable[[np.ndarray], np.ndarray], frames: int = 46, loops: bool = False
) -> Motion:
    """The actor carried along: path(seconds [K]) [K, 3], at 30 frames a second."""
    place_K3 = path(np.arange(frames) / 30)
    vertices = (actor.rest + place_K3[:, None]).astype(np.float32)
    return Motion("carried", vertices, 30.0, loops)


def small_pack(folder: Path, splits: tuple[str, ...] = ("train",)) -> Path:
    """One box for every split; it slides along x at 0.3 units a second and slowly bobs along y."""
    for split in splits:
        actor = box_actor(f"box-{split}", split)
        slides = moving(actor, lambda t: np.stack([0.3 * t, 0.1 * np.sin(3 * t), 0 * t], -1))
        write_actor(folder, actor, [slides])
    return folder
