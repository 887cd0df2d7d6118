r"""A B-spline curve as a value:  p(u) = Σ_m N_{m,P}(u) c_m.

Every operation returns a new curve, or an exact description of the same one, through a matrix that
`basis` works out in float64 from the knots alone. So all of them are linear in the control points,
batched, and differentiable.

Shape letters:  M control points   T instants u   S spans between distinct knots   P degree
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion4d.splines.basis import (
    basis_functions,
    check_domain,
    derivative_matrix,
    elevation_matrix,
    knot_vector,
    refinement_matrix,
)
from diffusion4d.splines.bezier import de_casteljau
from samplers.kernels import decode


@dataclass(frozen=True, eq=False)
class BSpline:
    """Curves that share their clamped knots, one for each element of the batch shape.

    Attributes:
        ctrl: c, `[*batch, M, D]`, any unit. Its dtype and device are those of all results.
        knots: `[M + P + 1]`, non-decreasing, both ends repeated P + 1 times; kept in float64 on the
            CPU, where the matrices are worked out.
        degree: P ≥ 0.

    Raises:
        ValueError: the knots are not of that kind, or do not fit the control points.
    """

    ctrl: Float[Tensor, "*batch ctrl dim"]
    knots: Float[Tensor, "knots"]
    degree: int = 3

    def __post_init__(self) -> None:
        P, M = self.degree, self.ctrl.shape[-2]
        if P < 0 or M <= P:
            raise ValueError(f"need degree >= 0 and more control points than it, got {M=}, {P=}")
        if len(self.knots) != M + P + 1:
            raise ValueError(
                f"need {M + P + 1} knots for {M} control points of degree {P}, "
                f"got {len(self.knots)}"
            )
        knots = self.knots.detach().to("cpu", torch.float64)
        clamped = bool((knots[: P + 1] == knots[0]).all() and (knots[M:] == knots[-1]).all())
        ordered = bool((knots.diff() >= 0).all() and knots[P] < knots[P + 1])
        if not (clamped and ordered and bool(knots[M - 1] < knots[M])):
            raise ValueError(
                f"need finite, non-decreasing knots whose ends are repeated exactly {P + 1} times, "
                f"got {knots.tolist()}"
            )
        object.__setattr__(self, "knots", knots)

    @staticmethod
    def clamped(ctrl: Float[Tensor, "*batch ctrl dim"], degree: int = 3) -> "BSpline":
        """The curve on clamped uniform knots over [0, 1]."""
        return BSpline(ctrl, knot_vector(ctrl.shape[-2], degree), degree)

    @property
    def breaks(self) -> Float64[Tensor, "breaks"]:
        """The distinct knots, `[S + 1]`, float64 on the CPU: the ends of the polynomial pieces."""
        return self.knots.unique_consecutive()

    def evaluate(self, u: Float[Tensor, "*shape frames"]) -> Float[Tensor, "*values frames dim"]:
        """Positions at u by the basis; `u` is `[T]`, or `[*batch, T]` for instants of each curve.

        Raises:
            ValueError: some u is outside the knots.
        """
        basis = basis_functions(self._precise(u), self.knots, self.degree).to(self.ctrl.dtype)
        if u.ndim > 1:
            return basis @ self.ctrl
        taught = torch.is_grad_enabled() and (self.ctrl.requires_grad or basis.requires_grad)
        if taught or self.ctrl.dtype not in (torch.float32, torch.float64):
            # One matrix product for the whole batch is several times faster than one for each.
            return torch.einsum("tm,...md->...td", basis, self.ctrl)
        return decode.positions(self.ctrl, basis)

    def evaluate_de_casteljau(
        self, u: Float[Tensor, "frames"]
    ) -> Float[Tensor, "*batch frames dim"]:
        """Positions at u `[T]` by de Casteljau's scheme on the Bézier segments.

        Raises:
            ValueError: some u is outside the knots.
        """
        u = self._precise(u)
        breaks = self.breaks.to(u)
        check_domain(u, breaks[0], breaks[-1])
        span_T = torch.searchsorted(breaks[1:-1], u.detach().contiguous(), right=True)
        s_T = (u - breaks[span_T]) / breaks.diff()[span_T]
        return de_casteljau(self.bezier()[..., span_T, :, :], s_T.to(self.ctrl.dtype))

    def derivative(self, order: int = 1) -> "BSpline":
        """d^order p / du^order, a spline of degree P − order.

        Raises:
            ValueError: `order` is not in 0 … degree.
        """
        matrix = derivative_matrix(self.knots, self.degree, order)
        knots = self.knots[order : len(self.knots) - order]
        return BSpline(matrix.to(self.ctrl) @ self.ctrl, knots, self.degree - order)

    def insert(self, u: float, times: int = 1) -> "BSpline":
        """The same curve with the knot u inserted `times` times.

        Degree times in all puts a control point on the curve; once more separates the two sides.

        Raises:
            ValueError: u is not strictly inside, or would be repeated more than P + 1 times.
        """
        start, end = self.breaks[0].item(), self.breaks[-1].item()
        if not start < u < end:
            raise ValueError(f"need a knot strictly between {start:g} and {end:g}, got {u:g}")
        present = int((self.knots == u).sum())
        if times < 0 or present + times > self.degree + 1:
            raise ValueError(
                f"need a knot to appear at most degree + 1 = {self.degree + 1} times, "
                f"got {present} + {times} times {u:g}"
            )
        return self._refined(torch.cat([self.knots, self.knots.new_full((times,), u)]).msort())

    def halved(self) -> "BSpline":
        """The same curve with a knot in the middle of every span; a clamped uniform one stays clamped uniform."""
        middles = (self.breaks[:-1] + self.breaks[1:]) / 2
        return self._refined(torch.cat([self.knots, middles]).msort())

    def split(self, u: float) -> tuple["BSpline", "BSpline"]:
        """The pieces before and after u. Both keep the parameter: they cover [start, u], [u, end].

        Raises:
            ValueError: u is not strictly inside.
        """
        parted = self.insert(u, max(0, self.degree + 1 - int((self.knots == u).sum())))
        before = int((parted.knots < u).sum())
        stop = before + self.degree + 1
        return (
            BSpline(parted.ctrl[..., :before, :], parted.knots[:stop], self.degree),
            BSpline(parted.ctrl[..., before:, :], parted.knots[before:], self.degree),
        )

    def elevate(self) -> "BSpline":
        """The same curve in degree P + 1; its continuity, and so each break's, stays."""
        knots = torch.cat([self.knots, self.breaks]).msort()
        matrix = elevation_matrix(self.knots, knots, self.degree)
        return BSpline(matrix.to(self.ctrl) @ self.ctrl, knots, self.degree + 1)

    def bezier(self) -> Float[Tensor, "*batch spans order dim"]:
        """Bézier control points of the S polynomial pieces, `[*batch, S, P + 1, D]`, exact."""
        knots = self.breaks.repeat_interleave(self.degree + 1)
        return self._refined(knots).ctrl.unflatten(-2, (-1, self.degree + 1))

    def _refined(self, knots: Float64[Tensor, "finer"]) -> "BSpline":
        matrix = refinement_matrix(self.knots, knots, self.degree)
        return BSpline(matrix.to(self.ctrl) @ self.ctrl, knots, self.degree)

    def _precise(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """u where the control points are, in the better precision of the two."""
        return u.to(self.ctrl.device, torch.promote_types(u.dtype, self.ctrl.dtype))


def hermite(
    curve: BSpline,
) -> tuple[
    Float64[Tensor, "keys"],
    Float[Tensor, "*batch keys dim"],
    Float[Tensor, "*batch keys dim"],
    Float[Tensor, "*batch keys dim"],
]:
    """The curve as cubic Hermite keys, one at each of the S + 1 distinct knots, without loss.

    Between keys k and k + 1, at distance h and s ∈ [0, 1] along, cubic Hermite interpolation is
    (2s³ − 3s² + 1) v_k + h (s³ − 2s² + s) out_k + (−2s³ + 3s²) v_{k+1} + h (s³ − s²) in_{k+1}.
    glTF's CUBICSPLINE is that formula with h in seconds, so tangents per u become tangents per
    second when divided by the seconds that u ∈ [0, 1] takes.

    Returns:
        u of the keys, float64; values, incoming and outgoing tangents dp/du, `[*batch, S + 1, D]`.
        The tangents of a key agree where the curve is C¹. The first incoming and the last outgoing
        tangent have no segment, and repeat their neighbour.

    Raises:
        ValueError: the degree is not 1, 2 or 3, or the curve jumps.
    """
    P = curve.degree
    if not 1 <= P <= 3:
        raise ValueError(f"need degree 1, 2 or 3 for an exact cubic Hermite form, got {P}")
    breaks = curve.breaks
    repeats = (curve.knots[P + 1 : -P - 1] == breaks[1:-1, None]).sum(-1)
    if bool((repeats > P).any()):
        raise ValueError(
            f"need a continuous curve: knots at most {P} times, got {repeats.tolist()}"
        )
    bezier = curve.bezier()
    rate = (P / breaks.diff())[:, None].to(bezier)
    outgoing = rate * (bezier[..., 1, :] - bezier[..., 0, :])
    incoming = rate * (bezier[..., -1, :] - bezier[..., -2, :])
    return (
        breaks,
        torch.cat([bezier[..., 0, :], bezier[..., -1:, -1, :]], -2),
        torch.cat([outgoing[..., :1, :], incoming], -2),
        torch.cat([outgoing, incoming[..., -1:, :]], -2),
    )
