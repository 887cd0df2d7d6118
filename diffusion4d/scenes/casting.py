r"""First hits of rays with triangles, by embree.

A ray is o + s d, s > 0; with d not normalised, s is measured in lengths of d, so that for a ray from the camera
towards a point the point itself is at s = 1. Triangles are hit from both sides.
Shape letters:  R rays   V vertices   F triangles.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


@dataclass(frozen=True)
class Hits:
    """First hits: `distance` in lengths of the direction (inf: none), `face` (−1: none), `barycentric` weights."""

    distance: Float[Array, "R"]
    face: Int[Array, "R"]
    barycentric: Float[Array, "R 3"]


class Caster:
    """A mesh, built once, to be met by many rays.

    Raises:
        ImportError: embreex is missing (it comes with `pip install diffusion4d[train]`).
    """

    def __init__(self, vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]) -> None:
        # embree is a training extra; sampling from videos must not need it.
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        self._scene = rtcore_scene.EmbreeScene()  # pyright: ignore[reportAttributeAccessIssue]
        self._empty = len(faces) == 0
        if not self._empty:
            TriangleMesh(
                self._scene,
                np.ascontiguousarray(vertices, dtype=np.float32),
                np.ascontiguousarray(faces, dtype=np.int32),
            )

    def first_hits(self, origins: Float[Array, "R 3"], directions: Float[Array, "R 3"]) -> Hits:
        """Intersect rays with the mesh."""
        if self._empty or len(origins) == 0:
            none = np.full(len(origins), -1)
            distance = np.full(len(origins), np.inf)
            return Hits(distance, none, np.zeros((len(origins), 3)))
        out = self._scene.run(
            np.ascontiguousarray(origins, dtype=np.float32),
            np.ascontiguousarray(directions, dtype=np.float32),
            output=True,
        )
        face = out["primID"].astype(np.int64)
        distance = np.where(face >= 0, out["tfar"].astype(np.float64), np.inf)
        v, w = out["u"].astype(np.float64), out["v"].astype(np.float64)
        return Hits(distance, face, np.stack([1 - v - w, v, w], -1))
