r"""Proper scores of sampled trajectories, and what is reported beside them.

Everything is in the unit of its arguments, without any alignment. A subset is a mask over (point, frame).

    ES   = 1/K sum_k |x^k - x|  -  1 / 2K(K-1) sum_{k != l} |x^k - x^l|
    CRPS = the same for one number

(Gneiting & Raftery 2007; the fair form, unbiased in K: Ferro 2014) with |.| the root mean square over the
chosen (n, t). One sample is a deterministic answer: its energy score is its error.

Shape letters:  K samples   N points   T frames   Q levels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def _masked_mean(values: Float[Tensor, "*batch N T"], mask: Bool[Tensor, "N T"]) -> Tensor:
    """Mean over the chosen (n, t); NaN where none is chosen."""
    return (values * mask).sum((-2, -1)) / mask.sum()


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1)


def _pairs(K: int) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(K, K, offset=1)
    return first, second


def energy_score(
    samples: Float[Tensor, "K N T 3"], truth: Float[Tensor, "N T 3"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Fair energy score of whole scenes (ES_joint). For K = 1 the error itself."""
    error = _masked_mean(_squared(samples, truth), mask).sqrt().mean()
    if len(samples) == 1:
        return error
    first, second = _pairs(len(samples))
    # Pair by pair: all pairs at once would be K^2 times the size of a scene.
    apart = [
        _masked_mean(_squared(samples[i], samples[j]), mask).sqrt()
        for i, j in zip(first, second, strict=True)
    ]
    return error - torch.stack(apart).mean() / 2


def point_energy_score(
    samples: Float[Tensor, "K N T 3"], truth: Float[Tensor, "N T 3"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Fair energy score point by point (ES_point), then the mean over points that have a chosen frame."""
    seen = mask.any(-1)
    share = mask / mask.sum(-1, keepdim=True).clamp_min(1)

    def rms(squares: Tensor) -> Tensor:
        return (squares * share).sum(-1).sqrt()[..., seen]

    error = rms(_squared(samples, truth)).mean()
    if len(samples) == 1:
        return error
    first, second = _pairs(len(samples))
    apart = [
        rms(_squared(samples[i], samples[j])).mean() for i, j in zip(first, second, strict=True)
    ]
    return error - torch.stack(apart).mean() / 2


def crps(
    samples: Float[Tensor, "K *shape"], truth: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Fair CRPS of every number: E|X - y| - 1/2 E|X - X'|."""
    K = len(samples)
    error = (samples - truth).abs().mean(0)
    if K == 1:
        return error
    # sum_{k<l} |x_k - x_l| = sum_i (2 i - K - 1) x_(i) over the ordered sample, i = 1 .. K.
    rank = 2 * torch.arange(1, K + 1, dtype=samples.dtype, device=samples.device) - K - 1
    spread = (rank.view(-1, *[1] * truth.ndim) * samples.sort(0).values).sum(0)
    return error - spread / (K * (K - 1))


def min_ade_joint(
    samples: Float[Tensor, "K N T 3"], truth: Float[Tensor, "N T 3"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """min over samples of the mean distance over the scene."""
    return _masked_mean(_squared(samples, truth).sqrt(), mask).min()


def min_ade_marginal(
    samples: Float[Tensor, "K N T 3"], truth: Float[Tensor, "N T 3"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Mean over points of the min over samples of the mean distance over time."""
    seen = mask.any(-1)
    distance = (_squared(samples, truth).sqrt() * mask).sum(-1) / mask.sum(-1).clamp_min(1)
    return distance[:, seen].min(0).values.mean()


def rms_error(
    answer: Float[Tensor, "N T 3"], truth: Float[Tensor, "N T 3"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Root mean square distance."""
    return _masked_mean(_squared(answer, truth), mask).sqrt()


def covered(
    samples: Float[Tensor, "K *shape"], truth: Float[Tensor, "*shape"], level: float
) -> Bool[Tensor, "*shape"]:
    """Whether the truth lies inside the central interval of this level.

    The interval ends are at the order statistics p (K + 1) (Weibull). Where these are whole numbers the coverage of a
    calibrated ensemble is exactly `level` in expectation; between them the ends are interpolated. The usual ends, at
    p (K - 1) + 1, would make a perfect ensemble of 16 look like 79 % at level 0.9.

    Raises:
        ValueError: K is too small for the level: p (K + 1) < 1.
    """
    K = len(samples)
    tail = (1 - level) / 2
    # (1 - 0.9) / 2 is a little less than 0.05, and 19 samples are enough for 0.05.
    if tail * (K + 1) < 1 - 1e-9:
        raise ValueError(f"need K >= {2 / (1 - level) - 1:.0f} samples for level {level}, got {K}")
    ordered = samples.sort(0).values

    def quantile(p: float) -> Tensor:
        place = max(p * (K + 1) - 1, 0.0)
        low = min(int(place), K - 2)
        return torch.lerp(ordered[low], ordered[low + 1], place - low)

    return (quantile(tail) <= truth) & (truth <= quantile(1 - tail))


def rank_of_truth(samples: Float[Tensor, "K *shape"], truth: Float[Tensor, "*shape"]) -> Tensor:
    """How many samples lie below the truth, 0 .. K; uniform for a calibrated ensemble (Talagrand)."""
    return (samples < truth).sum(0)


def spread_and_skill(
    samples: Float[Tensor, "K N T D"], truth: Float[Tensor, "N T D"], mask: Bool[Tensor, "N T"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean variance of the ensemble, inflated by (K + 1) / K, and mean squared error of its mean.

    The spread-skill ratio is the root of their quotient, each averaged over scenes first (Fortin et al. 2014).
    """
    K = len(samples)
    variance = samples.var(0, correction=1).sum(-1) * (K + 1) / K
    return _masked_mean(variance, mask), _masked_mean(_squared(samples.mean(0), truth), mask)
