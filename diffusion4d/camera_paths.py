r"""Cameras that a user has: one pose a frame, and perhaps the lens.

    cameras.npz       extrinsics [T, 4, 4] world to camera, our axes; intrinsics [4] px and size [2] = (H, W) if known
    transforms.json   nerfstudio's, or a NeRF's: camera to world in Blender's axes
    a folder          COLMAP's text model: images.txt and cameras.txt

Frames of COLMAP and nerfstudio are put in the natural order of their file names (2 before 10). `docs/conventions.md`
says whose axes are whose. COLMAP and nerfstudio have pixel centres at +0.5, as we do.

A lens with distortion is refused: points would be projected wrongly, and undistorting the video is what helps.

Shape letters:  T frames.
"""

import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from diffusion4d import conventions
from diffusion4d.errors import UserError, reason

KINDS = "an npz with extrinsics [T, 4, 4], a transforms.json, or a folder with COLMAP's images.txt and cameras.txt"
TOLERANCE = 1e-3
"""How far a rotation may be from orthonormal: files round."""
STRAIGHT = {"SIMPLE_PINHOLE": (0, 0, 1, 2), "PINHOLE": (0, 1, 2, 3)}
"""COLMAP's lenses without distortion, and where (fx, fy, cx, cy) are among their parameters."""
BENT = {"SIMPLE_RADIAL": (0, 0, 1, 2), "RADIAL": (0, 0, 1, 2), "OPENCV": (0, 1, 2, 3)}
"""Lenses that are taken where their distortion is 0."""


@dataclass(frozen=True)
class CameraPath:
    """World to camera at every frame; (fx, fy, cx, cy) px and the (H, W) they belong to, None where not known.

    Raises:
        UserError: matrices that are no rigid motions.
    """

    extrinsics: Float64[Tensor, "T 4 4"]
    intrinsics: Float32[Tensor, "4"] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        E = self.extrinsics
        rotation = E[:, :3, :3]
        if not bool(E.isfinite().all()):
            raise UserError("need finite camera matrices, got some that are not")
        off = (rotation @ rotation.mT - torch.eye(3).to(E)).abs().amax((1, 2))
        proper = torch.linalg.det(rotation) > 0
        last = (E[:, 3] - torch.tensor([0.0, 0.0, 0.0, 1.0]).to(E)).abs().amax(1)
        bad = (off > TOLERANCE) | ~proper | (last > TOLERANCE)
        if bool(bad.any()):
            raise UserError(
                f"need camera matrices [R t; 0 1] with rotations R, got none at frame {int(bad.int().argmax())}"
            )

    def intrinsics_at(self, size: tuple[int, int]) -> Float32[Tensor, "4"] | None:
        """In px of the same picture at another size (H, W)."""
        if self.intrinsics is None:
            return None
        own = self.size or size
        factor = torch.tensor([size[1] / own[1], size[0] / own[0]])
        return self.intrinsics * factor.repeat(2)


def read_cameras(path: str | Path) -> CameraPath:
    """Read cameras from a file or folder; see the module for the kinds.

    Raises:
        UserError: no such file, an unknown kind, a file that is damaged or lacks something, a lens with distortion,
            lenses that differ between frames.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no cameras at {path}; need {KINDS}")
    try:
        if path.is_dir():
            if (path / "images.txt").is_file():
                return _colmap(path)
            if (path / "transforms.json").is_file():
                return _nerfstudio(path / "transforms.json")
            raise UserError(f"found no cameras in the folder; need {KINDS}")
        if path.suffix == ".npz":
            return _npz(path)
        if path.suffix == ".json":
            return _nerfstudio(path)
        if path.name in ("images.txt", "cameras.txt"):
            return _colmap(path.parent)
        raise UserError(f"need {KINDS}, got a file of another kind")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as cameras: {reason(error)}") from error


def write_cameras(path: str | Path, cameras: CameraPath) -> Path:
    """Write our own npz, which `read_cameras` reads."""
    from diffusion4d.atomic import replace_when_done

    path = Path(path)
    arrays: dict[str, np.ndarray] = {"extrinsics": cameras.extrinsics.numpy()}
    if cameras.intrinsics is not None:
        arrays["intrinsics"] = cameras.intrinsics.numpy()
    if cameras.size is not None:
        arrays["size"] = np.array(cameras.size)
    # A file object, since numpy would append .npz to a temporary name that lacks it.
    with replace_when_done(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def _npz(path: Path) -> CameraPath:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    if "extrinsics" not in held:
        raise UserError(f"need extrinsics [T, 4, 4], got {sorted(held)}")
    extrinsics = _matrices(held["extrinsics"], "extrinsics")
    lens, size = held.get("intrinsics"), held.get("size")
    return CameraPath(
        torch.from_numpy(extrinsics),
        None if lens is None else _lens(lens),
        None if size is None else _size(size),
    )


def _nerfstudio(path: Path) -> CameraPath:
    content = json.loads(path.read_text(encoding="utf-8"))
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise UserError("need a list of frames")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict) or "transform_matrix" not in frame:
            raise UserError(f"need a transform_matrix in every frame, got none in frame {i}")
    order = sorted(range(len(frames)), key=lambda i: _natural(str(frames[i].get("file_path", i))))
    poses = _matrices([frames[i]["transform_matrix"] for i in order], "transform_matrix")
    for name in ("k1", "k2", "k3", "k4", "p1", "p2"):
        bent = [f.get(name, content.get(name, 0)) for f in frames]
        if any(float(value) != 0 for value in bent):
            raise UserError(
                f"need a lens without distortion, got {name} = {bent[0]}: undistort the video first"
            )
    lenses = [_nerfstudio_lens({**content, **frame}) for frame in frames]
    known = [lens for lens in lenses if lens is not None]
    extrinsics = torch.from_numpy(conventions.from_blender(poses))
    if len(known) < len(lenses):
        return CameraPath(extrinsics)
    return CameraPath(extrinsics, *_one_lens(known))


def _nerfstudio_lens(told: dict[str, Any]) -> tuple[list[float], tuple[int, int]] | None:
    """Of a frame, whose own values come before those of the whole file."""
    if "w" not in told or "h" not in told:
        return None
    width, height = int(told["w"]), int(told["h"])
    if "fl_x" in told:
        fx = float(told["fl_x"])
    elif "camera_angle_x" in told:
        fx = width / 2 / float(np.tan(float(told["camera_angle_x"]) / 2))
    else:
        return None
    fy = float(told.get("fl_y", fx))
    centre = [float(told.get("cx", width / 2)), float(told.get("cy", height / 2))]
    return [fx, fy, *centre], (height, width)


def _colmap(folder: Path) -> CameraPath:
    cameras = {}
    for line in _lines(folder / "cameras.txt"):
        number, model, width, height, *parameters = line.split()
        cameras[int(number)] = (model, (int(height), int(width)), [float(v) for v in parameters])
    poses, lenses = {}, []
    # Every second line holds the image's 2D points, and is empty where there are none.
    for line in _lines(folder / "images.txt", keep_empty=True)[::2]:
        parts = line.split(maxsplit=9)
        if len(parts) < 10:
            raise UserError(
                f"need IMAGE_ID, QW QX QY QZ, TX TY TZ, CAMERA_ID, NAME, got {line[:80]!r}"
            )
        *numbers, name = parts
        camera = int(numbers[8])
        if camera not in cameras:
            raise UserError(f"need camera {camera} of image {name!r} in cameras.txt")
        poses[name] = [float(v) for v in numbers[1:8]]
        lenses.append(_colmap_lens(*cameras[camera]))
    if not poses:
        raise UserError("need at least one image in images.txt")
    values = np.array([poses[name] for name in sorted(poses, key=_natural)])
    extrinsics = conventions.from_colmap(values[:, :4], values[:, 4:])
    return CameraPath(torch.from_numpy(extrinsics), *_one_lens(lenses))


def _colmap_lens(
    model: str, size: tuple[int, int], parameters: list[float]
) -> tuple[list[float], tuple[int, int]]:
    places = STRAIGHT.get(model) or BENT.get(model)
    if places is None:
        known = ", ".join([*STRAIGHT, *BENT])
        raise UserError(f"need a lens out of {known}, got {model}: undistort the video first")
    if any(parameters[max(places) + 1 :]):
        raise UserError(
            f"need a lens without distortion, got {model} {parameters}: undistort the video first"
        )
    return [parameters[i] for i in places], size


def _one_lens(
    lenses: list[tuple[list[float], tuple[int, int]]],
) -> tuple[Float32[Tensor, "4"], tuple[int, int]]:
    """One for the clip; numbers that differ by less than 0.1 % are a calibration's noise."""
    first, size = lenses[0]
    for lens, other in lenses:
        if other != size or not np.allclose(lens, first, rtol=1e-3):
            raise UserError(
                f"need one lens for all frames, got {first} of {size} and {lens} of {other}"
            )
    return _lens(np.mean([lens for lens, _ in lenses], 0)), size


def _lines(path: Path, *, keep_empty: bool = False) -> list[str]:
    if not path.is_file():
        raise UserError(f"need {path.name} beside the other file of COLMAP's text model")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if not line.startswith("#")]
    if not keep_empty:
        return [line for line in lines if line]
    # Between the comments and the first image some writers leave a line.
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _matrices(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf" or array.ndim != 3 or array.shape[1:] != (4, 4):
        raise UserError(f"need {name} as numbers [T, 4, 4], got {array.dtype} {list(array.shape)}")
    if len(array) == 0:
        raise UserError(f"need at least one camera in {name}")
    return array.astype(np.float64)


def _lens(values: Any) -> Float32[Tensor, "4"]:
    array = np.asarray(values)
    if array.shape != (4,) or array.dtype.kind not in "iuf" or not (array[:2] > 0).all():
        raise UserError(
            f"need intrinsics (fx, fy, cx, cy) px with fx, fy > 0, got {array.tolist()}"
        )
    return torch.from_numpy(array.astype(np.float32))


def _size(values: Any) -> tuple[int, int]:
    array = np.asarray(values)
    if array.shape != (2,) or array.dtype.kind not in "iu" or (array < 1).any():
        raise UserError(f"need size [2] = (H, W) px, got {array.tolist()}")
    return int(array[0]), int(array[1])
