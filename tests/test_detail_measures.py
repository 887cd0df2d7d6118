"""Measures of detail on fields whose answer is known in closed form."""

import math

import numpy as np
import pytest
import trimesh

from diffusion4d.detail.laplacian import cotangent_laplacian
from diffusion4d.detail.measures import amplitudes_apart, fair_crps, spectra_apart, waves_of


def test_the_spectrum_of_noise_is_flat_and_that_of_a_wave_is_in_its_band() -> None:
    ball = trimesh.creation.icosphere(4)
    surface = cotangent_laplacian(ball.vertices, ball.faces)
    held = waves_of(surface, np.array([4.0, 2.0, 1.0]))
    # Wave numbers from 2π/4 to 2π/2 hold l = 2, up to 2π/1 l = 3, 4 and 5; l (l + 1) = k².
    assert np.bincount(held.band[held.band >= 0]).tolist() == [5, 7 + 9 + 11]
    generator = np.random.default_rng(0)
    # Independent offsets of variance 1/M are white in the area, of energy 1 a wave.
    noise = generator.normal(size=(400, len(ball.vertices))) / np.sqrt(held.mass)
    mean = np.mean([held.spectrum(one) for one in noise], 0)
    np.testing.assert_allclose(mean, 1, atol=0.1)
    alone = held.spectrum(3 * held.shapes[:, held.band == 0][:, 0])
    np.testing.assert_allclose(alone, [9 / 5, 0], atol=1e-9)
    with pytest.raises(ValueError, match="falling, positive wavelengths"):
        waves_of(surface, np.array([1.0, 2.0]))


def test_twice_the_amplitude_is_six_decibels() -> None:
    spectrum = np.array([3.0, 1.0, np.nan, 0.1])
    assert spectra_apart(4 * spectrum, spectrum) == pytest.approx(20 * math.log10(2))
    assert spectra_apart(spectrum, spectrum) == 0
    assert math.isnan(spectra_apart(np.array([np.nan]), np.array([1.0])))


def test_amplitudes_moved_by_one_are_one_apart() -> None:
    drawn = np.random.default_rng(0).normal(size=(3, 500))
    assert amplitudes_apart(drawn[0], drawn[0] + 1) == pytest.approx(1)
    assert amplitudes_apart(drawn[0], drawn) < 0.2


def test_the_fair_score_is_that_of_its_pairs_and_proper() -> None:
    generator = np.random.default_rng(0)
    samples, truth = generator.normal(size=(5, 40)), generator.normal(size=40)
    apart = np.abs(samples[:, None] - samples[None]).sum((0, 1)) / (2 * 5 * 4)
    direct = (np.abs(samples - truth).mean(0) - apart).mean()
    assert fair_crps(samples, truth) == pytest.approx(direct)
    # Expected score of a standard normal forecast of its own kind: 1/√π.
    many, values = generator.normal(size=(40, 20_000)), generator.normal(size=20_000)
    assert fair_crps(many, values) == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    assert fair_crps(0.5 * many, values) > fair_crps(many, values) + 0.01
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        fair_crps(samples[:1], truth)
