"""Points of a surface know its shape and nothing of where it lies; sampled detail is a function of its seed, rides on
the surface, and is longer than it is short, as detail of real meshes is."""

from pathlib import Path

import numpy as np
import pytest
import roma
import torch
import trimesh

from diffusion4d.detail.laplacian import cotangent_laplacian
from diffusion4d.detail.measures import waves_of
from diffusion4d.detail.network import DetailNetwork
from diffusion4d.detail.offsets import drift
from diffusion4d.detail.points import EDGE_FEATURES, POINT_FEATURES, Cloud, cloud_of, thinned
from diffusion4d.detail.sampling import load_detail_network, sample_detail, sample_on_points
from diffusion4d.errors import UserError
from diffusion4d.fields.weld import weld

SPACING = 0.12


@pytest.fixture(scope="module")
def body() -> trimesh.Trimesh:
    """A smooth thing with a thick and a thin end."""
    ball = trimesh.creation.icosphere(4)
    x, y, z = ball.vertices.T
    ball.vertices = np.stack([2 * x, y * (1 - 0.4 * x), z * (1 - 0.4 * x)], 1)
    return ball


@pytest.fixture(scope="module")
def cloud(body: trimesh.Trimesh) -> Cloud:
    return cloud_of(body.vertices, body.faces, SPACING, 0)


def test_points_are_evenly_spaced_on_the_surface(body: trimesh.Trimesh, cloud: Cloud) -> None:
    near = np.linalg.norm(cloud.points[:, None] - cloud.points[None], axis=-1)
    np.fill_diagonal(near, np.inf)
    assert near.min() >= 0.8 * SPACING
    assert near.min(1).max() < 1.6 * SPACING
    assert len(cloud) == pytest.approx(body.area / SPACING**2, rel=0.15)
    at = np.einsum("nci,nc->ni", body.vertices[body.faces[cloud.face]], cloud.barycentric)
    np.testing.assert_allclose(at, cloud.points, atol=1e-9)
    assert thinned(np.array([[0.0, 0, 0], [0.5, 0, 0], [1.2, 0, 0]]), 1.0).tolist() == [0, 2]


def test_features_do_not_tell_place_turn_or_size(body: trimesh.Trimesh, cloud: Cloud) -> None:
    turn = roma.random_rotmat(dtype=torch.float64).numpy()
    moved = cloud_of(3 * body.vertices @ turn.T + 5, body.faces, 3 * SPACING, 0)
    assert len(moved) == len(cloud)
    torch.testing.assert_close(moved.features, cloud.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.edges, cloud.edges, atol=1e-4, rtol=1e-4)


def test_an_edge_knows_the_curvature() -> None:
    ball = trimesh.creation.icosphere(5)
    told = cloud_of(np.asarray(ball.vertices), ball.faces, 0.1, 0)
    # 2 e·n / r² of a sphere of radius R is −1/R; a radius is 10 spacings.
    assert told.edges[:, :, 1].mean() == pytest.approx(-0.1, abs=0.005)
    assert told.edges.shape[-1] == EDGE_FEATURES
    assert told.features.shape[-1] == POINT_FEATURES


def test_the_far_side_of_a_plate_is_not_near() -> None:
    plate = trimesh.creation.box((2, 2, 0.02)).subdivide().subdivide().subdivide().subdivide()
    told = cloud_of(np.asarray(plate.vertices), plate.faces, 0.1, 0)
    above = np.flatnonzero(told.points[:, 2] > 0.0099)
    inner = above[(np.abs(told.points[above, :2]) < 0.6).all(1)]
    assert len(inner) > 50
    assert (told.points[told.neighbours[inner].numpy()][..., 2] > 0).all()
    # And values are not mixed over it.
    values = (told.points[:, 2] > 0).astype(float)
    places = np.array([[0.3, 0.2, 0.01], [0.3, 0.2, -0.01]])
    normals = np.array([[0.0, 0, 1], [0, 0, -1]])
    np.testing.assert_allclose(told.interpolation(places, normals) @ values, [1, 0], atol=1e-9)


def test_a_seam_is_no_edge() -> None:
    sheet = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1e-9], [2, 0, 0]])
    places, number = weld(sheet)
    assert len(places) == 4
    assert number[1] == number[3]
    assert number[2] == number[4]
    np.testing.assert_allclose(places[number], sheet, atol=1e-8)


def test_numbers_come_back() -> None:
    network = DetailNetwork(soft=0.3, deviation=1.7)
    offsets = torch.tensor([-2.0, -0.1, 0.0, 0.4, 5.0])
    torch.testing.assert_close(network.decode(network.encode(offsets)), offsets)


def test_the_network_is_local_and_its_samples_are_alone(cloud: Cloud) -> None:
    torch.manual_seed(0)
    network = DetailNetwork(width=16, depth=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_t = torch.randn(3, len(cloud))
    t = torch.tensor([0.2, 0.5, 0.9])
    told = (cloud.features, cloud.neighbours, cloud.edges)
    together = network(x_t, t, *told)
    torch.testing.assert_close(network(x_t[1:2], t[1:2], *told), together[1:2])
    # What changes at a point is heard by whoever hears it, or hears one who does.
    changed = x_t.clone()
    changed[:, 0] += 1
    heard = (network(changed, t, *told) - together).abs().amax(0) > 1e-6
    first = (cloud.neighbours == 0).any(1)
    reach = first | first[cloud.neighbours].any(1)
    reach[0] = True
    assert (heard <= reach).all()
    assert heard[first].float().mean() > 0.9


def test_detail_is_a_function_of_its_seed(cloud: Cloud) -> None:
    network = load_detail_network()
    both = sample_on_points(network, cloud, [3, 11], steps=4)
    alone = sample_on_points(network, cloud, [11], steps=4)
    torch.testing.assert_close(both[1:], alone)
    assert (both[0] - both[1]).abs().mean() > 0.02


def test_sampled_detail_is_long_and_rides_along(body: trimesh.Trimesh) -> None:
    vertices = torch.from_numpy(np.asarray(body.vertices))
    faces = torch.from_numpy(np.asarray(body.faces, np.int64))
    detail = sample_detail(vertices, faces, seed=1, scale=SPACING)
    again = sample_detail(vertices, faces, seed=1, scale=SPACING)
    assert torch.equal(detail.offsets, again.offsets)
    # Along the normal, a fraction of the spacing.
    assert detail.offsets[:, :2].abs().max() < 1e-9
    along = detail.offsets[:, 2].numpy() / SPACING
    assert 0.01 < np.abs(along).mean() < 1
    # White noise would have one energy in all bands.
    surface = cotangent_laplacian(body.vertices / SPACING, body.faces)
    spectrum = waves_of(surface, np.array([32.0, 16, 8, 4])).spectrum(along)
    assert 10 * np.log10(spectrum[0] / spectrum[-1]) > 6
    turn = roma.random_rotmat(dtype=torch.float64)
    moved = vertices @ turn.T * torch.tensor([1.0, 1.2, 0.9])
    full = detail.on(moved)
    strayed = drift(detail.offsets, moved, full, faces, detail.guide)
    assert float(strayed) < 1e-6


def test_seams_get_no_gap(body: trimesh.Trimesh) -> None:
    # Every triangle with corners of its own.
    vertices = torch.from_numpy(np.asarray(body.vertices)[body.faces].reshape(-1, 3))
    faces = torch.arange(len(vertices)).reshape(-1, 3)
    detail = sample_detail(vertices, faces, seed=1, scale=2 * SPACING)
    full = detail.on(vertices)
    _, number = weld(vertices.numpy())
    first = np.unique(number, return_index=True)[1]
    np.testing.assert_allclose(full, full[first][number], atol=1e-9)


def test_what_cannot_have_detail_is_refused(body: trimesh.Trimesh, tmp_path: Path) -> None:
    vertices = torch.from_numpy(np.asarray(body.vertices))
    faces = torch.from_numpy(np.asarray(body.faces, np.int64))
    with pytest.raises(ValueError, match="need a spacing above 0, got 0"):
        sample_detail(vertices, faces, seed=0, scale=0.0)
    with pytest.raises(
        ValueError, match="need a spacing that makes 48 to 200000 points, 9 makes 0"
    ):
        sample_detail(vertices, faces, seed=0, scale=9.0)
    with pytest.raises(ValueError, match="need finite vertices"):
        sample_detail(vertices * torch.nan, faces, seed=0, scale=SPACING)
    with pytest.raises(UserError, match="need a network for detail in"):
        load_detail_network(tmp_path)
