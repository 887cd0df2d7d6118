r"""Fewer triangles, of original vertices only, so that what belongs to a vertex (skin weights, morphs) stays true.

Edges are collapsed into one of their ends, cheapest first. Moving vertex v to its neighbour u costs the squared
distances of u to the planes of v's triangles, weighted by their areas (Garland & Heckbert 1997):

    cost(v → u) = Σ_{f ∋ v} a_f (n_f · (x_u − x_v))² / 3

plus the same for planes that stand upright on open edges. A collapse that would turn a triangle over is not made.
In a round, collapses are independent: none touches a triangle of another.
Shape letters:  V vertices   F triangles   E directed edges.
"""

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
_MOST_ROUNDS = 200


def merged(
    key_VD: Float[Array, "V D"], faces: Int[Array, "F 3"]
) -> tuple[Int[Array, "v"], Int[Array, "f 3"]]:
    """Unite vertices whose keys are equal: returns one vertex of each kind, and the triangles among these.

    Files store a vertex once for every normal and texture coordinate it has.
    """
    _, first, place = np.unique(key_VD, axis=0, return_index=True, return_inverse=True)
    return _used(first, place.reshape(-1)[faces])


def decimated(
    positions: Float[Array, "V 3"], faces: Int[Array, "F 3"], most: int
) -> tuple[Int[Array, "v"], Int[Array, "f 3"]]:
    """The vertices to keep, and at most `most` triangles among them (numbers of the kept ones).

    Raises:
        ValueError: less than 4 triangles asked for, or no more collapses are possible before there are so few.
    """
    if most < 4:
        raise ValueError(f"need at least 4 triangles, got {most}")
    faces = _proper(faces)
    for _ in range(_MOST_ROUNDS):
        if len(faces) <= most:
            return _used(np.arange(len(positions)), faces)
        # A collapse of an inner edge removes two triangles. Half of what is too much at once keeps costs true.
        target = max(1, (len(faces) - most + 3) // 4)
        moved = _round(positions, faces, target)
        if moved is None:
            break
        faces = _proper(moved[faces])
    raise ValueError(
        f"need a mesh that can be reduced to {most} triangles, got stuck at {len(faces)}"
    )


def _round(positions: Array, faces: Array, target: int) -> Array | None:
    """Where every vertex goes after up to `target` independent collapses; None if none is possible."""
    normal_F3 = np.cross(
        positions[faces[:, 1]] - positions[faces[:, 0]],
        positions[faces[:, 2]] - positions[faces[:, 0]],
    )
    area_F = 0.5 * np.linalg.norm(normal_F3, axis=-1)
    unit_F3 = normal_F3 / np.maximum(2 * area_F, 1e-12)[:, None]
    edges_E2 = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    owner_E = np.repeat(np.arange(len(faces)), 3)
    count = len(positions)
    quadric_V33 = np.zeros((count, 3, 3))
    plane_F33 = area_F[:, None, None] * unit_F3[:, :, None] * unit_F3[:, None, :]
    for corner in range(3):
        np.add.at(quadric_V33, faces[:, corner], plane_F33)
    key_E = np.minimum(*edges_E2.T) * count + np.maximum(*edges_E2.T)
    _, first, number = np.unique(key_E, return_index=True, return_counts=True)
    open_E = first[number == 1]
    along_E3 = positions[edges_E2[open_E, 1]] - positions[edges_E2[open_E, 0]]
    upright_E3 = np.cross(along_E3, unit_F3[owner_E[open_E]])
    upright_E33 = upright_E3[:, :, None] * upright_E3[:, None, :]
    for end in range(2):
        np.add.at(quadric_V33, edges_E2[open_E, end], upright_E33)
    both_E2 = np.unique(np.concatenate([edges_E2, edges_E2[:, ::-1]]), axis=0)
    v, u = both_E2.T
    way_E3 = positions[u] - positions[v]
    cost_E = np.einsum("ei,eij,ej->e", way_E3, quadric_V33[v], way_E3)
    # Among flat neighbourhoods, where all is free, short edges go first.
    cost_E += 1e-6 * area_F.mean() * (way_E3**2).sum(-1)
    around: list[list[int]] = [[] for _ in range(count)]
    for face, corners in enumerate(faces.tolist()):
        for corner in corners:
            around[corner].append(face)
    goes = np.arange(count)
    touched_F = np.zeros(len(faces), dtype=bool)
    made = 0
    for edge in np.argsort(cost_E, kind="stable"):
        old, new = both_E2[edge]
        ring = around[old]
        if touched_F[ring].any() or touched_F[around[new]].any():
            continue
        stays = [face for face in ring if new not in faces[face]]
        corners_F3 = np.where(faces[stays] == old, new, faces[stays])
        x = positions[corners_F3]
        turned_F3 = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
        size_F = np.linalg.norm(turned_F3, axis=-1)
        if ((turned_F3 * unit_F3[stays]).sum(-1) < 0.2 * size_F).any() or (size_F < 1e-12).any():
            continue
        goes[old] = new
        touched_F[ring] = touched_F[around[new]] = True
        made += 1
        if made == target:
            break
    return goes if made else None


def _proper(faces: Array) -> Array:
    """Without triangles that have become lines, and each once."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(faces, 1), axis=0, return_index=True)
    return faces[np.sort(first)]


def _used(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Vertices that some triangle uses, and the triangles by their new numbers."""
    faces = _proper(faces)
    used, place = np.unique(faces, return_inverse=True)
    return vertices[used], place.reshape(-1, 3)
