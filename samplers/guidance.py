r"""Guidance maps denoisers to denoisers, so that every sampler gets every guidance.

    cfg         x̂_0 = D(x_t | ∅) + w (D(x_t | e) − D(x_t | ∅))      Ho & Salimans 2022, eq. 6
    corrected   x̂_0 = C(D(x_t))                                      C: x_0 → x_0

Ho & Salimans' own w is ours less 1. At fixed x_t the answers x̂_0, ε and velocity are affine in each
other, so mixing x̂_0 is the same as mixing any of them. C may be a posterior step, such as a
least-squares projection onto what was observed.
"""

import dataclasses
import math
from collections.abc import Callable

from torch import Tensor

from samplers.predictions import Prediction
from samplers.solve import Denoise

Correct = Callable[[Tensor], Tensor]
"""x̂_0 `[K, ...]` → a better x̂_0 `[K, ...]`."""


def cfg(cond: Denoise, uncond: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance: 0 ignores the evidence, 1 is the model, above 1 exaggerates it.

    Two evaluations a step; at scale 0 and 1 the one denoiser that is needed is returned itself, so
    the other is never called. Two networks of one kind, schedule and no limit stay a `Prediction`, which `solve` mixes
    within its update. Raises ValueError for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"need a finite scale, got scale={scale}")
    if scale == 0:
        return uncond
    if scale == 1:
        return cond

    if isinstance(cond, Prediction) and isinstance(uncond, Prediction):
        alone = len(cond.networks) == len(uncond.networks) == 1
        same = (cond.schedule, cond.kind) == (uncond.schedule, uncond.kind)
        if alone and same and cond.limit is None and uncond.limit is None:
            networks = (cond.networks[0], uncond.networks[0])
            return dataclasses.replace(cond, networks=networks, gains=(scale, 1 - scale))

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        x_0_uncond = uncond(x_t, t)
        return x_0_uncond + scale * (cond(x_t, t) - x_0_uncond)

    return guided


def corrected(denoise: Denoise, correct: Correct) -> Denoise:
    """Correct every estimate of x_0 before the step uses it.

    The last step returns the estimate itself, so a sample meets whatever `correct` enforces.
    `correct` runs without gradients inside `solve`; one that needs them opens `torch.enable_grad`.
    """

    def denoise_and_correct(x_t: Tensor, t: Tensor) -> Tensor:
        return correct(denoise(x_t, t))

    return denoise_and_correct
