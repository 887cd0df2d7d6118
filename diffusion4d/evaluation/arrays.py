"""The arrays of a clip's file, checked: what `clips` may rely on.

Shape letters as in `clips`: N points   T frames   F images.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from diffusion4d.errors import UserError, reason

Arrays = dict[str, np.ndarray]

NEEDED = ("tracks_XYZ", "visibility", "fx_fy_cx_cy")

SHAPES: dict[str, tuple[str | int, ...]] = {
    "tracks_XYZ": ("T", "N", 3),
    "visibility": ("T", "N"),
    "fx_fy_cx_cy": (4,),
    "size": (2,),
    "u": ("T",),
    "moving": ("N",),
    "observed_tracks": ("T", "N", 2),
    "observed_visibility": ("T", "N"),
    "extrinsics_w2c": ("T", 4, 4),
    "focal_known": (),
    "seed": (),
}

IMAGES = ("images", "images_jpeg_bytes")

MAY_BE_NAN = ("tracks_XYZ",)

IN_DOUBLE = ("u", "extrinsics_w2c")
"""The other numbers are read in single precision."""

IN_PX = ("fx_fy_cx_cy", "size", "observed_tracks")

LARGEST = 1e6
"""Numbers in px are at most so large: beyond, squares of normalised ones leave single precision."""


def load(path: Path, *, with_images: bool) -> Arrays:
    """The arrays that are read, of the right shapes, as native floats; finite but for an unknown truth.

    Raises:
        UserError: the file cannot be read without unpickling, or an array is missing or not what it has to be.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: need an archive of arrays (npz), got a single array")
        with archive as file:
            wanted = (*SHAPES, "image_frames", *(IMAGES if with_images else ()))
            arrays = {name: _array(path, file, name) for name in wanted if name in file.files}
    except UserError:
        raise
    # What numpy, zipfile and zlib say of damaged, encrypted or oddly compressed files.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        said = reason(error) or type(error).__name__
        raise UserError(
            f"{path} is no npz file that can be read without unpickling: {said}"
        ) from error
    _check_shapes(path, arrays)
    _check_finite(path, arrays)
    # Half and extended precision and foreign byte orders are numbers that torch or LAPACK may not take.
    with np.errstate(over="ignore"):
        arrays |= {
            name: arrays[name].astype(np.float64 if name in IN_DOUBLE else np.float32)
            for name in set(SHAPES) & set(arrays) - {"seed"}
        }
    _check_values(path, arrays)
    if "image_frames" in arrays:
        arrays["image_frames"] = _image_frames(
            path, arrays["image_frames"], len(arrays["tracks_XYZ"])
        )
    return arrays


def _array(path: Path, file: "np.lib.npyio.NpzFile", name: str) -> np.ndarray:
    try:
        array = file[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise UserError(f"{path}: {name} cannot be read: {error}") from error
        raise UserError(
            f"{path}: {name} is an array of objects, which only unpickling could read, and that would run code "
            f"from the file. Store it as plain bytes (dtype S) or as uint8 `images` [T, h, w, 3], or leave images "
            f"out (--tokens none)"
        ) from error
    # Of a member that is no npy file numpy gives the bytes.
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"{path}: need an array in {name}, got {len(array)} bytes of something else"
        )
    return array


def _check_shapes(path: Path, arrays: Arrays) -> None:
    for name in NEEDED:
        if name not in arrays:
            raise UserError(f"{path}: need {name}, got nothing")
    truth = arrays["tracks_XYZ"]
    if truth.ndim != 3 or truth.shape[0] < 2:
        raise UserError(
            f"{path}: need tracks_XYZ [T, N, 3] with 2 frames or more, got {list(truth.shape)}"
        )
    known = {"T": truth.shape[0], "N": truth.shape[1]}
    for name, shape in SHAPES.items():
        if name not in arrays:
            continue
        wanted = tuple(known.get(n, n) if isinstance(n, str) else n for n in shape)
        if arrays[name].shape != wanted:
            letters = ", ".join(map(str, shape))
            raise UserError(
                f"{path}: need {name} [{letters}] = {list(wanted)}, got {list(arrays[name].shape)}"
            )
        if arrays[name].dtype.kind not in "biuf":
            raise UserError(f"{path}: need numbers in {name}, got {arrays[name].dtype}")
    if "seed" in arrays and arrays["seed"].dtype.kind not in "iu":
        raise UserError(f"{path}: need a whole number as seed, got {arrays['seed']}")
    if ("observed_tracks" in arrays) != ("observed_visibility" in arrays):
        raise UserError(f"{path}: need observed_tracks and observed_visibility together, got one")


def _check_finite(path: Path, arrays: Arrays) -> None:
    for name in SHAPES:
        if name in arrays and name not in MAY_BE_NAN and not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: need finite numbers in {name}, got some that are not")


def _check_values(path: Path, arrays: Arrays) -> None:
    focal = arrays["fx_fy_cx_cy"][:2]
    if not (focal > 0).all():
        raise UserError(f"{path}: need focal lengths above 0, got {focal.tolist()}")
    if "size" in arrays and not (arrays["size"] >= 1).all():
        raise UserError(
            f"{path}: need a size (H, W) of at least 1 px, got {arrays['size'].tolist()}"
        )
    for name in IN_PX:
        largest = np.abs(arrays[name]).max(initial=0) if name in arrays else 0
        if largest > LARGEST:
            raise UserError(f"{path}: need at most {LARGEST:g} px in {name}, got {largest:g}")
    seen = arrays.get("observed_visibility")
    if seen is not None and not ((seen >= 0) & (seen <= 1)).all():
        raise UserError(
            f"{path}: need observed_visibility from 0 to 1, got {seen.min():g} to {seen.max():g}"
        )
    if "u" in arrays and not (np.diff(arrays["u"]) > 0).all():
        raise UserError(f"{path}: need u to rise from frame to frame, got values that do not")
    poses = arrays.get("extrinsics_w2c")
    if poses is not None and (np.abs(np.linalg.det(poses)) < 1e-6).any():
        raise UserError(f"{path}: need rotations in extrinsics_w2c, got a singular matrix")


def _image_frames(path: Path, frames: np.ndarray, num_frames: int) -> np.ndarray:
    wanted = f"{path}: need image_frames [F], whole numbers that rise, from 0 to {num_frames - 1}"
    if frames.ndim != 1 or frames.dtype.kind not in "iu":
        raise UserError(f"{wanted}, got {list(frames.shape)} of {frames.dtype}")
    if not ((frames >= 0) & (frames < num_frames)).all() or not (frames[1:] > frames[:-1]).all():
        raise UserError(f"{wanted}, got {frames.tolist()}")
    return frames.astype(np.int64)
