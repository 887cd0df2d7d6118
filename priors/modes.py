r"""Principal modes of a set of samples, as many as stand out of the noise.

    x^k = x̄ + Σ_i s^k_i m_i + noise,     m_i orthonormal,   i = 1 … r

by singular values of the centred samples. How many stand out is `spectrum`'s word where the rest looks like white
noise, and `coloured`'s where it does not: samples that are smooth in space and time have no white noise. K centred
samples have K − 1 degrees of freedom: an orthogonal change of samples turns them into K − 1 rows of the same noise and
a row of zeros.

The samples are hypotheses of one clip, or the frames of one motion; "orthonormal" is meant in the numbers as they
are given, so a metric of one's own goes in and out as a linear map (`diffusion4d.deformation` does that).

Shape letters:  K samples   r modes
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from priors import coloured
from priors.coloured import ColouredBulk, coloured_bulk
from priors.spectrum import FEWEST, LEVEL, Spectrum, spectrum

Noise = Literal["auto", "white", "coloured"]
EVEN = 4.0
"""θ from which noise counts as white: its variances then differ by less than half of themselves."""


@dataclass(frozen=True, eq=False)
class Modes:
    """Mean, modes and each sample's scores in them."""

    mean: Float64[Tensor, "*shape"]
    directions: Float64[Tensor, "r *shape"]
    """m, orthonormal over all axes of `shape`; the largest entry of each is positive."""
    scores: Float64[Tensor, "K r"]
    """s; its columns have mean 0 and are orthogonal."""
    spectrum: Spectrum
    """All values, and what the white law makes of them."""
    bulk: ColouredBulk | None
    """What coloured noise makes of them; None where the white law was taken."""

    @property
    def noise(self) -> Literal["white", "coloured"]:
        """Which of the two counted the modes."""
        return "white" if self.bulk is None else "coloured"

    @property
    def threshold(self) -> float:
        """Squared singular value that a mode exceeds."""
        return self.spectrum.threshold if self.bulk is None else self.bulk.threshold

    @property
    def deviation(self) -> Float64[Tensor, "r"]:
        """Standard deviation of each mode's scores over the samples; of white noise without what it adds."""
        if self.bulk is None:
            return torch.from_numpy(self.spectrum.variance).sqrt()
        return self.scores.square().sum(0).div(self.spectrum.shape[0]).sqrt()

    def at(self, scores: Float64[Tensor, "S r"]) -> Float64[Tensor, "S *shape"]:
        """x̄ + Σ_i s_i m_i."""
        return self.mean + torch.tensordot(scores, self.directions, 1)


def modes(
    samples: Float64[Tensor, "K *shape"],
    *,
    noise: Noise = "auto",
    level: float = LEVEL,
    seed: int = 0,
) -> Modes:
    """The modes of K samples.

    Args:
        noise: what modes have to stand out of. auto: white, where the rest of the spectrum looks like it or is too
            short to say what it looks like, else coloured; the result's `noise` tells.
        level: chance of taking noise for a mode, a step.
        seed: of the simulated coloured noise.

    Raises:
        ValueError: fewer than `FEWEST` + 1 samples or `FEWEST` numbers a sample (coloured: `coloured.FEWEST`); a number
            that is not finite; `level` not strictly between 0 and 1; an unknown `noise`.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"need noise out of {', '.join(get_args(Noise))}, got {noise!r}")
    rows = samples.flatten(1)
    K, P = rows.shape
    if K <= FEWEST or P < FEWEST:
        raise ValueError(
            f"need at least {FEWEST + 1} samples of at least {FEWEST} numbers, got {K} of {P}"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError(f"need finite samples, got {int((~rows.isfinite()).sum())} that are not")
    mean = rows.mean(0)
    left, values, right = torch.linalg.svd(rows - mean, full_matrices=False)
    squared, size = values[: min(K - 1, P)].square().numpy(), (K - 1, P)
    found = spectrum(squared, size, level=level)
    bulk = None
    enough = min(size) >= coloured.FEWEST and found.noise > 0
    if noise == "coloured" or (noise == "auto" and enough):
        bulk = coloured_bulk(squared, size, level=level, seed=seed)
        # A little colour passes the test of the white law, and yet its largest values exceed the white edge.
        if noise == "auto" and found.holds and bulk.concentration >= EVEN:
            bulk = None
    r = found.count if bulk is None else bulk.count
    directions, scores = right[:r], left[:, :r] * values[:r]
    # A singular vector's sign is arbitrary; this choice makes runs comparable.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions, scores = directions * largest.sign(), scores * largest.sign().mT
    shape = samples.shape[1:]
    return Modes(mean.reshape(shape), directions.reshape(r, *shape), scores, found, bulk)
