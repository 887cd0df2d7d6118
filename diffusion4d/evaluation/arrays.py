"""The arrays of a clip's file, checked: what `clips` may rely on.

Shape letters as in `clips`: N points   T frames   F images.
"""

import zipfile
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


def load(path: Path, *, with_images: bool) -> Arrays:
    """The arrays that are read, of the right shapes; all numbers finite but those of an unknown truth.

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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is no npz file that can be read without unpickling: {reason(error)}"
        ) from error
    _check_shapes(path, arrays)
    _check_values(path, arrays)
    return arrays


def _array(path: Path, file: "np.lib.npyio.NpzFile", name: str) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        raise UserError(
            f"{path}: {name} is an array of objects, which only unpickling could read, and that would run code "
            f"from the file. Store it as plain bytes (dtype S) or as uint8 `images` [T, h, w, 3], or leave images "
            f"out (--tokens none)"
        ) from error


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
    if ("observed_tracks" in arrays) != ("observed_visibility" in arrays):
        raise UserError(f"{path}: need observed_tracks and observed_visibility together, got one")


def _check_values(path: Path, arrays: Arrays) -> None:
    for name in set(SHAPES) & set(arrays) - set(MAY_BE_NAN):
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: need finite numbers in {name}, got some that are not")
    focal = arrays["fx_fy_cx_cy"][:2]
    if not (focal > 0).all():
        raise UserError(f"{path}: need focal lengths above 0, got {focal.tolist()}")
    if "size" in arrays and not (arrays["size"] >= 1).all():
        raise UserError(
            f"{path}: need a size (H, W) of at least 1 px, got {arrays['size'].tolist()}"
        )
    if "u" in arrays and not (np.diff(arrays["u"]) > 0).all():
        raise UserError(f"{path}: need u to rise from frame to frame, got values that do not")
    poses = arrays.get("extrinsics_w2c")
    if poses is not None and (np.abs(np.linalg.det(poses[:, :3, :3])) < 1e-6).any():
        raise UserError(f"{path}: need rotations in extrinsics_w2c, got a singular matrix")
    _check_image_frames(path, arrays)


def _check_image_frames(path: Path, arrays: Arrays) -> None:
    frames, T = arrays.get("image_frames"), len(arrays["tracks_XYZ"])
    if frames is None:
        return
    if (
        frames.ndim != 1
        or frames.dtype.kind not in "iu"
        or not ((frames >= 0) & (frames < T)).all()
    ):
        raise UserError(f"{path}: need image_frames [F], whole numbers from 0 to {T - 1}")
