r"""Which nodes carry a point, and with what weights.

Of the J nodes nearest to a point, at distances d_1 ≤ … ≤ d_J, with d_{J+1} the next one's,

    w_j ∝ (1 − d_j / d_{J+1})²,     Σ_j w_j = 1        (Sumner, Schmid & Pauly 2007, "Embedded deformation", eq. 4)

A partition of unity: where all nodes move as one, so does every point. A node's weight is 0 where it leaves the J
nearest, so weights are continuous, and a motion of the nodes tears nothing. Distances are along the surface
(`graph.surface_distances`) or, without one,

    d_j(x) = |x − g_j| · max(1, D_ij / (ρ |g_i − g_j|)),   i the node nearest to x,   D along the node graph,

which is the way through the air, made longer where the graph goes round by more than edges always do (ρ = `ROUND`).
It is smooth in x where the graph goes straight, and for a given i everywhere.

Shape letters:  N nodes   V points   J nodes a point
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

COUNT = 6
"""Nodes that carry a point."""
ROUND = 1.5
"""Paths over the edges of a graph are longer than the straight way by up to this factor, where nothing is in
between."""


@dataclass(frozen=True, eq=False)
class Skinning:
    """Nodes of every point and their weights, which sum to 1.

    Raises:
        ValueError: shapes that do not fit together, or weights that are negative or do not sum to 1.
    """

    indices: Int64[Tensor, "V J"]
    weights: Float[Tensor, "V J"]

    def __post_init__(self) -> None:
        if self.indices.shape != self.weights.shape:
            got = f"{list(self.indices.shape)} and {list(self.weights.shape)}"
            raise ValueError(f"need indices and weights of one shape [V, J], got {got}")
        if bool((self.weights < 0).any()) or bool((self.weights.sum(1) - 1).abs().gt(1e-4).any()):
            raise ValueError("need weights of at least 0 that sum to 1 for every point")

    def most(self, count: int) -> "Skinning":
        """The heaviest `count` nodes of every point, weights brought back to a sum of 1."""
        if count >= self.weights.shape[1]:
            return self
        weights, chosen = self.weights.topk(count, dim=1)
        return Skinning(self.indices.gather(1, chosen), weights / weights.sum(1, keepdim=True))


def skin(distances: Float[Tensor, "V N"], count: int = COUNT) -> Skinning:
    """Weights out of distances; all N nodes where there are no more than `count`.

    Raises:
        ValueError: no node, or a count below 1.
    """
    if distances.shape[1] < 1 or count < 1:
        raise ValueError(f"need nodes and a count >= 1, got {distances.shape[1]} and {count}")
    count = min(count, distances.shape[1])
    wanted = min(count + 1, distances.shape[1])
    near, indices = distances.topk(wanted, dim=1, largest=False)
    return Skinning(indices[:, :count], _kernel(near, count))


def skin_by_graph(
    points: Float[Tensor, "V 3"],
    rest: Float[Tensor, "N 3"],
    along: Float[Tensor, "N N"],
    count: int = COUNT,
) -> Skinning:
    """Weights at any places of space, differentiable in the points.

    Args:
        along: distances of the nodes over their graph (`graph.node_distances`).
    """
    apart_NN = torch.cdist(rest[None], rest[None])[0]
    detour_NN = torch.where(apart_NN > 0, along / (ROUND * apart_NN).clamp_min(1e-12), 1.0)
    detour_NN = detour_NN.clamp_min(1.0)
    offset = points[:, None] - rest
    straight_VN = (offset.square().sum(-1) + 1e-18).sqrt()
    nearest_V = straight_VN.argmin(1)
    return skin(straight_VN * detour_NN[nearest_V].to(points), count)


def _kernel(near: Float[Tensor, "V wanted"], count: int) -> Float[Tensor, "V J"]:
    # With no node beyond the last, the support ends a quarter beyond it, so that every node has a say.
    edge = near[:, count:] if near.shape[1] > count else 1.25 * near[:, -1:]
    weight = (1 - near[:, :count] / edge.clamp_min(1e-12)).clamp_min(0).square()
    total = weight.sum(1, keepdim=True)
    # Nodes at one distance, all of them at the edge: they share.
    even = torch.full_like(weight, 1 / count)
    return torch.where(total > 1e-12, weight / total.clamp_min(1e-12), even)
