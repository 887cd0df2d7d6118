r"""How many modes stand out of the noise: the spectrum of n samples of p numbers against the law of pure noise.

The model is Y = S + σ W, n × p, with S of low rank r and W white; a = min(n, p), b = max(n, p), β = a / b, and
λ₁ ≥ … ≥ λ_a the squared singular values of Y. If S has the singular values x σ √b, then (Baik, Ben Arous & Péché
2005; Benaych-Georges & Nadakuditi 2012)

    x ≤ β^{1/4}   the mode is not to be seen: λ stays at the edge σ² (√a + √b)²
    x > β^{1/4}   λ = σ² b (x² + 1)(x² + β) / x²,                                                          (1)

and the direction found in the p numbers has with the true one the squared cosine

    1 − (β + x²) / (x² (x² + 1)) where p ≥ n,    1 − β (1 + x²) / (x² (x² + β)) where p < n.               (2)

**Number and noise level**, one step for r = 0, 1, 2, …: once r modes are taken out, what is left of the noise is
an (a − r) × (b − r) matrix (the Schur complement of a Wishart matrix is one). So

    σ²(r) = median(λ_{r+1} … λ_a) / ((b − r) · median of the Marčenko–Pastur law of ratio (a − r)/(b − r))   (3)

and the number of modes is the first r at which λ_{r+1} is no larger than pure noise of level σ(r) would have it, at
the given level of the Tracy–Widom law (`laws`). (3) at r = 0 is the estimate of Gavish & Donoho (2014); the steps
are those of Kritchman & Nadler (2009), who take the mean of what is left.

Why the median: it does not mind how strong the modes are, as long as they are fewer than half the spectrum. The mean
of all eigenvalues follows the strongest mode, and hides the weaker ones behind it; the steps mend the median's bias,
since with r modes above it the median of all is not the median of the noise. Half the spectrum is also where the count
ends (`saturated`).

Noise that is not white has no such edge. `misfit`, the Kolmogorov–Smirnov distance between the rest of the
spectrum and the law, says whether the law holds.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from priors.laws import MarchenkoPastur, largest_of_noise

FEWEST = 4
"""Singular values below which no noise level can be told from them."""
LEVEL = 0.01
"""Chance of taking noise for a mode, a step."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Squared singular values of n × p numbers, and what they say of modes and noise."""

    values: Float64[np.ndarray, "a"]
    """λ, decreasing."""
    shape: tuple[int, int]
    """(n, p): independent samples, numbers of each."""
    count: int
    """r, the number of modes."""
    noise: float
    """σ, the standard deviation of the noise on every number."""
    level: float
    """Chance of taking noise for a mode."""

    @property
    def rest(self) -> tuple[int, int]:
        """(a − r, b − r): the size of the noise that is left."""
        n, p = self.shape
        return min(n, p) - self.count, max(n, p) - self.count

    @property
    def law(self) -> MarchenkoPastur:
        """The law of (the rest of `values`) / (b − r).

        Raises:
            ValueError: there is no noise.
        """
        a, b = self.rest
        return MarchenkoPastur(a / b, self.noise**2)

    @property
    def edge(self) -> float:
        """σ² (√(a − r) + √(b − r))², where the law ends, in units of `values`."""
        a, b = self.rest
        return self.noise**2 * (math.sqrt(a) + math.sqrt(b)) ** 2

    @property
    def threshold(self) -> float:
        """What the largest value of noise exceeds with the chance `level`, in units of `values`."""
        return self.noise**2 * largest_of_noise(*self.rest, 1 - self.level)

    @property
    def saturated(self) -> bool:
        """Whether half the spectrum is modes, so that there may be more."""
        return self.count >= len(self.values) // 2

    @property
    def misfit(self) -> float:
        """Largest distance between the distribution functions of the rest and of its law; 1 without noise."""
        if self.noise == 0:
            return 1.0
        a, b = self.rest
        expected = self.law.cdf(np.sort(self.values[self.count :]) / b)
        steps = np.arange(a + 1) / a
        return float(max((expected - steps[:-1]).max(), (steps[1:] - expected).max()))

    @property
    def holds(self) -> bool:
        """Whether the rest looks like white noise: `misfit` is no larger than `whitest` says."""
        return self.misfit <= whitest(self.rest[0])

    @property
    def strength(self) -> Float64[np.ndarray, "r"]:
        """x of each mode by (1), without what the noise adds."""
        n, p = self.shape
        a, b = min(n, p), max(n, p)
        if self.noise == 0:
            return np.full(self.count, math.inf)
        y = self.values[: self.count] / (self.noise**2 * b) - 1 - a / b
        # A mode just over the finite-size threshold may lie below the limit's edge, where (1) has no solution.
        root = np.sqrt(np.maximum(y**2 - 4 * a / b, 0))
        return np.sqrt(np.maximum((y + root) / 2, math.sqrt(a / b)))

    @property
    def variance(self) -> Float64[np.ndarray, "r"]:
        """Variance of each mode over the samples, without what the noise adds."""
        if self.noise == 0:
            return self.values[: self.count] / self.shape[0]
        return (self.strength * self.noise) ** 2 * max(self.shape) / self.shape[0]

    @property
    def overlap(self) -> Float64[np.ndarray, "r"]:
        """Squared cosine between each mode found and the true one, by (2)."""
        if self.noise == 0:
            return np.ones(self.count)
        n, p = self.shape
        beta, x2 = min(n, p) / max(n, p), self.strength**2
        if p >= n:
            return np.maximum(1 - (beta + x2) / (x2 * (x2 + 1)), 0)
        return np.maximum(1 - beta * (1 + x2) / (x2 * (x2 + beta)), 0)

    @property
    def effective(self) -> float:
        """Participation ratio (Σ λ)² / Σ λ²: how many equal modes would spread as much; needs no law."""
        return float(self.values.sum() ** 2 / max(np.square(self.values).sum(), 1e-300))


def whitest(a: int) -> float:
    """The `misfit` that white noise of `a` eigenvalues stays below in 99 of 100 cases.

    Eigenvalues repel each other, so their distribution function errs by about ln(a) / a, not 1 / √a as that of
    independent numbers does. The constant is measured (experiments/modes).
    """
    return (0.3 + math.log(a)) / a


def spectrum(
    values: Float64[np.ndarray, "a"], shape: tuple[int, int], *, level: float = LEVEL
) -> Spectrum:
    """Count the modes in the squared singular values of n × p numbers.

    Args:
        values: all min(n, p) of them, decreasing. Samples that were centred count as n = K − 1.
        level: chance of taking noise for a mode.

    Raises:
        ValueError: the values do not fit `shape`, are negative or not decreasing, or are fewer than `FEWEST`;
            `level` is not strictly between 0 and 1.
    """
    a, b = min(shape), max(shape)
    if len(values) != a or a < FEWEST:
        raise ValueError(
            f"need the min(n, p) squared singular values of n x p numbers, {FEWEST} at least, "
            f"got {len(values)} for {shape[0]} x {shape[1]}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all() and (np.diff(values) <= 0).all()):
        raise ValueError(f"need finite squared singular values, largest first, got {values}")
    if not 0 < level < 1:
        raise ValueError(f"need a level strictly between 0 and 1, got {level}")
    # What is left of exactly low rank is rounding, and rounding is no noise to test against.
    values = np.where(values > values[0] * (np.finfo(np.float64).eps * b) ** 2, values, 0.0)
    for r in range(a // 2 + 1):
        noise2 = float(np.median(values[r:])) / ((b - r) * _median(a - r, b - r))  # (3)
        if r == a // 2 or values[r] <= noise2 * largest_of_noise(a - r, b - r, 1 - level):
            return Spectrum(values, shape, r, math.sqrt(noise2), level)
    raise AssertionError("the last step returns")


def _median(a: int, b: int) -> float:
    return MarchenkoPastur(a / b).quantile(0.5)
