r"""How many modes stand out of noise that is not white: the spectrum's bulk fitted, and its largest value simulated.

Samples of a smooth thing have noise that is alike in neighbouring numbers, whose eigenvalues have no sharp edge. Only
the noise covariance's own eigenvalues d_1 … d_p matter to the spectrum of Gaussian samples, not its directions. So
they are given a family with two parameters (BEMA: Ke, Ma & Lin 2021, arXiv:2006.00436),

    d ~ σ² Gamma(θ, 1/θ),    mean σ²;   θ → ∞ is white noise, θ → 0 a few strong directions and a long tail,

and fitted where the bulk is: with q_i(θ) the mean i-th eigenvalue of W diag(d / σ²) Wᵀ, W white, n × p,

    min over θ and σ of   Σ_i (log λ_i − log σ² q_i(θ))²,    i from `TRIM` a to (1 − TRIM) a,          (1)

in logarithms, since such spectra span decades (BEMA weighs squares). A mode is an eigenvalue above the (1 − `level`)
quantile of the largest one of that noise. Fewer than a fifth of the spectrum may be modes.

`misfit` is the root mean square of (1): what the family does not explain, as a relative error of the eigenvalues. A
tail that falls as a power is no member of the family, and its first few directions count as modes (experiments/modes).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from priors.spectrum import LEVEL

FEWEST = 8
"""Eigenvalues below which a bulk cannot be fitted."""
TRIM = 0.2
"""Share of the spectrum at each end that (1) leaves out."""
SHAPES = tuple(float(theta) for theta in np.geomspace(5e-4, 64, 25))
"""θ that are tried."""
FITTING_DRAWS = 2
TESTING_DRAWS = 100


@dataclass(frozen=True, eq=False)
class ColouredBulk:
    """A gamma family of noise that has this bulk, and the modes above it."""

    count: int
    """Number of modes."""
    threshold: float
    """What the largest value of this noise exceeds with the chance `level`, in units of the squared singular values."""
    expected: Float64[np.ndarray, "a"]
    """Mean squared singular values of this noise, decreasing."""
    concentration: float
    """θ: the smaller, the more the noise lies in few directions."""
    noise: float
    """σ, the root mean square of the noise on every number."""
    misfit: float
    """Root mean square relative error of the bulk's eigenvalues."""


def coloured_bulk(
    values: Float64[np.ndarray, "a"],
    shape: tuple[int, int],
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> ColouredBulk:
    """Fit the bulk of the squared singular values of n × p numbers, and count what exceeds it.

    Args:
        values: all min(n, p) of them, decreasing and positive.
        level: chance of taking noise for a mode.
        seed: of the simulated noise.

    Raises:
        ValueError: fewer than `FEWEST` values, not as many as `shape` says, not positive and decreasing, or `level` not
            strictly between 0 and 1.
    """
    a = min(shape)
    if len(values) != a or a < FEWEST:
        raise ValueError(
            f"need the min(n, p) squared singular values of n x p numbers, {FEWEST} at least, "
            f"got {len(values)} for {shape[0]} x {shape[1]}"
        )
    if not (np.isfinite(values).all() and (values > 0).all() and (np.diff(values) <= 0).all()):
        raise ValueError(f"need finite positive values, largest first, got {values}")
    if not 0 < level < 1:
        raise ValueError(f"need a level strictly between 0 and 1, got {level}")
    bulk = slice(math.ceil(TRIM * a), a - math.ceil(TRIM * a))
    observed = np.log(values[bulk])
    fits: list[tuple[float, float, float]] = []
    for theta in SHAPES:
        # Every θ meets the same noise, so that they differ by θ alone.
        expected = _simulated(theta, shape, FITTING_DRAWS, seed).mean(0)
        apart = observed - np.log(expected[bulk])
        fits.append((float(apart.std()), theta, math.exp(apart.mean())))
    misfit, theta, variance = min(fits)
    drawn = variance * _simulated(theta, shape, TESTING_DRAWS, seed + 1)
    threshold = float(np.quantile(drawn[:, 0], 1 - level, method="higher"))
    return ColouredBulk(
        count=int((values > threshold).sum()),
        threshold=threshold,
        expected=drawn.mean(0),
        concentration=theta,
        noise=math.sqrt(variance),
        misfit=misfit,
    )


def _simulated(
    theta: float, shape: tuple[int, int], draws: int, seed: int
) -> Float64[np.ndarray, "draws a"]:
    """Squared singular values, decreasing, of n × p noise whose columns have gamma variances of mean 1."""
    n, p = shape
    scale = np.sqrt(_population(theta, n, p))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        rows = generator.standard_normal((len(scale), n)).T * scale
        gram = rows @ rows.T if n <= len(scale) else rows.T @ rows
        found.append(np.linalg.eigvalsh(gram)[::-1][: min(n, p)])
    return np.maximum(np.array(found), np.finfo(np.float64).tiny)


def _population(theta: float, n: int, p: int) -> Float64[np.ndarray, "kept"]:
    """d / σ², decreasing: quantiles of the gamma distribution, without those that add nothing to the spectrum."""
    from scipy.stats import gamma

    d = gamma.isf((np.arange(p) + 0.5) / p, theta)
    d *= p / d.sum()
    tail = d[::-1].cumsum()[::-1]
    return d[: max(min(p, 4 * n), int((tail > 1e-9 * p).sum()))]
