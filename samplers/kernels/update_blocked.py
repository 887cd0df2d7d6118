"""The fused update in place, a block at a time: a block of the sums stays in the cache until it is finished.

So main memory is read once for every input and written once for every output, with torch's own vectorised adds and
nothing to compile. Where no x̂_0 is wanted or clamped, its parts are added to x_s directly.
"""

from typing import Final

import torch
from torch import Tensor

from samplers.kernels.update import Outputs, Parts, Row, allocate, check, finished, inputs_of

BLOCK_BYTES: Final = 2**18
"""Of one tensor. Three blocks are in use at a time: x_s, x̂_0 and the input; together they fit a second-level cache."""


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
    """As update_reference.update, on float32 or float64 CPU tensors without gradient.

    An input that is not contiguous is copied first. Raises ValueError for what it cannot do (update.check).
    """
    inputs = inputs_of(x_t, parts, earlier, noise)
    check("blocked", row, inputs, parts, out, dtypes=(torch.float32, torch.float64), device="cpu")
    x_s, x_0 = allocate(x_t, parts, want_answer, out)
    state, *others = (tensor.detach().reshape(-1) for tensor in inputs.values())
    predictions, others = others[: len(parts.gains)], others[len(parts.gains) :]
    answer = [(state, parts.keep), *zip(predictions, parts.gains, strict=True)]
    weights = (*row.d, row.e) if noise is not None else row.d
    rest = list(zip(others, weights, strict=True))
    if x_0 is None and parts.limit is None:
        folded = [(tensor, row.b * gain) for tensor, gain in answer[1:]]
        _blocks(x_s, [(state, row.a + row.b * parts.keep), *folded, *rest])
    else:
        _blocks_with_answer(x_s, x_0, answer, parts.limit, row, [(state, row.a), *rest])
    return finished(x_s, x_0, parts, want_answer)


Terms = list[tuple[Tensor, float]]


def _blocks(x_s: Tensor, terms: Terms) -> None:
    flat = x_s.view(-1)
    for block in _slices(flat):
        _sum(flat[block], terms, block)


def _blocks_with_answer(
    x_s: Tensor, x_0: Tensor | None, answer: Terms, limit: float | None, row: Row, terms: Terms
) -> None:
    flat = x_s.view(-1)
    kept = None if x_0 is None else x_0.view(-1)
    scratch = flat.new_empty(min(len(flat), BLOCK_BYTES // flat.element_size()))
    for block in _slices(flat):
        target = flat[block]
        estimate = scratch[: len(target)] if kept is None else kept[block]
        _sum(estimate, answer, block)
        if limit is not None:
            estimate.clamp_(-limit, limit)
        _sum(target, terms, block)
        target.add_(estimate, alpha=row.b)


def _slices(flat: Tensor) -> list[slice]:
    size = BLOCK_BYTES // flat.element_size()
    return [slice(start, start + size) for start in range(0, len(flat), size)]


def _sum(target: Tensor, terms: Terms, block: slice) -> None:
    """Σ weight · tensor over one block; what has weight 0 is not read."""
    used = [(tensor, weight) for tensor, weight in terms if weight != 0]
    if not used:
        target.zero_()
        return
    torch.mul(used[0][0][block], used[0][1], out=target)
    for tensor, weight in used[1:]:
        target.add_(tensor[block], alpha=weight)
