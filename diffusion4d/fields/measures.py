r"""What a field does to a surface: how far from rigid, where it folds over.

    stretch     RMS(|e'| / |e| − 1) over the edges
    arap        Σ_i Σ_j w_ij ‖e'_ij − R_i e_ij‖² / Σ_i Σ_j w_ij ‖e_ij‖², R_i the best rotation of vertex i's edges
                (Sorkine & Alexa 2007, eq. 3, without the cotangents): 0 where every neighbourhood moves rigidly
    fold-over   share of triangles whose normal is turned by more than 90° from where the locally rigid motion, the mean
                rotation of its three corners, would have it
    volume      det ∂x'/∂x: 1 where volume is kept, below 0 where space is turned inside out

Shape letters:  V vertices   F faces   E edges   B hypotheses and instants (any leading axes)
"""

from typing import cast

import roma
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def edges_of(faces: Int64[Tensor, "F 3"]) -> Int64[Tensor, "E 2"]:
    """Every edge once."""
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return pairs.sort(dim=1).values.unique(dim=0)


def edge_stretch(
    rest: Float[Tensor, "V 3"], moved: Float[Tensor, "*B V 3"], edges: Int64[Tensor, "E 2"]
) -> Float[Tensor, "*B"]:
    """RMS relative change of length; edges of no length do not count."""
    before = (rest[edges[:, 0]] - rest[edges[:, 1]]).norm(dim=-1)
    after = (moved[..., edges[:, 0], :] - moved[..., edges[:, 1], :]).norm(dim=-1)
    kept = before > 1e-9 * before.max()
    return (after[..., kept] / before[kept] - 1).square().mean(-1).sqrt()


def vertex_rotations(
    rest: Float[Tensor, "V 3"], moved: Float[Tensor, "*B V 3"], edges: Int64[Tensor, "E 2"]
) -> Float[Tensor, "*B V 3 3"]:
    """The rotation that carries each vertex' edges best (orthogonal Procrustes)."""
    both = torch.cat([edges, edges.flip(1)])
    before = rest[both[:, 1]] - rest[both[:, 0]]
    after = moved[..., both[:, 1], :] - moved[..., both[:, 0], :]
    product = after[..., :, None] * before[..., None, :]
    total = product.new_zeros(*moved.shape, 3).index_add_(-3, both[:, 0], product)
    eye = torch.eye(3, dtype=total.dtype, device=total.device)
    size = total.flatten(-2).norm(dim=-1)[..., None, None]
    return cast("Tensor", roma.special_procrustes(total + 1e-6 * size.clamp_min(1e-30) * eye))


def arap_energy(
    rest: Float[Tensor, "V 3"], moved: Float[Tensor, "*B V 3"], edges: Int64[Tensor, "E 2"]
) -> Float[Tensor, "*B"]:
    """What no rotation of the neighbourhoods explains, as a share of the squared edges."""
    turned = vertex_rotations(rest, moved, edges)
    both = torch.cat([edges, edges.flip(1)])
    before = rest[both[:, 1]] - rest[both[:, 0]]
    after = moved[..., both[:, 1], :] - moved[..., both[:, 0], :]
    left = after - (turned[..., both[:, 0], :, :] @ before[..., None]).squeeze(-1)
    return left.square().sum((-2, -1)) / before.square().sum()


def fold_over(
    rest: Float[Tensor, "V 3"], moved: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"]
) -> Float[Tensor, "*B"]:
    """Share of triangles that are turned over against the locally rigid motion; flat ones at rest do not count."""
    turned = vertex_rotations(rest, moved, edges_of(faces))
    normal = face_normals(rest, faces)
    kept = normal.norm(dim=-1) > 1e-12 * normal.norm(dim=-1).max()
    about = turned[..., faces[kept], :, :].sum(-3)
    expected = (about @ normal[kept][..., None]).squeeze(-1)
    return ((face_normals(moved, faces[kept]) * expected).sum(-1) < 0).float().mean(-1)


def face_normals(
    vertices: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"]
) -> Float[Tensor, "*B F 3"]:
    """Normals with the length of twice the area."""
    a, b, c = (vertices[..., faces[:, i], :] for i in range(3))
    return torch.linalg.cross(b - a, c - a)
