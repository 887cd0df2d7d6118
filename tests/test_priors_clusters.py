"""Clusters where they are known, one where there is none, and the medoids."""

import inspect

import numpy as np
import pytest

from priors.clusters import clusters, mean_silhouette


def groups(sizes: tuple[int, ...], apart: float, dim: int = 3, seed: int = 0) -> np.ndarray:
    """Unit Gaussians about centres on the axes."""
    rng = np.random.default_rng(seed)
    centres = apart * np.eye(len(sizes), dim)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return centres[labels] + rng.standard_normal((len(labels), dim))


def test_known_groups_are_found_with_their_weights():
    points = groups((10, 25, 5), 12.0)
    found = clusters(points)
    assert found.weights.tolist() == [25 / 40, 10 / 40, 5 / 40]
    # The largest is number 0.
    assert found.labels.tolist() == [1] * 10 + [0] * 25 + [2] * 5
    assert found.silhouette > found.required
    for g, k in enumerate(found.representatives):
        members = points[found.labels == g]
        assert found.labels[k] == g
        sums = np.linalg.norm(members[:, None] - members, axis=-1).sum(1)
        assert np.linalg.norm(members - points[k], axis=-1).sum() == pytest.approx(sums.min())
    assert clusters(points, most=2).count == 2


def test_order_and_scale_and_turn_change_nothing():
    points = groups((8, 12), 9.0)
    first = clusters(points)
    order = np.random.default_rng(1).permutation(20)
    turn, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))
    second = clusters(7 * points[order] @ turn)
    assert second.labels.tolist() == first.labels[order].tolist()
    assert order[second.representatives].tolist() == first.representatives.tolist()
    assert second.silhouette == pytest.approx(first.silhouette)


def test_one_gaussian_is_rarely_parted():
    scale = np.array([3.0, 1.0, 0.3])
    counts = [
        clusters(np.random.default_rng(s).standard_normal((30, 3)) * scale, draws=39).count
        for s in range(8)
    ]
    assert counts.count(1) >= 7


def test_silhouette_by_hand():
    distances = np.abs(np.subtract.outer(np.array([0.0, 1, 10, 30]), np.array([0.0, 1, 10, 30])))
    # (10 - 1) / 10, (9 - 1) / 9, alone, alone; the nearest other cluster counts.
    labels = np.array([0, 0, 1, 2])
    assert mean_silhouette(distances, labels) == pytest.approx((0.9 + 8 / 9) / 4)


def test_what_cannot_be_parted_is_one():
    for points in (np.zeros((6, 2)), np.zeros((5, 0)), np.zeros((1, 3)), np.array([[0.0], [9.0]])):
        found = clusters(points)
        assert (found.count, found.weights.tolist()) == (1, [1.0])
    # Two places, many times over: exactly two clusters, however many are asked for.
    twice = np.repeat(np.array([[0.0, 0], [1, 1]]), 6, axis=0)
    assert clusters(twice).labels.tolist() == [0] * 6 + [1] * 6


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"need samples \[K, D\], got \[4\]"):
        inspect.unwrap(clusters)(np.zeros(4))
    silhouette = inspect.unwrap(mean_silhouette)
    with pytest.raises(ValueError, match=r"need distances \[K, K\] .*, got \[3, 4\] and \[4\]"):
        silhouette(np.zeros((3, 4)), np.zeros(4, int))
    for labels in ([0, 0, 0], [0, 0, 2], [-1, 0, 1]):
        with pytest.raises(ValueError, match=r"need labels 0 \.\.\. G - 1 of two clusters or more"):
            silhouette(np.zeros((3, 3)), np.array(labels))
    with pytest.raises(ValueError, match="at least 1 sample"):
        clusters(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="finite"):
        clusters(np.full((4, 2), np.nan))
    for options in ({"most": 0}, {"draws": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="need most >= 1"):
            clusters(np.zeros((4, 2)), **options)
