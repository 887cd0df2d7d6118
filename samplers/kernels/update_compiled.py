"""The fused update as torch.compile makes it out of the reference, one loop over memory in C++.

Opt-in: the first call compiles for 20 s to a minute. On tensors too large for the cache it then moves twice the bytes a
second of `blocked`, as many as a copy; on small ones as many as `blocked` (decision 0005). Coefficients are passed as
tensors and sizes are dynamic, so another step or another K compiles nothing; another combination of inputs does.
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from samplers.kernels.update import Outputs, Parts, Row, allocate, check, finished, inputs_of

COMBINATIONS: Final = 128


def require() -> None:
    """Raise ValueError where there is no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise ValueError(
            f"compiled needs a C++ compiler, found neither {compiler} nor clang++: use blocked"
        )


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

    Raises ValueError for what it cannot do (update.check).
    """
    inputs = inputs_of(x_t, parts, earlier, noise)
    check("compiled", row, inputs, parts, out, dtypes=(torch.float32, torch.float64), device="cpu")
    x_s, x_0 = allocate(x_t, parts, want_answer, out)
    limit = float("inf") if parts.limit is None else parts.limit
    weights = [parts.keep, *parts.gains, limit, row.a, row.b, *row.d, row.e]
    kernel = _kernel(len(parts.gains), len(row.d), parts.limit is not None)
    # All combinations of inputs are one piece of code to torch, which gives up on it after eight of them by default.
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=COMBINATIONS):
        scalars = torch.tensor(weights, dtype=x_t.dtype).unbind()
        flat = [tensor.detach().reshape(-1) for tensor in inputs.values()]
        kernel(x_s.view(-1), None if x_0 is None else x_0.view(-1), flat, scalars)
    return finished(x_s, x_0, parts, want_answer)


@functools.cache
def _kernel(num_predictions: int, lags: int, clamped: bool) -> Callable[..., None]:
    def formula(x_s: Tensor, x_0: Tensor | None, inputs: list[Tensor], scalars: Any) -> None:
        keep, *rest = scalars
        gains, (limit, a, b, *d, e) = rest[:num_predictions], rest[num_predictions:]
        x_t, *others = inputs
        predictions, others = others[:num_predictions], others[num_predictions:]
        estimate = keep * x_t
        for gain, prediction in zip(gains, predictions, strict=True):
            estimate = estimate + gain * prediction
        if clamped:
            estimate = torch.minimum(torch.maximum(estimate, -limit), limit)
        total = a * x_t + b * estimate
        for weight, tensor in zip([*d, e], others, strict=False):
            total = total + weight * tensor
        x_s.copy_(total)
        if x_0 is not None:
            x_0.copy_(estimate)

    return torch.compile(formula, dynamic=True, fullgraph=True)
