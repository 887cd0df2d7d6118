r"""Least-squares splines through partly seen trajectories.

    min_c  Σ_t w_t ‖Σ_m N_m(u_t) c_m − p_t‖²  +  Σ_i λ_i ‖D_i (c − c⁰)‖²

with w_t the visibility and c⁰ a prior (0 by default). D is the identity (ridge), or the first or
second differences of the control points (P-splines; Eilers and Marx 1996): a gap in what was seen
is then held constant, or crossed in a straight line.

Clamped knots crowd at the ends, where equal steps of control points are not constant speed. So the
differences are those of the derivative's control points (general P-splines; Li and Cao 2022),
scaled by h^order, h the distance of interior knots: amid the knots they are the plain differences,
and motions of constant position (order 1) or constant velocity (order 2) cost nothing anywhere.

The normal equations  (Nᵀ W N + DᵀΛD) c = Nᵀ W p + DᵀΛD c⁰  are banded, symmetric and small: one
batched Cholesky in float64, whatever the precision of the points, since the condition number of the
basis enters squared.

Shape letters:  M control points   T instants u   D components (in shapes)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.splines.basis import basis_matrix, derivative_matrix, knot_vector


def fit(
    points: Float[Tensor, "*batch frames dim"],
    u: Float[Tensor, "frames"],
    num_ctrl: int,
    *,
    weights: Float[Tensor, "*batch frames"] | None = None,
    degree: int = 3,
    multiplicity: int = 1,
    ridge: float | Float[Tensor, "*#batch rows"] = 0.0,
    penalty_order: int = 0,
    prior: Float[Tensor, "*batch ctrl dim"] | None = None,
) -> Float[Tensor, "*batch ctrl dim"]:
    """Control points of the clamped uniform spline nearest to `points` at `u`, differentiable.

    Args:
        points: positions, in any unit; not read where the weight is 0, so they may be NaN there.
        u: clip time in [0, 1].
        multiplicity: of the interior knots; a second difference is not taken across repeated ones.
        weights: w_t ≥ 0 per trajectory and instant, such as visibility; all 1 by default.
        ridge: λ ≥ 0, in units of weight; one for all, or one for each of the M − penalty_order rows of D.
        penalty_order: 0 holds the control points near the prior, 1 their first differences, 2 their
            second ones.
        prior: c⁰, control points in the unit of `points`.

    Raises:
        ValueError: a weight or `ridge` is negative; `penalty_order` exceeds `degree`; u leaves
            [0, 1]; or some trajectory does not determine its control points, because too little of
            it has weight and the penalty does not decide the rest.
    """
    strength = torch.as_tensor(ridge, dtype=torch.float64)
    if not bool((strength >= 0).all()):
        raise ValueError(f"need ridge >= 0, got {strength.min().item():g}")
    if not 0 <= penalty_order <= degree:
        raise ValueError(f"need 0 <= penalty_order <= degree={degree}, got {penalty_order}")
    if prior is not None and prior.shape[-2] != num_ctrl:
        raise ValueError(f"need a prior of {num_ctrl} control points, got {prior.shape[-2]}")
    basis_TM = basis_matrix(u.to(points.device, torch.float64), num_ctrl, degree, multiplicity)
    target = points.double()

    if weights is None:
        gram = basis_TM.mT @ basis_TM
    else:
        if not bool((weights >= 0).all()):
            raise ValueError(f"need weights >= 0, got {weights.min().item():g}")
        weights = weights.double()
        gram = _weighted_gram(basis_TM, weights, degree)
        # The unseen is replaced before it is multiplied: 0 times NaN is NaN, in gradients as well.
        target = weights[..., None] * torch.where(weights[..., None] > 0, target, 0)
    moment = basis_TM.mT @ target

    if bool((strength > 0).any()):
        rows = _differences(num_ctrl, degree, multiplicity, penalty_order).to(gram)
        penalty_MM = rows.mT @ (strength.to(gram).unsqueeze(-1) * rows)
        gram = gram + penalty_MM
        if prior is not None:
            moment = moment + penalty_MM @ prior.double()
    factor = _cholesky(gram, float(strength.min()), penalty_order)
    return torch.cholesky_solve(moment, factor).to(points.dtype)


def _weighted_gram(
    basis_TM: Float[Tensor, "frames ctrl"], weights: Float[Tensor, "*batch frames"], degree: int
) -> Float[Tensor, "*batch ctrl ctrl"]:
    """Nᵀ W N for every trajectory by one matrix product over the band |i − j| ≤ degree."""
    M = basis_TM.shape[-1]
    index = torch.arange(M, device=basis_TM.device)
    i, j = torch.nonzero((index[:, None] - index).abs() <= degree, as_tuple=True)
    band = weights @ (basis_TM[:, i] * basis_TM[:, j])
    return (
        band.new_zeros(*weights.shape[:-1], M * M)
        .index_copy(-1, i * M + j, band)
        .unflatten(-1, (M, M))
    )


def _differences(
    num_ctrl: int, degree: int, multiplicity: int, order: int
) -> Float[Tensor, "rows ctrl"]:
    """D, the differences of the given order, `[M − order, M]`."""
    knots = knot_vector(num_ctrl, degree, multiplicity)
    spacing = 1 / (len(knots.unique()) - 1)
    return spacing**order * derivative_matrix(knots, degree, order)


def _cholesky(
    gram: Float[Tensor, "*batch ctrl ctrl"], ridge: float, penalty_order: int
) -> Float[Tensor, "*batch ctrl ctrl"]:
    factor, failed = torch.linalg.cholesky_ex(gram)
    # A pivot is what is left of a control point's weight once the earlier ones have explained their
    # share. Where the truth is 0, rounding leaves up to about 1e-11 of it, so an answer from less
    # than 1e-10 is noise. The plain ridge alone makes every system regular, however small it is.
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    share = pivots / gram.diagonal(dim1=-2, dim2=-1)
    tolerance = 0.0 if ridge > 0 and penalty_order == 0 else 1e-10
    singular = (failed > 0) | ~(share > tolerance).all(-1)
    if bool(singular.any()):
        raise ValueError(
            f"need enough weighted instants, or a ridge, to determine {gram.shape[-1]} control "
            f"points; got {int(singular.sum())} of {singular.numel()} systems singular with "
            f"ridge={ridge:g}, penalty_order={penalty_order}"
        )
    return factor
