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
