"""The one loop: apply a table's rows to a denoiser, from noise to data.

x_s = a x_t + b x̂_0 + Σ_j d_j x̂_0^(−j) + e ε, row by row (see tables.py). Guidance is in the denoiser,
randomness and progress are arguments, and nothing is kept between calls. Gradients flow through all steps of the
reference backend unless the caller says otherwise, so that a few-step sampler can itself be trained.
"""

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from samplers.kernels.update import Backend, Parts, Row, update_of
from samplers.noise import Noise
from samplers.tables import Table

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t `[K, ...]`, t scalar) → E[x_0 | x_t] `[K, ...]`. It may write every answer into the same memory."""

Progress = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


@runtime_checkable
class InParts(Protocol):
    """A denoiser that can leave the last sums to the update (`predictions.Prediction`)."""

    def parts(self, x_t: Tensor, t: Tensor, time: float) -> Parts:
        """What x̂_0 is made of at x_t; t as a tensor and in double precision."""
        ...


def solve(
    table: Table,
    denoise: Denoise,
    x_1: Float[Tensor, "K *shape"],
    noise: Noise | None = None,
    progress: Progress | None = None,
    backend: Backend = "reference",
) -> Float[Tensor, "K *shape"]:
    """Carry x_1 along the table's rows; the denoiser is evaluated once a row.

    x_1: `[K, *shape]`, noised to the table's first time; pure noise where that is t = 1.
    noise: needed by a stochastic table, unused by a deterministic one.
    backend: who does the update (kernels/update.py). All but "reference" are for sampling alone, without gradients.
    Returns x at the table's last time, the sample x_0 where that is t = 0, in the dtype of x_1: answers of a wider one
    are rounded to it. The denoiser sees t in at least float32 on x_1's device.
    Raises ValueError for an x_1 that is not floating-point, a stochastic table without noise, noise of another shape, a
    denoiser that changes the shape or returns no floating-point tensor, or a backend that cannot do this update.
    """
    if not x_1.is_floating_point():
        raise ValueError(f"need a floating-point x_1, got {x_1.dtype}")
    if table.is_stochastic and noise is None:
        raise ValueError("this table draws noise at its steps: need noise, got None")
    update = update_of(backend)
    # Python floats hold the float64 coefficients and are cast by the update itself, without waiting
    # for a device.
    rows = zip(
        *(c.tolist() for c in (table.times[:-1], table.a, table.b, table.d, table.e)), strict=True
    )
    time_dtype = torch.promote_types(x_1.dtype, torch.float32)
    x = x_1
    earlier: deque[Tensor] = deque(maxlen=table.lags)
    for step, (time, a, b, d, e) in enumerate(rows):
        t = torch.tensor(time, dtype=time_dtype, device=x.device)
        parts = (
            denoise.parts(x, t, time) if isinstance(denoise, InParts) else Parts((denoise(x, t),))
        )
        parts = _checked(parts, x)
        fresh = _fresh(noise, step, x) if e != 0 and noise is not None else None
        row = Row(a, b, tuple(d[: len(earlier)]), e)
        x, x_0 = update(row, x, parts, tuple(earlier), fresh, table.lags > 0, None)
        if x_0 is not None:
            # A prediction that is x̂_0 already lies in the denoiser's memory, which its next answer may overwrite.
            earlier.appendleft(x_0.clone() if parts.is_whole else x_0)
        if progress is not None:
            progress(step + 1, table.num_steps)
    return x


def _checked(parts: Parts, x: Tensor) -> Parts:
    """The denoiser's answer, once it is one for x, in a dtype that is no wider than x's."""
    for prediction in parts.predictions:
        if not isinstance(prediction, Tensor):
            raise ValueError(f"the denoiser must return a tensor, got {type(prediction).__name__}")
        if prediction.shape != x.shape:
            raise ValueError(
                f"the denoiser must keep the shape {tuple(x.shape)}, got {tuple(prediction.shape)}"
            )
        if not prediction.is_floating_point():
            raise ValueError(
                f"the denoiser must return a floating-point tensor, got {prediction.dtype}"
            )
    if all(torch.promote_types(p.dtype, x.dtype) == x.dtype for p in parts.predictions):
        return parts
    return dataclasses.replace(parts, predictions=tuple(p.to(x.dtype) for p in parts.predictions))


def _fresh(noise: Noise, step: int, x: Tensor) -> Tensor:
    """The noise of a step. One draw for several items would broadcast, and they would share it."""
    fresh = noise.at(step)
    if fresh.shape != x.shape:
        raise ValueError(f"need noise of the shape {tuple(x.shape)}, got {tuple(fresh.shape)}")
    return fresh.to(x)
