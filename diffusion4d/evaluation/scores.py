r"""The numbers of one method on one clip, from which every table and plot is made.

A mean over clips, a ratio of pooled sums or a histogram: each is kept as sums a clip, so that drawing clips again (the
bootstrap of `summary`) needs nothing but weights over clips.

Shape letters:  K samples   N points   T frames   S subsets   A axes   R ranks   G bins.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion4d import metrics
from diffusion4d.evaluation.cases import Case
from diffusion4d.evaluation.methods import NUM_SCORED

PARTS = {"": slice(0, 3), "_lateral": slice(0, 2), "_depth": slice(2, 3)}
"""Suffix of a metric, and the axes it is taken over."""

BEST_OF = (1, 4, NUM_SCORED)

EDGES = np.geomspace(1e-4, 10, 26)
"""Edges of the bins over the predicted spread of one axis (scene units); what lies outside falls into the end bins."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """One method on one clip; S is in the order of `cases.SUBSETS`, NaN where a subset holds nothing.

    values: metric -> [S]. spread: suffix of the part -> [S, 2], variance and squared error.
    ranks: [S, A, R] histograms of the truth's rank on each axis. binned: [S, 2, G, 3] for lateral and depth: how many,
    sum of variances, sum of squared errors, by predicted spread. None without enough samples.
    """

    values: dict[str, Float[np.ndarray, "S"]]
    spread: dict[str, Float[np.ndarray, "S 2"]]
    ranks: Int64[np.ndarray, "S A R"] | None
    binned: Float[np.ndarray, "S 2 G 3"] | None


def score(samples: Float[Tensor, "K N T 3"], case: Case) -> Scored:
    """Every metric on every subset. Energy scores over 16 samples, the rest over all of them."""
    truth, masks, K = case.truth, case.masks, len(samples)
    some = samples[:NUM_SCORED]
    centre = samples.mean(0)
    values: dict[str, Tensor] = {"ade": metrics.min_ade_joint(centre[None], truth, masks)}
    for suffix, part in PARTS.items():
        x, y = samples[..., part], truth[..., part]
        energy = metrics.energy_scores(some[..., part], y, masks)
        values[f"energy_score{suffix}"] = energy.joint
        values[f"point_energy_score{suffix}"] = energy.point
        values[f"rms{suffix}"] = metrics.rms_error(centre[..., part], y, masks)
        if K > 1:
            values[f"diversity{suffix}"] = energy.diversity
        if suffix:
            values[f"crps{suffix}"] = metrics.mean_crps(x, y, masks)
    values |= best_of(samples, truth, masks)
    values |= realism(some, case)
    spread, ranks, binned = {}, None, None
    if K == metrics.CALIBRATION_DRAWS:
        for suffix, part in PARTS.items():
            x, y = samples[..., part], truth[..., part]
            spread[suffix] = torch.stack(metrics.spread_and_skill(x, y, masks), -1).numpy()
            values[f"sharpness{suffix}"] = metrics.sharpness(x, masks)
        ranks = torch.stack(
            [metrics.rank_histogram(samples[..., a], truth[..., a], masks) for a in range(3)], -2
        ).numpy()
        binned = errors_by_spread(samples, truth, masks)
    return Scored({n: v.double().numpy() for n, v in values.items()}, spread, ranks, binned)


def best_of(samples: Tensor, truth: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Expected best of k, for each k there are samples for; a single answer is its own best of any number."""
    found = {}
    K = len(samples)
    for k in BEST_OF:
        if k > K > 1:
            continue
        suffix = "" if k == NUM_SCORED else f"_{k}"
        kept = min(k, K)
        found[f"min_ade_joint{suffix}"] = metrics.min_ade_joint(samples, truth, masks, kept)
        found[f"min_ade_marginal{suffix}"] = metrics.min_ade_marginal(samples, truth, masks, kept)
        found[f"min_fde_joint{suffix}"] = metrics.min_fde_joint(samples, truth, masks, kept)
    return found


def realism(points: Float[Tensor, "K N T 3"], case: Case) -> dict[str, Tensor]:
    """Edge stretch, jitter and reprojection, in the first subset alone; NaN in the others.

    Edges are the nearest neighbours of the truth, so that samples and truth are asked about the same ones; points whose
    truth is not known throughout are left out.
    """
    whole = case.masks[0].all(-1)
    seen = case.clip.visibility > 0
    found = {
        "reprojection": metrics.reprojection(
            case.project(points), case.clip.tracks, seen, min(case.clip.size)
        )
    }
    if int(whole.sum()) > 1:
        edges = metrics.nearest_neighbours(case.truth[whole, 0])
        found["edge_stretch"] = metrics.edge_stretch(points[:, whole], edges).mean()
        found["jitter"] = metrics.jitter(points[:, whole]).mean()
    nowhere = torch.full((len(case.masks) - 1,), torch.nan)
    return {name: torch.cat([value[None], nowhere]) for name, value in found.items()}


def errors_by_spread(
    samples: Float[Tensor, "K N T 3"], truth: Float[Tensor, "N T 3"], masks: Tensor
) -> Float[np.ndarray, "S 2 G 3"]:
    """Counts, variances and squared errors of the mean, by predicted spread."""
    variance = metrics.variance(samples).double().numpy()
    squared = (samples.mean(0) - truth).square().double().numpy()
    place = np.searchsorted(EDGES[1:-1], np.sqrt(variance))
    bins = len(EDGES) - 1
    found = np.zeros((len(masks), 2, bins, 3))
    for s, mask in enumerate(masks.numpy()):
        for p, part in enumerate((slice(0, 2), slice(2, 3))):
            where = place[mask][:, part].ravel()
            for j, weights in enumerate((None, variance, squared)):
                w = None if weights is None else weights[mask][:, part].ravel()
                found[s, p, :, j] = np.bincount(where, w, minlength=bins)
    return found
