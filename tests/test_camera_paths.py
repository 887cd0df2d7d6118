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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k1": "null"}, "a finite number as k1 of frame 0, got 'None'"),
        ({"w": "null"}, "a finite number as w of frame 0, got 'None'"),
        ({"w": 0, "h": 0}, "a whole number of at least 1 as w of frame 0, got 0"),
        ({"h": 240.5}, "a whole number of at least 1 as h of frame 0, got 240.5"),
        ({"w": "a"}, "a finite number as w of frame 0, got 'a'"),
        ({"fl_x": [1]}, r"a finite number as fl_x of frame 0, got '\[1\]'"),
        ({"fl_x": -300.0}, r"with fx, fy > 0, got .* in frame 0"),
        ({"fl_y": True}, "a finite number as fl_y of frame 0, got 'True'"),
        ({"cx": float("nan")}, "a finite number as cx of frame 0, got 'nan'"),
        ({"fl_x": None, "camera_angle_x": 4.0}, "camera_angle_x between 0 and pi radians, got 4.0"),
        (
            {"frames": [{"transform_matrix": "x"}]},
            r"transform_matrix of frame 0 as numbers \[4, 4\]",
        ),
        ({"frames": [{"transform_matrix": [[1, 2], [3]]}]}, "got rows that differ in length"),
    ],
)
def test_a_number_of_a_json_that_is_none_is_named(
    tmp_path: Path, extrinsics: np.ndarray, changes: dict, says: str
) -> None:
    path = nerfstudio(tmp_path, extrinsics, **changes)
    path.write_text(path.read_text().replace('"null"', "null"))
    with pytest.raises(UserError, match=says):
        read_cameras(path)


@pytest.mark.parametrize(
    ("lens", "says"),
    [
        ("PINHOLE 320 240 300 310", r"the 4 parameters FX FY CX CY of PINHOLE .* line 2, got 2"),
        ("SIMPLE_PINHOLE 320 240 300 310 161 119", "the 3 parameters F CX CY .*, got 4"),
        ("OPENCV 320 240 300 310 161 119 0", "the 8 parameters FX FY CX CY K1 K2 P1 P2 .*, got 5"),
        ("SIMPLE_RADIAL 320 240 300 161 119", "the 4 parameters F CX CY K .*, got 3"),
        ("RADIAL 320 240 300 161 119 0", "the 5 parameters F CX CY K1 K2 .*, got 4"),
        ("PINHOLE 320", r"CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS\[\] in cameras.txt, line 2"),
        ("PINHOLE 0 240 1 1 1 1", "at least 1 as WIDTH in cameras.txt, line 2, got '0'"),
        ("PINHOLE 320 b 1 1 1 1", "as HEIGHT in cameras.txt, line 2, got 'b'"),
        (
            "PINHOLE 320 240 inf 310 161 119",
            "finite number as FX in cameras.txt, line 2, got 'inf'",
        ),
        ("PINHOLE 320 240 300 0 161 119", "with fx, fy > 0, got .* in cameras.txt, line 2"),
        ("OPENCV 320 240 300 310 161 119 0 0 nan 0", "a finite number as P1"),
    ],
)
def test_a_lens_of_colmap_that_is_none_is_named(
    tmp_path: Path, extrinsics: np.ndarray, lens: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        read_cameras(colmap(tmp_path, extrinsics, lens))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1 1 0 0", "IMAGE_ID, QW QX QY QZ, TX TY TZ, CAMERA_ID, NAME in images.txt, line 1"),
        ("1 0 0 0 0 0 0 0 7 a.png", "QW QX QY QZ of length 1 in images.txt, line 1"),
        ("1 1 0 0 0 a 0 0 7 a.png", "a finite number as TX in images.txt, line 1, got 'a'"),
        ("1 1 0 0 nan 0 0 0 7 a.png", "a finite number as QZ in images.txt, line 1, got 'nan'"),
        ("1 1 0 0 0 0 0 0 x a.png", "a finite number as CAMERA_ID in images.txt, line 1, got 'x'"),
        ("1 1 0 0 0 0 0 0 8 a.png", "need camera 8 of image 'a.png'"),
        ("1 1 0 0 0 0 0 0 7 a.png\n\n2 1 0 0 0 0 0 0 7 a.png", "'a.png' again in images.txt, line 3"),
    ],
)  # fmt: skip
def test_a_pose_of_colmap_that_is_none_is_named(
    tmp_path: Path, extrinsics: np.ndarray, line: str, says: str
) -> None:
    colmap(tmp_path, extrinsics)
    (tmp_path / "images.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=says):
        read_cameras(tmp_path)


@pytest.mark.parametrize(
    "lens", [[0, 1, 1, 1], [100, 100, np.nan, 1], [np.inf, 100, 80, 60], [1e300, 1, 1, 1], [1, 1]]
)
def test_a_lens_that_is_not_finite_is_refused(
    tmp_path: Path, extrinsics: np.ndarray, lens: list[float]
) -> None:
    np.savez(tmp_path / "lens.npz", extrinsics=extrinsics, intrinsics=np.array(lens))
    with pytest.raises(UserError, match=r"lens\.npz: need finite intrinsics"):
        read_cameras(tmp_path / "lens.npz")


def test_a_camera_path_made_in_python_is_checked_too(extrinsics: np.ndarray) -> None:
    matrices = torch.from_numpy(extrinsics)
    with pytest.raises(UserError, match="need finite intrinsics"):
        CameraPath(matrices, torch.tensor([100.0, 100.0, torch.nan, 1.0]))
    with pytest.raises(UserError, match=r"need size \[2\]"):
        CameraPath(matrices, torch.tensor(LENS), (0, 320))


def test_an_array_under_the_name_of_an_archive_is_refused(
    tmp_path: Path, extrinsics: np.ndarray
) -> None:
    with (tmp_path / "cameras.npz").open("wb") as file:
        np.save(file, extrinsics)
    with pytest.raises(UserError, match="got a single array"):
        read_cameras(tmp_path / "cameras.npz")


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
