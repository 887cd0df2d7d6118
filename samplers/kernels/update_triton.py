"""The fused update as one Triton kernel, for CUDA.

Sums are in float32 whatever is stored, so half precision rounds once. What a row does not have (a second prediction,
earlier answers, noise, a clamp) is compiled out. Tested against the reference in Triton's interpreter on a CPU
(TRITON_INTERPRET=1 before triton is imported) and compiled ahead of time for compute capability 9.0; its authors had no
GPU, so it was never run or timed on one.
"""

import os
from typing import Any, Final

import torch
from torch import Tensor

from samplers.kernels.update import Outputs, Parts, Row, allocate, check, finished, inputs_of

triton: Any
try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    triton = None

BLOCK: Final = 1024
MAX_LAGS: Final = 3


def require() -> None:
    """Raise ValueError where triton is not installed."""
    if triton is None:
        raise ValueError("triton needs the package of that name: pip install 'diffusion4d[triton]'")


def update(
    row: Row,
    x_t: Tensor,
    parts: Parts,
    earlier: tuple[Tensor, ...],
    noise: Tensor | None,
    want_answer: bool = False,
    out: Outputs | None = None,
) -> Outputs:
    """As update_reference.update, on float32, bfloat16 or float16 CUDA tensors without gradient; up to 3 d.

    An input that is not contiguous is copied first. Raises ValueError for what it cannot do (update.check).
    """
    if len(row.d) > MAX_LAGS:
        raise ValueError(f"triton needs at most {MAX_LAGS} earlier answers, got {len(row.d)}")
    inputs = inputs_of(x_t, parts, earlier, noise)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    check("triton", row, inputs, parts, out, dtypes=dtypes, device="cpu" if interpreted else "cuda")
    x_s, x_0 = allocate(x_t, parts, want_answer, out)
    state = x_t.detach().contiguous()
    # A pointer has to be given for what is absent; the kernel does not read it.
    predictions = _padded(parts.predictions, 2, state)
    answers = _padded(earlier, MAX_LAGS, state)
    drawn = state if noise is None else noise.detach().contiguous()
    d = (*row.d, *(0.0,) * (MAX_LAGS - len(row.d)))
    gains = (*parts.gains, 0.0)[:2]
    size = state.numel()
    launch: Any = _update_kernel
    launch[(triton.cdiv(size, BLOCK),)](
        *(state, *predictions, *answers, drawn, x_s, x_s if x_0 is None else x_0),
        *(size, parts.keep, *gains, parts.limit or 0.0, row.a, row.b, *d, row.e),
        TWO=len(parts.predictions) == 2,
        LAGS=len(row.d),
        NOISE=row.e != 0,
        CLAMP=parts.limit is not None,
        ANSWER=x_0 is not None,
        BLOCK=BLOCK,
    )
    return finished(x_s, x_0, parts, want_answer)


def _padded(tensors: tuple[Tensor, ...], count: int, fill: Tensor) -> tuple[Tensor, ...]:
    given = tuple(tensor.detach().contiguous() for tensor in tensors)
    return given + (fill,) * (count - len(given))


if triton is not None:

    @triton.jit
    def _update_kernel(
        x_ptr,
        first_ptr,
        second_ptr,
        lag1_ptr,
        lag2_ptr,
        lag3_ptr,
        noise_ptr,
        out_ptr,
        answer_ptr,
        size,
        keep,
        gain1,
        gain2,
        limit,
        a,
        b,
        d1,
        d2,
        d3,
        e,
        TWO: tl.constexpr,
        LAGS: tl.constexpr,
        NOISE: tl.constexpr,
        CLAMP: tl.constexpr,
        ANSWER: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # 64 bits: a thousand hypotheses of a large scene pass 2^31 numbers.
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        # Cast before the first product: in half precision it would be rounded.
        x = tl.load(x_ptr + place, mask=inside).to(tl.float32)
        x_0 = keep * x + gain1 * tl.load(first_ptr + place, mask=inside).to(tl.float32)
        if TWO:
            x_0 += gain2 * tl.load(second_ptr + place, mask=inside).to(tl.float32)
        if CLAMP:
            x_0 = tl.minimum(tl.maximum(x_0, -limit), limit)
        total = a * x + b * x_0
        if LAGS > 0:
            total += d1 * tl.load(lag1_ptr + place, mask=inside).to(tl.float32)
        if LAGS > 1:
            total += d2 * tl.load(lag2_ptr + place, mask=inside).to(tl.float32)
        if LAGS > 2:
            total += d3 * tl.load(lag3_ptr + place, mask=inside).to(tl.float32)
        if NOISE:
            total += e * tl.load(noise_ptr + place, mask=inside).to(tl.float32)
        tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=inside)
        if ANSWER:
            tl.store(answer_ptr + place, x_0.to(answer_ptr.dtype.element_ty), mask=inside)
