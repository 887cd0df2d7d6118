"""`diffusion4d export`: every format is read back by a reader that did not write it, and holds what was sampled."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
import trimesh
from fans import fan
from PIL import Image
from scipy.spatial.transform import Rotation

from diffusion4d.cli import run as command
from diffusion4d.config import Export
from diffusion4d.errors import UserError
from diffusion4d.evaluation.clips import read_clip
from diffusion4d.export.command import named_hypotheses, point_colours, run
from diffusion4d.export.gaussians import C0, NAMES, gaussian_ply
from diffusion4d.export.palette import ramp
from diffusion4d.export.usd import write_usd
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.gaussians import Gaussians, carried, gaussians_of, surface_jacobians
from diffusion4d.surfaces.mesh import Mesh

FLIP = np.array([1, -1, -1])


def _moving(K: int = 3) -> Hypotheses:
    """Hypotheses in the world, each with a camera path of its own."""
    hyp = fan(K, 30, 12)
    turn = roma.rotvec_to_rotmat(torch.linspace(0, 0.5, 12)[:, None] * torch.tensor([0.1, 1, 0.2]))
    extrinsics = torch.eye(4).repeat(K, 12, 1, 1)
    extrinsics[..., :3, :3] = turn
    extrinsics[..., 0, 3] = torch.linspace(0, 0.2, 12) * torch.arange(1, K + 1)[:, None]
    return dataclasses.replace(hyp, frame="world", extrinsics=extrinsics)


@pytest.fixture(params=["camera", "world"])
def sampled(request: pytest.FixtureRequest, tmp_path: Path) -> Hypotheses:
    hyp = fan(3, 30, 12) if request.param == "camera" else _moving()
    hyp.save(tmp_path)
    return hyp


def test_layouts_of_other_trackers(sampled: Hypotheses, tmp_path: Path) -> None:
    layouts = ("tapvid3d", "tapip3d", "trackcraft3r")
    files = run(Export(tmp_path, layouts, hypotheses="1"))
    assert [f.name for f in files] == [*layouts]
    own, world, first = (
        dict(np.load(tmp_path / name / "hypothesis_01.npz", allow_pickle=False)) for name in layouts
    )
    camera_TN3 = sampled.camera_points()[1].transpose(0, 1).numpy()
    np.testing.assert_allclose(own["tracks_XYZ"], camera_TN3, atol=1e-5)
    np.testing.assert_array_equal(own["visibility"], sampled.seen.numpy())
    # The pinhole of every layout takes its own points to its own pixels.
    fx, fy, cx, cy = own["fx_fy_cx_cy"]
    expected = sampled.project()[1].transpose(0, 1).numpy()
    pixels = own["tracks_XYZ"][..., :2] / own["tracks_XYZ"][..., 2:] * [fx, fy] + [cx, cy]
    np.testing.assert_allclose(pixels, expected, atol=1e-2)
    seen = np.einsum("tij,tnj->tni", world["extrinsics"][:, :3, :3], world["coords"])
    seen = seen + world["extrinsics"][:, None, :3, 3]
    flat = np.einsum("tij,tnj->tni", world["intrinsics"], seen)
    # These count from the middle of the first pixel.
    np.testing.assert_allclose(flat[..., :2] / flat[..., 2:], expected - 0.5, atol=1e-2)
    np.testing.assert_array_equal(world["query_points"][:, 1:], world["coords"][0])
    np.testing.assert_allclose(first["tracks"][0], camera_TN3[0], atol=1e-5)
    start = world["extrinsics"][0]
    np.testing.assert_allclose(
        first["tracks"], world["coords"] @ start[:3, :3].T + start[:3, 3], atol=1e-5
    )
    # Our own reader of TAPVid-3D's layout takes it for a clip.
    clip = read_clip(tmp_path / "tapvid3d" / "hypothesis_01.npz", num_points=30, max_frames=12)
    np.testing.assert_allclose(clip.points.transpose(0, 1), camera_TN3, atol=1e-5)
    torch.testing.assert_close(clip.intrinsics, sampled.intrinsics)
    assert clip.size == sampled.size


def test_ply_of_every_frame(sampled: Hypotheses, tmp_path: Path) -> None:
    run(Export(tmp_path, ("ply",), hypotheses="0,2", out=tmp_path / "out"))
    folder = tmp_path / "out" / "ply"
    assert sorted(p.name for p in folder.iterdir()) == ["hypothesis_00", "hypothesis_02"]
    for t in (0, 11):
        cloud = trimesh.load(folder / "hypothesis_02" / f"frame_{t:04d}.ply")
        np.testing.assert_allclose(cloud.vertices * FLIP, sampled.evaluate()[2, :, t], atol=1e-5)


def _ramp_after_black(hyp: Hypotheses, folder: Path) -> Path:
    """Frames of twice the size: two black ones, then two whose red and green say which pixel one looks at."""
    height, width = hyp.size
    y, x = np.mgrid[: 2 * height, : 2 * width]
    pixels = np.stack([255 * x / (2 * width), 255 * y / (2 * height), 0 * x], -1).astype(np.uint8)
    folder.mkdir()
    for i, frame in enumerate((0 * pixels, 0 * pixels, pixels, pixels)):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


def _colours(path: Path) -> np.ndarray:
    """sRGB in [0, 1] of a file of points or of Gaussians."""
    raw = trimesh.load(path).metadata["_ply_raw"]["vertex"]["data"]
    if "red" in raw.dtype.names:
        return np.stack([raw[name] / 255 for name in ("red", "green", "blue")], 1)
    return np.stack([raw[f"f_dc_{i}"] for i in range(3)], 1) * C0 + 0.5


@pytest.mark.parametrize("told", ["by the option", "by summary.json", "by both", "by none"])
def test_colours_are_those_of_the_frame_that_the_clip_starts_with(
    sampled: Hypotheses, tmp_path: Path, told: str
) -> None:
    video = _ramp_after_black(sampled, tmp_path / "clip")
    begins = 2 / 30
    recorded = {"by summary.json": begins, "by both": 1 / 30}.get(told)
    if recorded is not None:
        report = {"assumed": {"source": {"video": "gone.mp4", "start": recorded}}}
        (tmp_path / "summary.json").write_text(json.dumps(report))
    asked = begins if told in ("by the option", "by both") else None
    run(Export(tmp_path, ("ply", "gaussians"), hypotheses="0", video=video, start=asked))
    for t in (0, 11):
        name = f"hypothesis_00/frame_{t:04d}.ply"
        shown, splats = _colours(tmp_path / "ply" / name), _colours(tmp_path / "gaussians" / name)
        if told == "by none":
            assert shown.max() == 0
            assert splats.max() < 1e-6
            continue
        pixels = sampled.query_points.numpy() / np.array(sampled.size)[::-1]
        np.testing.assert_allclose(shown[:, :2], pixels, atol=0.02)
        np.testing.assert_allclose(shown[:, 2], 0)
        # The points are among the corners of their surface.
        apart = np.linalg.norm(splats[:, None, :2] - pixels, axis=-1).min(0)
        assert apart.max() < 0.02


def test_without_a_video_points_are_warm_where_they_are_near(tmp_path: Path) -> None:
    hyp = fan(3, 30, 12)
    order = np.random.default_rng(5).permutation(30)
    farther = torch.from_numpy(1 + 0.05 * order)[:, None, None].float()
    hyp = dataclasses.replace(hyp, control_points=hyp.control_points * farther)
    hyp.save(tmp_path)
    run(Export(tmp_path, ("ply",), hypotheses="all"))
    expected = ramp(order / 29)
    for name in ("hypothesis_00/frame_0000.ply", "hypothesis_02/frame_0011.ply"):
        np.testing.assert_allclose(_colours(tmp_path / "ply" / name), expected, atol=1 / 255)
    # The same points in a world that its first camera sees from elsewhere.
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, 2.0, -0.4]))
    pose = torch.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, torch.tensor([0.2, 3.0, -1.0])
    there = (hyp.control_points - pose[:3, 3]) @ turn
    world = dataclasses.replace(
        hyp, control_points=there, frame="world", extrinsics=pose.repeat(12, 1, 1)
    )
    np.testing.assert_allclose(point_colours(world), expected, atol=1e-6)
    assert point_colours(fan(2, 1)).shape == (1, 3)


def test_usd_opens_and_holds_the_points_and_the_camera(sampled: Hypotheses, tmp_path: Path) -> None:
    pxr = pytest.importorskip("pxr", reason="needs usd-core, the extra usd")
    from pxr import Usd, UsdGeom, UsdValidation

    del pxr
    (path,) = run(Export(tmp_path, ("usd",), hypotheses="all"))
    issues = UsdValidation.ValidationContext(
        UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    ).Validate(Usd.Stage.Open(str(path)))
    assert [issue.GetErrorAsString() for issue in issues] == []
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert stage.GetTimeCodesPerSecond() == pytest.approx(30)
    lens = UsdGeom.Camera(stage.GetPrimAtPath("/diffusion4d/camera"))
    for t in (0, 5, 11):
        for k in range(3):
            points = UsdGeom.Points(stage.GetPrimAtPath(f"/diffusion4d/hypothesis_{k:02d}/points"))
            here = np.array(points.GetPointsAttr().Get(t))
            np.testing.assert_allclose(here * FLIP, sampled.evaluate()[k, :, t], atol=1e-5)
        # USD's own camera takes the points of the best hypothesis to their pixels.
        k = int(sampled.rank()[0])
        frustum = lens.GetCamera(t).frustum
        matrix = np.array(frustum.ComputeViewMatrix() * frustum.ComputeProjectionMatrix())
        places = sampled.evaluate()[k, :, t].double().numpy() * FLIP
        clip = np.concatenate([places, np.ones((30, 1))], 1) @ matrix
        H, W = sampled.size
        pixels = (clip[:, :2] / clip[:, 3:] * [1, -1] + 1) / 2 * [W, H]
        np.testing.assert_allclose(pixels, sampled.project()[k, :, t], atol=2e-2)


def test_gaussian_ply_as_its_viewers_read_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    turn, size = roma.random_rotmat(7), torch.rand(7, 3) + 0.05
    splats = Gaussians(
        torch.randn(7, 3),
        turn @ torch.diag_embed(size**2) @ turn.mT,
        torch.rand(7, 3),
        torch.rand(7) * 0.8 + 0.1,
    )
    (tmp_path / "a.ply").write_bytes(gaussian_ply(splats))
    raw = trimesh.load(tmp_path / "a.ply").metadata["_ply_raw"]["vertex"]["data"]
    assert raw.dtype.names == NAMES
    column = {name: raw[name].astype(float) for name in NAMES}
    np.testing.assert_allclose(np.stack([column[a] for a in "xyz"], 1), splats.means, atol=1e-6)
    quaternion = np.stack([column[f"rot_{i}"] for i in (1, 2, 3, 0)], 1)
    found = Rotation.from_quat(quaternion).as_matrix()
    scale = np.exp(np.stack([column[f"scale_{i}"] for i in range(3)], 1))
    rebuilt = found @ (scale[..., None] ** 2 * np.eye(3)) @ found.transpose(0, 2, 1)
    np.testing.assert_allclose(rebuilt, splats.covariances, atol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-column["opacity"])), splats.opacities, atol=1e-6)
    colour = np.stack([column[f"f_dc_{i}"] for i in range(3)], 1) * C0 + 0.5
    np.testing.assert_allclose(colour, splats.colours, atol=1e-6)


def test_gaussians_lie_on_the_surface_and_turn_with_it() -> None:
    at = np.linspace(0, 1, 6, dtype=np.float32)
    x, y = np.meshgrid(at, at)
    vertices = np.stack([x, y, np.full_like(x, 2)], -1).reshape(-1, 3)
    corner = np.arange(36).reshape(6, 6)[:-1, :-1].ravel()
    mesh = Mesh(vertices, np.stack([corner, corner + 6, corner + 1], 1))
    flat = gaussians_of(mesh)
    turned, deviations = flat.axes()
    # The least axis is the normal of the sheet.
    torch.testing.assert_close(turned[..., 0].abs(), torch.tensor([0, 0, 1.0]).expand(36, 3))
    torch.testing.assert_close(deviations[:, 0], 0.1 * deviations[:, 1])
    torch.manual_seed(1)
    turn = roma.random_rotmat(2)[:, None].expand(2, 36, 3, 3)
    moved = carried(flat, flat.means.expand(2, 36, 3), turn)
    torch.testing.assert_close(moved.axes()[1], deviations.expand(2, 36, 3), atol=1e-5, rtol=1e-4)
    normal = moved.axes()[0][..., 0]
    torch.testing.assert_close((normal * turn[..., 2]).sum(-1).abs(), torch.ones(2, 36))
    with pytest.raises(ValueError, match="need one instant"):
        gaussian_ply(moved)
    with pytest.raises(ValueError, match="opacity between 0 and 1"):
        gaussians_of(mesh, 1.0)


def test_the_size_of_gaussians_is_that_of_their_neighbourhood() -> None:
    """A regular hexagon and its middle: every vertex has the six others for neighbours."""
    side = 0.3
    around = np.linspace(0, 2 * np.pi, 7)[:6]
    rim = side * np.stack([np.cos(around), np.sin(around), 0 * around], 1)
    turn = roma.random_rotmat(generator=torch.Generator().manual_seed(4)).numpy()
    vertices = np.concatenate([np.zeros((1, 3)), rim]) @ turn.T + [0.2, 0.1, 2]
    faces = np.stack([np.zeros(6), np.arange(6) + 1, (np.arange(6) + 1) % 6 + 1], 1)
    splats = gaussians_of(Mesh(vertices.astype(np.float32), faces.astype(np.int64)))
    # The middle is a side away from all; a corner a side from three, √3 from two, 2 from one.
    apart = side * np.array([1, *[(3 + 2 * np.sqrt(3) + 2) / 6] * 6])
    across = np.outer(turn[:, 2], turn[:, 2])
    expected = (apart**2)[:, None, None] / 4 * (np.eye(3) - across + across / 100)
    np.testing.assert_allclose(splats.covariances, expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(splats.opacities, 0.95)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_gaussians_stretch_and_turn_with_the_surface(batch: tuple[int, ...]) -> None:
    ball = trimesh.creation.icosphere(2)
    faces = np.asarray(ball.faces, np.int64)
    mesh = Mesh(ball.vertices.astype(np.float32), faces)
    rest, corners = torch.from_numpy(mesh.vertices).double(), torch.from_numpy(faces)
    splats = gaussians_of(mesh)
    deviations = splats.axes()[1]
    # Twice as large: deviations double along the surface, and stay across it.
    grown = (2 * rest + 3).expand(*batch, -1, -1)
    found = carried(splats, grown, surface_jacobians(rest, grown, corners)).axes()[1]
    expected = deviations * torch.tensor([1.0, 2, 2])
    torch.testing.assert_close(found.float(), expected.expand_as(found), atol=0, rtol=1e-3)
    turn = roma.random_rotmat(dtype=torch.float64)
    turned = (rest @ turn.T).expand(*batch, -1, -1)
    jacobians = surface_jacobians(rest, turned, corners)
    torch.testing.assert_close(jacobians, turn.expand_as(jacobians), atol=1e-5, rtol=0)
    # What no triangle holds stays as it was.
    lone = torch.cat([rest, rest[:1] + 5])
    assert torch.equal(surface_jacobians(lone, 2 * lone, corners)[-1], torch.eye(3).double())


def test_gaussians_of_every_frame(sampled: Hypotheses, tmp_path: Path) -> None:
    run(Export(tmp_path, ("gaussians",)))
    (folder,) = (tmp_path / "gaussians").iterdir()
    assert folder.name == f"hypothesis_{int(sampled.rank()[0]):02d}"
    assert len(list(folder.iterdir())) == 12


def test_the_mean_is_one_of_the_choices_where_there_is_one() -> None:
    hyp = fan(3, 30, 12)
    torch.testing.assert_close(
        named_hypotheses("mean", hyp, Path())["mean"].evaluate()[0], hyp.mean
    )
    with pytest.raises(UserError, match="need hypotheses that share their cameras"):
        named_hypotheses("mean", _moving(), Path())


def test_chosen_hypotheses_keep_their_numbers_in_usd(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="needs usd-core, the extra usd")
    from pxr import Usd, UsdGeom

    hyp = fan(4, 30, 12)
    hyp.save(tmp_path)
    (path,) = run(Export(tmp_path, ("usd",), hypotheses="3,1"))
    stage = Usd.Stage.Open(str(path))
    names = [prim.GetName() for prim in stage.GetDefaultPrim().GetChildren()]
    assert names == ["hypothesis_03", "hypothesis_01", "camera"]
    points = UsdGeom.Points(stage.GetPrimAtPath("/diffusion4d/hypothesis_03/points"))
    here = np.array(points.GetPointsAttr().Get(5)) * FLIP
    np.testing.assert_allclose(here, hyp.evaluate()[3, :, 5], atol=1e-5)


def test_usd_lasts_as_long_as_the_clip(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="needs usd-core, the extra usd")
    from pxr import Usd

    # A frame that comes late, of a clip of 1.1 s.
    u = torch.linspace(0, 1, 12, dtype=torch.float64)
    u[5] += 0.03
    dataclasses.replace(fan(2, 30, 12), times=u).save(tmp_path)
    (tmp_path / "summary.json").write_text('{"hypotheses": {"seconds": 1.1}}')
    (path,) = run(Export(tmp_path, ("usd",), out=tmp_path / "elsewhere"))
    stage = Usd.Stage.Open(str(path))
    assert stage.GetTimeCodesPerSecond() == pytest.approx(10)
    (prim,) = [p for p in stage.Traverse() if p.GetName() == "points"]
    codes = np.array(prim.GetAttribute("points").GetTimeSamples())
    np.testing.assert_allclose(codes / stage.GetTimeCodesPerSecond(), 1.1 * u.numpy(), atol=1e-6)


def test_only_earlier_results_are_replaced(tmp_path: Path) -> None:
    fan(3, 30, 12).save(tmp_path)
    run(Export(tmp_path, ("ply",), hypotheses="all"))
    run(Export(tmp_path, ("ply",), hypotheses="0"))
    assert [p.name for p in (tmp_path / "ply").iterdir()] == ["hypothesis_00"]
    mine = tmp_path / "ply" / "notes.txt"
    mine.write_text("kept")
    with pytest.raises(UserError, match=r"hold earlier results and nothing else, got notes\.txt"):
        run(Export(tmp_path, ("ply",), hypotheses="1"))
    assert mine.read_text() == "kept"
    assert len(list((tmp_path / "ply" / "hypothesis_00").iterdir())) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hypotheses.npz", "ply"]


def test_bad_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    fan(2, 30, 12).save(tmp_path)
    assert command(["export", str(tmp_path / "nothing")]) == 2
    assert "no hypotheses at" in capsys.readouterr().err
    assert command(["export", str(tmp_path), "--hypotheses", "5"]) == 2
    assert "need different hypotheses out of 0 … 1" in capsys.readouterr().err
    (tmp_path / "ply").write_text("a file")
    assert command(["export", str(tmp_path), "--formats", "ply"]) == 2
    assert "need a folder to write, got a file" in capsys.readouterr().err
    for name in ("pxr", "pxr.Usd", "pxr.UsdGeom"):
        monkeypatch.setitem(sys.modules, name, None)
    assert command(["export", str(tmp_path), "--formats", "usd"]) == 2
    assert "pip install 'diffusion4d[usd]'" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hypotheses.npz", "ply"]


def test_usda_is_text(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="needs usd-core, the extra usd")
    path = write_usd(fan(2), tmp_path / "a.usda", seconds=np.arange(12) / 10)
    assert path.read_text().startswith("#usda")
