r"""What the eigenvalues of pure noise look like: the laws of Marčenko–Pastur, Wigner and Tracy–Widom.

Let W be an a × b matrix of independent numbers of mean 0 and variance 1, a ≤ b, and β = a / b. As a and b
grow, the eigenvalues x of W Wᵀ / b follow the Marčenko–Pastur law (Marčenko & Pastur 1967)

    f(x) = √((x₊ − x)(x − x₋)) / (2π β x),     x± = (1 ± √β)²,                                     (1)

whose mean is 1 and whose variance is β. With x = 1 + β + 2√β cos θ its distribution function has a closed form,

    F(x) = 1 − (2/π) [ (1+β) θ / 4β − sin θ / 2√β − (1−β)/2β · arctan( (1−√β)/(1+√β) tan(θ/2) ) ].   (2)

Where the matrix is much longer than high, β → 0, the law is Wigner's semicircle (Bai & Yin 1988): centre 1,
radius 2√β,

    f(x) = 2 √(r² − (x − c)²) / (π r²).                                                             (3)

The largest eigenvalue of a finite W Wᵀ fluctuates about the edge (Johnstone 2001; centring of Ma 2012),

    λ₁ ≈ μ + s · TW₁,   μ = (√a' + √b')²,   s = (√a' + √b')(1/√a' + 1/√b')^{1/3},   a' = a − ½, b' = b − ½,  (4)

with the Tracy–Widom law of order 1, here by Chiani's shifted gamma distribution (2014), right to 0.01 from
the 90th to the 99th percentile, where tests are made.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class MarchenkoPastur:
    """Eigenvalues of W Wᵀ / b for an a × b matrix of white noise with variance `scale`, a ≤ b.

    Raises:
        ValueError: `ratio` = a / b is not in (0, 1], or `scale` is not positive.
    """

    ratio: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.ratio <= 1 and 0 < self.scale < math.inf):
            raise ValueError(
                f"need 0 < ratio <= 1 and a positive scale, got {self.ratio} and {self.scale}"
            )

    @property
    def edges(self) -> tuple[float, float]:
        """x₋ and x₊ of (1)."""
        root = math.sqrt(self.ratio)
        return self.scale * (1 - root) ** 2, self.scale * (1 + root) ** 2

    def density(self, x: Float64[np.ndarray, "values"]) -> Float64[np.ndarray, "values"]:
        """f(x), 0 outside the edges."""
        low, high = self.edges
        inside = (x > low) & (x < high)
        at = np.where(inside, x, (low + high) / 2)
        value = np.sqrt((high - at) * (at - low)) / (2 * np.pi * self.ratio * self.scale * at)
        return np.where(inside, value, 0.0)

    def cdf(self, x: Float64[np.ndarray, "values"]) -> Float64[np.ndarray, "values"]:
        """F(x) by (2)."""
        beta, root = self.ratio, math.sqrt(self.ratio)
        theta = np.arccos(np.clip((x / self.scale - 1 - beta) / (2 * root), -1, 1))
        # The two-argument arc tangent holds at θ = π, where the tangent is infinite.
        turn = np.arctan2((1 - root) * np.sin(theta / 2), (1 + root) * np.cos(theta / 2))
        area = (1 + beta) * theta / (4 * beta) - np.sin(theta) / (2 * root)
        return 1 - 2 / np.pi * (area - (1 - beta) / (2 * beta) * turn)

    def quantile(self, share: float) -> float:
        """x with F(x) = share.

        Raises:
            ValueError: `share` is not strictly between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"need a share strictly between 0 and 1, got {share}")
        return self.scale * _unit_quantile(self.ratio, share)

    @property
    def semicircle(self) -> "Semicircle":
        """The limit of this law for small ratios, with the same mean and variance."""
        return Semicircle(self.scale, 2 * math.sqrt(self.ratio) * self.scale)


@functools.lru_cache(maxsize=4096)
def _unit_quantile(ratio: float, share: float) -> float:
    from scipy.optimize import brentq

    law = MarchenkoPastur(ratio)
    found = brentq(lambda x: float(law.cdf(np.array([x]))[0]) - share, *law.edges, xtol=1e-13)
    return float(found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Semicircle:
    """Wigner's law (3) about `centre`."""

    centre: float = 0.0
    radius: float = 2.0

    def density(self, x: Float64[np.ndarray, "values"]) -> Float64[np.ndarray, "values"]:
        """f(x), 0 outside the circle."""
        z = np.clip((x - self.centre) / self.radius, -1, 1)
        return 2 * np.sqrt(1 - z**2) / (np.pi * self.radius)

    def cdf(self, x: Float64[np.ndarray, "values"]) -> Float64[np.ndarray, "values"]:
        """F(x) = ½ + (z √(1 − z²) + arcsin z) / π with z = (x − c) / r."""
        z = np.clip((x - self.centre) / self.radius, -1, 1)
        return 0.5 + (z * np.sqrt(1 - z**2) + np.arcsin(z)) / np.pi


def tracy_widom_quantile(share: float) -> float:
    """Quantile of TW₁, by Chiani's shifted gamma distribution.

    Raises:
        ValueError: `share` is not strictly between 0 and 1.
    """
    from scipy.stats import gamma

    if not 0 < share < 1:
        raise ValueError(f"need a share strictly between 0 and 1, got {share}")
    return float(gamma.ppf(share, 46.446, loc=-9.84801, scale=0.186054))


def largest_of_noise(a: int, b: int, share: float) -> float:
    """Quantile of the largest eigenvalue of W Wᵀ, W an a × b matrix of unit white noise, by (4).

    Raises:
        ValueError: a or b is below 1, or `share` is not strictly between 0 and 1.
    """
    if min(a, b) < 1:
        raise ValueError(f"need a matrix of at least 1 x 1, got {a} x {b}")
    high, long = math.sqrt(a - 0.5), math.sqrt(b - 0.5)
    spread = (high + long) * (1 / high + 1 / long) ** (1 / 3)
    return (high + long) ** 2 + spread * tracy_widom_quantile(share)
