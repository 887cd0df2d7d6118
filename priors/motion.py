r"""Energies of motion: what is known of how things move before anything is seen. All are differentiable.

    smoothness    1/N Σ_n Σ_ij G_ij ⟨c_{n,i}, c_{n,j}⟩ = 1/N Σ_n ∫ ‖X_n^{(q)}(u)‖² du                       (1)
    pace          1/N Σ_n variance of ‖X_{n,t+1} − X_{n,t}‖ over t / ((mean step)² + (ρ |X_n|)²)             (2)
    speed limit   1/N Σ_n 1/(T−1) Σ_t max(0, ‖X_{n,t+1} − X_{n,t}‖ / Δu_t − limit)²                          (3)
    background    Σ_n w_n 1/T Σ_t ‖X_{n,t} − X̄_n‖² / Σ_n w_n                                               (4)

(1) is exact, in control points; the Gram matrix G of the basis' q-th derivatives comes from whoever knows the basis
(`diffusion4d.splines.gram_matrix`). The others are of points at T instants; `on_control_points` makes each an energy
of control points through the basis matrix at those instants. So every one can rank hypotheses or guide a sampler:
control points [*K, N, M, 3] in, one number a hypothesis out.

(2) is the squared coefficient of variation of a point's steps: 0 for natural curves. Its floor, with |X_n| the root
mean square distance from the origin and ρ = `REST`, makes rest no motion: steps that are rounding, or a few hundredths
of a pixel, have no pace to speak of.

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
REST = 1e-4
"""ρ: a step that is this share of the distance from the camera is rest; 0.03 px at a focal length of 256 px."""


def smoothness(ctrl: Float[Tensor, "*K N M 3"], gram: Float[Tensor, "M M"]) -> Float[Tensor, "*K"]:
    """(1): the mean over points of ∫ ‖X^{(q)}‖² du, with `gram` the Gram matrix of the basis' q-th derivatives.

    Raises:
        ValueError: shapes that do not fit.
    """
    _require_paths(ctrl, 1)
    if gram.shape != (ctrl.shape[-2],) * 2:
        raise ValueError(f"need gram {[ctrl.shape[-2]] * 2}, got {list(gram.shape)}")
    return torch.einsum("...nid,ij,...njd->...n", ctrl, gram.to(ctrl), ctrl).mean(-1)


def uneven_pace(points: Float[Tensor, "*K N T 3"]) -> Float[Tensor, "*K"]:
    """(2), averaged over the points; 0 where a point rests or its speed is constant.

    The points are meant to be at equidistant instants.

    Raises:
        ValueError: no [*K, N, T, 3] with T >= 2.
    """
    _require_paths(points, 2)
    # vector_norm has gradient 0 at 0; the root of a sum of squares has NaN.
    steps = torch.linalg.vector_norm(points.diff(dim=-2), dim=-1)
    mean = steps.mean(-1)
    variance = (steps - mean[..., None]).square().mean(-1)
    rest = REST**2 * points.square().sum(-1).mean(-1)
    usual = (mean.square() + rest).clamp_min(torch.finfo(points.dtype).tiny)
    return (variance / usual).mean(-1)


def speeding(
    points: Float[Tensor, "*K N T 3"], u: Float[Tensor, "T"], limit: float
) -> Float[Tensor, "*K"]:
    """(3): squared speed above `limit`, in the unit of the points for the whole clip.

    Raises:
        ValueError: the limit is negative, u does not increase or is not of the T >= 2 instants of the points.
    """
    _require_paths(points, 2)
    if u.shape != points.shape[-2:-1]:
        raise ValueError(
            f"need u [{points.shape[-2]}] of the points' instants, got {list(u.shape)}"
        )
    # Written so that NaN fails too.
    if not (limit >= 0 and bool((u.diff() > 0).all())):
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
        ValueError: a weight is negative or not finite, all are 0, or there is not one a point.
    """
    _require_paths(points, 1)
    if weights.shape != points.shape[-3:-2]:
        raise ValueError(f"need weights [{points.shape[-3]}], got {list(weights.shape)}")
    usable = (weights >= 0) & (weights < torch.inf)
    if not bool(usable.all() and (weights > 0).any()):
        raise ValueError(f"need weights >= 0, one of them above, got {weights.tolist()}")
    weights = weights.to(points)
    away = points - points.mean(-2, keepdim=True)
    return away.square().sum(-1).mean(-1) @ (weights / weights.sum())


def on_control_points(energy: Energy, basis: Float[Tensor, "T M"]) -> Energy:
    """The energy of points at T instants as one of control points: they are `basis @ ctrl`.

    The energy that is returned raises ValueError for control points that are not as many as the basis has functions.
    """

    def of_ctrl(ctrl: Float[Tensor, "*K N M 3"]) -> Float[Tensor, "*K"]:
        _require_paths(ctrl, 1)
        if ctrl.shape[-2] != basis.shape[-1]:
            raise ValueError(f"need {basis.shape[-1]} control points, got {ctrl.shape[-2]}")
        return energy(basis.to(ctrl) @ ctrl)

    return of_ctrl


def _require_paths(points: Tensor, fewest: int) -> None:
    if points.ndim < 3 or points.shape[-1] != 3 or points.shape[-2] < fewest or 0 in points.shape:
        raise ValueError(
            f"need points [*K, N, T, 3] at T >= {fewest} instants, got {list(points.shape)}"
        )
