r"""The low-rank shape prior: every frame is a mix of few basis shapes (Bregler et al. 2000).

    S = [X_1 … X_N at frame 1; …; at frame T],   3T × N,   rank ≤ 3 B for B basis shapes, ≤ 3 for a rigid thing

after the mean of each row is taken out (where the shape is, no basis shape has to say). Nearest in rank: truncated
singular values (Eckart & Young 1936). Nearest under a price on the nuclear norm, the convex stand-in for rank that
Dai et al. (2012) recover shapes with:

    argmin_Z  ½ ‖Z − S‖² + τ ‖Z‖_*  =  U max(0, Σ − τ) Vᵀ        (Cai, Candès & Shen 2010)            (1)

Shape letters:  K hypotheses (any batch)   N points   T frames   B basis shapes
"""

import torch
from jaxtyping import Float
from torch import Tensor


def shape_matrix(points: Float[Tensor, "*K N T 3"]) -> Float[Tensor, "*K rows N"]:
    """S, rows (frame, axis) and columns points."""
    return points.movedim(-3, -1).flatten(-3, -2)


def points_of(matrix: Float[Tensor, "*K rows N"]) -> Float[Tensor, "*K N T 3"]:
    """The points of S."""
    return matrix.unflatten(-2, (-1, 3)).movedim(-1, -3)


def truncated(points: Float[Tensor, "*K N T 3"], rank: int) -> Float[Tensor, "*K N T 3"]:
    """The nearest motion whose centred S has this rank.

    Raises:
        ValueError: the rank is negative.
    """
    if rank < 0:
        raise ValueError(f"need rank >= 0, got {rank}")
    centre, left, values, right = _decomposed(points)
    return centre + points_of((left[..., :rank] * values[..., None, :rank]) @ right[..., :rank, :])


def shrunk(points: Float[Tensor, "*K N T 3"], price: float) -> Float[Tensor, "*K N T 3"]:
    """(1) with τ = `price`, in the unit of the points.

    Raises:
        ValueError: the price is negative.
    """
    if price < 0:
        raise ValueError(f"need price >= 0, got {price}")
    centre, left, values, right = _decomposed(points)
    return centre + points_of((left * (values - price).clamp_min(0)[..., None, :]) @ right)


def beyond_rank(points: Float[Tensor, "*K N T 3"], rank: int) -> Float[Tensor, "*K"]:
    """Mean squared distance from the nearest motion of this rank: the squared singular values beyond, over N T.

    Raises:
        ValueError: the rank is negative.
    """
    if rank < 0:
        raise ValueError(f"need rank >= 0, got {rank}")
    values = torch.linalg.svdvals(_centred(points))
    return values[..., rank:].square().sum(-1) / (points.shape[-3] * points.shape[-2])


def nuclear_norm(points: Float[Tensor, "*K N T 3"]) -> Float[Tensor, "*K"]:
    """‖S‖_* of the centred S over √(N T): the convex price of rank, in the unit of the points."""
    values = torch.linalg.svdvals(_centred(points))
    return values.sum(-1) / (points.shape[-3] * points.shape[-2]) ** 0.5


def _centred(points: Float[Tensor, "*K N T 3"]) -> Float[Tensor, "*K rows N"]:
    return shape_matrix(points - points.mean(-3, keepdim=True))


def _decomposed(points: Float[Tensor, "*K N T 3"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centre = points.mean(-3, keepdim=True)
    left, values, right = torch.linalg.svd(_centred(points), full_matrices=False)
    return centre, left, values, right
