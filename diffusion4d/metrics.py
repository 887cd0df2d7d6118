r"""Proper scores of sampled trajectories, and what is reported beside them.

Everything is in the unit of its arguments, without any alignment. `masks` holds one subset or several: masks over
(point, frame). Values of a subset that holds nothing are NaN. The D axes are 3, or some: 2 lateral, 1 depth.

    ES   = 1/K sum_k |x^k - x|  -  1 / 2K(K-1) sum_{k != l} |x^k - x^l|
    CRPS = the same for one number

(Gneiting & Raftery 2007; the fair form, unbiased in K: Ferro 2014) with |.| the root mean square over the
chosen (n, t). One sample is a deterministic answer: its energy score is its error.

Best of K from M >= K draws, in expectation over which K are kept: with the errors in ascending order,

    E_K = sum_i e_(i) C(M - i, K - 1) / C(M, K),    i = 1 .. M - K + 1.

A central interval at level q runs between the order statistics p (K + 1), p = (1 -+ q) / 2 (Weibull). Where these are
whole numbers a calibrated ensemble covers q exactly, whatever its distribution. With K = 39 that is so at every level
of LEVELS, so 39 draws are what calibration is measured on.

Shape letters:  K samples   N points   T frames   D axes   S subsets   Q levels   P pairs   E edges.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Levels of the central intervals that calibration error is the mean over."""

CALIBRATION_DRAWS = 39
"""The least K at which p (K + 1) is whole at every level."""

NEIGHBOURS = 6


def _mean(
    values: Float[Tensor, "*batch N T"], masks: Bool[Tensor, "*S N T"]
) -> Float[Tensor, "..."]:
    """Mean over the chosen (n, t), [*batch, *S]; NaN where none is chosen."""
    weight = masks.flatten(-2).to(values)
    shape = (*values.shape[:-2], *masks.shape[:-2])
    sums = values.flatten(-2) @ weight.reshape(-1, weight.shape[-1]).mT
    return sums.reshape(shape) / weight.sum(-1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(-1)


def ascending(samples: Float[Tensor, "K *shape"]) -> Float[Tensor, "K *shape"]:
    """Order statistics of every number: the samples, sorted on their own."""
    if samples.device.type != "cpu" or samples.requires_grad:
        return samples.sort(0).values
    # numpy's sort is vectorised where samples lie beside one another: 16 times as fast as torch's over the first axis.
    rows = np.ascontiguousarray(np.moveaxis(samples.numpy(), 0, -1))
    rows.sort(-1)
    return torch.from_numpy(np.moveaxis(rows, -1, 0))


def variance(samples: Float[Tensor, "K *shape"]) -> Float[Tensor, "*shape"]:
    """Variance of the distribution the samples and the truth come from: (K + 1) / K of the unbiased estimate.

    That is what the mean of K samples misses the truth by, squared, if the ensemble is calibrated.
    """
    K = len(samples)
    return (samples - samples.mean(0)).square().sum(0) * ((K + 1) / (K * (K - 1)))


class EnergyScores(NamedTuple):
    """joint: of whole scenes. point: per point, then averaged. diversity: mean RMS distance of two samples (APD)."""

    joint: Float[Tensor, "*S"]
    point: Float[Tensor, "*S"]
    diversity: Float[Tensor, "*S"]


def energy_scores(
    samples: Float[Tensor, "K N T D"],
    truth: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "*S N T"],
) -> EnergyScores:
    """Fair energy scores. For K = 1 the error itself, and no diversity.

    The score per point leaves out points without a chosen frame.
    """
    weight_NTS = masks.reshape(-1, *masks.shape[-2:]).to(samples).permute(1, 2, 0)
    frames_NS = weight_NTS.sum(1).double()
    present_NS = (frames_NS > 0).double()

    def norms(squares_ANT: Tensor) -> tuple[Tensor, Tensor]:
        """RMS over the scene [A, S], and over every point, then their mean [A, S]."""
        sums_NAS = torch.bmm(squares_ANT.transpose(0, 1), weight_NTS).double()
        scene = (sums_NAS.sum(0) / frames_NS.sum(0)).sqrt()
        each = (sums_NAS / frames_NS.clamp_min(1)[:, None]).sqrt()
        return scene, each.sum(0) / present_NS.sum(0)

    joint, point = (norm.mean(0) for norm in norms(_squared(samples, truth)))
    K = len(samples)
    apart = torch.zeros_like(joint)
    if K > 1:
        # Row by row of the matrix of pairs: all pairs at once would be K^2 / 2 scenes.
        rows = [norms(_squared(samples[i + 1 :], samples[i])) for i in range(K - 1)]
        apart, apart_by_point = (torch.cat(part).mean(0) for part in zip(*rows, strict=True))
        joint, point = joint - apart / 2, point - apart_by_point / 2
    shape = masks.shape[:-2]
    return EnergyScores(*(x.to(samples).reshape(shape) for x in (joint, point, apart)))


def energy_score(
    samples: Float[Tensor, "K N T D"],
    truth: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "*S N T"],
) -> Float[Tensor, "*S"]:
    """Fair energy score of whole scenes (ES_joint)."""
    return energy_scores(samples, truth, masks).joint


def point_energy_score(
    samples: Float[Tensor, "K N T D"],
    truth: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "*S N T"],
) -> Float[Tensor, "*S"]:
    """Fair energy score point by point, then the mean over points (ES_point)."""
    return energy_scores(samples, truth, masks).point


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
    spread = (rank.view(-1, *[1] * truth.ndim) * ascending(samples)).sum(0)
    return error - spread / (K * (K - 1))


def mean_crps(
    samples: Float[Tensor, "K N T D"],
    truth: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "*S N T"],
) -> Float[Tensor, "*S"]:
    """CRPS of a coordinate, mean over the chosen (n, t) and the D axes."""
    return _mean(crps(samples, truth).mean(-1), masks)


def expected_best(errors: Float[Tensor, "K *shape"], k: int) -> Float[Tensor, "*shape"]:
    """Expected least error of k draws taken at random out of the K at hand.

    Raises:
        ValueError: k is not in 1 .. K.
    """
    K = len(errors)
    if not 1 <= k <= K:
        raise ValueError(f"need 1 <= k <= {K}, the draws at hand, got k={k}")
    chances = [math.comb(K - i, k - 1) / math.comb(K, k) for i in range(1, K - k + 2)]
    weight = torch.tensor(chances, dtype=errors.dtype, device=errors.device)
    return torch.tensordot(weight, ascending(errors)[: len(chances)], 1)


def min_ade_joint(
    samples: Float[Tensor, "K N T 3"],
    truth: Float[Tensor, "N T 3"],
    masks: Bool[Tensor, "*S N T"],
    k: int | None = None,
) -> Float[Tensor, "*S"]:
    """min over samples of the mean distance over the scene; k < K in expectation over which k are kept."""
    distance = _mean(_squared(samples, truth).sqrt(), masks)
    return expected_best(distance, k or len(samples))


def min_fde_joint(
    samples: Float[Tensor, "K N T 3"],
    truth: Float[Tensor, "N T 3"],
    masks: Bool[Tensor, "*S N T"],
    k: int | None = None,
) -> Float[Tensor, "*S"]:
    """The same at the last frame, over the points chosen there."""
    return min_ade_joint(samples[:, :, -1:], truth[:, -1:], masks[..., -1:], k)


def min_ade_marginal(
    samples: Float[Tensor, "K N T 3"],
    truth: Float[Tensor, "N T 3"],
    masks: Bool[Tensor, "*S N T"],
    k: int | None = None,
) -> Float[Tensor, "*S"]:
    """Every point picks its own sample: its min over samples of the mean distance over time, then the mean over points.

    Points count by their chosen frames, so that this is never more than the joint one, whatever the mask.
    """
    distance = _squared(samples, truth).sqrt()
    weight = masks.to(samples)
    frames = weight.sum(-1)
    by_point = torch.einsum("knt,...nt->k...n", distance, weight) / frames.clamp_min(1)
    best = expected_best(by_point, k or len(samples))
    return (best * frames).sum(-1) / frames.sum(-1)


def rms_error(
    answer: Float[Tensor, "N T D"],
    truth: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "*S N T"],
) -> Float[Tensor, "*S"]:
    """Root mean square distance."""
    return _mean(_squared(answer, truth), masks).sqrt()


def covered(
    samples: Float[Tensor, "K *shape"], truth: Float[Tensor, "*shape"], level: float
) -> Bool[Tensor, "*shape"]:
    """Whether the truth lies inside the central interval of this level.

    Where p (K + 1) is not whole the interval's ends are interpolated. The usual ends, at p (K - 1) + 1, would make a
    perfect ensemble of 16 look like 79 % at level 0.9.

    Raises:
        ValueError: K is too small for the level: p (K + 1) < 1.
    """
    K = len(samples)
    tail = (1 - level) / 2
    # (1 - 0.9) / 2 is a little less than 0.05, and 19 samples are enough for 0.05.
    if tail * (K + 1) < 1 - 1e-9:
        raise ValueError(f"need K >= {2 / (1 - level) - 1:.0f} samples for level {level}, got {K}")
    ordered = ascending(samples)

    def quantile(p: float) -> Tensor:
        place = max(p * (K + 1) - 1, 0.0)
        low = min(int(place), K - 2)
        return torch.lerp(ordered[low], ordered[low + 1], place - low)

    return (quantile(tail) <= truth) & (truth <= quantile(1 - tail))


def rank_of_truth(samples: Float[Tensor, "K *shape"], truth: Float[Tensor, "*shape"]) -> Tensor:
    """How many samples lie below the truth, 0 .. K; uniform for a calibrated ensemble (Talagrand)."""
    return (samples < truth).sum(0)


def rank_histogram(
    samples: Float[Tensor, "K N T"], truth: Float[Tensor, "N T"], masks: Bool[Tensor, "*S N T"]
) -> Int64[Tensor, "*S ranks"]:
    """How often the truth of one axis has each rank, [*S, K + 1]."""
    bins = len(samples) + 1
    rank = rank_of_truth(samples, truth)
    flat = masks.reshape(-1, *rank.shape)
    counts = [torch.bincount(rank[mask], minlength=bins) for mask in flat]
    return torch.stack(counts).reshape(*masks.shape[:-2], bins)


def coverage_of_ranks(histogram: Tensor, levels: tuple[float, ...] = LEVELS) -> Tensor:
    """Coverage of the central intervals, from a histogram of ranks: [*S, K + 1] -> [*S, Q].

    With j = p (K + 1) the interval from the j-th to the (K + 1 - j)-th order statistic holds the ranks j .. K - j.

    Raises:
        ValueError: p (K + 1) is not a whole number at some level.
    """
    bins = histogram.shape[-1]
    found = []
    for level in levels:
        place = (1 - level) / 2 * bins
        if abs(place - round(place)) > 1e-6 or round(place) < 1:
            raise ValueError(
                f"need K so that (1 - q) (K + 1) / 2 is whole at every level, "
                f"got K={bins - 1} at q={level}; K={CALIBRATION_DRAWS} does for steps of 0.05"
            )
        found.append(histogram[..., round(place) : bins - round(place)].sum(-1))
    return torch.stack(found, -1) / histogram.sum(-1, keepdim=True)


def calibration_error(coverage: Tensor, levels: tuple[float, ...] = LEVELS) -> Tensor:
    """Mean over levels of |coverage(q) - q|: [*S, Q] -> [*S]."""
    return (coverage - torch.tensor(levels).to(coverage)).abs().mean(-1)


def sharpness(
    samples: Float[Tensor, "K N T D"], masks: Bool[Tensor, "*S N T"], level: float = 0.9
) -> Float[Tensor, "*S"]:
    """Mean width of the central interval of this level, whose ends must be order statistics.

    Raises:
        ValueError: (1 - level) (K + 1) / 2 is not whole.
    """
    place = (1 - level) / 2 * (len(samples) + 1)
    j = round(place)
    if j < 1 or abs(place - j) > 1e-6:
        raise ValueError(f"need K so that (1 - {level}) (K + 1) / 2 is whole, got K={len(samples)}")
    ordered = ascending(samples)
    return _mean((ordered[-j] - ordered[j - 1]).mean(-1), masks)


def spread_and_skill(
    samples: Float[Tensor, "K N T D"],
    truth: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "*S N T"],
) -> tuple[Float[Tensor, "*S"], Float[Tensor, "*S"]]:
    """Mean `variance` of the ensemble, and mean squared error of its mean.

    The spread-skill ratio is the root of their quotient, each averaged over scenes first (Fortin et al. 2014).
    """
    spread = variance(samples).sum(-1)
    return _mean(spread, masks), _mean(_squared(samples.mean(0), truth), masks)


def nearest_neighbours(anchor: Float[Tensor, "N 3"]) -> Int64[Tensor, "E 2"]:
    """Edges from every point to its nearest ones in the anchor frame; fewer than six where there are fewer points."""
    apart = torch.cdist(anchor, anchor, compute_mode="donot_use_mm_for_euclid_dist")
    apart.fill_diagonal_(math.inf)
    near = apart.topk(min(NEIGHBOURS, len(anchor) - 1), largest=False).indices
    start = torch.arange(len(anchor), device=anchor.device)[:, None].expand_as(near)
    return torch.stack([start.flatten(), near.flatten()], -1)


def edge_stretch(
    points: Float[Tensor, "K N T 3"], edges: Int64[Tensor, "E 2"]
) -> Float[Tensor, "K"]:
    """RMS(|e_t| / |e_0| - 1) over edges and frames of every sample."""
    length = (points[:, edges[:, 0]] - points[:, edges[:, 1]]).norm(dim=-1)
    return (length / length[..., :1].clamp_min(1e-9) - 1).square().mean((-2, -1)).sqrt()


def jitter(points: Float[Tensor, "K N T 3"]) -> Float[Tensor, "K"]:
    """Root mean square third difference in time of every sample, in units a frame cubed."""
    third = points.diff(n=3, dim=-2)
    return third.square().sum(-1).mean((-2, -1)).sqrt()


def reprojection(
    projected: Float[Tensor, "K N T 2"],
    tracks: Float[Tensor, "N T 2"],
    seen: Bool[Tensor, "N T"],
    shorter_side: int,
) -> Float[Tensor, ""]:
    """Median distance to the tracks where seen, in px of an image whose shorter side is 256; NaN if nowhere."""
    distance = (projected - tracks).norm(dim=-1)[:, seen] * (256 / shorter_side)
    return distance.median() if distance.numel() else torch.full((), math.nan)
