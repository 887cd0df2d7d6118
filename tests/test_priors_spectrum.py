"""The laws of noise against quadrature and draws; the number of modes where it is known."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from priors.coloured import coloured_bulk
from priors.laws import MarchenkoPastur, Semicircle, largest_of_noise, tracy_widom_quantile
from priors.modes import modes
from priors.spectrum import spectrum


def at(function, x: float) -> float:
    return float(function(np.array([x]))[0])


@pytest.mark.parametrize("ratio", [0.01, 0.4, 1.0])
def test_marchenko_pastur_is_a_distribution_with_the_known_moments(ratio):
    law = MarchenkoPastur(ratio, 2.5)
    low, high = law.edges

    def moment(power: int, to: float = high) -> float:
        return quad(lambda x: at(law.density, x) * x**power, low, to, limit=200)[0]

    assert moment(0) == pytest.approx(1, abs=1e-5)
    assert moment(1) == pytest.approx(2.5, rel=1e-5)
    assert moment(2) - 2.5**2 == pytest.approx(2.5**2 * ratio, rel=1e-4)
    middle = low + 0.3 * (high - low)
    assert at(law.cdf, middle) == pytest.approx(moment(0, middle), abs=1e-5)
    assert law.cdf(np.array([low - 1, low, high, high + 1])) == pytest.approx([0, 0, 1, 1])
    assert at(law.cdf, law.quantile(0.3)) == pytest.approx(0.3)
    assert law.density(np.array([low - 0.01, high + 0.01])).tolist() == [0, 0]


def test_the_semicircle_is_the_limit_of_long_matrices():
    law = MarchenkoPastur(1e-6)
    circle = law.semicircle
    x = np.linspace(circle.centre - circle.radius, circle.centre + circle.radius, 101)
    assert np.abs(law.cdf(x) - circle.cdf(x)).max() < 1e-3
    unit = Semicircle()
    assert quad(lambda x: at(unit.density, x), -2, 0.7)[0] == pytest.approx(at(unit.cdf, 0.7))
    assert quad(lambda x: x * x * at(unit.density, x), -2, 2)[0] == pytest.approx(1)


def test_tracy_widom_has_the_published_quantiles():
    # Johnstone 2001, table 1.
    for share, value in ((0.90, 0.45), (0.95, 0.98), (0.99, 2.02)):
        assert tracy_widom_quantile(share) == pytest.approx(value, abs=0.015)


@pytest.mark.parametrize("shape", [(8, 300), (40, 40)])
def test_the_largest_value_of_noise_is_exceeded_as_often_as_it_says(shape):
    noise = np.random.default_rng(0).standard_normal((1000, *shape))
    largest = np.linalg.norm(noise, ord=2, axis=(1, 2)) ** 2
    share = (largest > largest_of_noise(*shape, 0.9)).mean()
    # Three standard errors of a share of 0.1 in 1000.
    assert share == pytest.approx(0.1, abs=0.03)


def ensemble(
    shape: tuple[int, int], count: int, times: float, noise: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Samples with `count` modes of `times` the detectable strength, and the modes."""
    rng = np.random.default_rng(seed)
    a, b = min(shape), max(shape)
    left, right = (np.linalg.qr(rng.standard_normal((size, max(count, 1))))[0] for size in shape)
    strength = times * (a / b) ** 0.25 * math.sqrt(b)
    rows = rng.standard_normal(shape) + (strength * left @ right.T if count else 0)
    return noise * rows, right.T


def found_in(rows: np.ndarray, **options):
    return spectrum(np.linalg.svd(rows, compute_uv=False) ** 2, rows.shape, **options)


@pytest.mark.parametrize("noise", [1e-4, 20.0])
@pytest.mark.parametrize("shape", [(15, 600), (60, 200), (90, 40)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_number_of_modes_is_found_whatever_the_noise(shape, count, noise):
    found = [found_in(ensemble(shape, count, 3.0, noise, seed)[0]) for seed in range(40)]
    # 0.9 is three binomial deviations below what the experiment measures.
    assert np.mean([f.count == count for f in found]) >= 0.9
    assert np.median([f.noise for f in found]) == pytest.approx(noise, rel=0.06)
    assert np.mean([f.holds for f in found]) >= 0.9


def test_many_modes_do_not_spoil_the_noise_level():
    # A third of the spectrum: the median of all of it is 1.3 of the noise, the mean 10.
    rows, _ = ensemble((60, 900), 20, 12.0)
    found = found_in(rows)
    assert found.count == 20
    assert found.noise == pytest.approx(1, rel=0.03)
    assert not found.saturated


@pytest.mark.parametrize("shape", [(50, 800), (400, 60)])
def test_strength_and_overlap_are_those_of_the_mode(shape):
    cosines, variances, expected = [], [], []
    for seed in range(30):
        rows, (mode,) = ensemble(shape, 1, 2.0, seed=seed)
        found = found_in(rows)
        assert found.count >= 1
        _, _, right = np.linalg.svd(rows, full_matrices=False)
        cosines.append((right[0] @ mode) ** 2)
        variances.append(found.variance[0])
        expected.append(found.overlap[0])
    a, b = min(shape), max(shape)
    assert np.mean(variances) == pytest.approx(4 * math.sqrt(a * b) / shape[0], rel=0.08)
    assert np.mean(cosines) == pytest.approx(np.mean(expected), abs=0.04)


def test_exactly_low_rank_has_no_noise():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 2)) @ rng.standard_normal((2, 50))
    found = found_in(rows)
    assert (found.count, found.noise, found.misfit) == (2, 0.0, 1.0)
    assert found.overlap.tolist() == [1, 1]
    np.testing.assert_allclose(found.variance, found.values[:2] / 20)
    same = spectrum(np.zeros(6), (6, 9))
    assert (same.count, same.effective) == (0, 0.0)


def test_effective_number_of_equal_modes():
    assert spectrum(np.array([4.0, 4.0, 4.0, 0, 0, 0, 0, 0]), (8, 9)).effective == pytest.approx(3)


def test_coloured_noise_is_told_from_modes():
    scale = np.exp(-np.arange(400) / 40)
    shape, wrong, right = (30, 400), [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(shape) * scale
        assert not found_in(noise).holds
        assert found_in(noise).count > 3
        wrong.append(_bulk(noise).count)
        left, _ = np.linalg.qr(rng.standard_normal((30, 2)))
        direction, _ = np.linalg.qr(rng.standard_normal((400, 2)))
        right.append(_bulk(noise + 40 * left @ direction.T).count)
    assert wrong.count(0) >= 5
    assert right.count(2) >= 5


def _bulk(rows: np.ndarray):
    return coloured_bulk(np.linalg.svd(rows, compute_uv=False) ** 2, rows.shape)


def test_white_noise_is_coloured_noise_that_is_even():
    found = _bulk(3 * np.random.default_rng(0).standard_normal((30, 200)))
    assert found.count == 0
    assert found.concentration > 1
    assert found.noise == pytest.approx(3, rel=0.03)
    assert found.misfit < 0.1


def test_modes_are_orthonormal_and_give_the_samples_back():
    rows, true = ensemble((25, 60), 2, 8.0)
    samples = torch.from_numpy(rows.reshape(25, 4, 5, 3)) + 7.0
    found = modes(samples)
    assert found.noise == "white"
    assert found.directions.shape == (2, 4, 5, 3)
    flat = found.directions.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(2).double())
    cosines = np.linalg.svd(flat.numpy() @ true.T, compute_uv=False)
    assert cosines.min() > 0.97
    torch.testing.assert_close(found.scores.mean(0), torch.zeros(2).double(), atol=1e-12, rtol=0)
    # What the modes leave out is noise, and no more.
    rest = (found.at(found.scores) - samples).square().mean().sqrt()
    assert rest == pytest.approx(1, rel=0.1)
    peak = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    assert (peak > 0).all()


def test_auto_takes_the_law_that_holds():
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(rng.standard_normal((25, 300)) * np.exp(-np.arange(300) / 30))
    assert modes(smooth).noise == "coloured"
    assert modes(smooth, noise="white").noise == "white"
    assert modes(smooth).threshold > modes(smooth, noise="white").threshold
    # Five samples are too few to fit a bulk to.
    assert modes(smooth[:6]).noise == "white"


def test_what_is_refused():
    samples = torch.zeros(9, 8).double()
    with pytest.raises(ValueError, match=r"at least 5 samples of at least 4 numbers, got 4 of 8"):
        modes(samples[:4])
    with pytest.raises(ValueError, match="need noise out of auto, white, coloured, got 'pink'"):
        inspect.unwrap(modes)(torch.randn(9, 8, dtype=torch.float64), noise="pink")
    with pytest.raises(ValueError, match="got 9 of 3"):
        modes(samples[:, :3])
    with pytest.raises(ValueError, match="need finite samples, got 8"):
        modes(samples + torch.tensor([math.nan] + [0.0] * 8)[:, None])
    values = np.arange(9.0)[::-1]
    for bad in (values[:8], -values[::-1], values[::-1], np.full(9, np.nan)):
        with pytest.raises(ValueError, match="need"):
            spectrum(bad, (9, 20))
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="level"):
            spectrum(values, (9, 20), level=level)
        with pytest.raises(ValueError, match="level"):
            coloured_bulk(values + 1, (9, 20), level=level)
        with pytest.raises(ValueError, match="share"):
            tracy_widom_quantile(level)
        with pytest.raises(ValueError, match="share"):
            MarchenkoPastur(0.5).quantile(level)
    with pytest.raises(ValueError, match="8 at least"):
        coloured_bulk(values[:5], (5, 20))
    with pytest.raises(ValueError, match="positive"):
        coloured_bulk(values, (9, 20))
    for ratio, scale in ((0.0, 1.0), (1.5, 1.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="need 0 < ratio <= 1"):
            MarchenkoPastur(ratio, scale)
    with pytest.raises(ValueError, match="at least 1 x 1"):
        largest_of_noise(0, 5, 0.9)
