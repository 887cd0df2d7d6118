r"""Arc length, and the parameter as a function of it.

    L(u) = ∫_{start}^{u} ‖p'(v)‖ dv

The speed is smooth within a knot span wherever it does not vanish, so Gauss–Legendre quadrature,
span by span, converges geometrically in the number of nodes. Its rate falls near a point of rest,
where the speed has a kink; a knot inserted there (`BSpline.insert`) restores it.

The inverse u(s) makes a curve natural: p(u(s)) moves at constant speed. It is found by Newton's
method, safeguarded by bisection since L does not decrease (Press et al. 2007, *Numerical Recipes*,
sec. 9.4), and differentiated by the implicit function theorem:  du = (ds − dL) / ‖p'(u)‖.

Shape letters:  T instants u   Q quadrature nodes   S spans
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.splines.curve import BSpline

Rule = tuple[Float[Tensor, "nodes"], Float[Tensor, "nodes"]]


def arc_length(
    curve: BSpline, u: Float[Tensor, "*shape frames"], *, num_nodes: int = 16
) -> Float[Tensor, "*batch frames"]:
    """Length of each curve from its start to u, in the unit of its control points.

    Args:
        u: `[T]`, or `[*batch, T]` for instants of each curve.
        num_nodes: quadrature nodes in a span. On random walks of control points, which often come
            near to rest, 16 err by 2e-6 of the length (median); on steady motion by rounding.

    Raises:
        ValueError: some u is outside the knots; degree or `num_nodes` below 1.
    """
    velocity = _velocity(curve, num_nodes)
    rule = _gauss_legendre(num_nodes, curve)
    breaks = curve.breaks.to(curve.ctrl)
    u = u.to(curve.ctrl)
    span = torch.searchsorted(breaks[1:-1], u.detach().contiguous(), right=True)
    before = _length_at_breaks(velocity, breaks, rule)
    before = before.gather(-1, span.expand(*before.shape[:-1], -1))
    return before + _length_within(velocity, breaks[span], u, rule)


def parameter_at(
    curve: BSpline, length: Float[Tensor, "*shape lengths"], *, num_nodes: int = 16
) -> Float[Tensor, "*batch lengths"]:
    """u at which each curve is `length` long, differentiable in both; while it rests, any instant.

    Args:
        length: `[Q]`, or `[*batch, Q]`, between 0 and the curve's whole length.
        num_nodes: as for `arc_length`.

    Raises:
        ValueError: some length is negative or beyond the curve's own; else as `arc_length`.
    """
    velocity = _velocity(curve, num_nodes)
    length = length.to(curve.ctrl).expand(*curve.ctrl.shape[:-2], length.shape[-1])
    with torch.no_grad():
        u = _invert(curve, velocity, length, num_nodes)
        speed = _speed(velocity, u)
    ahead = length - arc_length(curve, u, num_nodes=num_nodes)
    step = torch.where(speed > 0, ahead / torch.where(speed > 0, speed, 1), 0)
    # The value of this last Newton step is rounding; its gradient is the implicit function's.
    return u + (step - step.detach())


def natural_parameter(
    curve: BSpline, fraction: Float[Tensor, "fractions"], *, num_nodes: int = 16
) -> Float[Tensor, "*batch fractions"]:
    """u(s) of each curve, with s the fraction of its own length that is covered, in [0, 1].

    A curve that never moves has every u as an answer; it gets its parameter, at constant rate.

    Raises:
        ValueError: some fraction is outside [0, 1]; else as `arc_length`.
    """
    if not bool(((fraction >= 0) & (fraction <= 1)).all()):
        raise ValueError(f"need fractions in [0, 1], got {fraction.tolist()}")
    fraction = fraction.to(curve.ctrl)
    ends = curve.breaks[[0, -1]].to(curve.ctrl)
    total = arc_length(curve, ends[1:], num_nodes=num_nodes)
    u = parameter_at(curve, fraction * total, num_nodes=num_nodes)
    return torch.where(total > 0, u, torch.lerp(ends[0], ends[1], fraction))


def _invert(
    curve: BSpline, velocity: BSpline, length: Float[Tensor, "*batch lengths"], num_nodes: int
) -> Float[Tensor, "*batch lengths"]:
    rule, breaks = _gauss_legendre(num_nodes, curve), curve.breaks.to(length)
    at_breaks = _length_at_breaks(velocity, breaks, rule)
    total = at_breaks[..., -1:]
    rounding = 16 * torch.finfo(length.dtype).eps * total
    if not bool(((length >= 0) & (length <= total + rounding)).all()):
        raise ValueError(
            f"need lengths in [0, {total.min().item():g}], "
            f"got values from {length.min().item():g} to {length.max().item():g}"
        )
    span = torch.searchsorted(at_breaks[..., 1:-1].contiguous(), length.contiguous())
    start, low, high = breaks[span], breaks[span], breaks[span + 1]
    below, above = at_breaks.gather(-1, span), at_breaks.gather(-1, span + 1)
    chord = torch.where(above > below, (length - below) / (above - below), 0).clamp(0, 1)
    u = torch.lerp(low, high, chord)
    # Newton takes about five rounds. Where a point rests bisection takes over, which gains a bit a
    # round, and a hundred rounds are more than a float64 has bits.
    for _ in range(100):
        excess = below + _length_within(velocity, start, u, rule) - length
        arrived = excess.abs() <= rounding
        if bool(arrived.all()):
            break
        low, high = torch.where(excess < 0, u, low), torch.where(excess < 0, high, u)
        newton = u - excess / _speed(velocity, u)
        inside = (newton > low) & (newton < high)
        u = torch.where(arrived, u, torch.where(inside, newton, (low + high) / 2))
    return u


def _velocity(curve: BSpline, num_nodes: int) -> BSpline:
    if curve.degree < 1 or num_nodes < 1:
        raise ValueError(
            f"need a curve of degree >= 1 and num_nodes >= 1, "
            f"got degree {curve.degree}, num_nodes {num_nodes}"
        )
    return curve.derivative()


def _speed(velocity: BSpline, u: Float[Tensor, "*shape frames"]) -> Float[Tensor, "*batch frames"]:
    # vector_norm has gradient 0 where the velocity is 0; the root of a sum of squares has NaN.
    return torch.linalg.vector_norm(velocity.evaluate(u), dim=-1)


def _gauss_legendre(num_nodes: int, curve: BSpline) -> Rule:
    """Nodes and weights on [0, 1], where the control points are."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights)
    return ((nodes + 1) / 2).to(curve.ctrl), (weights / 2).to(curve.ctrl)


def _length_at_breaks(
    velocity: BSpline, breaks: Float[Tensor, "breaks"], rule: Rule
) -> Float[Tensor, "*batch breaks"]:
    """Length of each curve from its start to every distinct knot, `[*batch, S + 1]`."""
    spans = _length_within(velocity, breaks[:-1], breaks[1:], rule)
    return torch.nn.functional.pad(spans.cumsum(-1), (1, 0))


def _length_within(
    velocity: BSpline,
    start: Float[Tensor, "*shape frames"],
    stop: Float[Tensor, "*shape frames"],
    rule: Rule,
) -> Float[Tensor, "*batch frames"]:
    """Length from `start` to `stop`, which belong to one span."""
    nodes_Q, weights_Q = rule
    gap = stop - start
    speed = _speed(velocity, (start[..., None] + gap[..., None] * nodes_Q).flatten(-2))
    return gap * (speed.unflatten(-1, (-1, len(nodes_Q))) @ weights_Q)
