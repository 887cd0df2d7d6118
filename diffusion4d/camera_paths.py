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
STRAIGHT = {"SIMPLE_PINHOLE": ("F", "CX", "CY"), "PINHOLE": ("FX", "FY", "CX", "CY")}
"""COLMAP's lenses without distortion, and their parameters."""
BENT = {
    "SIMPLE_RADIAL": (*STRAIGHT["SIMPLE_PINHOLE"], "K"),
    "RADIAL": (*STRAIGHT["SIMPLE_PINHOLE"], "K1", "K2"),
    "OPENCV": (*STRAIGHT["PINHOLE"], "K1", "K2", "P1", "P2"),
}
"""Lenses that are taken where their distortion is 0."""


@dataclass(frozen=True)
class CameraPath:
    """World to camera at every frame; (fx, fy, cx, cy) px and the (H, W) they belong to, None where not known.

    Raises:
        UserError: matrices that are no rigid motions; a lens that is not finite, or a size below 1 px.
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
        if self.intrinsics is not None:
            _lens(self.intrinsics.numpy())
        if self.size is not None:
            _size(self.size)

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
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
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
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError("need an npz with extrinsics [T, 4, 4], got a single array")
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
        # Each by itself, so that the frame can be named.
        _matrices(frame["transform_matrix"], f"transform_matrix of frame {i}", "[4, 4]")
    order = sorted(range(len(frames)), key=lambda i: _natural(str(frames[i].get("file_path", i))))
    poses = _matrices([frames[i]["transform_matrix"] for i in order], "transform_matrix")
    for name in ("k1", "k2", "k3", "k4", "p1", "p2"):
        for i, frame in enumerate(frames):
            bent = _number(frame.get(name, content.get(name, 0)), f"{name} of frame {i}")
            if bent != 0:
                raise UserError(
                    f"need a lens without distortion, got {name} = {bent} in frame {i}: undistort the video first"
                )
    lenses = [_nerfstudio_lens({**content, **frame}, i) for i, frame in enumerate(frames)]
    known = [lens for lens in lenses if lens is not None]
    extrinsics = torch.from_numpy(conventions.from_blender(poses))
    if len(known) < len(lenses):
        return CameraPath(extrinsics)
    return CameraPath(extrinsics, *_one_lens(known))


def _nerfstudio_lens(
    told: dict[str, Any], frame: int
) -> tuple[list[float], tuple[int, int]] | None:
    """Of a frame, whose own values come before those of the whole file."""
    if "w" not in told or "h" not in told:
        return None

    def number(name: str) -> float:
        return _number(told[name], f"{name} of frame {frame}")

    width, height = (_whole(told[name], f"{name} of frame {frame}") for name in ("w", "h"))
    if "fl_x" in told:
        fx = number("fl_x")
    elif "camera_angle_x" in told:
        angle = number("camera_angle_x")
        if not 0 < angle < np.pi:
            raise UserError(
                f"need camera_angle_x between 0 and pi radians, got {angle} in frame {frame}"
            )
        fx = width / 2 / float(np.tan(angle / 2))
    else:
        return None
    fy = number("fl_y") if "fl_y" in told else fx
    cx = number("cx") if "cx" in told else width / 2
    cy = number("cy") if "cy" in told else height / 2
    return _lens([fx, fy, cx, cy], f" in frame {frame}").tolist(), (height, width)


def _colmap(folder: Path) -> CameraPath:
    cameras = {}
    for where, line in _lines(folder / "cameras.txt"):
        parts = line.split()
        if len(parts) < 4:
            raise UserError(
                f"need CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] in {where}, got {line[:80]!r}"
            )
        number, model, width, height, *parameters = parts
        size = _whole(height, f"HEIGHT in {where}"), _whole(width, f"WIDTH in {where}")
        cameras[_whole(number, f"CAMERA_ID in {where}", 0)] = (model, size, parameters, where)
    poses, lenses = {}, []
    # Every second line holds the image's 2D points, and is empty where there are none.
    for where, line in _lines(folder / "images.txt", keep_empty=True)[::2]:
        parts = line.split(maxsplit=9)
        if len(parts) < 10:
            raise UserError(
                f"need IMAGE_ID, QW QX QY QZ, TX TY TZ, CAMERA_ID, NAME in {where}, got {line[:80]!r}"
            )
        *numbers, name = parts
        camera = _whole(numbers[8], f"CAMERA_ID in {where}", 0)
        if camera not in cameras:
            raise UserError(f"need camera {camera} of image {name!r} in cameras.txt")
        if name in poses:
            raise UserError(f"need one image of each name, got {name!r} again in {where}")
        names = ("QW", "QX", "QY", "QZ", "TX", "TY", "TZ")
        poses[name] = [
            _number(value, f"{what} in {where}")
            for what, value in zip(names, numbers[1:8], strict=True)
        ]
        if not 0 < np.linalg.norm(poses[name][:4]) < np.inf:
            raise UserError(f"need QW QX QY QZ of length 1 in {where}, got {poses[name][:4]}")
        lenses.append(_colmap_lens(*cameras[camera]))
    if not poses:
        raise UserError("need at least one image in images.txt")
    values = np.array([poses[name] for name in sorted(poses, key=_natural)])
    extrinsics = conventions.from_colmap(values[:, :4], values[:, 4:])
    return CameraPath(torch.from_numpy(extrinsics), *_one_lens(lenses))


def _colmap_lens(
    model: str, size: tuple[int, int], parameters: list[str], where: str
) -> tuple[list[float], tuple[int, int]]:
    names = STRAIGHT.get(model) or BENT.get(model)
    if names is None:
        known = ", ".join([*STRAIGHT, *BENT])
        raise UserError(f"need a lens out of {known}, got {model}: undistort the video first")
    if len(parameters) != len(names):
        raise UserError(
            f"need the {len(names)} parameters {' '.join(names)} of {model} in {where}, got {len(parameters)}"
        )
    values = {
        name: _number(value, f"{name} in {where}")
        for name, value in zip(names, parameters, strict=True)
    }
    straight = [values.pop(name) for name in ("F", "FX", "FY", "CX", "CY") if name in values]
    if any(values.values()):
        raise UserError(
            f"need a lens without distortion, got {model} {' '.join(parameters)}: undistort the video first"
        )
    lens = straight if len(straight) == 4 else [straight[0], *straight]
    return _lens(lens, f" in {where}").tolist(), size


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


def _lines(path: Path, *, keep_empty: bool = False) -> list[tuple[str, str]]:
    """Where each line is, in words, and the line."""
    if not path.is_file():
        raise UserError(f"need {path.name} beside the other file of COLMAP's text model")
    text = path.read_text(encoding="utf-8").splitlines()
    lines = [(f"{path.name}, line {i}", line.strip()) for i, line in enumerate(text, 1)]
    lines = [(where, line) for where, line in lines if not line.startswith("#")]
    if not keep_empty:
        return [(where, line) for where, line in lines if line]
    # Between the comments and the first image some writers leave a line.
    while lines and not lines[0][1]:
        lines.pop(0)
    return lines


def _number(value: Any, what: str) -> float:
    """What a file says as a number, or in words; `what` names it and where it is."""
    try:
        number = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if not np.isfinite(number):
        raise UserError(f"need a finite number as {what}, got {str(value)[:80]!r}")
    return number


def _whole(value: Any, what: str, least: int = 1) -> int:
    number = _number(value, what)
    if number < least or not number.is_integer():
        raise UserError(f"need a whole number of at least {least} as {what}, got {value!r}")
    return int(number)


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _matrices(values: Any, name: str, shape: str = "[T, 4, 4]") -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(
            f"need {name} as numbers {shape}, got rows that differ in length"
        ) from error
    fits = array.ndim == shape.count(",") + 1 and array.shape[-2:] == (4, 4)
    if array.dtype.kind not in "iuf" or not fits:
        raise UserError(f"need {name} as numbers {shape}, got {array.dtype} {list(array.shape)}")
    if len(array) == 0:
        raise UserError(f"need at least one camera in {name}")
    return array.astype(np.float64)


def _lens(values: Any, where: str = "") -> Float32[Tensor, "4"]:
    array = np.asarray(values)
    sound = array.shape == (4,) and array.dtype.kind in "iuf"
    if sound:
        # What is beyond single precision is as good as infinite, or 0.
        with np.errstate(over="ignore", under="ignore"):
            array = array.astype(np.float32)
        sound = bool(np.isfinite(array).all() and (array[:2] > 0).all())
    if not sound:
        raise UserError(
            f"need finite intrinsics (fx, fy, cx, cy) px with fx, fy > 0, got {np.asarray(values).tolist()}{where}"
        )
    return torch.from_numpy(array)


def _size(values: Any) -> tuple[int, int]:
    array = np.asarray(values)
    if array.shape != (2,) or array.dtype.kind not in "iu" or (array < 1).any():
        raise UserError(f"need size [2] = (H, W) px, got {array.tolist()}")
    return int(array[0]), int(array[1])
