r"""Energies of shape over a neighbour graph: neighbours keep their distances, or move by one rotation.

With R_{n,t} the rotation that turns the edges of point n in the anchor frame best into those at instant t,

    as rigid as possible   1/NT Σ_n Σ_t Σ_{j ∈ N(n)} w_nj ‖(X_j − X_n)(t) − R_{n,t} (X_j − X_n)(0)‖²           (1)
    isometry               1/NT Σ_n Σ_t Σ_{j ∈ N(n)} w_nj (‖(X_j − X_n)(t)‖ − ‖(X_j − X_n)(0)‖)²               (2)

(1) is Sorkine and Alexa's (2007) with R by the special orthogonal Procrustes problem (roma, from singular values). At
the best R the derivative of (1) with respect to R is zero on the rotations (the envelope theorem), so R is held and
the gradient is exact; differentiating through singular values would be unstable where two coincide. Both are
invariant under a rigid motion of the whole at every instant; (2) also under a mirror image, (1) not where
the neighbours span space.

The graph joins each point of the anchor frame to its k nearest. Its weights
w_nj = 1 / (k · mean squared edge of the anchor frame) make both energies shares: 0.01 is a tenth of the usual distance.

Shape letters:  K hypotheses (any batch)   N points   T instants   k neighbours
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A directed graph: `index[n]` are the k neighbours of point n."""

    index: Int64[Tensor, "N k"]

    def edges(self, points: Float[Tensor, "*K N T 3"]) -> Float[Tensor, "*K N T k 3"]:
        """X_j − X_n of every neighbour j of n at every instant.

        Raises:
            ValueError: points that are no [*K, N, T, 3] of the graph's N.
        """
        if points.ndim < 3 or points.shape[-1] != 3 or points.shape[-3] != len(self.index):
            raise ValueError(
                f"need points [*K, {len(self.index)}, T, 3] of the graph, got {list(points.shape)}"
            )
        ends = points[..., self.index, :, :].movedim(-3, -2)
        return ends - points[..., None, :]


def nearest(places: Float[Tensor, "N dim"], k: int) -> Neighbours:
    """The graph of the k nearest points; of the anchor frame, in space or in the image.

    Raises:
        ValueError: places that are no [N, dim], k below 1, or not more than k points.
    """
    if places.ndim != 2:
        raise ValueError(f"need places [N, dim], got {list(places.shape)}")
    if not 1 <= k < len(places):
        raise ValueError(f"need 1 <= k < number of points, got k={k} for {len(places)} points")
    apart = torch.cdist(places, places)
    apart.fill_diagonal_(torch.inf)
    return Neighbours(apart.topk(k, largest=False).indices)


def as_rigid_as_possible(
    points: Float[Tensor, "*K N T 3"], graph: Neighbours
) -> Float[Tensor, "*K"]:
    """(1), against the first instant. Raises ValueError as `Neighbours.edges`."""
    import roma

    edges = graph.edges(points)
    anchor = edges[..., :1, :, :]
    with torch.no_grad():
        # Of Σ_j e_j(t) e_j(0)ᵀ the nearest rotation is the maximiser of the trace, so the minimiser of (1).
        moment = torch.einsum("...ki,...kj->...ij", edges, anchor.expand_as(edges))
        rotation = roma.special_procrustes(moment)
    turned = torch.einsum("...ij,...kj->...ki", rotation, anchor.expand_as(edges))
    return _share((edges - turned).square().sum(-1), anchor)


def stretch(points: Float[Tensor, "*K N T 3"], graph: Neighbours) -> Float[Tensor, "*K"]:
    """(2), against the first instant. Raises ValueError as `Neighbours.edges`."""
    length = torch.linalg.vector_norm(graph.edges(points), dim=-1)
    anchor = graph.edges(points[..., :1, :])
    return _share((length - length[..., :1, :]).square(), anchor)


def _share(
    squared: Float[Tensor, "*K N T k"], anchor: Float[Tensor, "*K N 1 k 3"]
) -> Float[Tensor, "*K"]:
    """Mean over points, instants and neighbours, as a share of the mean squared edge of the anchor frame."""
    usual = anchor.square().sum(-1).mean((-3, -2, -1))
    return squared.mean((-3, -2, -1)) / usual.clamp_min(torch.finfo(squared.dtype).tiny)
