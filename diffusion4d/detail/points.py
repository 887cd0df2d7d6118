r"""A surface as points that know their neighbours: where detail is diffused, whatever the triangles of the mesh.

Artists put small triangles where detail is, so a network on the mesh would read it off the triangles. Points at an even
spacing h (drawn at random by `trimesh.sample`, and thinned until none has another nearer than 0.8 h) tell the shape of
the base and nothing more. With n the normals, e the way from a point to a neighbour and r its length, all in units of
h, an edge knows

    r,   2 e·n / r²  (the curvature along the edge),   n_i·n_j,   (e·n_i + e·n_j)

and a point, over its `NEAR` nearest neighbours, how these lie: none of it depends on where the surface is or how it is
turned. A neighbour is one whose normal does not look the other way: the far side of a fin is near in space only.

Shape letters:  N points   E neighbours   V vertices   F faces   D, P features of edges and points   K samples
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree
from torch import Tensor

from diffusion4d.fields.frames import vertex_normals

LARGEST = 200_000
"""Points."""
RING = 16
"""Nearest neighbours that a point hears."""
FAR = 8
"""And farther ones, evenly out of the next."""
NEAR = (8, 24, 64)
EDGE_FEATURES = 4
POINT_FEATURES = 4 * len(NEAR)
CANDIDATES = 96
DRAWN = 12
"""Points drawn for each that is expected."""
THINNED = 0.8
"""Of the spacing: no two points are nearer than this, which leaves about one for every h²."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of a surface, with all that a network is told of them."""

    points: Float[np.ndarray, "N 3"]
    normals: Float[np.ndarray, "N 3"]
    face: np.ndarray
    barycentric: Float[np.ndarray, "N 3"]
    neighbours: Int64[Tensor, "N E"]
    edges: Float[Tensor, "N E D"]
    features: Float[Tensor, "N P"]

    def __len__(self) -> int:
        return len(self.points)

    def interpolation(
        self, places: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"]
    ) -> csr_matrix:
        """[V, N]: from values at the points to values at places of the same surface.

        Weights exp(−2 r² / r_4²) of the nearest points on the same side, r_4 the fourth's distance.
        """
        count = min(12, len(self))
        away, near = KDTree(self.points).query(places, count)
        away, near = (np.asarray(a).reshape(len(places), count) for a in (away, near))
        same = np.einsum("vni,vi->vn", self.normals[near], normals) > 0
        same[:, 0] |= ~same.any(1)
        width = away[:, min(3, count - 1), None] + 1e-12
        weight = np.where(same, np.exp(-2 * (away / width) ** 2), 0) + 1e-12 * same
        weight /= weight.sum(1, keepdims=True)
        rows = np.repeat(np.arange(len(places)), count)
        return csr_matrix((weight.ravel(), (rows, near.ravel())), (len(places), len(self)))


def cloud_of(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int64[np.ndarray, "F 3"],
    spacing: float,
    seed: int,
) -> Cloud:
    """Points of a mesh, welded, at a spacing.

    Raises:
        ValueError: a spacing that is not positive, or leaves too few points or too many.
    """
    import trimesh
    from trimesh.sample import sample_surface
    from trimesh.triangles import points_to_barycentric

    if not spacing > 0:
        raise ValueError(f"need a spacing above 0, got {spacing}")
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    count = round(mesh.area / spacing**2)
    if not CANDIDATES // 2 <= count <= LARGEST:
        raise ValueError(
            f"need a spacing that makes {CANDIDATES // 2} to {LARGEST} points, {spacing:g} makes {count} "
            f"on an area of {mesh.area:g}"
        )
    drawn, face = sample_surface(mesh, DRAWN * count, seed=seed)[:2]
    kept = thinned(np.asarray(drawn), THINNED * spacing)
    points, face = np.asarray(drawn)[kept], np.asarray(face)[kept]
    barycentric = np.clip(points_to_barycentric(mesh.triangles[face], points), 0, 1)
    barycentric = np.nan_to_num(barycentric, nan=1 / 3)
    barycentric /= barycentric.sum(1, keepdims=True)
    corner = vertex_normals(
        torch.from_numpy(np.asarray(vertices, np.float64)), torch.from_numpy(faces)
    )
    normals = np.einsum("nci,nc->ni", corner.numpy()[faces[face]], barycentric)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12
    return Cloud(points, normals, face, barycentric, *_told(points / spacing, normals))


def thinned(points: Float[np.ndarray, "n 3"], radius: float) -> np.ndarray:
    """Indices of points, in their order, that are not within the radius of one before that was kept."""
    # trimesh.points.remove_close leaves half as many: it does not fill the gaps that it makes.
    near = KDTree(points).query_ball_point(points, radius)
    free = np.ones(len(points), bool)
    kept = []
    for i, others in enumerate(near):
        if free[i]:
            kept.append(i)
            free[others] = False
    return np.array(kept)


def _told(points: np.ndarray, normals: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours, and the features of edges and points."""
    count = min(CANDIDATES, len(points) - 1)
    _, near = KDTree(points).query(points, count + 1)
    near = np.asarray(near)[:, 1:]
    facing = np.einsum("nei,ni->ne", normals[near], normals)
    # On this side first, by distance; who has too few there hears itself instead.
    order = np.argsort(facing <= 0, axis=1, kind="stable")
    near = np.take_along_axis(near, order, 1)
    held = np.take_along_axis(facing, order, 1) > 0
    near = np.where(held, near, np.arange(len(points))[:, None])
    way = points[near] - points[:, None]
    length = np.linalg.norm(way, axis=-1)
    along = np.einsum("nei,ni->ne", way, normals)
    other = np.einsum("nei,nei->ne", way, normals[near])
    bend = np.clip(2 * along / np.maximum(length, 0.3) ** 2, -4, 4)
    edge = np.stack([length, bend, (normals[near] * normals[:, None]).sum(-1), along + other], -1)
    told = []
    for reach in NEAR:
        part = slice(0, min(reach, count))
        told += [
            bend[:, part].mean(1),
            bend[:, part].std(1),
            edge[:, part, 2].mean(1),
            np.log(length[:, part].max(1) + 0.1),
        ]
    chosen = np.unique(
        np.r_[: min(RING, count), np.linspace(RING, count - 1, FAR).round().astype(int)]
    )
    chosen = chosen[chosen < count]
    return (
        torch.from_numpy(near[:, chosen].astype(np.int64)),
        torch.from_numpy(edge[:, chosen].astype(np.float32)),
        torch.from_numpy(np.stack(told, -1).astype(np.float32)),
    )
