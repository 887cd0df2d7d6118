"""The fused update in plain torch: what all backends compute, and what gradients flow through."""

from torch import Tensor

from samplers.kernels.update import Outputs, Parts, Row


def require() -> None:
    """Works wherever torch does."""


def update(
    row: Row,
    x_t: Tensor,
    parts: Parts,
    earlier: tuple[Tensor, ...],
    noise: Tensor | None,
    want_answer: bool = False,
    out: Outputs | None = None,
) -> Outputs:
    """x_s and, where asked for, x̂_0. Any dtype, any device; a weight of 0 leaves its input unread."""
    x_0 = answer(x_t, parts)
    x_s = row.a * x_t + row.b * x_0
    for weight, x_0_earlier in zip(row.d, earlier, strict=True):
        if weight != 0:
            x_s = x_s + weight * x_0_earlier
    if row.e != 0 and noise is not None:
        x_s = x_s + row.e * noise
    if out is not None:
        x_s = out[0].copy_(x_s)
        x_0 = x_0 if out[1] is None else out[1].copy_(x_0)
    return x_s, x_0 if want_answer else None


def answer(x_t: Tensor, parts: Parts) -> Tensor:
    """x̂_0 out of its parts."""
    if parts.is_whole:
        return parts.predictions[0]
    x_0 = parts.gains[0] * parts.predictions[0]
    for gain, prediction in zip(parts.gains[1:], parts.predictions[1:], strict=True):
        x_0 = x_0 + gain * prediction
    if parts.keep != 0:
        x_0 = x_0 + parts.keep * x_t
    return x_0 if parts.limit is None else x_0.clamp(-parts.limit, parts.limit)
