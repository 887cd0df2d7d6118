"""Alpha shapes keep holes and spheres; the Poisson surface of a sphere is that sphere."""

import numpy as np
import pytest
import trimesh

from diffusion4d.errors import UserError
from diffusion4d.surfaces.alpha import alpha_shape


def _torus() -> np.ndarray:
    """Points in a torus of radii 1 and 0.3, half of them on its surface: from inside alone a thin skin is missing."""
    generator = np.random.default_rng(0)
    angle, turn = generator.uniform(0, 2 * np.pi, (2, 6000))
    radius = 0.3 * np.sqrt(generator.uniform(0, 1, 6000))
    radius[::2] = 0.3
    ring = 1 + radius * np.cos(turn)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), radius * np.sin(turn)], 1)


def test_the_hole_of_a_torus_stays_open_and_its_volume_is_right() -> None:
    mesh = alpha_shape(_torus(), 0.2)
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert shape.is_watertight
    # V − E + F of a torus is 0, of a sphere 2.
    assert shape.euler_number == 0
    assert shape.volume == pytest.approx(2 * np.pi**2 * 0.3**2, rel=0.08)
    hull = alpha_shape(_torus(), 1e6)
    whole = trimesh.Trimesh(hull.vertices, hull.faces, process=False)
    assert whole.volume == pytest.approx(whole.convex_hull.volume, rel=1e-4)


def test_two_balls_are_two() -> None:
    ball = np.random.default_rng(1).normal(size=(1500, 3))
    radius = np.random.default_rng(2).uniform(0, 1, (1500, 1)) ** (1 / 3)
    ball = radius * ball / np.linalg.norm(ball, axis=1, keepdims=True)
    mesh = alpha_shape(np.concatenate([ball, ball + np.array([4.0, 0, 0])]))
    parts = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split(only_watertight=False)
    large = [part for part in parts if len(part.faces) > 100]
    assert sorted(round(float(part.vertices[:, 0].mean())) for part in large) == [0, 4]


@pytest.mark.parametrize(("gap", "parts"), [(5.5, 1), (6.2, 2)])
def test_alpha_is_three_distances_to_the_sixth_neighbour(gap: float, parts: int) -> None:
    """Most points of a cubic lattice have six neighbours one step away, so α is 3 steps by default.

    What spans a gap g between two blocks has the sphere about a box 1 x 1 x g, of radius √(2 + g²) / 2, which is 3 at
    g = √34 = 5.83.
    """
    at = np.arange(12.0)
    block = np.stack(np.meshgrid(at, at, at), -1).reshape(-1, 3)
    points = np.concatenate([block, block + np.array([11 + gap, 0, 0])])
    # Off the lattice by little, so that the triangulation is one alone.
    points += np.random.default_rng(0).uniform(-1e-3, 1e-3, points.shape)
    mesh = alpha_shape(points)
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert len(shape.split(only_watertight=False)) == parts
    length = 22 if parts == 2 else 22 + gap
    assert shape.volume == pytest.approx(11 * 11 * length, rel=5e-3)


def test_too_little_for_a_solid_is_refused() -> None:
    with pytest.raises(UserError, match="at least 4 points"):
        alpha_shape(np.zeros((3, 3)))
    with pytest.raises(UserError, match="not all in a plane"):
        alpha_shape(np.random.default_rng(0).uniform(size=(9, 3)) * np.array([1, 1, 0]))
    with pytest.raises(UserError, match="need alpha > 0"):
        alpha_shape(_torus(), -1.0)
    with pytest.raises(UserError, match="need an alpha that keeps"):
        alpha_shape(_torus(), 1e-6)


def test_poisson_of_a_sphere() -> None:
    pytest.importorskip("open3d", reason="needs Open3D, the extra poisson")
    from diffusion4d.surfaces.poisson import poisson

    ball = trimesh.creation.icosphere(4)
    points = np.asarray(ball.vertices)
    mesh = poisson(points, points, trim=0.0)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 1).max() < 0.003
    # Outwards: a surface that is turned inside out has the volume with the other sign.
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert shape.volume == pytest.approx(4 / 3 * np.pi, rel=0.01)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from diffusion4d.surfaces.poisson import poisson

    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(UserError, match=r"pip install 'diffusion4d\[poisson\]'"):
        poisson(np.zeros((4, 3)), np.ones((4, 3)))
