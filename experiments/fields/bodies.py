r"""Moving surfaces that no weight was trained on, and the true motion of a few of their points.

Animated glTF files of the recipe's held-out species (`experiments/pack/recipe.toml`), 48 evenly spaced frames of an
animation. The first frame is the shape at rest. Vertices that share a place in every frame are one. Nodes are points of
the surface, the farthest from each other among 8,192 random ones; they move as their triangles do.

Shape letters:  T frames   V vertices   F triangles   N nodes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion4d.data.animated_glb import read_animated
from diffusion4d.data.animated_mesh import AnimatedMesh, Animation

HELD_OUT = {
    "deer": "quaternius/animals_pack/Deer.glb",
    "shiba": "quaternius/animals_pack/ShibaInu.glb",
    "turbot": "quaternius/cute_fish_pack/Turbot.glb",
    "blobfish": "quaternius/cute_fish_pack/Blobfish.glb",
    "trex": "quaternius/dinosaurs_pack/Trex.glb",
    "mech": "quaternius/mech_pack/George.glb",
    "shark": "mesh2motion/animations/shark-animations.glb",
    "snake": "mesh2motion/animations/snake-animations.glb",
}
NOT_A_MOTION = "Pose"
CANDIDATES = 8192


@dataclass(frozen=True, eq=False)
class Body:
    """A surface in motion, its longest box diagonal at rest 1."""

    name: str
    animation: str
    vertices: Float[Tensor, "T V 3"]
    faces: Int64[Tensor, "F 3"]
    nodes: Float[Tensor, "T N 3"]


def bodies(
    meshes: Path, name: str, frames: int, nodes: int, seed: int, hardest: int | None
) -> Iterator[Body]:
    """A species' animations, those with the most non-rigid motion first (all of them if `hardest` is None)."""
    mesh = read_animated(meshes / HELD_OUT[name])
    played = [a for a in mesh.skeleton.animations if NOT_A_MOTION not in a.name]
    moved = [_moved(mesh, animation, frames) for animation in played]
    order = np.argsort([-bending(positions) for positions in moved])
    for index in order[:hardest]:
        positions, faces = _welded(moved[index], mesh.faces)
        positions = positions / np.linalg.norm(np.ptp(positions[0], axis=0))
        yield Body(
            name,
            played[index].name.split("|")[-1],
            torch.from_numpy(positions).float(),
            torch.from_numpy(faces),
            torch.from_numpy(_nodes(positions, faces, nodes, seed)).float(),
        )


def bending(positions: Float[np.ndarray, "T V 3"]) -> float:
    """RMS of what no rigid motion of the first frame explains."""
    import roma

    flat = torch.from_numpy(positions - positions.mean(1, keepdims=True))
    turn = roma.special_procrustes(torch.einsum("tvi,vj->tij", flat, flat[0]))
    left = flat - torch.einsum("tij,vj->tvi", turn, flat[0])
    return float(left.square().sum(-1).mean().sqrt() / flat[0].norm(dim=-1).max())


def _moved(mesh: AnimatedMesh, animation: Animation, frames: int) -> Float[np.ndarray, "T V 3"]:
    return mesh.positions(animation, np.linspace(animation.start, animation.stop, frames))


def _welded(
    positions: Float[np.ndarray, "T V 3"], faces: np.ndarray
) -> tuple[Float[np.ndarray, "T V 3"], np.ndarray]:
    used = np.unique(faces)
    path = positions[:, used].transpose(1, 0, 2).reshape(len(used), -1)
    scale = 1e-5 * np.ptp(positions[0], axis=0).max()
    _, first, found = np.unique(
        np.round(path / scale), axis=0, return_index=True, return_inverse=True
    )
    place = np.zeros(positions.shape[1], np.int64)
    place[used] = np.asarray(found).ravel()
    corners = place[faces]
    edges = [corners[:, 0] != corners[:, 1], corners[:, 1] != corners[:, 2]]
    kept = edges[0] & edges[1] & (corners[:, 0] != corners[:, 2])
    return positions[:, used[first]], np.unique(corners[kept], axis=0)


def _nodes(
    positions: Float[np.ndarray, "T V 3"], faces: np.ndarray, count: int, seed: int
) -> Float[np.ndarray, "T N 3"]:
    import trimesh

    rest = trimesh.Trimesh(positions[0], faces, process=False)
    places, on = trimesh.sample.sample_surface(rest, CANDIDATES, seed=seed)[:2]
    share = trimesh.triangles.points_to_barycentric(positions[0][faces[on]], places)
    chosen = farthest(torch.from_numpy(np.asarray(places)), count).numpy()
    return np.einsum("tnck,nc->tnk", positions[:, faces[on[chosen]]], share[chosen])


def farthest(points: Float[Tensor, "P 3"], count: int) -> Int64[Tensor, "count"]:
    """Each point as far as can be from those before it."""
    away = torch.full((len(points),), torch.inf, dtype=points.dtype)
    chosen = [0]
    for _ in range(count - 1):
        away = torch.minimum(away, (points - points[chosen[-1]]).square().sum(-1))
        chosen.append(int(away.argmax()))
    return torch.tensor(chosen)
