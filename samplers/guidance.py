r"""Guidance maps denoisers to denoisers, so that every sampler gets every guidance.

    cfg         x̂_0 = D(x_t | ∅) + w (D(x_t | e) − D(x_t | ∅))      Ho & Salimans 2022, eq. 6
    corrected   x̂_0 = C(D(x_t))                                      C: x_0 → x_0
    descended   x̂_0 = D(x_t) − (σ_t² / α_t) Σ ∇_{x_t} E(D(x_t))      Chung et al. 2023 (DPS), eq. 11

Ho & Salimans' own w is ours less 1. At fixed x_t the answers x̂_0, ε and velocity are affine in each
other, so mixing x̂_0 is the same as mixing any of them. C may be a posterior step, such as a
least-squares projection onto what was observed.

E says how badly an x_0 fits what was observed, as minus a log likelihood; Σ is the covariance of the noise. By
Tweedie's formula x̂_0 = (x_t + σ² Σ ∇ log p(x_t)) / α, so the gradient that DPS adds to the score moves x̂_0 as
above; and since Cov[x_0 | x_t] = (σ² / α) ∂x̂_0/∂x_t Σ, that is −Cov[x_0 | x_t] ∇E(x̂_0): what x_t leaves open
moves, and with it what it is correlated with. DPS divides by the misfit; here the weight of an energy stays what it
was given.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.predictions import Prediction
from samplers.schedules import Schedule
from samplers.solve import Denoise
from samplers.tables import Table

Correct = Callable[[Tensor], Tensor]
"""x̂_0 `[K, ...]` → a better x̂_0 `[K, ...]`."""

Energy = Callable[[Tensor], Tensor]
"""x_0 `[K, ...]` → how badly each of the K fits, `[K]`."""


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
        # A copy, since both may be one network that writes into the same memory.
        x_0_uncond = uncond(x_t, t).clone()
        return x_0_uncond + scale * (cond(x_t, t) - x_0_uncond)

    return guided


def corrected(denoise: Denoise, correct: Correct) -> Denoise:
    """Correct every estimate of x_0 before the step uses it.

    The last step returns the estimate itself, so a sample meets whatever `correct` enforces.
    Gradients flow through `correct` as through the denoiser. One that takes a gradient of its own opens
    `torch.enable_grad`, since sampling usually runs under `torch.no_grad`.
    """

    def denoise_and_correct(x_t: Tensor, t: Tensor) -> Tensor:
        return correct(denoise(x_t, t))

    return denoise_and_correct


def weighted(energies: Sequence[tuple[float, Energy]]) -> Energy:
    """The weighted sum of several energies. Raises ValueError for none, or a weight that is negative or not finite."""
    if not energies:
        raise ValueError("need at least one energy, got none")
    for weight, _ in energies:
        if not 0 <= weight < math.inf:
            raise ValueError(f"need finite weights of at least 0, got {weight}")

    def total(x_0: Tensor) -> Tensor:
        return torch.stack([weight * energy(x_0) for weight, energy in energies]).sum(0)

    return total


@dataclass(frozen=True)
class Descended:
    """A denoiser whose estimates are moved; see `descended`, which makes it."""

    denoise: Denoise
    energy: Energy
    schedule: Schedule
    covariance: Correct | None = None

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0 − (σ² / α) Σ ∇E; x̂_0 itself where α = 0."""
        alpha, sigma = (f(t.double()).item() for f in (self.schedule.alpha, self.schedule.sigma))
        if alpha == 0:
            return self.denoise(x_t, t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x_0 = self.denoise(x, t)
            (slope,) = torch.autograd.grad(self.energy(x_0).sum(), x)
        if self.covariance is not None:
            slope = self.covariance(slope)
        return x_0.detach() - sigma**2 / alpha * slope

    def moves(self, table: Table) -> bool:
        """Whether any row of this table asks at a time at which estimates are moved."""
        return bool((self.schedule.alpha(table.times[:-1]) != 0).any())


def descended(
    denoise: Denoise, energy: Energy, schedule: Schedule, covariance: Correct | None = None
) -> Descended:
    """Move every estimate of x_0 down the gradient of an energy, taken through the denoiser.

    covariance: multiplies by that of the noise, Σ; None for white noise. At t = 1 nothing is moved: where α = 0, x_t
    says nothing of x_0. So a table of ONE row from t = 1 makes this do nothing at all (`moves` tells): take two rows or
    more. A step costs one evaluation and its gradient in x_t, which is as many multiply-adds again: count two.
    """
    return Descended(denoise, energy, schedule, covariance)
