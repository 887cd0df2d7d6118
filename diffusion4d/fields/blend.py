r"""From moving nodes to a moving surface: x ↦ x'.

    additive          x' = x + Σ_j w_j (p_j − g_j)                        displacements alone, frame-less: the baseline
    linear            x' = Σ_j w_j (R_j (x − g_j) + p_j)                  linear-blend skinning about the nodes
    dual_quaternion   x' = q̂(x), q̂ = Σ_j w_j q̂_j / ‖·‖                   rigid at every point (Kavan 2008, alg. 1)

The linear ones are one sparse matrix for all hypotheses and instants: with A_j = [R_j | t_j], row v of S holds w_vj
(x_v, 1) at the four columns of node j, and x' = S A, A [4N, 3B]. A point is as many products as nodes carry it,
whatever K and T.

Their derivative with the weights held (a skinned mesh holds them) is Σ_j w_j R_j; where the weights move with the
point,

    ∂x'/∂x = Σ_j w_j R_j + Σ_j (R_j x + t_j) ∇w_jᵀ.

Shape letters:  N nodes   V points   J nodes a point   B hypotheses and instants (any leading axes)
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import roma
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from diffusion4d.fields.motion import NodeMotion
from diffusion4d.fields.skinning import Skinning

Blend = Literal["additive", "linear", "dual_quaternion"]


def deform(
    points: Float[Tensor, "V 3"],
    skinning: Skinning,
    motion: NodeMotion,
    blend: Blend = "linear",
) -> Float[Tensor, "*B V 3"]:
    """Where the points are at every B.

    Gradients pass through "dual_quaternion" only: the other two are a product of sparse matrices outside of autograd,
    and their answer is detached. They reckon in float64 where the points are float64, else in float32.

    Raises:
        ValueError: a skinning of other points or of nodes that are not there.
    """
    require_fit(points, skinning, len(motion.rest))
    if blend == "dual_quaternion":
        return _dual_quaternion(points, skinning, motion)
    return Carrier(points, skinning, len(motion.rest), blend)(motion)


class Carrier:
    """S: the points and their weights as one sparse matrix, for motions of as many nodes.

    Gradients do not pass through it. It has the precision of the points, float32 or float64.
    """

    def __init__(
        self,
        points: Float[Tensor, "V 3"],
        skinning: Skinning,
        num_nodes: int,
        blend: Literal["additive", "linear"] = "linear",
    ) -> None:
        V, J = skinning.indices.shape
        precision = np.float64 if points.dtype == torch.float64 else np.float32
        weight = skinning.weights.detach().cpu().numpy().astype(precision)
        column = skinning.indices.cpu().numpy()
        self.blend, self.points = blend, points.detach()
        if blend == "linear":
            one = np.ones((V, 1), precision)
            place = np.concatenate([points.detach().cpu().numpy().astype(precision), one], 1)
            weight = (weight[:, :, None] * place[:, None]).reshape(V, 4 * J)
            column = (4 * column[:, :, None] + np.arange(4)).reshape(V, 4 * J)
        width = column.shape[1]
        rows = np.arange(0, V * width + 1, width)
        columns = num_nodes * (4 if blend == "linear" else 1)
        self.matrix = csr_matrix((weight.ravel(), column.ravel(), rows), (V, columns))

    def __call__(self, motion: NodeMotion) -> Float[Tensor, "*B V 3"]:
        """Where the points are at every B."""
        lead = motion.positions.shape[:-2]
        if self.blend == "linear":
            affine = torch.cat([motion.rotations.mT, motion.offsets[..., None, :]], -2)
            affine = affine.flatten(-3, -2)
        else:
            affine = motion.positions - motion.rest
        packed = affine.reshape(-1, affine.shape[-2], 3).transpose(0, 1).flatten(1)
        numbers = packed.detach().cpu().numpy().astype(self.matrix.dtype)
        moved = torch.from_numpy(self.matrix @ numbers)
        moved = moved.view(len(self.points), -1, 3).transpose(0, 1)
        moved = moved.reshape(*lead, len(self.points), 3).to(motion.positions)
        return moved + self.points.to(moved) if self.blend == "additive" else moved


def held_jacobian(skinning: Skinning, motion: NodeMotion) -> Float[Tensor, "*B V 3 3"]:
    """∂x'/∂x of linear-blend skinning whose weights go with the points."""
    turned = motion.rotations[..., skinning.indices, :, :]
    return torch.einsum("vj,...vjik->...vik", skinning.weights.to(turned), turned)


def jacobian(
    points: Float[Tensor, "V 3"],
    skin_at: Callable[[Float[Tensor, "V 3"]], Skinning],
    motion: NodeMotion,
) -> Float[Tensor, "*B V 3 3"]:
    """∂x'/∂x of linear-blend skinning whose weights depend on the place (`skinning.skin_by_graph`)."""
    x = points.detach().requires_grad_()
    with torch.enable_grad():
        held = skin_at(x)
        # Points do not act on each other: a sum over them has every point's own slope.
        slope = torch.stack(
            [
                torch.autograd.grad(held.weights[:, j].sum(), x, retain_graph=True)[0]
                for j in range(held.weights.shape[1])
            ],
            1,
        )
    nodes = motion.rotations[..., held.indices, :, :]
    places = (nodes @ points[:, None, :, None]).squeeze(-1) + motion.offsets[..., held.indices, :]
    with_weights = torch.einsum("...vji,vjk->...vik", places, slope)
    return held_jacobian(Skinning(held.indices, held.weights.detach()), motion) + with_weights


def carry_normals(
    normals: Float[Tensor, "V 3"], jacobians: Float[Tensor, "*B V 3 3"]
) -> Float[Tensor, "*B V 3"]:
    """Unit normals of the deformed surface: cof(J) n, the inverse transpose up to a factor, also where J is
    singular."""
    a, b, c = jacobians.unbind(-1)
    cofactor = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1
    )
    return torch.nn.functional.normalize((cofactor @ normals[..., None]).squeeze(-1), dim=-1)


def require_fit(points: Tensor, skinning: Skinning, num_nodes: int) -> None:
    """Raises ValueError unless the skinning is of these points and of no more than these nodes."""
    if len(points) != len(skinning.indices):
        raise ValueError(f"need a skinning of {len(points)} points, got {len(skinning.indices)}")
    if len(points) and int(skinning.indices.max()) >= num_nodes:
        raise ValueError(f"need nodes below {num_nodes}, got {int(skinning.indices.max())}")


def _dual_quaternion(
    points: Float[Tensor, "V 3"], skinning: Skinning, motion: NodeMotion
) -> Float[Tensor, "*B V 3"]:
    real = roma.rotmat_to_unitquat(motion.rotations)
    pure = torch.cat([motion.offsets, torch.zeros_like(motion.offsets[..., :1])], -1)
    # q̂ = q + ε/2 t q  (Kavan et al. 2008, eq. 3; quaternions are xyzw)
    dual = 0.5 * roma.quat_product(pure, real)
    real, dual = real[..., skinning.indices, :], dual[..., skinning.indices, :]
    # q and −q are one rotation: all of a point's nodes on the side of its heaviest.
    pivot = skinning.weights.argmax(1)
    side = real[..., torch.arange(len(points)), pivot, :]
    sign = torch.where((real * side[..., None, :]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    weight = skinning.weights.to(real)[..., None] * sign
    real, dual = (weight * real).sum(-2), (weight * dual).sum(-2)
    length = real.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    real, dual = real / length, dual / length
    offset = 2 * roma.quat_product(dual, roma.quat_conjugation(real))[..., :3]
    return roma.quat_action(real, points.to(real).expand_as(offset)) + offset
