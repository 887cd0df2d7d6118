r"""Local frames of a triangle mesh that go along with its deformation.

A vertex' frame has its normal n and a tangent along one of its edges, always the same one, made orthogonal to n:

    t = (e − (e·n) n) / ‖·‖,   b = n × t,   F = [t b n]

So a frame is a function of the surface alone: it turns with it, and a rigid motion x ↦ R x + c takes F to R F. The
edge is the one that lies flattest at rest, so that t does not hang on a difference of nearly equal directions.

Vertices that a seam has doubled have one frame, that of the welded surface: copies that had frames of their own would
part where the surface bends. Only where the normals at a place cancel, as on both sides of a leaf, each side has its
own.

Shape letters:  V vertices   F faces   B hypotheses and instants (any leading axes)
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from diffusion4d.fields.measures import edges_of, face_normals
from diffusion4d.fields.weld import SAME, weld

CANCELS = 0.02
"""Length of the sum of the normals at a place, as a share of the sum of their lengths, below which they cancel."""


def vertex_normals(
    vertices: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"]
) -> Float[Tensor, "*B V 3"]:
    """Unit normals: those of the faces about a vertex, weighted by area."""
    normal = face_normals(vertices, faces)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total = total.index_add(-2, faces[:, i], normal)
    return normalize(total, dim=-1)


def guides(vertices: Float[Tensor, "V 3"], faces: Int64[Tensor, "F 3"]) -> Int64[Tensor, "V 2"]:
    """Who a vertex has its frame from: the first vertex at its place, and the neighbour that the tangent points to.

    That neighbour is the one whose edge lies flattest at rest; edges of no length do not count.

    Raises:
        ValueError: a vertex that belongs to no triangle, has no edge of any length, or no normal.
    """
    first = _first(vertices, faces)
    pairs = edges_of(first[faces])
    both = torch.cat([pairs, pairs.flip(1)])
    edge = vertices[both[:, 1]] - vertices[both[:, 0]]
    extent = float((vertices.amax(0) - vertices.amin(0)).max()) if len(vertices) else 0.0
    long = edge.norm(dim=-1) > SAME * extent
    normal = vertex_normals(vertices, first[faces])
    slope = (edge[long] * normal[both[long, 0]]).sum(-1).abs() / edge[long].norm(dim=-1)
    # Sorted from steep to flat, the last one written is the flattest.
    order = slope.argsort(descending=True)
    found = torch.full((len(vertices),), -1, dtype=torch.int64)
    for_each = both[long][order].tolist()
    for start, end in for_each:
        found[start] = end
    lone = torch.ones(len(vertices), dtype=torch.bool)
    lone[first[faces].flatten()] = False
    for missing, need, got in (
        (lone[first], "every vertex in a triangle", "are not"),
        (found[first] < 0, "an edge of some length at every vertex", "have none"),
        (normal[first].norm(dim=-1) < 0.5, "a normal at every vertex", "have none"),
    ):
        if bool(missing.any()):
            raise ValueError(f"need {need}, got {int(missing.sum())} that {got}")
    return torch.stack([first, found[first]], 1)


def frames(
    vertices: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"], guide: Int64[Tensor, "V 2"]
) -> Float[Tensor, "*B V 3 3"]:
    """F of every vertex, its columns tangent, bitangent and normal; proper. `guide` is what `guides` found at rest."""
    first, neighbour = guide.unbind(1)
    normal = vertex_normals(vertices, first[faces])[..., first, :]
    edge = vertices[..., neighbour, :] - vertices[..., first, :]
    tangent = normalize(edge - (edge * normal).sum(-1, keepdim=True) * normal, dim=-1)
    return torch.stack([tangent, torch.linalg.cross(normal, tangent), normal], -1)


def _first(vertices: Float[Tensor, "V 3"], faces: Int64[Tensor, "F 3"]) -> Int64[Tensor, "V"]:
    """Of every vertex the first one that is at its place, and on its side where the sides' normals cancel."""
    number = torch.from_numpy(weld(vertices.detach().double().cpu().numpy())[1])
    own, size = torch.zeros_like(vertices), torch.zeros_like(vertices[:, 0])
    normal = face_normals(vertices, faces)
    for i in range(3):
        own.index_add_(0, faces[:, i], normal)
        size.index_add_(0, faces[:, i], normal.norm(dim=-1))
    first = _least(number)
    together = torch.zeros_like(own).index_add_(0, first, own).norm(dim=-1)[first]
    cancels = together < CANCELS * torch.zeros_like(size).index_add_(0, first, size)[first]
    # The largest copy says where the front is: the first may be in no triangle. Of those sorted, the last is written.
    order = own.norm(dim=-1).argsort().tolist()
    largest = dict(zip(number[order].tolist(), order, strict=True))
    front = own[[largest[i] for i in number.tolist()]]
    behind = cancels & ((own * front).sum(-1) < 0)
    return _least(2 * number + behind)


def _least(number: Int64[Tensor, "V"]) -> Int64[Tensor, "V"]:
    """Of every vertex the first that has its number."""
    count = int(number.max()) + 1 if len(number) else 0
    every = torch.arange(len(number))
    least = torch.full((count,), len(number)).scatter_reduce(0, number, every, "amin")
    return least[number]
