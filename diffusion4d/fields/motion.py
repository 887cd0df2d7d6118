r"""How nodes move: places and local rotations, out of a reference shape.

A node's rotation is the one that carries the edges to its neighbours best (orthogonal Procrustes),

    R_i = argmin_{R ∈ SO(3)} Σ_j w_ij ‖(p_j − p_i) − R (g_j − g_i)‖² + λ s_i Σ_j w_ij ‖R − R_j‖²

with w_ij = exp(−D_ij² / 2 σ²), s_i = Σ_j w_ij |g_j − g_i|² (Levi & Gotsman 2015, "Smooth rotation enhanced ARAP",
eq. 3). The second term, over a few passes that start from the rotation of all nodes together, decides what edges leave
open: neighbours on a line do not say how they turn about it, and a single one says less still. So R is always proper.

A body that is a line leaves the rotation of all nodes open as well. With P the product of its places and G its rest,
the turn goes on from the one an instant before (from none, at the first),

    R^u = argmax_{R ∈ SO(3)} ⟨R, P^u + ε ‖G‖² R^{u−1}⟩,    ε = `OPEN` / 10

which for ε → 0 is the least turn from there that brings the line where it is: it never jumps, also half-way round.

The reference is one shape for all hypotheses, the mean of the anchor frame, though each hypothesis has an anchor
shape of its own: g is the name of a material point, and x ↦ x' takes the surface at rest to where hypothesis k has it
at u, at the anchor's own time as well. So one mesh, skinned once, is driven by every hypothesis.

Shape letters:  N nodes   J neighbours   B hypotheses and instants (any leading axes)
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import roma
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.fields.graph import node_distances
from diffusion4d.hypotheses import Hypotheses

NEIGHBOURS = 6
SMOOTH = 0.02
"""λ. On five animated species (wolf, horse, bird, knight, fox) a mean vertex error of 0.60 % of the box diagonal and
0.28 of the additive field's drift, against 0.75 % and 0.43 at 0.1 and eight neighbours; less changes nothing more.
Nodes with noise of 1 % of the diagonal still gain by it, with 3 % it makes no difference."""
PASSES = 3
OPEN = 1e-3
"""Of ‖G‖²: where the two lesser singular values of the product (the least with the sign of the determinant) sum to
less, the body is a line: 30 times as long as it is wide."""


@dataclass(frozen=True, eq=False)
class NodeMotion:
    """Nodes at rest, and where and how turned they are at B.

    Raises:
        ValueError: shapes that do not fit together.
    """

    rest: Float[Tensor, "N 3"]
    positions: Float[Tensor, "*B N 3"]
    rotations: Float[Tensor, "*B N 3 3"]
    """Proper; what is turned is the surface about the node."""

    def __post_init__(self) -> None:
        if self.rotations.shape != (*self.positions.shape, 3):
            got = f"{list(self.positions.shape)} and {list(self.rotations.shape)}"
            raise ValueError(f"need positions [*B, N, 3] and rotations [*B, N, 3, 3], got {got}")
        if self.positions.shape[-2:] != self.rest.shape:
            got = f"{list(self.rest.shape)} and {list(self.positions.shape)}"
            raise ValueError(f"need rest [N, 3] and positions [*B, N, 3], got {got}")

    @property
    def offsets(self) -> Float[Tensor, "*B N 3"]:
        """t of x ↦ R x + t."""
        return self.positions - (self.rotations @ self.rest[..., None]).squeeze(-1)


def node_motion(
    rest: Float[Tensor, "N 3"],
    positions: Float[Tensor, "*B N 3"],
    along: Float[Tensor, "N N"] | None = None,
    *,
    neighbours: int = NEIGHBOURS,
    smooth: float = SMOOTH,
    passes: int = PASSES,
) -> NodeMotion:
    """Local rotations of moving nodes.

    Args:
        positions: the last of the axes B, if there are any, is time. It matters to bodies that are a line only, whose
            turn about themselves goes on from instant to instant.
        along: distances over the node graph; out of the rest shape by default.
        neighbours: J, fewer where there are fewer nodes.
    """
    N = len(rest)
    if N == 1:
        return NodeMotion(rest, positions, _eye(rest).expand(*positions.shape, 3))
    if along is None:
        along = torch.from_numpy(node_distances(rest.double().cpu().numpy())).to(rest)
    near_NJ, weight_NJ = _neighbours(along.to(rest), min(neighbours, N - 1))
    edge_NJ3 = rest[near_NJ] - rest[:, None]
    size_N = (weight_NJ * edge_NJ3.square().sum(-1)).sum(1)
    floor = 1e-6 * size_N.mean().clamp_min(1e-30)
    centred = positions - positions.mean(-2, keepdim=True)
    whole = torch.einsum("...ni,nj->...ij", centred, rest - rest.mean(0))
    extent = (rest - rest.mean(0)).square().sum().clamp_min(1e-30)
    turned = _together(whole, extent)[..., None, :, :].expand(*positions.shape, 3)
    moved = positions[..., near_NJ, :] - positions[..., None, :]
    edges = torch.einsum("nj,...nji,njk->...nik", weight_NJ, moved, edge_NJ3)
    for _ in range(passes):
        like = torch.einsum("nj,...njik->...nik", weight_NJ, turned[..., near_NJ, :, :])
        turned = _proper(edges + (smooth * size_N + floor)[:, None, None] * like)
    return NodeMotion(rest, positions, turned)


@dataclass(frozen=True, eq=False)
class Rest:
    """The shape that surfaces are placed on, and how far its nodes are from each other."""

    places: Float[Tensor, "N 3"]
    along: Float[Tensor, "N N"]
    """Over the node graph."""


def reference(hypotheses: Hypotheses) -> Rest:
    """The mean over the hypotheses in the first frame, in their own frame; the graph is that of the mean motion.

    A surface is carried by some of the hypotheses from the reference of all.
    """
    mean_TN3 = hypotheses.mean.transpose(0, 1)
    places = mean_TN3.double().cpu().numpy()
    along = torch.from_numpy(node_distances(places[0], places).astype(np.float32))
    return Rest(mean_TN3[0], along.to(mean_TN3))


def motion_of(
    hypotheses: Hypotheses, rest: Rest, instants: Float[Tensor, "I"] | None = None
) -> NodeMotion:
    """Nodes of the hypotheses at clip times u, the clip's frames by default; B = (K, I).

    Raises:
        ValueError: some u lies outside the knots.
    """
    positions = hypotheses.evaluate(instants).transpose(1, 2)
    return node_motion(rest.places, positions, rest.along)


def _neighbours(along: Float[Tensor, "N N"], count: int) -> tuple[Tensor, Float[Tensor, "N J"]]:
    off = along.clone()
    off.fill_diagonal_(torch.inf)
    near, indices = off.topk(count, dim=1, largest=False)
    width = near.mean(1, keepdim=True).clamp_min(1e-12)
    return indices, torch.exp(-0.5 * (near / width).square())


def _together(
    products: Float[Tensor, "*B 3 3"], extent: Float[Tensor, ""]
) -> Float[Tensor, "*B 3 3"]:
    """The rotation of all nodes; the identity decides what is left open, or the instant before."""
    weight = OPEN / 10 * extent
    alone = _proper(products + weight * _eye(products))
    if products.ndim < 3:
        return alone
    values = torch.linalg.svdvals(products.detach())
    lesser = values[..., 1] + values[..., 2] * torch.linalg.det(products.detach()).sign()
    line = (lesser < OPEN * extent).any(-1)
    if not bool(line.any()):
        return alone
    turn, turns = _eye(products), []
    for product in products.unbind(-3):
        turn = _proper(product + weight * turn)
        turns.append(turn)
    return torch.where(line[..., None, None, None], torch.stack(turns, -3), alone)


def _proper(products: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 3 3"]:
    """The rotation with the largest product."""
    return cast("Tensor", roma.special_procrustes(products))


def _eye(like: Tensor) -> Float[Tensor, "3 3"]:
    return torch.eye(3, dtype=like.dtype, device=like.device)
