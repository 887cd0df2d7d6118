r"""Whether samples fall into clusters, into how many, and which sample stands for each.

1. Ward's hierarchy (1963), cut into 2 … `MOST` clusters: deterministic, no start to choose.
2. The cut with the largest mean silhouette (Rousseeuw 1987),  (b_k − a_k) / max(a_k, b_k),  with a_k a sample's mean
   distance to its own cluster and b_k to the nearest other one; a sample alone has 0.
3. One cluster has no silhouette, and a single Gaussian is cut into some, too. So that silhouette counts only if it
   exceeds the (1 − `level`) quantile of what Gaussian samples of the same covariance reach by 1 and 2, as many of
   them as there are (after SigClust, Liu et al. 2008). Otherwise there is one cluster.

A cluster's representative is its medoid, the member with the least sum of distances to the others: a sample that
exists, where a mean of clusters need not be plausible. Its weight is the cluster's share of the samples.

Shape letters:  K samples   D coordinates   G clusters
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

MOST = 8
"""Clusters at most."""
DRAWS = 99
"""Gaussian ensembles that the silhouette is compared with."""
LEVEL = 0.05
"""Chance of parting a single Gaussian."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of K samples; the largest cluster is number 0."""

    labels: Int64[np.ndarray, "K"]
    representatives: Int64[np.ndarray, "G"]
    """The medoid of each cluster, as the index of a sample."""
    weights: Float64[np.ndarray, "G"]
    """Shares of the samples; their sum is 1."""
    silhouette: float
    """Of the best cut into two or more; 0 where there is none to make."""
    required: float
    """What single Gaussians stay below in all but `level` of cases."""

    @property
    def count(self) -> int:
        return len(self.weights)


def clusters(
    points: Float64[np.ndarray, "K D"],
    *,
    most: int = MOST,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Clusters:
    """Part K samples, if they fall apart.

    Args:
        points: coordinates in which distance means something, such as the scores of modes. With D = 0 there is
            nothing to part by, and one cluster.
        seed: of the Gaussian ensembles.

    Raises:
        ValueError: no [K, D] with K >= 1, numbers that are not finite, `most` or `draws` below 1, or `level` outside
            (0, 1).
    """
    if points.ndim != 2:
        raise ValueError(f"need samples [K, D], got {list(points.shape)}")
    if len(points) < 1 or not np.isfinite(points).all():
        raise ValueError(f"need at least 1 sample and finite numbers, got {points.shape}")
    if most < 1 or draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"need most >= 1, draws >= 1 and 0 < level < 1, got {most}, {draws} and {level}"
        )
    distances = _distances(points)
    silhouette, labels = _best_cut(distances, most)
    required = _gaussian_silhouette(points, most, level, draws, seed)
    if silhouette <= required:
        labels = np.zeros(len(points), np.int64)
    order = np.argsort(-np.bincount(labels), kind="stable")
    labels = np.argsort(order)[labels]
    medoids = [_medoid(distances, np.flatnonzero(labels == g)) for g in range(len(order))]
    weights = np.bincount(labels) / len(labels)
    return Clusters(
        labels.astype(np.int64), np.array(medoids, np.int64), weights, silhouette, required
    )


def _gaussian_silhouette(
    points: Float64[np.ndarray, "K D"], most: int, level: float, draws: int, seed: int
) -> float:
    """The quantile of step 3. The covariance is the samples' own; only its spectrum matters to distances."""
    generator = np.random.default_rng(seed)
    scale = np.linalg.svd(points - points.mean(0), compute_uv=False)
    scale = scale / np.sqrt(max(len(points) - 1, 1))
    found = []
    for _ in range(draws):
        drawn = generator.standard_normal((len(points), len(scale))) * scale
        found.append(_best_cut(_distances(drawn), most)[0])
    return float(np.quantile(found, 1 - level, method="higher"))


def _best_cut(
    distances: Float64[np.ndarray, "K K"], most: int
) -> tuple[float, Int64[np.ndarray, "K"]]:
    """The largest silhouette of Ward's cuts, and its labels; (0, one cluster) where nothing can be cut."""
    from scipy.cluster.hierarchy import fcluster, ward
    from scipy.spatial.distance import squareform

    best, labels = 0.0, np.zeros(len(distances), np.int64)
    if len(distances) < 3 or not distances.any():
        return best, labels
    tree = ward(squareform(distances, checks=False))
    for count in range(2, min(most, len(distances) - 1) + 1):
        candidate = fcluster(tree, count, criterion="maxclust").astype(np.int64) - 1
        # Samples that coincide are not parted, so there may be fewer clusters than were asked for.
        value = mean_silhouette(distances, candidate) if candidate.max() > 0 else 0.0
        if value > best:
            best, labels = value, candidate
    return best, labels


def mean_silhouette(distances: Float64[np.ndarray, "K K"], labels: Int64[np.ndarray, "K"]) -> float:
    """Mean silhouette of a partition into two clusters or more.

    Raises:
        ValueError: shapes that do not fit, or labels that are not 0 ... G - 1 with G >= 2, each of them taken.
    """
    if labels.ndim != 1 or distances.shape != (len(labels), len(labels)):
        raise ValueError(
            f"need distances [K, K] and labels [K], got {list(distances.shape)} and {list(labels.shape)}"
        )
    taken = np.unique(labels)
    if len(taken) < 2 or taken[0] != 0 or taken[-1] != len(taken) - 1:
        raise ValueError(f"need labels 0 ... G - 1 of two clusters or more, got {taken.tolist()}")
    members = np.eye(labels.max() + 1)[labels]
    size = members.sum(0)
    total = distances @ members
    rows = np.arange(len(labels))
    # A sample is no neighbour of its own.
    within = total[rows, labels] / np.maximum(size[labels] - 1, 1)
    others = total / size
    others[rows, labels] = np.inf
    between = others.min(1)
    largest = np.maximum(np.maximum(within, between), 1e-300)
    return float(np.where(size[labels] > 1, (between - within) / largest, 0.0).mean())


def _distances(points: Float64[np.ndarray, "K D"]) -> Float64[np.ndarray, "K K"]:
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(points)) if points.shape[1] else np.zeros((len(points), len(points)))


def _medoid(distances: Float64[np.ndarray, "K K"], members: Int64[np.ndarray, "members"]) -> int:
    return int(members[distances[np.ix_(members, members)].sum(1).argmin()])
