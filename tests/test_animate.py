"""`diffusion4d animate`: what the files hold is what the field says, by readers that did not write them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fans import fan
from gltf_validator import messages

from diffusion4d.animate import chosen, prepare, run
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


@pytest.mark.parametrize("world", [False, True])
def test_the_skin_is_the_field(tmp_path: Path, world: bool) -> None:
    hyp = _lively(world=world)
    hyp.save(tmp_path)
    mesh = _ball(hyp, tmp_path / "ball.glb")
    seconds = 2.0
    config = Animate(mesh, tmp_path, seconds=seconds, ply=True)
    files = run(config)
    assert [f.name for f in files] == ["animated.glb", "animated"]
    assert messages(files[0]) == []
    animated = prepare(config)
    points = torch.from_numpy(animated.mesh.vertices)
    expected = deform(points, animated.skinning.most(4), motion_of(hyp, animated.rest)).numpy()
    read = read_animated(files[0])
    assert [a.name for a in read.skeleton.animations] == [f"hypothesis_{k:02d}" for k in range(3)]
    for k in range(3):
        moved = read.positions(read.skeleton.animations[k], seconds * hyp.times.numpy())
        np.testing.assert_allclose(_ours(moved), expected[k], atol=1e-4)
    # PLY files hold all the nodes' shares, as the field does.
    whole = deform(points, animated.skinning, motion_of(hyp, animated.rest)).numpy()
    for k, t in ((0, 0), (2, 23)):
        back = trimesh.load(files[1] / f"hypothesis_{k:02d}" / f"frame_{t:04d}.ply", process=False)
        np.testing.assert_allclose(back.vertices * FLIP, whole[k, t], atol=1e-4)
        np.testing.assert_array_equal(back.faces, animated.mesh.faces)
        np.testing.assert_array_equal(
            back.visual.vertex_colors[:, :3], [[200, 100, 0]] * len(back.vertices)
        )
    assert len(list((files[1] / "hypothesis_01").iterdir())) == 24


def test_between_the_frames_nodes_follow_the_spline(tmp_path: Path) -> None:
    """A vertex on a node goes where the node goes, at any time."""
    hyp = _lively()
    hyp.save(tmp_path)
    rest = reference(hyp).places.numpy() * FLIP
    trimesh.Trimesh(
        rest, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [11, 12, 13]], process=False
    ).export(tmp_path / "nodes.ply")
    (file,) = run(Animate(tmp_path / "nodes.ply", tmp_path, hypotheses="2,0", seconds=1.0))
    read = read_animated(file)
    assert [a.name for a in read.skeleton.animations] == ["hypothesis_02", "hypothesis_00"]
    u = np.linspace(0, 1, 57)
    exact = hyp.evaluate(u)[2].transpose(0, 1).numpy()
    # Whether it hangs on its node alone depends on the weights: they are all its own at distance 0 … of four.
    held = prepare(Animate(tmp_path / "nodes.ply", tmp_path)).skinning.most(4)
    own = (held.weights.max(1).values > 0.999).numpy()
    moved = _ours(read.positions(read.skeleton.animations[0], u))
    share = held.weights.max(1).values.numpy()
    away = np.linalg.norm(moved - exact, axis=-1)
    assert (away[:, own] < 1e-4).all()
    assert away.max() < 3 * (1 - share).max() + 1e-3


def test_without_a_mesh_the_points_have_a_surface(tmp_path: Path) -> None:
    hyp = fan(2, 30, 12)
    hyp.save(tmp_path)
    (file,) = run(Animate(source=tmp_path / "hypotheses.npz", hypotheses="best"))
    assert file == tmp_path / "animated.glb"
    assert messages(file) == []
    assert len(read_animated(file).faces) > 500


def test_bad_input_is_told_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    hyp = fan(2, 30, 12)
    hyp.save(tmp_path)
    for which in ("worst", "0,7", "1,1", ""):
        with pytest.raises(UserError, match="need"):
            chosen(which, hyp)
    far = trimesh.creation.box((0.1, 0.1, 0.1))
    far.apply_translation([100, 0, 0])
    far.export(tmp_path / "far.glb")
    assert command(["animate", str(tmp_path / "far.glb"), "--from", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "need a mesh among the points of the first frame" in told
    assert told.count("\n") == 1
    assert command(["animate", "--from", str(tmp_path / "nothing")]) == 2
    assert "no hypotheses at" in capsys.readouterr().err
    assert command(["animate", "--from", str(tmp_path), "--seconds", "-1"]) == 2
    assert "positive length" in capsys.readouterr().err
    assert not (tmp_path / "animated.glb").exists()


def test_ply_of_points_alone_and_a_sequence_that_fails(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    (tmp_path / "cloud.ply").write_bytes(ply(points))
    cloud = trimesh.load(tmp_path / "cloud.ply")
    np.testing.assert_allclose(cloud.vertices * FLIP, points, atol=1e-6)
    mesh = Mesh(points, np.array([[0, 1, 2]]))

    def broken():
        yield "a", 0, mesh
        raise KeyboardInterrupt

    write_ply_sequence([("a", 0, mesh)], tmp_path / "kept", total=1)
    with pytest.raises(KeyboardInterrupt):
        write_ply_sequence(broken(), tmp_path / "kept", total=2)
    assert [p.name for p in (tmp_path / "kept" / "a").iterdir()] == ["frame_0000.ply"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cloud.ply", "kept"]
    with pytest.raises(UserError, match="need a folder to write, got a file"):
        write_ply_sequence([("a", 0, mesh)], tmp_path / "cloud.ply", total=1)
