"""Decimation keeps what a mesh is: its vertices, whether it is closed, which side is out, what is flat."""

from collections import Counter

import numpy as np
import pytest

from diffusion4d.data.decimation import decimated, merged
from diffusion4d.scenes import shapes


def ball() -> tuple[np.ndarray, np.ndarray]:
    """A closed egg, no two vertices in one place."""
    mesh = shapes.superquadric(220, 2.0)
    key = np.round(1e6 * mesh.vertices)
    vertices, faces = merged(key, mesh.faces)
    return mesh.vertices[vertices] * [1, 0.8, 0.6], faces


def sheet(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat square of n x n cells."""
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    corner = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).reshape(-1, 1)
    cell = np.concatenate([corner + np.array(c) for c in ([0, n + 1, n + 2], [0, n + 2, 1])])
    return np.stack([x.reshape(-1), y.reshape(-1), np.zeros((n + 1) ** 2)], -1), cell


def areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return 0.5 * np.cross(b - a, c - a)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def test_an_egg_stays_closed_and_keeps_its_volume() -> None:
    vertices, faces = ball()
    kept, fewer = decimated(vertices, faces, 160)
    assert len(fewer) <= 160 < len(faces)
    assert len(np.unique(kept)) == len(kept) == fewer.max() + 1
    # Each edge is passed once either way: closed, and all triangles agree which side is out.
    edges = Counter(map(tuple, fewer[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).tolist()))
    assert all(edges[a, b] == edges[b, a] == 1 for a, b in edges)
    assert len(kept) - len(edges) // 2 + len(fewer) == 2
    whole = volume(vertices, faces)
    assert whole > 0
    # Vertices stay on the surface, so it can only lose; this much is left of an egg of 160 triangles.
    assert 0.9 * whole < volume(vertices[kept], fewer) <= whole


def test_flat_costs_nothing_and_outlines_stay() -> None:
    vertices, faces = sheet(8)
    kept, fewer = decimated(vertices, faces, 24)
    area = areas(vertices[kept], fewer)
    assert len(fewer) <= 24
    assert area[:, 2].sum() == pytest.approx(1.0, abs=1e-9)
    assert (area[:, 2] > 0).all()
    corners = {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    assert corners <= set(map(tuple, vertices[kept, :2].tolist()))


def test_creases_stay() -> None:
    """A sheet bent at a right angle along a row of vertices: no triangle leaves the two planes."""
    vertices, faces = sheet(8)
    past = np.maximum(vertices[:, 0] - 0.5, 0)
    bent = np.stack([np.minimum(vertices[:, 0], 0.5), vertices[:, 1], past], -1)
    kept, fewer = decimated(bent, faces, 24)
    area = areas(bent[kept], fewer)
    length = np.linalg.norm(area, axis=-1)
    assert np.abs(area / length[:, None]).max(1).min() == pytest.approx(1.0, abs=1e-9)
    assert length.sum() == pytest.approx(1.0, abs=1e-9)


def test_doubles_are_united_and_others_are_not() -> None:
    """A corner that a file stores twice becomes one; the same corner with another key (a weight) stays two."""
    places = np.array([[0, 0], [1, 0], [0, 1], [0, 1], [1, 0], [1, 1]], float)
    faces = np.array([[0, 1, 2], [3, 4, 5], [1, 4, 5]])
    vertices, united = merged(places, faces)
    assert len(vertices) == 4
    np.testing.assert_array_equal(places[vertices][united], places[faces[:2]])
    other = np.concatenate([places, [[0], [0], [0], [1], [0], [0]]], 1)
    vertices, united = merged(other, faces)
    assert len(vertices) == 5
    np.testing.assert_array_equal(other[vertices][united], other[faces[:2]])


def test_few_enough_is_left_alone() -> None:
    vertices, faces = sheet(2)
    kept, same = decimated(vertices, faces, 8)
    np.testing.assert_array_equal(vertices[kept][same], vertices[faces])


def test_refusals_say_what_was_needed() -> None:
    vertices, faces = sheet(2)
    with pytest.raises(ValueError, match="need at least 4 triangles, got 3"):
        decimated(vertices, faces, 3)
