r"""Energies of motion: what is known of how things move before anything is seen. All are differentiable.

    smoothness    1/N Σ_n Σ_ij G_ij ⟨c_{n,i}, c_{n,j}⟩ = 1/N Σ_n ∫ ‖X_n^{(q)}(u)‖² du                       (1)
    pace          1/N Σ_n (1/(T−1) Σ_t ‖X_{n,t+1} − X_{n,t}‖² / (mean step)² − 1) ≥ 0, 0 for natural curves    (2)
    speed limit   1/N Σ_n 1/(T−1) Σ_t max(0, ‖X_{n,t+1} − X_{n,t}‖ / Δu_t − limit)²                          (3)
    background    Σ_n w_n 1/T Σ_t ‖X_{n,t} − X̄_n‖² / Σ_n w_n                                               (4)

(1) is exact, in control points; the Gram matrix G of the basis' q-th derivatives comes from whoever knows the basis
(`diffusion4d.splines.gram_matrix`). The others are of points at T instants; `on_control_points` makes each an energy
of control points through the basis matrix at those instants. So every one can rank hypotheses or guide a sampler:
control points [*K, N, M, 3] in, one number a hypothesis out.

The static background (4) is right where points are in the world, or in a camera that does not move. (2) has no
unit, (1) that of length² for u in [0, 1], (3) of speed², (4) of length².

Shape letters:  K hypotheses (any batch)   N points   M control points   T instants
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Energy = Callable[[Tensor], Tensor]
"""[*K, N, M or T, 3] to [*K]."""


def smoothness(ctrl: Float[Tensor, "*K N M 3"], gram: Float[Tensor, "M M"]) -> Float[Tensor, "*K"]:
    """(1): the mean over points of ∫ ‖X^{(q)}‖² du, with `gram` the Gram matrix of the basis' q-th derivatives."""
    return torch.einsum("...nid,ij,...njd->...n", ctrl, gram.to(ctrl), ctrl).mean(-1)


def uneven_pace(points: Float[Tensor, "*K N T 3"]) -> Float[Tensor, "*K"]:
    """(2): squared coefficient of variation of a point's steps, averaged; 0 where it rests or its speed is constant.

    The points are meant to be at equidistant instants.
    """
    # vector_norm has gradient 0 at 0; the root of a sum of squares has NaN.
    steps = torch.linalg.vector_norm(points.diff(dim=-2), dim=-1)
    mean = steps.mean(-1)
    moving = mean > 0
    relative = steps.square().mean(-1) / torch.where(moving, mean, 1).square() - 1
    return torch.where(moving, relative, 0).mean(-1)


def speeding(
    points: Float[Tensor, "*K N T 3"], u: Float[Tensor, "T"], limit: float
) -> Float[Tensor, "*K"]:
    """(3): squared speed above `limit`, in the unit of the points for the whole clip.

    Raises:
        ValueError: the limit is negative, or u does not increase.
    """
    if limit < 0 or bool((u.diff() <= 0).any()):
        raise ValueError(f"need limit >= 0 and increasing u, got {limit} and {u.tolist()}")
    speed = torch.linalg.vector_norm(points.diff(dim=-2), dim=-1) / u.diff().to(points)
    return (speed - limit).clamp_min(0).square().mean((-2, -1))


def background_motion(
    points: Float[Tensor, "*K N T 3"], weights: Float[Tensor, "N"]
) -> Float[Tensor, "*K"]:
    """(4): mean squared distance of background points from their own mean place.

    Args:
        weights: w ≥ 0, how surely each point is background; their scale does not matter.

    Raises:
        ValueError: a weight is negative, or all are 0.
    """
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError(f"need weights >= 0, one of them above, got {weights.tolist()}")
    weights = weights.to(points)
    away = points - points.mean(-2, keepdim=True)
    return away.square().sum(-1).mean(-1) @ (weights / weights.sum())


def on_control_points(energy: Energy, basis: Float[Tensor, "T M"]) -> Energy:
    """The energy of points at T instants as one of control points: they are `basis @ ctrl`."""

    def of_ctrl(ctrl: Float[Tensor, "*K N M 3"]) -> Float[Tensor, "*K"]:
        return energy(basis.to(ctrl) @ ctrl)

    return of_ctrl
