"""Scores against closed forms, sums by hand, and what calibration means."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from diffusion4d import metrics

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def everywhere(N: int, T: int) -> Tensor:
    return torch.ones(N, T, dtype=torch.bool)


def some_mask() -> Tensor:
    """[4, 5], one point never chosen, the others at different numbers of frames."""
    mask = everywhere(4, 5)
    mask[0] = False
    mask[1, 2:] = False
    return mask


def rms(a: Tensor, b: Tensor, mask: Tensor) -> float:
    total = [(a[n, t] - b[n, t]).square().sum().item() for n, t in mask.nonzero().tolist()]
    return math.sqrt(sum(total) / len(total))


def test_energy_scores_by_hand():
    x, truth, mask = normal(3, 4, 5, 3), normal(4, 5, 3, seed=1), some_mask()

    def by_hand(mask: Tensor) -> float:
        error = sum(rms(x[k], truth, mask) for k in range(3)) / 3
        apart = sum(rms(x[k], x[j], mask) for k, j in itertools.permutations(range(3), 2))
        return error - apart / (2 * 3 * 2)

    assert metrics.energy_score(x, truth, mask).item() == pytest.approx(by_hand(mask))
    each = []
    for n in range(1, 4):
        alone = torch.zeros_like(mask)
        alone[n] = mask[n]
        each.append(by_hand(alone))
    point = metrics.point_energy_score(x, truth, mask).item()
    assert point == pytest.approx(sum(each) / 3)


def test_energy_score_of_gaussians():
    # |x - y| of standard normals in D dimensions: E = sqrt(2) E|z| for both terms, so ES = E|x - y| / 2.
    K, D = 6, 6
    draws, scores = 200, []
    for seed in range(draws):
        x = normal(K + 1, 2, 1, 3, seed=seed)
        scores.append(metrics.energy_score(x[1:], x[0], everywhere(2, 1)).item())
    mean_norm = math.sqrt(2) * math.exp(math.lgamma((D + 1) / 2) - math.lgamma(D / 2))
    expected = (
        math.sqrt(2) * mean_norm / 2 / math.sqrt(2)
    )  # root MEAN square over 2 (point, frame)s
    # One draw's score deviates by about .3: five standard errors are .09.
    assert sum(scores) / draws == pytest.approx(expected, abs=0.09)


def test_crps_of_a_gaussian():
    # Gneiting & Raftery 2007, eq. 21: CRPS(N(0, 1), y) = y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi).
    y = torch.tensor([-2.0, -0.3, 0.0, 1.0], dtype=F64)
    K = 200_000
    got = metrics.crps(normal(K, 1).expand(K, 4), y)
    density = (-(y**2) / 2).exp() / math.sqrt(2 * math.pi)
    expected = y * torch.erf(y / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)
    torch.testing.assert_close(got, expected, atol=5 / math.sqrt(K), rtol=0)


def test_fair_scores_are_unbiased_at_two_samples():
    # E over pairs of samples is the score of the distribution: at y = 0, (sqrt(2) - 1) / sqrt(pi).
    pairs = normal(2, 200_000)
    got = metrics.crps(pairs, torch.zeros(200_000, dtype=F64)).mean().item()
    assert got == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi), abs=0.01)


def test_crps_is_the_sum_over_pairs():
    x, y = normal(7, 3, 2), normal(3, 2, seed=1)
    apart = (x[:, None] - x[None]).abs().sum((0, 1)) / (2 * 7 * 6)
    torch.testing.assert_close(metrics.crps(x, y), (x - y).abs().mean(0) - apart)


def test_one_sample_scores_its_error():
    x, truth, mask = normal(1, 4, 5, 3), normal(4, 5, 3, seed=1), some_mask()
    expected = pytest.approx(rms(x[0], truth, mask))
    assert metrics.energy_score(x, truth, mask).item() == expected
    assert metrics.rms_error(x[0], truth, mask).item() == expected
    assert torch.equal(metrics.crps(x, truth), (x[0] - truth).abs())
    # A sample that hits scores 0, and so do many that agree.
    assert metrics.energy_score(truth.expand(3, 4, 5, 3), truth, mask).item() == 0
    assert metrics.point_energy_score(truth[None], truth, mask).item() == 0


def test_a_score_is_lowest_for_the_true_spread():
    # Proper: too narrow and too wide ensembles score worse on average.
    def score(spread: float) -> float:
        scores = [
            metrics.energy_score(
                spread * normal(4, 3, 1, 3, seed=s),
                normal(3, 1, 3, seed=1000 + s),
                everywhere(3, 1),
            )
            for s in range(80)
        ]
        return torch.stack(scores).mean().item()

    assert score(1.0) < min(score(0.6), score(1.6))


def test_best_of_k_by_hand():
    # Two points, two frames; distances along x alone. Sample 0 is right for point 0, sample 1 for point 1.
    distance = torch.tensor([[[0.0, 0.0], [4.0, 2.0]], [[3.0, 3.0], [1.0, 1.0]]], dtype=F64)
    samples = torch.nn.functional.pad(distance[..., None], (0, 2))
    truth, mask = torch.zeros(2, 2, 3, dtype=F64), everywhere(2, 2)
    # Means over scenes: 6 / 4 and 8 / 4. Point by point: 0 and 1.
    assert metrics.min_ade_joint(samples, truth, mask).item() == pytest.approx(1.5)
    assert metrics.min_ade_marginal(samples, truth, mask).item() == pytest.approx(0.5)
    # Without point 0, and without frame 0 of point 1.
    mask = torch.tensor([[False, False], [False, True]])
    assert metrics.min_ade_joint(samples, truth, mask).item() == pytest.approx(1.0)
    assert metrics.min_ade_marginal(samples, truth, mask).item() == pytest.approx(1.0)


def test_choosing_point_by_point_is_never_worse():
    truth, mask = normal(4, 5, 3), everywhere(4, 5)
    for seed in range(20):
        x = normal(6, 4, 5, 3, seed=seed + 1)
        joint = metrics.min_ade_joint(x, truth, mask)
        assert metrics.min_ade_marginal(x, truth, mask) <= joint
        one = metrics.min_ade_joint(x[:1], truth, mask)
        assert joint <= one
        torch.testing.assert_close(one, metrics.min_ade_marginal(x[:1], truth, mask))


def test_what_is_not_chosen_does_not_matter():
    x, truth, mask = normal(4, 4, 5, 3), normal(4, 5, 3, seed=1), some_mask()
    spoilt = x.clone()
    spoilt[:, ~mask] += 100
    for score in (
        metrics.energy_score,
        metrics.point_energy_score,
        metrics.min_ade_joint,
        metrics.min_ade_marginal,
    ):
        assert score(spoilt, truth, mask).item() == pytest.approx(score(x, truth, mask).item())
    for got, expected in zip(
        metrics.spread_and_skill(spoilt, truth, mask),
        metrics.spread_and_skill(x, truth, mask),
        strict=True,
    ):
        assert got.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("K", "level"), [(19, 0.9), (20, 0.9), (16, 0.8), (39, 0.95), (3, 0.5)])
def test_a_calibrated_ensemble_covers_its_level(K, level):
    n = 40_000
    x = normal(K + 1, n)
    share = metrics.covered(x[1:], x[0], level).double().mean().item()
    # Four standard errors, and .005 where the interval ends fall between two samples.
    assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / n) + 0.005)


def test_interval_ends_are_order_statistics():
    x = torch.tensor([3.0, 1.0, 2.0], dtype=F64)[:, None].expand(3, 4)
    truth = torch.tensor([0.9, 1.0, 3.0, 3.1], dtype=F64)
    # p (K + 1) = 1 and 3 for level 1/2: from the least to the greatest.
    assert metrics.covered(x, truth, 0.5).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match=r"need K >= 19 samples for level 0\.9, got 18"):
        metrics.covered(normal(18, 2), normal(2), 0.9)


def test_the_truth_is_one_of_the_samples_by_rank():
    x = normal(5, 20_000)
    counts = torch.bincount(metrics.rank_of_truth(x[1:], x[0]), minlength=5) / 20_000
    torch.testing.assert_close(
        counts.double(), torch.full((5,), 0.2, dtype=F64), atol=0.012, rtol=0
    )
    assert (
        metrics.rank_of_truth(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.5])).item() == 1
    )


def test_spread_and_skill():
    # Calibrated: a ratio of 1 for any K; means and deviations differ from number to number.
    where, how_far = normal(100, 200, 3, seed=5), normal(100, 200, 3, seed=6).exp()
    for K in (2, 8):
        x = where + how_far * normal(K + 1, 100, 200, 3, seed=K)
        spread, skill = metrics.spread_and_skill(x[1:], x[0], everywhere(100, 200))
        assert (spread / skill).sqrt().item() == pytest.approx(1.0, abs=0.06)
        narrow = where + how_far * normal(K, 100, 200, 3, seed=100 + K) / 2
        spread, skill = metrics.spread_and_skill(narrow, x[0], everywhere(100, 200))
        assert (spread / skill).sqrt().item() < 0.7
    # By hand: samples 0 and 2 have variance 2, times 3/2; their mean misses 4 by 3.
    x = torch.tensor([0.0, 2.0], dtype=F64).view(2, 1, 1, 1)
    truth = torch.full((1, 1, 1), 4.0, dtype=F64)
    spread, skill = metrics.spread_and_skill(x, truth, everywhere(1, 1))
    assert (spread.item(), skill.item()) == (3.0, 9.0)


@pytest.mark.parametrize("D", [1, 2, 3])
def test_energy_score_of_a_calibrated_gaussian_by_its_dimension(D):
    # One number a draw: E|x - y| = sqrt(2) E|z|, and half of it is taken off again. In 1 dimension 1 / sqrt(pi).
    n = 4000
    mean_norm = math.sqrt(2) * math.exp(math.lgamma((D + 1) / 2) - math.lgamma(D / 2))
    x, y = normal(5, n, 1, D), normal(n, 1, D, seed=1)
    # As n points of one frame each: the score per point is the mean of n scores.
    got = metrics.point_energy_score(x, y, everywhere(n, 1)).item()
    assert got == pytest.approx(mean_norm / math.sqrt(2), rel=0.03)
    if D == 1:
        assert mean_norm / math.sqrt(2) == pytest.approx(1 / math.sqrt(math.pi))
    # The same draws as one scene of n dimensions and more: the Gaussian limit of METRICS.
    joint = metrics.energy_score(x, y, everywhere(n, 1)).item()
    assert joint / math.sqrt(D) == pytest.approx(1 / math.sqrt(2), rel=0.03)


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_crps_and_energy_score_of_a_wrong_spread(s):
    # y ~ N(0, 1), x ~ N(0, s^2): E|x - y| - E|x - x'| / 2 = sqrt(2 (1 + s^2) / pi) - s / sqrt(pi).
    n = 20_000
    x, y = s * normal(4, n, 1, 1), normal(n, 1, 1, seed=1)
    expected = math.sqrt(2 * (1 + s * s) / math.pi) - s / math.sqrt(math.pi)
    assert metrics.mean_crps(x, y, everywhere(n, 1)).item() == pytest.approx(expected, abs=0.02)
    got = metrics.point_energy_score(x, y, everywhere(n, 1)).item()
    assert got == pytest.approx(expected, abs=0.02)


def test_two_equal_far_modes_halve_the_error():
    # The best single answer lies between the modes and errs by 1; samples hit or miss by 2.
    scores = []
    for seed in range(400):
        sides = torch.randn(9, generator=torch.Generator().manual_seed(seed)).sign().double()
        x = torch.zeros(9, 2, 2, 3, dtype=F64)
        x[..., 2] = sides[:, None, None]
        scores.append(
            metrics.energy_score(x[1:, :, :, 2:], x[0, :, :, 2:], everywhere(2, 2)).item()
        )
    assert sum(scores) / 400 == pytest.approx(0.5, abs=0.05)


def test_subsets_are_scored_together_as_each_alone():
    x, truth = normal(5, 4, 6, 3), normal(4, 6, 3, seed=1)
    masks = normal(3, 4, 6, seed=2) > 0.3
    masks[1, 2] = False
    for function in (
        metrics.energy_score,
        metrics.point_energy_score,
        metrics.min_ade_joint,
        metrics.min_fde_joint,
        metrics.min_ade_marginal,
        metrics.mean_crps,
        lambda *a: metrics.rms_error(a[0].mean(0), *a[1:]),
        lambda *a: metrics.energy_scores(*a).diversity,
        lambda *a: metrics.spread_and_skill(*a)[0],
    ):
        together = function(x, truth, masks)
        alone = torch.stack([function(x, truth, mask) for mask in masks])
        torch.testing.assert_close(together, alone)
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    assert metrics.energy_score(x, truth, nothing).isnan()
    assert metrics.min_ade_marginal(x, truth, nothing).isnan()


def test_diversity_is_the_mean_distance_of_pairs():
    places = torch.tensor([0.0, 3.0, 4.0], dtype=F64)
    x = places[:, None, None, None].expand(3, 2, 2, 1)
    got = metrics.energy_scores(x, x[0], everywhere(2, 2)).diversity.item()
    assert got == pytest.approx((3 + 4 + 1) / 3)


def test_expected_best_is_the_mean_over_all_subsets():
    errors = normal(7, 3).abs()
    for k in (1, 2, 5, 7):
        by_hand = torch.stack(
            [errors[list(c)].min(0).values for c in itertools.combinations(range(7), k)]
        ).mean(0)
        torch.testing.assert_close(metrics.expected_best(errors, k), by_hand)
    for k in (0, 8):
        with pytest.raises(ValueError, match=rf"need 1 <= k <= 7, .* got k={k}"):
            metrics.expected_best(errors, k)


def test_the_last_frame_alone_counts_for_fde():
    x, truth = normal(3, 4, 5, 3), normal(4, 5, 3, seed=1)
    mask = everywhere(4, 5)
    mask[0, -1] = False
    by_hand = (x[:, 1:, -1] - truth[1:, -1]).norm(dim=-1).mean(-1).min()
    torch.testing.assert_close(metrics.min_fde_joint(x, truth, mask), by_hand)


def test_choosing_point_by_point_is_never_worse_under_any_mask():
    for seed in range(30):
        x, truth = normal(4, 3, 5, 3, seed=seed), normal(3, 5, 3, seed=100 + seed)
        mask = normal(3, 5, seed=200 + seed) > 0
        if mask.any():
            for k in (2, 4):
                joint = metrics.min_ade_joint(x, truth, mask, k)
                assert metrics.min_ade_marginal(x, truth, mask, k) <= joint + 1e-12


def test_coverage_of_ranks_is_coverage():
    x, truth = normal(39, 6, 7), normal(6, 7, seed=1)
    histogram = metrics.rank_histogram(x, truth, everywhere(6, 7))
    assert histogram.sum() == 42
    coverage = metrics.coverage_of_ranks(histogram)
    for level, got in zip(metrics.LEVELS, coverage.tolist(), strict=True):
        expected = metrics.covered(x, truth, level).double().mean().item()
        assert got == pytest.approx(expected), level
    with pytest.raises(ValueError, match=r"got K=19 at q=0\.05; K=39 does"):
        metrics.coverage_of_ranks(torch.ones(20))
    # Masks choose: two halves make the whole.
    half = normal(6, 7, seed=2) > 0
    halves = metrics.rank_histogram(x, truth, torch.stack([half, ~half]))
    assert torch.equal(halves.sum(0), histogram)


@pytest.mark.parametrize("s", [0.5, 1.0, 1.7])
def test_calibration_error_of_a_wrong_spread(s):
    # Truth N(0, 1), ensemble N(0, s^2): the q-interval ends at s z_q, so coverage is 2 Phi(s z_q) - 1.
    n = 20_000
    x, truth = s * normal(199, n, 1), normal(n, 1, seed=1)
    levels = torch.tensor(metrics.LEVELS, dtype=F64)
    z = math.sqrt(2) * torch.erfinv(levels)
    expected = torch.erf(s * z / math.sqrt(2))
    coverage = metrics.coverage_of_ranks(metrics.rank_histogram(x, truth, everywhere(n, 1)))
    torch.testing.assert_close(coverage.double(), expected, atol=0.015, rtol=0)
    error = metrics.calibration_error(coverage).item()
    assert error == pytest.approx((expected - levels).abs().mean().item(), abs=0.01)


def test_sharpness_of_the_uniform():
    # The j-th of K uniform numbers lies at j / (K + 1) on average: the width at level q is q.
    n = 4000
    x = torch.rand((39, n, 1, 2), generator=torch.Generator().manual_seed(0), dtype=F64)
    assert metrics.sharpness(x, everywhere(n, 1)).item() == pytest.approx(0.9, abs=0.003)
    assert metrics.sharpness(3 * x, everywhere(n, 1), 0.5).item() == pytest.approx(1.5, abs=0.01)
    with pytest.raises(ValueError, match="whole, got K=16"):
        metrics.sharpness(x[:16], everywhere(n, 1))


def test_order_statistics_are_the_sorted_samples():
    x = normal(6, 3, 4)
    expected = x.sort(0).values
    before = x.clone()
    assert torch.equal(metrics.ascending(x), expected)
    assert torch.equal(x, before)
    assert torch.equal(metrics.ascending(x.requires_grad_()), expected)


def test_neighbours_and_stretch():
    line = torch.tensor([0.0, 1.0, 3.0, 7.0], dtype=F64)
    anchor = torch.stack([line, torch.zeros(4), torch.zeros(4)], -1)
    assert len(metrics.nearest_neighbours(anchor)) == 12
    many = normal(20, 3)
    edges = metrics.nearest_neighbours(many)
    assert edges.shape == (120, 2)
    for n in range(20):
        others = sorted(range(20), key=lambda m: (many[n] - many[m]).norm().item())
        assert set(edges[edges[:, 0] == n, 1].tolist()) == set(others[1:7])
    # Growing by 10 % a frame, then turning: stretch is the growth, and turning costs nothing.
    growth = torch.tensor([1.0, 1.1, 1.2], dtype=F64)
    turn = torch.linalg.qr(normal(3, 3, seed=3)).Q
    points = growth[:, None] * (many @ turn)[:, None]
    expected = math.sqrt((0.1**2 + 0.2**2) / 3)
    got = metrics.edge_stretch(torch.stack([points, points / growth[:, None]]), edges)
    torch.testing.assert_close(got, torch.tensor([expected, 0.0], dtype=F64))


def test_jitter_is_the_third_difference():
    t = torch.arange(6, dtype=F64)
    cubic = torch.stack([t**3, 2 * t**2 + t, torch.ones(6)], -1)
    torch.testing.assert_close(
        metrics.jitter(cubic.expand(2, 4, 6, 3)), torch.full((2,), 6.0, dtype=F64)
    )


def test_reprojection_in_pixels_of_a_small_image():
    tracks = normal(3, 4, 2)
    projected = (tracks + torch.tensor([3.0, 4.0])).expand(5, 3, 4, 2).clone()
    seen = everywhere(3, 4)
    seen[0] = False
    projected[:, 0] = 1e6
    assert metrics.reprojection(projected, tracks, seen, 512).item() == pytest.approx(2.5)
    assert metrics.reprojection(projected, tracks, ~everywhere(3, 4), 512).isnan()
