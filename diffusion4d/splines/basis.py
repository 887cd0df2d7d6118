r"""B-spline bases, and the linear maps between two of them.

A basis of degree P on knots t_0 ≤ … ≤ t_{M+P} follows from the Cox–de Boor recursion
(de Boor 1978, *A Practical Guide to Splines*, ch. IX), with 0/0 read as 0:

    N_{i,0}(u) = 1 for t_i ≤ u < t_{i+1}, else 0
    N_{i,r}(u) = (u − t_i) / (t_{i+r} − t_i) N_{i,r−1}(u)
               + (t_{i+r+1} − u) / (t_{i+r+1} − t_{i+1}) N_{i+1,r−1}(u)

Feeding level r an argument a_r of its own, instead of the same u at every level, gives the
*blossom* (polar form) of the spline's piece over the span the recursion starts in (Ramshaw 1989).
The control points of the same curve on finer knots τ are the blossoms at (τ_{k+1}, …, τ_{k+P}),
started in the span of τ_k; their weights are the discrete B-splines of the Oslo algorithm (Cohen,
Lyche and Riesenfeld 1980), and for one new knot those of Boehm (1980). So one recursion serves
evaluation, knot insertion, subdivision, Bézier extraction and degree elevation.

Clamped uniform knots repeat each end P + 1 times, and the knots between are simple and equidistant:
p(0) = c_0, p(1) = c_{M−1}, and the curve is C^{P−1}. Where each knot between is repeated μ times it is
C^{P−μ}; with μ = P it is Bézier pieces that share their ends.

Shape letters:  M control points   T instants u   P degree
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def knot_vector(num_ctrl: int, degree: int = 3, multiplicity: int = 1) -> Float64[Tensor, "knots"]:
    """Clamped uniform knots on [0, 1], `[num_ctrl + degree + 1]`, float64.

    Args:
        multiplicity: μ ≤ degree, how often each interior knot is repeated.

    Raises:
        ValueError: `degree` is negative, `num_ctrl` is not above it, or the interior knots cannot be
            repeated so often.
    """
    if degree < 0 or num_ctrl <= degree:
        raise ValueError(
            f"need degree >= 0 and num_ctrl > degree, got num_ctrl={num_ctrl}, degree={degree}"
        )
    inner = num_ctrl - degree - 1
    if not 1 <= multiplicity <= max(degree, 1) or inner % multiplicity:
        raise ValueError(
            f"need 1 <= multiplicity <= degree={degree}, and {inner} interior knots to be a "
            f"multiple of it, got {multiplicity}"
        )
    num_spans = inner // multiplicity + 1
    # Dividing integers, unlike linspace, gives the float64 nearest to each i / num_spans.
    breaks = torch.arange(num_spans + 1, dtype=torch.float64) / num_spans
    repeated = breaks[1:-1].repeat_interleave(multiplicity)
    return torch.cat([breaks.new_zeros(degree + 1), repeated, breaks.new_ones(degree + 1)])


def greville(num_ctrl: int, degree: int = 3) -> Float64[Tensor, "ctrl"]:
    """Greville abscissae ξ_m = (t_{m+1} + … + t_{m+P}) / P of clamped uniform knots, `[num_ctrl]`.

    With c_m = ξ_m the spline is p(u) = u, so ξ_m is the instant control point m belongs to. In
    degree 0 there is nothing to average; a piece belongs to the middle of its span.
    """
    knots = knot_vector(num_ctrl, degree)
    if degree == 0:
        return (knots[1:] + knots[:-1]) / 2
    return knots[1:-1].unfold(0, degree, 1).mean(-1)


def basis_functions(
    u: Float[Tensor, "*shape"], knots: Float[Tensor, "knots"], degree: int
) -> Float[Tensor, "*shape ctrl"]:
    """N_{m,P}(u) of all M = len(knots) − P − 1 functions; differentiable in u, right end included.

    The result has the dtype and device of `u`. Where a derivative jumps, its value from the right
    is taken (at the right end, from the left).

    Raises:
        ValueError: some u is outside [t_P, t_M] or not a number, or not in float32 or float64.
    """
    knots = knots.to(u)
    check_domain(u, knots[degree], knots[-degree - 1])
    return _recursion(u, [u] * degree, knots)


def check_domain(
    u: Float[Tensor, "*shape"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> None:
    """Raise a ValueError unless u is float32 or float64 and every value is in [low, high]."""
    if u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"need u in float32 or float64, got {u.dtype}")
    if u.numel() and not bool(((u >= low) & (u <= high)).all()):
        raise ValueError(
            f"need every u in [{low.item():.9g}, {high.item():.9g}], "
            f"got values from {u.min().item():.9g} to {u.max().item():.9g}"
        )


def basis_matrix(
    u: Float[Tensor, "frames"], num_ctrl: int, degree: int = 3, multiplicity: int = 1
) -> Float[Tensor, "frames ctrl"]:
    """Clamped uniform basis `[T, M]` at u ∈ [0, 1]: positions are `basis_matrix(u, M) @ ctrl`.

    Rows are non-negative and sum to one; at most degree + 1 entries of a row are not zero.

    Raises:
        ValueError: as `knot_vector` and `basis_functions`.
    """
    return basis_functions(u, knot_vector(num_ctrl, degree, multiplicity), degree)


def derivative_matrix(
    knots: Float[Tensor, "knots"], degree: int, order: int = 1
) -> Float64[Tensor, "lower ctrl"]:
    """Control points of the `order`-th derivative from those of the curve, `[M − order, M]`.

    The derivative has degree P − order on `knots[order:-order]`, and its control points are
    c'_m = P (c_{m+1} − c_m) / (t_{m+P+1} − t_{m+1})  (de Boor 1978, eq. X.15).

    Raises:
        ValueError: `order` is not in 0 … degree.
    """
    if not 0 <= order <= degree:
        raise ValueError(f"need 0 <= order <= degree, got order={order}, degree={degree}")
    knots = knots.to("cpu", torch.float64)
    matrix = torch.eye(len(knots) - degree - 1, dtype=torch.float64)
    for lower in range(order):
        inner = knots[lower + 1 : len(knots) - lower - 1]
        p = degree - lower
        matrix = p * _inverse_gaps(inner, p)[:, None] * matrix.diff(dim=0)
    return matrix


def refinement_matrix(
    knots: Float[Tensor, "knots"], finer: Float[Tensor, "finer"], degree: int
) -> Float64[Tensor, "finer_ctrl ctrl"]:
    """Control points of the same curve on `finer` knots, of which `knots` is a subsequence."""
    knots, finer = knots.to("cpu", torch.float64), finer.to("cpu", torch.float64)
    count = len(finer) - degree - 1
    args = [finer[r : r + count] for r in range(1, degree + 1)]
    return _recursion(finer[:count], args, knots)


def elevation_matrix(
    knots: Float[Tensor, "knots"], elevated: Float[Tensor, "elevated"], degree: int
) -> Float64[Tensor, "elevated_ctrl ctrl"]:
    """Control points of the same curve in degree P + 1, on knots where each break has one more.

    A polynomial's blossom in degree P + 1 is the mean of its blossoms in degree P over leaving out
    one argument (Ramshaw 1989).
    """
    knots, elevated = knots.to("cpu", torch.float64), elevated.to("cpu", torch.float64)
    count = len(elevated) - degree - 2
    args = [elevated[r : r + count] for r in range(1, degree + 2)]
    terms = [
        _recursion(elevated[:count], args[:i] + args[i + 1 :], knots) for i in range(degree + 1)
    ]
    return torch.stack(terms).mean(0)


def _recursion(
    start: Float[Tensor, "*shape"],
    args: list[Float[Tensor, "*shape"]],
    knots: Float[Tensor, "knots"],
) -> Float[Tensor, "*shape ctrl"]:
    """Cox–de Boor from the span of `start`, level r with the argument `args[r − 1]`."""
    degree = len(args)
    # The closed right end matters: without it every basis function is 0 at u = 1, and the last
    # frame collapses to the origin. The end belongs to the last span that is not empty.
    spans = torch.searchsorted(knots, start.detach().contiguous(), right=True) - 1
    last = torch.searchsorted(knots, knots[-degree - 1 :][:1]) - 1
    spans = torch.minimum(spans, last)
    values = (spans[..., None] == torch.arange(len(knots) - 1, device=knots.device)).to(knots.dtype)
    for r, arg in enumerate(args, start=1):
        inverse = _inverse_gaps(knots, r)
        arg = arg[..., None]
        rising = (arg - knots[: len(inverse)]) * inverse * values[..., : len(inverse)]
        falling = (knots[r:] - arg) * inverse * values[..., : len(inverse)]
        values = rising[..., :-1] + falling[..., 1:]
    return values


def _inverse_gaps(knots: Float[Tensor, "knots"], r: int) -> Float[Tensor, "gaps"]:
    """1 / (t_{i+r} − t_i), and 0 where the knots coincide."""
    gaps = knots[r:] - knots[:-r]
    return torch.where(gaps > 0, 1 / torch.where(gaps > 0, gaps, 1), 0)
