"""The Laplacian of a sphere has the sphere's waves; smoothing takes from each what its formula says."""

import numpy as np
import pytest
import trimesh

from diffusion4d.detail.laplacian import STEPS, cotangent_laplacian


@pytest.fixture(scope="module")
def ball() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4)


def test_the_waves_of_a_sphere(ball: trimesh.Trimesh) -> None:
    surface = cotangent_laplacian(ball.vertices, ball.faces)
    numbers, shapes = surface.waves(16)
    # k² = l (l + 1), 2 l + 1 of each.
    expected = np.sqrt(
        [degree * (degree + 1) for degree in range(4) for _ in range(2 * degree + 1)]
    )
    np.testing.assert_allclose(numbers, expected, atol=0.02)
    gram = shapes.T @ (surface.mass[:, None] * shapes)
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-8)
    assert surface.mass.sum() == pytest.approx(ball.area)


def test_smoothing_takes_what_is_short(ball: trimesh.Trimesh) -> None:
    surface = cotangent_laplacian(ball.vertices, ball.faces)
    _, shapes = surface.waves(60)
    length = 0.3
    for wave, degree in ((0, 0), (2, 1), (50, 7)):
        squared = degree * (degree + 1)
        left = (1 + length**2 * squared / STEPS) ** -STEPS
        smoothed = surface.smooth(shapes[:, [wave]], length)
        kept = float(shapes[:, wave] @ (surface.mass * smoothed[:, 0]))
        assert kept == pytest.approx(1 - (1 - left) ** 2, abs=0.01)
    np.testing.assert_allclose(surface.smooth(shapes, 0.0), shapes, atol=1e-9)


def test_a_body_does_not_shrink(ball: trimesh.Trimesh) -> None:
    surface = cotangent_laplacian(ball.vertices, ball.faces)
    bumps = 1 + 0.05 * np.random.default_rng(0).normal(size=(len(ball.vertices), 1))
    smoothed = surface.smooth(ball.vertices * bumps, 0.2)
    radius = np.linalg.norm(smoothed, axis=1)
    assert radius.mean() == pytest.approx(1, abs=0.01)
    assert radius.std() < 0.01


def test_what_has_no_laplacian_is_refused(ball: trimesh.Trimesh) -> None:
    surface = cotangent_laplacian(ball.vertices, ball.faces)
    with pytest.raises(ValueError, match="need a length of at least 0, got -1"):
        surface.smooth(ball.vertices, -1.0)
    with pytest.raises(ValueError, match="need 1 to 2561 waves, got 0"):
        surface.waves(0)
    loose = np.concatenate([ball.vertices, np.zeros((3, 3))])
    with pytest.raises(ValueError, match="3 that are not"):
        cotangent_laplacian(loose, ball.faces)
