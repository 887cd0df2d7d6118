"""Depth maps of a clip, from a file: whatever estimator made them, NumPy alone opens it.

Shape letters:  T frames   H, W rows and columns of a depth map
"""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from diffusion4d.errors import UserError, reason

NAME = "depth"


def read_depths(path: Path, num_frames: int) -> Float32[np.ndarray, "T H W"]:
    """z of every frame; NaN where the file has no finite number above 0.

    Raises:
        UserError: no such file, no array `depth` in it, another shape or number of frames, or no depth at all.
    """
    if not path.is_file():
        raise UserError(f"no depth maps at {path}")
    found = None
    try:
        with np.load(path, allow_pickle=False) as held:
            if isinstance(held, np.lib.npyio.NpzFile) and NAME in held:
                found = held[NAME]
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"need an npz with the array {NAME!r}, got {path}: {reason(error)}"
        ) from error
    if found is None:
        raise UserError(f"need an npz with the array {NAME!r}, got {path}")
    if found.ndim != 3 or not np.issubdtype(found.dtype, np.number) or len(found) != num_frames:
        raise UserError(
            f"need {NAME} of shape [{num_frames}, H, W], a map for every frame of the hypotheses, "
            f"got {list(found.shape)} of {found.dtype} in {path}"
        )
    depths = found.astype(np.float32)
    with np.errstate(invalid="ignore"):
        depths[~(np.isfinite(depths) & (depths > 0))] = np.nan
    if np.isnan(depths).all():
        raise UserError(f"need depths above 0, got none in {path}")
    return depths
