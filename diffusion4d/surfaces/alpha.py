r"""Alpha shapes: the surface of a cloud of points without connectivity (Edelsbrunner & Mücke 1994).

Of the Delaunay tetrahedra of the points, those whose circumscribed sphere has a radius of at most α are kept; the
surface is the triangles that belong to exactly one of them. A small α shows holes and falls apart, a large one gives
the convex hull.

The points have to fill the solid: an empty shell has tetrahedra as large as itself, and is refused at the default α.

Shape letters:  N points   F faces
"""

import numpy as np
from jaxtyping import Float
from scipy.spatial import Delaunay, KDTree, QhullError

from diffusion4d.errors import UserError
from diffusion4d.surfaces.mesh import Mesh

SPACINGS = 3.0
"""α by default, in median distances to the sixth neighbour."""
_SIDES = ((1, 2, 3), (0, 3, 2), (0, 1, 3), (0, 2, 1))


def alpha_shape(points: Float[np.ndarray, "N 3"], alpha: float | None = None) -> Mesh:
    """The surface at this α, its normals outwards.

    Raises:
        UserError: fewer than 4 points, points in a plane, an α that is not positive, or none that keeps a tetrahedron.
    """
    if len(points) < 4:
        raise UserError(f"need at least 4 points for an alpha shape, got {len(points)}")
    if alpha is None:
        away = KDTree(points).query(points, min(7, len(points)))[0]
        alpha = SPACINGS * float(np.median(np.asarray(away)[:, -1]))
    if not alpha > 0:
        raise UserError(f"need alpha > 0, got {alpha}")
    try:
        solids = Delaunay(points).simplices
    except QhullError as error:
        raise UserError(
            f"need points that are not all in a plane for an alpha shape, got {len(points)}"
        ) from error
    corner = points[solids].astype(float)
    edges = corner[:, 1:] - corner[:, :1]
    volume = np.linalg.det(edges)
    good = np.abs(volume) > 1e-12 * np.abs(volume).max()
    solids, edges, volume = solids[good], edges[good], volume[good]
    # The centre c of the sphere, seen from the first corner:  2 e_i · c = |e_i|².
    centre = np.linalg.solve(2 * edges, np.square(edges).sum(-1)[..., None])[..., 0]
    kept = np.linalg.norm(centre, axis=1) <= alpha
    if not kept.any():
        raise UserError(f"need an alpha that keeps some of the shape, got {alpha:g}")
    solids, volume = solids[kept], volume[kept]
    sides = np.concatenate([solids[:, side] for side in _SIDES])
    # Corners of a solid that is turned the other way round run the other way, too.
    turned = np.tile(volume < 0, len(_SIDES))
    sides[turned] = sides[turned][:, ::-1]
    _, first, count = np.unique(np.sort(sides, 1), axis=0, return_index=True, return_counts=True)
    faces = sides[first[count == 1]]
    used, corners = np.unique(faces, return_inverse=True)
    places = points[used].astype(np.float32)
    return Mesh(places, np.asarray(corners).reshape(-1, 3).astype(np.int64))
