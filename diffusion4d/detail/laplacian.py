r"""The Laplacian of a triangle mesh: smoothing by a length, and the waves that a surface has.

    C_ij = −(cot α_ij + cot β_ij) / 2,   C_ii = −Σ_j C_ij,   M_i = a third of the area about vertex i
                                                            (Pinkall & Polthier 1993; Meyer et al. 2003)
    heat    (M + (ℓ² / n) C) x ← M x, n = `STEPS` times     a wave of number k is left with g = (1 + ℓ² k² / n)^−n,
                                                            nearly exp(−ℓ² k²)
    smooth  x ← 2 heat(x) − heat(heat(x))                   left with 1 − (1 − g)²: what is long is kept better, so
                                                            that a body does not shrink
    waves   C φ = k² M φ,   Φᵀ M Φ = 1                      orthonormal in the area

An edge whose two cotangents sum to less than nothing counts for nothing: smoothing then never overshoots, on slivers
either, at the price of some accuracy where the triangles are not Delaunay's.

One implicit step, as `offsets.smooth_base` takes, can be undone exactly by whoever knows the Laplacian: detail would be
there to be read off its own base. After several, what is shorter than ℓ is gone for all that arithmetic can tell.

Shape letters:  V vertices   F faces   W waves   D channels
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix, csc_matrix, diags
from scipy.sparse.linalg import eigsh, splu

STEPS = 4
STEEPEST = 10.0
"""Of half a cotangent: a triangle that is flatter than 3° would rule all others."""


@dataclass(frozen=True, eq=False)
class Laplacian:
    """Stiffness C, positive semi-definite, and the area of every vertex."""

    stiffness: csc_matrix
    mass: Float[np.ndarray, "V"]

    def smooth(self, signal: Float[np.ndarray, "V D"], length: float) -> Float[np.ndarray, "V D"]:
        """The signal without what is shorter than a length.

        Raises:
            ValueError: a negative length.
        """
        if not length >= 0:
            raise ValueError(f"need a length of at least 0, got {length}")
        mass = diags(self.mass)
        step = splu((mass + length**2 / STEPS * self.stiffness).tocsc())

        def heat(x: np.ndarray) -> np.ndarray:
            for _ in range(STEPS):
                x = step.solve(mass @ x)
            return x

        once = heat(np.asarray(signal, np.float64))
        return 2 * once - heat(once)

    def waves(self, count: int) -> tuple[Float[np.ndarray, "W"], Float[np.ndarray, "V W"]]:
        """Wave numbers k and shapes φ of the longest waves, the constants first.

        Raises:
            ValueError: no wave, or as many as there are vertices.
        """
        if not 1 <= count < len(self.mass):
            raise ValueError(f"need 1 to {len(self.mass) - 1} waves, got {count}")
        mass = diags(self.mass).tocsc()
        # A little below zero, where the matrix can be inverted; in units of the mesh' own area.
        below = -1e-3 / self.mass.sum()
        start = np.random.default_rng(0).standard_normal(len(self.mass))
        squares, shapes = eigsh(self.stiffness, count, mass, sigma=below, v0=start)
        order = squares.argsort()
        return np.sqrt(squares[order].clip(0)), shapes[:, order]


def cotangent_laplacian(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]
) -> Laplacian:
    """The Laplacian of a mesh whose seams are welded.

    Raises:
        ValueError: a vertex that belongs to no triangle of any area.
    """
    corners = np.asarray(vertices, np.float64)[faces]
    double = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    rows, columns, values = [], [], []
    for i in range(3):
        a, b = corners[:, (i + 1) % 3] - corners[:, i], corners[:, (i + 2) % 3] - corners[:, i]
        half = (a * b).sum(-1) / np.maximum(double, 1e-300) / 2
        first, second = faces[:, (i + 1) % 3], faces[:, (i + 2) % 3]
        rows += [first, second]
        columns += [second, first]
        values += [half.clip(-STEEPEST, STEEPEST)] * 2
    count = len(vertices)
    at = (np.concatenate(rows), np.concatenate(columns))
    mass = np.bincount(faces.ravel(), np.repeat(double / 6, 3), count)
    if not (mass > 0).all():
        raise ValueError(
            f"need every vertex in a triangle with an area, got {int((mass <= 0).sum())} that are not"
        )
    joined = coo_matrix((np.concatenate(values), at), (count, count)).tocsc()
    joined.data = joined.data.clip(0)
    return Laplacian((diags(np.asarray(joined.sum(0)).ravel()) - joined).tocsc(), mass)
