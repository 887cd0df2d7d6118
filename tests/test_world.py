"""Hypotheses in the world: still things stand still, images stay, and given cameras set the unit of length."""

import dataclasses
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
from test_rigid import INTRINSICS, SIZE, T, path, world
from torch import Tensor

from diffusion4d import deformation, splines
from diffusion4d.camera_paths import CameraPath, write_cameras
from diffusion4d.cameras import project
from diffusion4d.errors import UserError
from diffusion4d.export.glb import glb
from diffusion4d.export.palette import depth_offset
from diffusion4d.export.views import Scene
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.observation import Given, observe
from diffusion4d.world import place, triangulated

M = 10


def hypotheses(
    cameras: Tensor, scales: tuple[float, ...] = (1.0, 1.0)
) -> tuple[Hypotheses, Tensor]:
    """Scaled copies of one exact world as a moving camera sees it; which points stand still."""
    points, static = world(cameras, still=30, moving=15)
    points = points[0] / points[0, :, 0, 2].median()
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    ctrl = splines.fit(points, u, M)
    fitted = splines.basis_matrix(u, M) @ ctrl
    tracks = project(fitted, INTRINSICS).transpose(0, 1).float().contiguous()
    hyp = Hypotheses(
        control_points=torch.stack([s * ctrl for s in scales]).float(),
        knots=splines.knot_vector(M),
        degree=3,
        times=u,
        query_points=tracks[0].clone(),
        tracks=tracks,
        visibility=torch.ones(T, len(points)),
        intrinsics=INTRINSICS.float(),
        size=SIZE,
        extrinsics=torch.eye(4).repeat(T, 1, 1),
        seeds=torch.arange(len(scales)),
    )
    return hyp, static


def test_still_points_stand_still_and_images_stay() -> None:
    hyp, static = hypotheses(path())
    placed = place(hyp)
    moved = placed.hypotheses
    assert moved.frame == "world"
    assert moved.extrinsics.shape == (2, T, 4, 4)
    assert moved.static is not None
    assert torch.equal(moved.static, static.expand(2, -1))
    still = moved.control_points[:, static]
    assert torch.equal(still, still[:, :, :1].expand_as(still))
    # The bodies' paths are splines in another frame now, and their images are where they were.
    assert (moved.project() - hyp.project()).norm(dim=-1).max() < 0.3
    assert placed.refit[0] < 0.05
    assert placed.refit[1] < 0.2
    # Scene units: the median anchor depth is 1, in the first camera, which is the world.
    torch.testing.assert_close(moved.camera_points()[:, :, 0, 2].median(-1).values, torch.ones(2))
    assert torch.equal(moved.extrinsics[:, 0], torch.eye(4).expand(2, -1, -1))


def test_a_world_survives_its_file_and_a_choice(tmp_path: Path) -> None:
    hyp, _ = hypotheses(path())
    moved = place(hyp).hypotheses
    back = Hypotheses.load(moved.save(tmp_path))
    assert back.static is not None
    assert moved.static is not None
    assert torch.equal(back.extrinsics, moved.extrinsics)
    assert torch.equal(back.static, moved.static)
    second = moved.select(torch.tensor([1]))
    assert torch.equal(second.extrinsics, moved.extrinsics[1:])
    torch.testing.assert_close(second.project(), moved.project()[1:])
    # Numpy alone, by the one line of docs/conventions.md.
    with np.load(tmp_path / "hypotheses.npz") as file:
        E = np.broadcast_to(file["extrinsics"], (2, T, 4, 4))
        assert file["static"].dtype == np.bool_
    X = moved.evaluate()[1, 40, 7].numpy()
    expected = moved.camera_points()[1, 40, 7].numpy()
    np.testing.assert_allclose(E[1, 7, :3, :3] @ X + E[1, 7, :3, 3], expected, atol=1e-5)
    # The shape checker of the tests would be first, so files are spoilt.
    with np.load(tmp_path / "hypotheses.npz") as file:
        arrays = dict(file)
    for name, value, says in (
        ("static", arrays["static"][:, :3], r"need static \[K, N\] = \[2, 45\], got \[2, 3\]"),
        ("static", arrays["static"].astype(int), "need booleans in static"),
        ("extrinsics", arrays["extrinsics"][:1], "with K = 2"),
    ):
        np.savez(tmp_path / "spoilt.npz", **{**arrays, name: value})
        with pytest.raises(UserError, match=says):
            Hypotheses.load(tmp_path / "spoilt.npz")


def test_a_hypothesis_is_placed_alike_alone_and_among_others() -> None:
    # Mates of like scale, and such whose depths would put the one that is asked for before the nearest allowed.
    for scales in ((0.8, 1.0, 1.3), (900.0, 1000.0, 1.3)):
        hyp, _ = hypotheses(path(), scales)
        together = place(hyp).hypotheses.select(torch.tensor([2]))
        alone = place(hyp.select(torch.tensor([2]))).hypotheses
        torch.testing.assert_close(
            alone.control_points, together.control_points, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(alone.extrinsics, together.extrinsics, atol=1e-6, rtol=1e-5)


def test_however_many_are_placed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hyp = hypotheses(path(), (0.9, 1.0, 1.1))[0]
    together = place(hyp)
    monkeypatch.setattr("diffusion4d.world.AT_ONCE", 2)
    parts = place(hyp)
    torch.testing.assert_close(parts.hypotheses.control_points, together.hypotheses.control_points)
    torch.testing.assert_close(parts.hypotheses.extrinsics, together.hypotheses.extrinsics)
    assert torch.equal(parts.hypotheses.static, together.hypotheses.static)
    assert parts.refit == pytest.approx(together.refit)


def test_files_show_each_hypothesis_its_own_camera() -> None:
    moved = place(hypotheses(path(), (0.9, 1.1))[0]).hypotheses
    document = pygltflib.GLTF2.load_from_bytes(glb(moved, seconds=2.0))
    assert document is not None
    names = {node.name: i for i, node in enumerate(document.nodes)}
    for k, name in enumerate(("hypothesis_00_camera", "hypothesis_01_camera")):
        assert names[name] in document.nodes[names[f"hypothesis_0{k}"]].children
        channels = [c for c in document.animations[0].channels if c.target.node == names[name]]
        assert {c.target.path for c in channels} == {"translation", "rotation"}
    # Views are drawn from the first camera, which is where every path begins.
    scene = Scene(moved)
    assert scene.eyes_KT3 is not None
    np.testing.assert_allclose(scene.eyes_KT3[:, 0], 0, atol=1e-6)
    true = torch.linalg.inv(path())[:, :3, 3]
    along = torch.nn.functional.cosine_similarity(
        torch.from_numpy(scene.eyes_KT3[:, -1]).double(), true[-1].expand(2, 3)
    )
    assert along.min() > 0.999


def test_views_of_a_given_world_are_drawn_from_its_first_camera() -> None:
    cameras = path()
    user = given(cameras, 2.5)
    placed = place(hypotheses(cameras)[0], user).hypotheses
    scene = Scene(placed)
    before = placed.camera_points()[:, :, 0].numpy()
    np.testing.assert_allclose(scene.paths_KNS3[:, :, 0], before, atol=1e-4)


def test_a_still_camera_changes_nothing() -> None:
    hyp, static = hypotheses(torch.eye(4, dtype=torch.float64).repeat(T, 1, 1))
    placed = place(hyp)
    assert placed.camera.startswith("still")
    assert placed.hypotheses.frame == "camera"
    assert torch.equal(placed.hypotheses.control_points, hyp.control_points)
    assert torch.equal(placed.hypotheses.extrinsics, hyp.extrinsics)
    assert placed.hypotheses.static is not None
    assert torch.equal(placed.hypotheses.static, static.expand(2, -1))


def test_without_a_rigid_background_it_says_so() -> None:
    hyp, static = hypotheses(path())
    kept = (~static).nonzero()[:, 0]
    body = dataclasses.replace(
        hyp,
        control_points=hyp.control_points[:, kept],
        tracks=hyp.tracks[:, kept],
        query_points=hyp.query_points[kept],
        visibility=hyp.visibility[:, kept],
    )
    placed = place(body)
    assert "no rigid background" in placed.camera
    assert placed.hypotheses.static is None
    assert torch.equal(placed.hypotheses.control_points, body.control_points)


def given(cameras: Tensor, metres: float) -> CameraPath:
    """The same path in metres, in a world whose origin and axes are elsewhere."""
    turned = torch.eye(4, dtype=torch.float64)
    turned[:3, :3] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    turned[:3, 3] = torch.tensor([3.0, -2.0, 1.0])
    scaled = cameras.clone()
    scaled[:, :3, 3] *= metres
    return CameraPath(scaled @ turned)


def test_given_cameras_set_the_unit_of_every_hypothesis() -> None:
    """Copies at half and twice the size come out alike, in metres, in the user's own world."""
    cameras = path()
    points, _ = world(cameras, still=30, moving=15)
    unit = float(points[0, :, 0, 2].median())
    hyp, static = hypotheses(cameras, (0.5, 2.0))
    # `hypotheses` divides lengths by `unit`; 2.5 m stand for 1 before that.
    user = given(cameras, 2.5)
    placed = place(hyp, user)
    moved = placed.hypotheses
    assert (moved.frame, moved.units, placed.camera) == ("world", "m", "given")
    torch.testing.assert_close(moved.extrinsics, user.extrinsics.float())
    torch.testing.assert_close(
        moved.camera_points()[0], moved.camera_points()[1], atol=0.02, rtol=0
    )
    true = 2.5 * points[0]
    assert (moved.camera_points()[0] - true).norm(dim=-1).median() < 0.02 * 2.5
    assert moved.static is not None
    assert torch.equal(moved.static[0], static)
    assert unit > 0


def deformed(hyp: Hypotheses, spread: float) -> Hypotheses:
    """Every point of every hypothesis at another depth along its rays: images stay as they are."""
    g = torch.Generator().manual_seed(5)
    factor = torch.exp(spread * torch.randn(*hyp.control_points.shape[:2], 1, 1, generator=g))
    return dataclasses.replace(hyp, control_points=hyp.control_points * factor)


def test_still_points_are_where_their_rays_meet_whatever_depths_were_sampled() -> None:
    """Tracks, lens and cameras are exact and travel: every still point of every hypothesis is then known."""
    cameras = path()
    points, _ = world(cameras, still=30, moving=15)
    hyp, static = hypotheses(cameras, (0.5, 1.0, 2.0))
    user = given(cameras, 2.5)
    for spread in (0.0, 0.5):
        moved = place(deformed(hyp, spread), user).hypotheses
        assert moved.static is not None
        assert torch.equal(moved.static, static.expand(3, -1))
        true = torch.linalg.inv(user.extrinsics)
        true = (2.5 * points[0]).transpose(0, 1) @ true[:, :3, :3].mT + true[:, None, :3, 3]
        error = (moved.evaluate() - true.transpose(0, 1)).norm(dim=-1)
        # Splines of 10 control points leave a few hundredths of a pixel.
        assert error[:, static].max() < 0.01 * 2.5
        # And an image that stays.
        gap = (moved.project() - hyp.project()[:1]).norm(dim=-1)
        assert gap[:, static].max() < 0.2


def test_a_doubt_about_a_track_is_one_about_a_place() -> None:
    """Hypotheses that take the tracks otherwise have other places, by what their own rays say."""
    cameras = path()
    hyp, static = hypotheses(cameras, (1.0, 1.0))
    ctrl = hyp.control_points.clone()
    # Half a pixel to the right, and the image of all instants with it.
    ctrl[1, :, :, 0] += 0.5 / INTRINSICS[0].float() * ctrl[1, :, :, 2]
    user = given(cameras, 1.0)
    moved = place(dataclasses.replace(hyp, control_points=ctrl), user).hypotheses
    shift = (moved.project()[1] - moved.project()[0])[static]
    torch.testing.assert_close(
        shift.median(0).values.median(0).values, torch.tensor([0.5, 0.0]), atol=0.1, rtol=0
    )
    apart = (moved.evaluate()[1] - moved.evaluate()[0]).norm(dim=-1)[static]
    assert 0 < apart.max() < 0.2


def test_points_without_parallax_keep_the_depth_that_was_sampled() -> None:
    """Twenty times as far, rays hardly part: points stand still, and their depth is the hypothesis' own."""
    cameras = path()
    points, _ = world(cameras, still=30, moving=0)
    far = torch.arange(30) < 10
    E = cameras.clone()
    world_N3 = torch.einsum("ji,nj->ni", E[0, :3, :3], points[0, :, 0] - E[0, :3, 3])
    world_N3[far] *= 20
    seen = torch.einsum("tij,nj->nti", E[:, :3, :3], world_N3) + E[:, :3, 3]
    ctrl = splines.fit(seen, torch.linspace(0, 1, T, dtype=torch.float64), M).float()
    tracks = project(seen, INTRINSICS).transpose(0, 1).float().contiguous()
    hyp, _ = hypotheses(cameras, (1.0,))
    hyp = dataclasses.replace(
        hyp,
        control_points=torch.where(far[:, None, None], 1.1 * ctrl, 1.3 * ctrl)[None],
        tracks=tracks,
        query_points=tracks[0].clone(),
        visibility=torch.ones(T, 30),
    )
    moved = place(hyp, CameraPath(cameras)).hypotheses
    assert moved.static is not None
    assert moved.static.all()
    depth = moved.camera_points()[0, :, 0, 2].double() / seen[:, 0, 2]
    # The unit is that of the near ones, 1 / 1.3, whose depths are then their rays'.
    torch.testing.assert_close(depth[~far], torch.ones(20).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(depth[far], torch.full((10,), 1.1 / 1.3).double(), atol=0.08, rtol=0)


def test_cameras_that_only_turn_leave_the_unit_open() -> None:
    cameras = path(travel=0.0)
    hyp, _ = hypotheses(cameras)
    placed = place(hyp, given(cameras, 2.5))
    assert placed.hypotheses.units == "scene"
    assert placed.hypotheses.frame == "world"
    assert "does not travel" in placed.camera


def test_a_path_without_parallax_leaves_the_camera_frame() -> None:
    cameras = path(travel=1e-4)
    hyp, _ = hypotheses(cameras)
    placed = place(hyp, given(cameras, 1.0))
    assert "too little parallax" in placed.camera
    assert placed.hypotheses.frame == "camera"


def test_triangulation_finds_exact_depths() -> None:
    cameras = path()
    points, static = world(cameras)
    tracks = project(points[0], INTRINSICS)
    found = triangulated(tracks, torch.ones(tracks.shape[:2]).double(), INTRINSICS, 256, cameras)
    assert torch.equal(found.kept, static)
    torch.testing.assert_close(found.depth[static], points[0, static, :, 2], atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    hyp, _ = hypotheses(path())
    with pytest.raises(
        UserError, match="need a camera for each of the 16 frames of the clip, got 15"
    ):
        place(hyp, CameraPath(path()[:15]))
    with pytest.raises(UserError, match="got some in the world already"):
        place(dataclasses.replace(hyp, frame="world"))
    file = write_cameras(tmp_path / "cameras.npz", CameraPath(path()[:15]))
    with pytest.raises(
        UserError, match="need a camera for each of the 16 frames of the clip, got 15"
    ):
        observe(Given(tracks=hyp.tracks, size=SIZE, cameras=file))


def test_the_lens_of_a_camera_file_is_used_where_none_is_given(tmp_path: Path) -> None:
    hyp, _ = hypotheses(path())
    lens = torch.tensor([600.0, 600.0, 320.0, 256.0])
    file = write_cameras(tmp_path / "cameras.npz", CameraPath(path(), lens, (512, 640)))
    observed = observe(Given(tracks=hyp.tracks, size=SIZE, cameras=file))
    assert observed.camera == "given"
    torch.testing.assert_close(observed.intrinsics, lens / 2)
    asked = observe(Given(tracks=hyp.tracks, size=SIZE, cameras=file, fov=60.0))
    assert asked.fov == pytest.approx(60.0)


def test_own_cameras_are_scored_as_one_shared_camera_is() -> None:
    """The same path told once or for each hypothesis: every number that summarises is the same."""
    cameras = path()
    shared = place(hypotheses(cameras, (0.9, 1.1))[0], given(cameras, 2.5)).hypotheses
    own = dataclasses.replace(shared, extrinsics=shared.cameras.clone())
    torch.testing.assert_close(own.scores(), shared.scores(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(own.reprojection(), shared.reprojection(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        own.errors_at([3, 200]), shared.errors_at([3, 200]), atol=1e-3, rtol=1e-2
    )
    with pytest.raises(ValueError, match="need ranks in 0"):
        own.errors_at([10**6])
    for mine, theirs in zip(own.camera_covariance(), shared.camera_covariance(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(depth_offset(own), depth_offset(shared), atol=1e-3, rtol=1e-2)


def test_modes_of_a_world_are_seen_by_the_best_ranked_camera() -> None:
    moved = place(hypotheses(path(), (0.8, 0.9, 1.0, 1.1, 1.2, 1.3))[0]).hypotheses
    found = deformation.modes(moved, noise="white")
    mean = found.at(torch.zeros(1, found.num_modes).double())
    assert mean.static is None
    assert torch.equal(mean.extrinsics, moved.best.extrinsics[0])
