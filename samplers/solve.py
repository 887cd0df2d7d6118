"""The one loop: apply a table's rows to a denoiser, from noise to data.

x_s = a x_t + b x̂_0 + Σ_j d_j x̂_0^(−j) + e ε, row by row (see tables.py). Guidance is in the denoiser,
randomness and progress are arguments, and nothing is kept between calls. Gradients flow through all steps unless
the caller says otherwise, so that a few-step sampler can itself be trained.
"""

from collections import deque
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from samplers.noise import Noise
from samplers.tables import Table

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t `[K, ...]`, t scalar) → E[x_0 | x_t] `[K, ...]`."""

Progress = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


def solve(
    table: Table,
    denoise: Denoise,
    x_1: Float[Tensor, "K *shape"],
    noise: Noise | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "K *shape"]:
    """Carry x_1 along the table's grid; the denoiser is evaluated once a step.

    x_1: `[K, *shape]`, noised to the table's first time; pure noise where that is t = 1.
    noise: needed by a stochastic table, unused by a deterministic one.
    Returns x at the table's last time, the sample x_0 where that is t = 0, in the dtype of x_1. The
    denoiser sees t in at least float32 on x_1's device.
    Raises ValueError for a stochastic table without noise, or a denoiser that changes the shape.
    """
    if table.is_stochastic and noise is None:
        raise ValueError("this table draws noise at its steps: need noise, got None")
    # Python floats hold the float64 coefficients and are cast by the update itself, without waiting
    # for a device.
    rows = zip(
        *(c.tolist() for c in (table.times[:-1], table.a, table.b, table.d, table.e)), strict=True
    )
    time_dtype = torch.promote_types(x_1.dtype, torch.float32)
    x = x_1
    earlier: deque[Tensor] = deque(maxlen=table.lags)
    for step, (t, a, b, d, e) in enumerate(rows):
        x_0 = denoise(x, torch.tensor(t, dtype=time_dtype, device=x.device))
        if x_0.shape != x.shape:
            raise ValueError(
                f"the denoiser must keep the shape {tuple(x.shape)}, got {tuple(x_0.shape)}"
            )
        x_s = a * x + b * x_0
        for weight, answer in zip(d, earlier, strict=False):
            if weight != 0:
                x_s = x_s + weight * answer
        if e != 0 and noise is not None:
            x_s = x_s + e * noise.at(step).to(x)
        x = x_s
        earlier.appendleft(x_0)
        if progress is not None:
            progress(step + 1, table.num_steps)
    return x
