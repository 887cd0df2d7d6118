"""Vertices that a seam has doubled are one.

Files cut a surface wherever a normal or a texture coordinate jumps; for what goes along the surface there is no cut.
Places that differ by less than about 1e-6 of the surface's extent are the same.

Shape letters:  V vertices   W different ones
"""

import numpy as np
from jaxtyping import Float, Int

SAME = 1e-6


def weld(
    vertices: Float[np.ndarray, "V 3"],
) -> tuple[Float[np.ndarray, "W 3"], Int[np.ndarray, "V"]]:
    """The different places, and which of them every vertex is at."""
    extent = max(float(np.ptp(vertices, axis=0).max()), 1e-12)
    rounded = np.round(vertices / (SAME * extent))
    different, found = np.unique(rounded, axis=0, return_inverse=True)
    number = np.asarray(found).ravel()
    places = np.zeros((len(different), 3), vertices.dtype)
    places[number] = vertices
    return places, number
