r"""What a detail looks like in numbers: how its energy lies over wavelengths, how its amplitudes are distributed.

With the waves (k, φ) of the base (`laplacian`), a scalar detail d and bands b of wavelength 2π / k,

    energy_b = Σ_{w in b} (φ_wᵀ M d)² / (number of waves in b)        per wave, so that white noise is flat

Two spectra differ by the root mean square over bands of the difference in decibels; two sets of amplitudes by their
Wasserstein distance (the mean difference of the sorted amplitudes), in the unit of d. The fair CRPS of samples s_1..s_K
of a value y, a proper score (Gneiting & Raftery 2007), is Σ_i |s_i − y| / K − Σ_{i≠j} |s_i − s_j| / 2 K (K − 1).

Drift is `offsets.drift`. Shape letters:  V vertices   W waves   B bands   K samples
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion4d.detail.laplacian import Laplacian


@dataclass(frozen=True, eq=False)
class Waves:
    """The longest waves of a surface, sorted into bands."""

    numbers: Float[np.ndarray, "W"]
    shapes: Float[np.ndarray, "V W"]
    mass: Float[np.ndarray, "V"]
    band: np.ndarray
    """Of every wave; −1 where it is in none."""
    bands: int

    def coefficients(self, signal: Float[np.ndarray, "V"]) -> Float[np.ndarray, "W"]:
        """Of the waves in the signal."""
        return self.shapes.T @ (self.mass * signal)

    def spectrum(self, signal: Float[np.ndarray, "V"]) -> Float[np.ndarray, "B"]:
        """Energy per wave in every band; NaN where a band has no wave."""
        kept = self.band >= 0
        energy = np.bincount(
            self.band[kept], self.coefficients(signal)[kept] ** 2, minlength=self.bands
        )
        count = np.bincount(self.band[kept], minlength=self.bands)
        return np.divide(energy, count, out=np.full(self.bands, np.nan), where=count > 0)


def waves_of(surface: Laplacian, wavelengths: Float[np.ndarray, "edges"]) -> Waves:
    """All waves of a surface down to the shortest of these wavelengths, the edges of the bands.

    Raises:
        ValueError: wavelengths that do not fall, or are not positive.
    """
    edges = np.asarray(wavelengths, np.float64)
    if len(edges) < 2 or not ((np.diff(edges) < 0).all() and edges[-1] > 0):
        raise ValueError(f"need two or more falling, positive wavelengths, got {edges.tolist()}")
    # Weyl's law, and some more.
    expected = surface.mass.sum() * (2 * np.pi / edges[-1]) ** 2 / (4 * np.pi)
    count = min(int(1.15 * expected) + 20, len(surface.mass) - 1)
    numbers, shapes = surface.waves(count)
    band = np.digitize(numbers, 2 * np.pi / edges) - 1
    band[band == len(edges) - 1] = -1
    return Waves(numbers, shapes, surface.mass, band, len(edges) - 1)


def spectra_apart(first: Float[np.ndarray, "B"], second: Float[np.ndarray, "B"]) -> float:
    """Root mean square difference in dB, over the bands that both have."""
    both = np.isfinite(first) & np.isfinite(second) & (first > 0) & (second > 0)
    if not both.any():
        return float("nan")
    return float(np.sqrt(np.mean((10 * np.log10(first[both] / second[both])) ** 2)))


def amplitudes_apart(first: Float[np.ndarray, "V"], second: Float[np.ndarray, "*"]) -> float:
    """Wasserstein distance of two sets of amplitudes."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(np.asarray(first).ravel(), np.asarray(second).ravel()))


def fair_crps(samples: Float[np.ndarray, "K V"], truth: Float[np.ndarray, "V"]) -> float:
    """Mean over the vertices.

    Raises:
        ValueError: fewer than two samples.
    """
    K = len(samples)
    if K < 2:
        raise ValueError(f"need at least 2 samples, got {K}")
    error = np.abs(samples - truth).mean(0)
    ranks = np.arange(1, K + 1)[:, None]
    # Σ_{i≠j} |s_i − s_j| of sorted values.
    apart = 2 * ((2 * ranks - K - 1) * np.sort(samples, 0)).sum(0)
    return float((error - apart / (2 * K * (K - 1))).mean())
