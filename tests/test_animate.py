"""`diffusion4d animate`: what the files hold is what the field says, by readers that did not write them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fans import fan
from gltf_validator import messages, needs_validator
from PIL import Image

from diffusion4d.animate import chosen, prepare, run
from diffusion4d.cameras import project
from diffusion4d.cli import run as command
from diffusion4d.config import Animate
from diffusion4d.data.animated_glb import read_animated
from diffusion4d.errors import UserError
from diffusion4d.export.ply import ply, write_ply_sequence
from diffusion4d.fields.blend import deform
from diffusion4d.fields.motion import motion_of, reference
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.mesh import Mesh

FLIP = np.array([1, -1, -1])


def _lively(K: int = 3, *, world: bool = False) -> Hypotheses:
    """Hypotheses of 14 points that turn and stretch, each in its own way."""
    hyp = fan(K, 14, 24)
    generator = torch.Generator().manual_seed(2)
    wild = 0.1 * torch.randn(hyp.control_points.shape, generator=generator)
    wild[:, :, 0] *= 0.2
    hyp = dataclasses.replace(hyp, control_points=hyp.control_points + wild)
    if not world:
        return hyp
    extrinsics = torch.eye(4).repeat(K, 24, 1, 1)
    extrinsics[..., 0, 3] = torch.linspace(0, 0.3, 24) * torch.arange(1, K + 1)[:, None]
    return dataclasses.replace(hyp, frame="world", extrinsics=extrinsics)


def _ours(z_up: np.ndarray) -> np.ndarray:
    """From the axes that `read_animated` gives (z up) to OpenCV's."""
    return z_up[..., [0, 2, 1]] * [1, -1, 1]


def _ball(hyp: Hypotheses, path: Path) -> Path:
    """A mesh among the points of the first frame, in the axes of files."""
    rest = reference(hyp).places.numpy() * FLIP
    ball = trimesh.creation.icosphere(2, 0.3)
    ball.apply_translation(rest.mean(0))
    ball.visual.vertex_colors = np.tile([200, 100, 0, 255], (len(ball.vertices), 1))
    ball.export(path)
    return path


def test_depth_maps_of_a_wall_make_the_wall_in_its_colours(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs scikit-image, the extra surfaces")
    hyp = fan(2, 60, 8, drift=0.0)
    height, width = hyp.size
    pixels = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [width, height]
    )
    f, c = hyp.intrinsics[:2], hyp.intrinsics[2:]
    at = torch.cat([2 * (pixels - c) / f, torch.full((60, 1), 2.0)], -1)
    ctrl = at[None, :, None].expand(2, -1, hyp.num_ctrl, -1).contiguous()
    tracks = pixels.expand(8, -1, -1).contiguous()
    seen = torch.ones(8, 60)
    hyp = dataclasses.replace(
        hyp, control_points=ctrl, tracks=tracks, query_points=pixels, visibility=seen
    )
    hyp.save(tmp_path)
    # Whatever the factor, the map of a wall square to the camera is flat.
    maps = np.stack([np.full((height // 2, width // 2), z) for z in (1.0, 5.0, 0.1, 2.0) * 2])
    maps[1] = 0
    np.savez(tmp_path / "maps.npz", depth=maps)
    (tmp_path / "clip").mkdir()
    for i in range(8):
        red = np.tile(np.array([200, 0, 0], np.uint8), (2 * height, 2 * width, 1))
        Image.fromarray(red).save(tmp_path / "clip" / f"{i}.png")
    config = Animate(source=tmp_path, depth=tmp_path / "maps.npz", video=tmp_path / "clip")
    mesh = prepare(config).mesh
    np.testing.assert_allclose(mesh.vertices[:, 2], 2.0, atol=0.01)
    assert mesh.colours is not None
    np.testing.assert_allclose(mesh.colours[:, 0], 200 / 255, atol=0.02)
    assert np.ptp(mesh.vertices[:, 0]) > 0.8 * np.ptp(at[:, 0].numpy())
    # Neither the maps nor the video may be a part of the frames, or squeezed.
    np.savez(tmp_path / "square.npz", depth=maps[:, :, : height // 2])
    with pytest.raises(UserError, match="200 x 128 px or in proportion, got 64 x 64"):
        prepare(dataclasses.replace(config, depth=tmp_path / "square.npz", video=None))
    (tmp_path / "square").mkdir()
    for i in range(8):
        Image.fromarray(red[:, : 2 * height]).save(tmp_path / "square" / f"{i}.png")
    with pytest.raises(UserError, match="200 x 128 px or in proportion, got one of 256 x 256"):
        prepare(dataclasses.replace(config, video=tmp_path / "square"))
    # Every second frame is read where the summary says so, and then there are too few.
    (tmp_path / "summary.json").write_text('{"assumed": {"source": {"stride": 2}}}')
    with pytest.raises(UserError, match=r"8 frames from 0.0 s on, one in 2, got 4"):
        run(config)
    # And as a file, without a video.
    (file,) = run(dataclasses.replace(config, video=None))
    assert len(read_animated(file).faces) == len(mesh.faces)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"depths": np.ones((8, 9, 9))}, r"^need an npz with the array 'depth', got \S*maps\.npz$"),
        ({"depth": np.ones((3, 9, 9))}, r"need depth of shape \[8, H, W\].*got \[3, 9, 9\]"),
        ({"depth": np.zeros((8, 9, 9))}, "need depths above 0"),
        ({"depth": np.array(["a"])}, r"got \[1\] of <U1"),
        ({"depth": np.array([None])}, "it is no npz file of plain arrays"),
    ],
)
def test_depth_maps_that_cannot_be_used_are_refused(tmp_path: Path, content, said: str) -> None:
    fan(2, 30, 8).save(tmp_path)
    np.savez(tmp_path / "maps.npz", **content)
    config = Animate(source=tmp_path, depth=tmp_path / "maps.npz")
    with pytest.raises(UserError, match=said):
        run(config)
    (tmp_path / "maps.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="need an npz"):
        run(config)
    with pytest.raises(UserError, match="no depth maps at"):
        run(dataclasses.replace(config, depth=tmp_path / "none.npz"))
    with pytest.raises(UserError, match="need a mesh or depth maps"):
        run(dataclasses.replace(config, mesh=tmp_path / "mesh.glb"))


def _ramp(hyp: Hypotheses) -> np.ndarray:
    """A picture, twice the size of the clip that was sampled, whose red and green say which pixel one looks at."""
    height, width = hyp.size
    y, x = np.mgrid[: 2 * height, : 2 * width]
    return np.stack([255 * x / (2 * width), 255 * y / (2 * height), 0 * x], -1).astype(np.uint8)


def _clip(picture: np.ndarray, folder: Path, before: np.ndarray | None = None) -> Path:
    """A clip of this picture, twice; after another one, if there is one."""
    folder.mkdir()
    for i, frame in enumerate([picture, picture] if before is None else [before, picture, picture]):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("world", [False, True])
def test_the_skin_is_the_field(tmp_path: Path, world: bool) -> None:
    hyp = _lively(world=world)
    hyp.save(tmp_path)
    # Colours of glTF are linear light, which trimesh does not turn them to.
    suffix, colour = ("glb", [229, 168, 0]) if world else ("ply", [200, 100, 0])
    mesh = _ball(hyp, tmp_path / f"ball.{suffix}")
    seconds = 2.0
    config = Animate(mesh, tmp_path, seconds=seconds, ply=True)
    files = run(config)
    assert [f.name for f in files] == ["animated.glb", "animated"]
    animated = prepare(config)
    points = torch.from_numpy(animated.mesh.vertices)
    expected = deform(points, animated.skinning, motion_of(hyp, animated.rest)).numpy()
    read = read_animated(files[0])
    assert [a.name for a in read.skeleton.animations] == [f"hypothesis_{k:02d}" for k in range(3)]
    for k in range(3):
        moved = read.positions(read.skeleton.animations[k], seconds * hyp.times.numpy())
        np.testing.assert_allclose(_ours(moved), expected[k], atol=1e-4)
    for k, t in ((0, 0), (2, 23)):
        back = trimesh.load(files[1] / f"hypothesis_{k:02d}" / f"frame_{t:04d}.ply", process=False)
        np.testing.assert_allclose(back.vertices * FLIP, expected[k, t], atol=1e-4)
        np.testing.assert_array_equal(back.faces, animated.mesh.faces)
        np.testing.assert_array_equal(
            back.visual.vertex_colors[:, :3], [colour] * len(back.vertices)
        )
    assert len(list((files[1] / "hypothesis_01").iterdir())) == 24


def test_between_the_frames_and_for_some_hypotheses_it_is_the_field_too(tmp_path: Path) -> None:
    """The shape that a mesh lies in is the mean of all hypotheses, whichever are chosen."""
    hyp = _lively()
    hyp.save(tmp_path)
    config = Animate(_ball(hyp, tmp_path / "ball.ply"), tmp_path, hypotheses="2,0", seconds=1.5)
    (file,) = run(config)
    read, animated = read_animated(file), prepare(config)
    assert [a.name for a in read.skeleton.animations] == ["hypothesis_02", "hypothesis_00"]
    points = torch.from_numpy(animated.mesh.vertices)
    np.testing.assert_allclose(_ours(read.rest), points.numpy(), atol=1e-5)
    u = torch.linspace(0, 1, 57, dtype=torch.float64)
    exact = deform(
        points, animated.skinning, motion_of(hyp.select(torch.tensor([2, 0])), animated.rest, u)
    ).numpy()
    for k in range(2):
        moved = _ours(read.positions(read.skeleton.animations[k], 1.5 * u.numpy()))
        np.testing.assert_allclose(moved, exact[k], atol=1e-4)


@pytest.mark.parametrize("source", ["", "hypotheses.npz"])
def test_the_length_is_that_of_the_clip(tmp_path: Path, source: str) -> None:
    hyp = fan(2, 30, 12)
    hyp.save(tmp_path)
    config = Animate(source=tmp_path / source, hypotheses="best")
    assert read_animated(run(config)[0]).skeleton.animations[0].stop == pytest.approx(11 / 30)
    (tmp_path / "summary.json").write_text('{"hypotheses": {"seconds": 0.8}}')
    assert read_animated(run(config)[0]).skeleton.animations[0].stop == pytest.approx(0.8)


def test_without_a_mesh_the_points_have_a_surface_that_looks_like_the_video(tmp_path: Path) -> None:
    hyp = fan(2, 30, 12)
    hyp.save(tmp_path)
    (file,) = run(Animate(source=tmp_path / "hypotheses.npz", hypotheses="best"))
    assert file == tmp_path / "animated.glb"
    assert len(read_animated(file).faces) > 500
    height, width = hyp.size
    ramp = _ramp(hyp)
    config = Animate(
        source=tmp_path, video=_clip(ramp, tmp_path / "clip"), hypotheses="0", ply=True
    )
    files = run(config)
    (shape,) = trimesh.load_scene(files[0], process=False).geometry.values()
    pixels = project(torch.tensor(shape.vertices * FLIP), hyp.intrinsics.double()).numpy()
    shown = shape.visual.to_color().vertex_colors[:, :2] / 255
    np.testing.assert_allclose(shown, pixels / [width, height], atol=0.02)
    first = trimesh.load(files[1] / "hypothesis_00" / "frame_0000.ply", process=False)
    np.testing.assert_allclose(first.visual.vertex_colors[:, :2] / 255, shown, atol=0.02)
    square = _clip(ramp[:, : 2 * height], tmp_path / "square")
    with pytest.raises(UserError, match="need the clip of the hypotheses"):
        run(dataclasses.replace(config, video=square))


@pytest.mark.parametrize("told", ["by the option", "by summary.json"])
def test_the_looks_are_those_of_the_frame_that_the_clip_starts_with(
    tmp_path: Path, told: str
) -> None:
    hyp = fan(2, 30, 12)
    hyp.save(tmp_path)
    ramp = _ramp(hyp)
    video = _clip(ramp, tmp_path / "clip", before=np.zeros_like(ramp))
    config = Animate(source=tmp_path, video=video, hypotheses="0")
    if told == "by the option":
        config = dataclasses.replace(config, start=1 / 30)
    else:
        report = {"assumed": {"source": {"start": 1 / 30}}}
        (tmp_path / "summary.json").write_text(json.dumps(report))
    (shape,) = trimesh.load_scene(run(config)[0], process=False).geometry.values()
    shown = np.asarray(shape.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_allclose(shown.astype(float), ramp, atol=12)


@needs_validator
@pytest.mark.parametrize(
    ("mesh", "most"),
    [
        # Hints (3) are about what trimesh left out of the ball's file.
        ("ball.glb", 2),
        ("ball.ply", 2),
        ("own", 3),
        # An information (2) says that the picture's sides are no powers of two, which only WebGL 1 minds.
        ("own, textured", 1),
    ],
)
def test_khronos_validator_finds_nothing(tmp_path: Path, mesh: str, most: int) -> None:
    hyp = fan(2, 30, 12) if mesh.startswith("own") else _lively(world=mesh == "ball.glb")
    hyp.save(tmp_path)
    config = Animate(source=tmp_path)
    if mesh.startswith("ball"):
        config = dataclasses.replace(config, mesh=_ball(hyp, tmp_path / mesh))
    elif mesh == "own, textured":
        config = dataclasses.replace(config, video=_clip(_ramp(hyp), tmp_path / "clip"))
    assert messages(run(config)[0], most) == []


def test_bad_input_is_told_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    hyp = fan(2, 30, 12)
    hyp.save(tmp_path)
    for which in ("worst", "0,7", "1,1", ""):
        with pytest.raises(UserError, match="need"):
            chosen(which, hyp, tmp_path)
    far = trimesh.creation.box((0.1, 0.1, 0.1))
    far.apply_translation([100, 0, 0])
    far.export(tmp_path / "far.glb")
    assert command(["animate", str(tmp_path / "far.glb"), "--from", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "need a mesh among the points of the first frame" in told
    assert told.count("\n") == 1
    # In OpenCV's axes the mesh is behind the camera.
    there = reference(hyp).places.mean(0).numpy()
    trimesh.creation.box((0.1, 0.1, 0.1)).apply_translation(there).export(tmp_path / "behind.glb")
    assert command(["animate", str(tmp_path / "behind.glb"), "--from", str(tmp_path)]) == 2
    assert "(x right, y up, z back)" in capsys.readouterr().err
    assert command(["animate", "--from", str(tmp_path), "--blend", "dual_quaternion"]) == 2
    assert "need --ply" in capsys.readouterr().err
    assert command(["animate", "--from", str(tmp_path / "nothing")]) == 2
    assert "no hypotheses at" in capsys.readouterr().err
    assert command(["animate", "--from", str(tmp_path), "--seconds", "-1"]) == 2
    assert "positive length" in capsys.readouterr().err
    assert not (tmp_path / "animated.glb").exists()


@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_a_refused_folder_of_ply_files_leaves_no_new_animation(
    tmp_path: Path, capsys, earlier: bytes | None
) -> None:
    hyp = _lively(2)
    hyp.save(tmp_path)
    mesh = _ball(hyp, tmp_path / "ball.glb")
    (tmp_path / "animated").mkdir()
    (tmp_path / "animated" / "mine.txt").write_text("mine")
    if earlier is not None:
        (tmp_path / "animated.glb").write_bytes(earlier)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert command(["animate", str(mesh), "--from", str(tmp_path), "--ply"]) == 2
    assert "nothing else, got mine.txt" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    if earlier is not None:
        assert (tmp_path / "animated.glb").read_bytes() == earlier


def test_ply_of_points_alone_and_a_sequence_that_fails(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    (tmp_path / "cloud.ply").write_bytes(ply(points))
    cloud = trimesh.load(tmp_path / "cloud.ply")
    np.testing.assert_allclose(cloud.vertices * FLIP, points, atol=1e-6)
    mesh = Mesh(points, np.array([[0, 1, 2]]))

    def broken():
        yield "mean", 0, mesh
        raise KeyboardInterrupt

    write_ply_sequence([("mean", 0, mesh)], tmp_path / "kept", total=1)
    with pytest.raises(KeyboardInterrupt):
        write_ply_sequence(broken(), tmp_path / "kept", total=2)
    assert [p.name for p in (tmp_path / "kept" / "mean").iterdir()] == ["frame_0000.ply"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cloud.ply", "kept"]
    with pytest.raises(UserError, match="need a folder to write, got a file"):
        write_ply_sequence([("mean", 0, mesh)], tmp_path / "cloud.ply", total=1)
