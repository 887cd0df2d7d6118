"""Files of cameras: every kind says the same of one path, and what is wrong with a file is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from diffusion4d import conventions
from diffusion4d.camera_paths import CameraPath, read_cameras, write_cameras
from diffusion4d.errors import UserError

SIZE = (240, 320)
LENS = [300.0, 310.0, 161.0, 119.0]


@pytest.fixture
def extrinsics() -> np.ndarray:
    turns = Rotation.from_rotvec(np.linspace(0, 0.4, 12)[:, None] * [0.2, 1, 0.1])
    pose = np.tile(np.eye(4), (12, 1, 1))
    pose[:, :3, :3] = turns.as_matrix()
    pose[:, :3, 3] = np.linspace(0, 1, 12)[:, None] * [0.5, -0.1, 0.3]
    return pose


def nerfstudio(folder: Path, extrinsics: np.ndarray, **changes: object) -> Path:
    """Frames out of order, their names without leading zeros, as some exporters leave them."""
    frames = [
        {"file_path": f"images/frame_{i + 1}.png", "transform_matrix": m.tolist()}
        for i, m in enumerate(conventions.to_blender(extrinsics))
    ]
    lens = dict(zip(("fl_x", "fl_y", "cx", "cy"), LENS, strict=True))
    content = {**lens, "w": SIZE[1], "h": SIZE[0], "frames": frames[::-1], **changes}
    path = folder / "transforms.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def colmap(
    folder: Path, extrinsics: np.ndarray, lens: str = "PINHOLE 320 240 300 310 161 119"
) -> Path:
    quaternion, translation = conventions.to_colmap(extrinsics)
    lines = ["# Image list with two lines of data per image:", "#   IMAGE_ID, QW, ..."]
    for i in np.random.default_rng(0).permutation(len(extrinsics)):
        numbers = " ".join(repr(float(v)) for v in (*quaternion[i], *translation[i]))
        # Every other image has no points: its second line is empty.
        lines += [f"{i + 1} {numbers} 7 frame {i + 1}.png", "10.5 20.5 -1" if i % 2 else ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "cameras.txt").write_text(f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n7 {lens}\n")
    return folder


def same(found: CameraPath, extrinsics: np.ndarray) -> None:
    np.testing.assert_allclose(found.extrinsics.numpy(), extrinsics, atol=1e-9)
    assert found.intrinsics is not None
    np.testing.assert_allclose(found.intrinsics.numpy(), LENS, rtol=1e-6)
    assert found.size == SIZE
    # The same picture at half the size.
    half = found.intrinsics_at((120, 160))
    assert half is not None
    np.testing.assert_allclose(half.numpy(), np.array(LENS) / 2, rtol=1e-6)


def test_every_kind_says_the_same(tmp_path: Path, extrinsics: np.ndarray) -> None:
    path = CameraPath(torch.from_numpy(extrinsics), torch.tensor(LENS), SIZE)
    same(read_cameras(write_cameras(tmp_path / "cameras.npz", path)), extrinsics)
    same(read_cameras(nerfstudio(tmp_path, extrinsics)), extrinsics)
    same(read_cameras(tmp_path), extrinsics)
    (tmp_path / "sparse").mkdir()
    same(read_cameras(colmap(tmp_path / "sparse", extrinsics)), extrinsics)
    same(read_cameras(tmp_path / "sparse" / "images.txt"), extrinsics)


def test_a_nerf_says_its_lens_as_an_angle(tmp_path: Path, extrinsics: np.ndarray) -> None:
    angle = 2 * np.arctan(SIZE[1] / 2 / 300)
    blank = {"fl_x": None, "fl_y": None, "cx": None, "cy": None}
    found = read_cameras(nerfstudio(tmp_path, extrinsics, camera_angle_x=angle, **blank))
    assert found.intrinsics is not None
    np.testing.assert_allclose(found.intrinsics.numpy(), [300, 300, 160, 120], rtol=1e-6)
    # Without a size nothing is known of the lens in pixels.
    assert read_cameras(nerfstudio(tmp_path, extrinsics, w=None)).intrinsics is None


def test_a_lens_with_distortion_is_refused_unless_it_is_none(
    tmp_path: Path, extrinsics: np.ndarray
) -> None:
    straight = "OPENCV 320 240 300 310 161 119 0 0 0 0"
    same(read_cameras(colmap(tmp_path, extrinsics, straight)), extrinsics)
    with pytest.raises(UserError, match="without distortion"):
        read_cameras(colmap(tmp_path, extrinsics, straight.replace(" 0 0 0 0", " 0.1 0 0 0")))
    with pytest.raises(UserError, match=r"need a lens out of .*, got FISHEYE"):
        read_cameras(colmap(tmp_path, extrinsics, "FISHEYE 320 240 1 2 3"))
    with pytest.raises(UserError, match=r"got k1 = 0\.1"):
        read_cameras(nerfstudio(tmp_path / "..", extrinsics, k1=0.1))


def test_what_is_wrong_is_said(tmp_path: Path, extrinsics: np.ndarray) -> None:
    with pytest.raises(UserError, match="no cameras at"):
        read_cameras(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found no cameras in the folder"):
        read_cameras(tmp_path)
    (tmp_path / "cameras.csv").write_text("1")
    with pytest.raises(UserError, match="a file of another kind"):
        read_cameras(tmp_path / "cameras.csv")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as cameras"):
        read_cameras(tmp_path / "broken.json")
    (tmp_path / "empty.json").write_text('{"frames": []}')
    with pytest.raises(UserError, match="need a list of frames"):
        read_cameras(tmp_path / "empty.json")
    (tmp_path / "half.json").write_text('{"frames": [{}]}')
    with pytest.raises(UserError, match="need a transform_matrix in every frame"):
        read_cameras(tmp_path / "half.json")
    np.savez(tmp_path / "other.npz", poses=extrinsics)
    with pytest.raises(UserError, match=r"need extrinsics \[T, 4, 4\], got \['poses'\]"):
        read_cameras(tmp_path / "other.npz")
    np.savez(tmp_path / "shape.npz", extrinsics=extrinsics[:, :3])
    with pytest.raises(UserError, match="need extrinsics as numbers"):
        read_cameras(tmp_path / "shape.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:99])
    with pytest.raises(UserError, match="cannot be read as cameras"):
        read_cameras(tmp_path / "half.npz")
    colmap(tmp_path, extrinsics)
    (tmp_path / "cameras.txt").unlink()
    with pytest.raises(UserError, match=r"need cameras\.txt beside"):
        read_cameras(tmp_path)


@pytest.mark.parametrize("spoil", ["mirror", "scale", "nan", "row"])
def test_matrices_that_are_no_rigid_motions_are_refused(extrinsics: np.ndarray, spoil: str) -> None:
    bad = extrinsics.copy()
    match spoil:
        case "mirror":
            bad[3, 0] *= -1
        case "scale":
            bad[3, :3, :3] *= 1.1
        case "nan":
            bad[3, 0, 3] = np.nan
        case "row":
            bad[3, 3, 0] = 1
    with pytest.raises(UserError, match="finite" if spoil == "nan" else "at frame 3"):
        CameraPath(torch.from_numpy(bad))
