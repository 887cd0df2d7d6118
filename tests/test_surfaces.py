"""Surfaces of the anchor frame: planes stay planes, depth edges are cut, territories are nearest points."""

import dataclasses
import doctest
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import trimesh
from fans import fan
from jaxtyping import config

import diffusion4d.surfaces
from diffusion4d.cameras import project
from diffusion4d.errors import UserError
from diffusion4d.fields.motion import reference
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.delaunay import anchor_surface, cut, territories, triangulate
from diffusion4d.surfaces.mesh import Mesh, read_mesh


def _still(points: np.ndarray) -> Hypotheses:
    """Two hypotheses of points that stand still."""
    hyp = fan(2, len(points), 12, drift=0.0)
    at = torch.from_numpy(points).float()
    tracks = project(at, hyp.intrinsics).expand(12, -1, -1).contiguous()
    ctrl = at[None, :, None].expand(2, -1, hyp.num_ctrl, -1).contiguous()
    return dataclasses.replace(hyp, control_points=ctrl, tracks=tracks, query_points=tracks[0])


def _plane(count: int, depth: float, slope: float, seed: int = 0) -> np.ndarray:
    x, y = np.random.default_rng(seed).uniform(-0.4, 0.4, (2, count))
    # z = depth + slope X  with X = x z:  the plane in camera axes.
    z = depth / (1 - slope * x)
    return np.stack([x * z, y * z, z], 1)


def test_a_plane_stays_a_plane_and_faces_the_camera() -> None:
    mesh = anchor_surface(_still(_plane(40, 1.0, 0.5)), levels=2)
    x, _, z = mesh.vertices.T
    np.testing.assert_allclose(z, 1 + 0.5 * x, atol=1e-5)
    toward = (mesh.normals * mesh.vertices).sum(1)
    assert (toward < 0).all()
    # Pixels count y down, so that this is outwards in the axes of files, too.
    assert len(mesh.faces) == 16 * len(triangulate(_plane(40, 1.0, 0.5)[:, :2]))


def test_depth_edges_and_what_parts_is_cut() -> None:
    near, far = _plane(60, 1.0, 0.0), _plane(60, 3.0, 0.0, seed=1)
    near[:, 0] = 0.1 + np.abs(near[:, 0])
    far[:, 0] = -0.1 - np.abs(far[:, 0])
    mesh = anchor_surface(_still(np.concatenate([near, far])), levels=0)
    parts = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split(only_watertight=False)
    assert sorted(round(float(p.vertices[:, 2].mean()), 3) for p in parts) == [1.0, 3.0]
    # Two rows at one depth, one of which slides away.
    row = np.stack([np.arange(6.0), np.zeros(6), np.ones(6)], 1)
    rest = np.concatenate([row, row + np.array([0, 1, 0]), row + np.array([0, 2, 0])])
    moved = rest + np.repeat([[0.0, 0, 0], [0, 0, 0], [0, 4, 0]], 6, 0)
    faces = triangulate(rest[:, :2])
    kept = cut(faces, np.zeros(18), np.stack([rest, moved])[None])
    assert len(kept) == 10
    assert kept.max() < 12
    # Away in one hypothesis and through to the other side in another: on average it stays.
    through = 2 * rest - moved
    parted = cut(faces, np.zeros(18), np.stack([[rest, moved], [rest, through]]))
    np.testing.assert_array_equal(parted, kept)
    # In one of three: most hold together.
    few = cut(faces, np.zeros(18), np.stack([[rest, moved], [rest, rest], [rest, rest]]))
    assert len(few) == len(faces)


def test_the_surface_takes_the_colours_under_it() -> None:
    hyp = _still(_plane(40, 1.0, 0.0))
    H, W = hyp.size
    y, x = np.mgrid[:H, :W] + 0.5
    image = np.stack([x / W, y / H, 0 * x], -1).astype(np.float32)
    mesh = anchor_surface(hyp, image)
    pixels = project(torch.from_numpy(mesh.vertices), hyp.intrinsics).numpy()
    assert mesh.colours is not None
    inside = ((pixels > 1) & (pixels < [W - 1, H - 1])).all(1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(mesh.colours[inside, :2], (pixels / [W, H])[inside], atol=2e-3)


def test_territories_are_nearest_points() -> None:
    pixels = np.array([[2.0, 2], [14, 2], [8, 12]])
    labels = territories(pixels, (16, 20))
    assert labels.shape == (16, 20)
    y, x = np.mgrid[:16, :20] + 0.5
    away = np.hypot(x[..., None] - pixels[:, 0], y[..., None] - pixels[:, 1])
    np.testing.assert_array_equal(labels, away.argmin(-1))


def test_the_library_calls_are_as_shown() -> None:
    failed, tried = doctest.testmod(diffusion4d.surfaces)
    assert (failed, tried) == (0, 6)


def test_too_little_for_a_surface_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3 points"):
        triangulate(np.zeros((2, 2)))
    with pytest.raises(UserError, match="not all on a line"):
        triangulate(np.stack([np.arange(5.0), np.arange(5.0)], 1))
    behind = _still(_plane(5, 1.0, 0.0))
    with pytest.raises(UserError, match="in front of the camera"):
        anchor_surface(dataclasses.replace(behind, control_points=-behind.control_points))


def test_the_reference_is_the_mean_of_the_first_frame() -> None:
    hyp = fan(3)
    torch.testing.assert_close(reference(hyp).places, hyp.evaluate()[:, :, 0].mean(0))


@pytest.mark.parametrize("suffix", ["glb", "ply", "obj"])
def test_a_mesh_is_read_in_our_axes(tmp_path, suffix: str) -> None:
    box = trimesh.creation.box((1, 2, 3))
    box.visual.vertex_colors = np.tile([255, 0, 51, 255], (len(box.vertices), 1))
    box.export(tmp_path / f"box.{suffix}")
    mesh = read_mesh(tmp_path / f"box.{suffix}")
    # As a set: writers may order and repeat vertices.
    found = np.unique(mesh.vertices.round(5), axis=0)
    np.testing.assert_allclose(found, np.unique(box.vertices * [1, -1, -1], axis=0))
    assert len(mesh.faces) == 12
    assert mesh.colours is not None
    np.testing.assert_allclose(
        mesh.colours, np.tile([1, 0, 0.2], (len(mesh.vertices), 1)), atol=1e-6
    )


def test_a_texture_is_kept(tmp_path) -> None:
    from PIL import Image

    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    uv = np.array([[0.0, 0], [1, 0], [0, 1]])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    sheet.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    sheet.export(tmp_path / "sheet.glb")
    mesh = read_mesh(tmp_path / "sheet.glb")
    assert mesh.texture is not None
    assert mesh.texture.startswith(b"\x89PNG")
    np.testing.assert_allclose(mesh.uv, uv * [1, -1] + [0, 1])


def test_what_is_no_mesh_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no mesh at"):
        read_mesh(tmp_path / "missing.glb")
    (tmp_path / "text.glb").write_text("this is no mesh")
    with pytest.raises(UserError, match="not a mesh that can be read"):
        read_mesh(tmp_path / "text.glb")
    corners = np.zeros((1, 3), np.int64)
    with pytest.raises(UserError, match="with triangles"):
        Mesh(np.zeros((3, 3), np.float32), corners[:0])
    with pytest.raises(UserError, match="need corners among 3 vertices, got 7"):
        Mesh(np.zeros((3, 3), np.float32), corners + 7)
    with pytest.raises(UserError, match="need finite vertices"):
        Mesh(np.full((3, 3), np.nan, np.float32), corners)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Without the checks of shapes that only tests have, and which come first."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(("name", "width"), [("colours", 3), ("uv", 2)])
@pytest.mark.parametrize("case", ["short", "long", "wide", "flat", "nan", "infinite"])
def test_looks_are_one_a_vertex_and_finite(
    name: str, width: int, case: str, as_a_user: None
) -> None:
    good = np.full((3, width), 0.5, np.float32)
    corners = np.array([[0, 1, 2]])
    plain = Mesh(np.eye(3, dtype=np.float32), corners, **{name: good})
    values = {
        "short": good[:2],
        "long": np.concatenate([good, good[:1]]),
        "wide": np.concatenate([good, good], 1),
        "flat": good[:, 0],
        "nan": np.where(good.cumsum(1) > 0.9, np.float32(np.nan), good),
        "infinite": np.where(good.cumsum(1) > 0.9, np.float32(np.inf), good),
    }[case]
    wanted = f"finite {name}" if case in ("nan", "infinite") else rf"{name} \[3, {width}\]"
    with pytest.raises(UserError, match=f"need {wanted}"):
        dataclasses.replace(plain, **{name: values})
