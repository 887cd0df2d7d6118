r"""A closed surface through oriented points, by Open3D (extra `poisson`).

The surface is a level of the function whose gradient fits the normals (screened Poisson, Kazhdan & Hoppe 2013).

Shape letters:  N points
"""

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion4d.errors import UserError
from diffusion4d.surfaces.mesh import Mesh


def poisson(
    points: Float[np.ndarray, "N 3"],
    normals: Float[np.ndarray, "N 3"],
    *,
    depth: int = 7,
    trim: float = 0.02,
) -> Mesh:
    """A closed surface through oriented points.

    Args:
        depth: of the octree.
        trim: share of the vertices, those with the fewest points about them, that are cut off.

    Raises:
        UserError: the extra `poisson` is not installed.
    """
    library = _open3d()
    cloud = library.geometry.PointCloud(library.utility.Vector3dVector(points.astype(float)))
    cloud.normals = library.utility.Vector3dVector(normals.astype(float))
    found, density = library.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=depth
    )
    density = np.asarray(density)
    found.remove_vertices_by_mask(density < np.quantile(density, trim))
    return Mesh(np.asarray(found.vertices, np.float32), np.asarray(found.triangles, np.int64))


def _open3d() -> Any:
    try:
        return import_module("open3d")
    except ImportError as error:
        raise UserError(
            "need Open3D for this surface: pip install 'diffusion4d[poisson]'"
        ) from error
