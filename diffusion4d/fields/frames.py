r"""Local frames of a triangle mesh that go along with its deformation.

A vertex' frame has its normal n and a tangent along one of its edges, always the same one, made orthogonal to n:

    t = (e − (e·n) n) / ‖·‖,   b = n × t,   F = [t b n]

So a frame is a function of the surface alone: it turns with it, and a rigid motion x ↦ R x + c takes F to R F. The
edge is the one that lies flattest at rest, so that t does not hang on a difference of nearly equal directions.

Shape letters:  V vertices   F faces   B hypotheses and instants (any leading axes)
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from diffusion4d.fields.measures import edges_of, face_normals


def vertex_normals(
    vertices: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"]
) -> Float[Tensor, "*B V 3"]:
    """Unit normals: those of the faces about a vertex, weighted by area."""
    normal = face_normals(vertices, faces)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total = total.index_add(-2, faces[:, i], normal)
    return normalize(total, dim=-1)


def guides(vertices: Float[Tensor, "V 3"], faces: Int64[Tensor, "F 3"]) -> Int64[Tensor, "V"]:
    """The neighbour that every vertex' tangent points to: the one whose edge lies flattest at rest.

    Raises:
        ValueError: a vertex that belongs to no triangle.
    """
    pairs = edges_of(faces)
    both = torch.cat([pairs, pairs.flip(1)])
    edge = normalize(vertices[both[:, 1]] - vertices[both[:, 0]], dim=-1)
    slope = (edge * vertex_normals(vertices, faces)[both[:, 0]]).sum(-1).abs()
    # Sorted from steep to flat, the last one written is the flattest.
    order = slope.argsort(descending=True)
    found = torch.full((len(vertices),), -1, dtype=torch.int64)
    for_each = both[order].tolist()
    for start, end in for_each:
        found[start] = end
    if bool((found < 0).any()):
        raise ValueError(
            f"need every vertex in a triangle, got {int((found < 0).sum())} that are not"
        )
    return found


def frames(
    vertices: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"], guide: Int64[Tensor, "V"]
) -> Float[Tensor, "*B V 3 3"]:
    """F of every vertex, its columns tangent, bitangent and normal; proper."""
    normal = vertex_normals(vertices, faces)
    edge = vertices[..., guide, :] - vertices
    tangent = normalize(edge - (edge * normal).sum(-1, keepdim=True) * normal, dim=-1)
    return torch.stack([tangent, torch.linalg.cross(normal, tangent), normal], -1)
