r"""Meshes as pairs of a smooth base and its detail.

A mesh at rest is welded, cut up until no edge is longer than the spacing h = √(area / points), and smoothed by
`SMOOTH` h (`detail.laplacian`): that is the base. Points of the base at the spacing h know their offset to the same
place of the mesh; what of it lies along the base's normal is the detail. Which files are trained on, and which are not,
is what experiments/pack/recipe.toml says.
"""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float

from diffusion4d.data.animated_glb import read_animated
from diffusion4d.data.decimation import merged
from diffusion4d.detail.laplacian import Laplacian, cotangent_laplacian
from diffusion4d.detail.points import Cloud, cloud_of
from diffusion4d.fields.frames import vertex_normals

RECIPE = Path(__file__).parents[1] / "pack" / "recipe.toml"
SMOOTH = 2.0


@dataclass(frozen=True, eq=False)
class Pair:
    """A mesh that is fine enough, and its base."""

    name: str
    full: Float[np.ndarray, "V 3"]
    faces: np.ndarray
    spacing: float
    corners: np.ndarray
    """[V, 3]: the file's vertices that every vertex lies between."""
    shares: Float[np.ndarray, "V 3"]

    @cached_property
    def laplacian(self) -> Laplacian:
        """Of the mesh at rest."""
        return cotangent_laplacian(self.full, self.faces)

    @cached_property
    def base(self) -> Float[np.ndarray, "V 3"]:
        """The mesh without its detail."""
        return self.smoothed(self.full)

    def posed(self, vertices: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "V 3"]:
        """The mesh in a pose of the file's vertices."""
        return np.einsum("vci,vc->vi", vertices[self.corners], self.shares)

    def smoothed(self, moved: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
        """A pose of the mesh without its detail: the same filter."""
        return self.laplacian.smooth(moved, SMOOTH * self.spacing)

    @cached_property
    def normals(self) -> Float[np.ndarray, "V 3"]:
        """Of the base."""
        faces = torch.from_numpy(self.faces)
        return vertex_normals(torch.from_numpy(self.base), faces).numpy()

    @cached_property
    def detail(self) -> Float[np.ndarray, "V"]:
        """Along the base's normal, in units of the spacing."""
        return ((self.full - self.base) * self.normals).sum(1) / self.spacing

    def along_normal(self) -> float:
        """Share of the offsets' energy that lies along the normal."""
        offset = (self.full - self.base) / self.spacing
        return float((self.laplacian.mass * self.detail**2).sum()) / float(
            (self.laplacian.mass[:, None] * offset**2).sum()
        )

    def cloud(self, seed: int) -> tuple[Cloud, Float[np.ndarray, "N"]]:
        """Points of the base, and their detail."""
        cloud = cloud_of(self.base, self.faces, self.spacing, seed)
        full = np.einsum("nci,nc->ni", self.full[self.faces[cloud.face]], cloud.barycentric)
        return cloud, ((full - cloud.points) * cloud.normals).sum(1) / self.spacing


def files(meshes: Path, split: str) -> list[Path]:
    """Files of the recipe's animated meshes: those of the "train" split, or the "held-out" ones."""
    found = []
    for table in tomllib.loads(RECIPE.read_text())["animated"]:
        pattern = table["files"].removeprefix("meshes/")
        for path in sorted(meshes.glob(pattern)):
            if path.stem in table.get("leave_out", []):
                continue
            held = table.get("split") == "held-out" or path.stem in table.get("held_out", [])
            if held == (split == "held-out"):
                found.append(path)
    return found


def welded(rest: Float[np.ndarray, "V 3"], faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex of each place, and the triangles among them that have an area."""
    extent = float(np.ptp(rest, axis=0).max())
    first, faces = merged(np.round(rest / (1e-6 * extent)), faces)
    corners = rest[first][faces]
    double = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    used, number = np.unique(faces[double > 1e-10 * extent**2], return_inverse=True)
    return first[used], number.reshape(-1, 3)


def pair(path: Path, points: int) -> Pair:
    """A file's mesh at rest.

    Raises:
        ValueError: the file holds no mesh.
    """
    import trimesh
    from trimesh.triangles import points_to_barycentric

    mesh = read_animated(path)
    first, faces = welded(mesh.rest, mesh.faces)
    coarse = mesh.rest[first]
    area = trimesh.Trimesh(coarse, faces, process=False).area
    spacing = float(np.sqrt(area / points))
    # Three, since the index is asked for.
    fine, fine_faces, source = cast(
        "tuple[np.ndarray, np.ndarray, np.ndarray]",
        trimesh.remesh.subdivide_to_size(coarse, faces, spacing, return_index=True),
    )
    owner = np.zeros(len(fine), np.int64)
    owner[np.asarray(fine_faces).ravel()] = np.repeat(source, 3)
    kept, fine_faces = welded(fine, np.asarray(fine_faces))
    corners = faces[owner[kept]]
    shares = points_to_barycentric(coarse[corners], fine[kept])
    return Pair(path.stem, fine[kept], fine_faces, spacing, first[corners], shares)
