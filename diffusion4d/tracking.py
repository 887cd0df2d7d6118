r"""2D tracks: where points of frame 0 are in every frame, and how well they are seen.

On disk a `.npz` in CoTracker's layout: `tracks` [T, N, 2] px and `visibility` [T, N] (bool, or floating in
[0, 1]), each with or without a leading batch axis of 1; `intrinsics` [4] = fx, fy, cx, cy px and `size` [2] = H, W
px of the image the tracks belong to, where known. Nothing is unpickled.

Shape letters:  T frames   N points.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from diffusion4d import lucas_kanade
from diffusion4d.atomic import replace_when_done
from diffusion4d.clip import Clip
from diffusion4d.errors import UserError, reason
from diffusion4d.queries import check_queries, query_points

__all__ = ["Tracks", "query_points", "track_lk"]


@dataclasses.dataclass(frozen=True)
class Tracks:
    """2D tracks of N points over T frames.

    tracks: px, pixel centres at + 0.5; finite everywhere. A hidden point holds the position it was last seen at.
    visibility: in [0, 1], 0 where the point was not seen. intrinsics: (fx, fy, cx, cy) px, or None where unknown.
    size: (H, W) px of the image that tracks and intrinsics belong to.
    """

    tracks: Float32[Tensor, "T N 2"]
    visibility: Float32[Tensor, "T N"]
    intrinsics: Float32[Tensor, "4"] | None
    size: tuple[int, int]

    @classmethod
    def from_arrays(
        cls,
        tracks: Any,
        visibility: Any,
        *,
        size: Sequence[int] | np.ndarray | Tensor,
        intrinsics: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> "Tracks":
        """Check arrays from elsewhere (numpy, torch or nested lists) and bring them into shape.

        Positions may be NaN where visibility is 0; they become the position last seen, or first seen if
        there is none before.

        Raises:
            UserError: wrong shapes, fewer than 2 frames, no points, NaN where visible, visibility outside
                [0, 1], a point without any position, unusable intrinsics, tracks of an image of another size.
        """
        xy_TN2 = _numbers("tracks", tracks, np.float32)
        seen_TN = _numbers("visibility", visibility, np.float32)
        if xy_TN2.ndim == 4 and len(xy_TN2) == 1:
            xy_TN2 = xy_TN2[0]
            seen_TN = seen_TN[0] if seen_TN.ndim >= 3 and len(seen_TN) == 1 else seen_TN
        if seen_TN.ndim == 3 and seen_TN.shape[-1] == 1:
            seen_TN = seen_TN[..., 0]
        if xy_TN2.ndim != 3 or xy_TN2.shape[-1] != 2:
            raise UserError(f"need tracks of shape [T, N, 2], got {list(xy_TN2.shape)}")
        if seen_TN.shape != xy_TN2.shape[:2]:
            raise UserError(
                f"need visibility of shape [T, N] = {list(xy_TN2.shape[:2])}, got {list(seen_TN.shape)}"
            )
        if xy_TN2.shape[0] < 2 or xy_TN2.shape[1] < 1:
            raise UserError(
                f"need tracks of at least 2 frames and 1 point, got {xy_TN2.shape[0]} frames, {xy_TN2.shape[1]} points"
            )
        # Written so that NaN fails too.
        wrong = ~((seen_TN >= 0) & (seen_TN <= 1))
        if wrong.any():
            t, n = np.argwhere(wrong)[0]
            raise UserError(
                f"need visibility in [0, 1], got {seen_TN[t, n]} at frame {t}, point {n}"
            )
        height, width = _size(size)
        xy_TN2 = _fill(xy_TN2, seen_TN)
        outside = ~((xy_TN2 >= 0) & (xy_TN2 <= (width, height))).all(-1) & (seen_TN > 0)
        if outside.sum() > 0.5 * (seen_TN > 0).sum():
            raise UserError(
                f"need tracks in px of the {height} x {width} image (H x W), got most of them outside: x from "
                f"{xy_TN2[..., 0].min():g} to {xy_TN2[..., 0].max():g}, y from {xy_TN2[..., 1].min():g} to "
                f"{xy_TN2[..., 1].max():g}"
            )
        return cls(
            torch.from_numpy(xy_TN2),
            torch.from_numpy(seen_TN.copy()),
            None if intrinsics is None else _intrinsics(intrinsics),
            (height, width),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None) -> "Tracks":
        """Read a `.npz`.

        Args:
            size: (H, W) px of the image the tracks belong to, for files that do not say.

        Raises:
            UserError: the file is missing, damaged, holds pickles or lacks a key; or see `from_arrays`.
        """
        try:
            # Opened here, since numpy leaves a file open that turns out to be no archive.
            with open(path, "rb") as file:
                archive = np.load(file, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise UserError(
                        f"need an .npz of tracks and visibility, got a single array in {path}"
                    )
                keys = list(archive.keys())
                wanted = ("tracks", "visibility", "intrinsics", "size")
                held = {key: archive[key] for key in wanted if key in keys}
        except FileNotFoundError as error:
            raise UserError(f"need a file of tracks, found nothing at {path}") from error
        except UserError:
            raise
        except (
            OSError,
            ValueError,
            EOFError,
            KeyError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise UserError(
                f"need a readable .npz of plain arrays, got {path}: {reason(error)}"
            ) from error
        missing = [key for key in ("tracks", "visibility") if key not in held]
        if missing:
            raise UserError(f"need the keys tracks and visibility in {path}, got {keys}")
        size_held = held.get("size", size)
        if size_held is None:
            raise UserError(
                f"need the size (H, W) of the image the tracks belong to, got none in {path}"
            )
        return cls.from_arrays(
            held["tracks"],
            held["visibility"],
            size=size_held,
            intrinsics=held.get("intrinsics"),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.npz` that `load` reads. The file appears whole or not at all."""
        arrays = {
            "tracks": self.tracks.cpu().numpy(),
            "visibility": self.visibility.cpu().numpy(),
            "size": np.array(self.size, np.int64),
        }
        if self.intrinsics is not None:
            arrays["intrinsics"] = self.intrinsics.cpu().numpy()
        # A file object, since numpy would append .npz to a name that lacks it.
        with replace_when_done(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def resized(self, size: tuple[int, int]) -> "Tracks":
        """The same tracks and intrinsics in px of the same image at another size (H, W)."""
        factor = torch.tensor([size[1] / self.size[1], size[0] / self.size[0]])
        return Tracks(
            self.tracks * factor,
            self.visibility,
            None if self.intrinsics is None else self.intrinsics * factor.repeat(2),
            size,
        )


def track_lk(clip: Clip, queries: Float32[Tensor, "N 2"]) -> Tracks:
    """Follow points of frame 0 through a clip by pyramidal Lucas-Kanade (see `diffusion4d.lucas_kanade`).

    Args:
        queries: px in frame 0, pixel centres at + 0.5.

    Raises:
        UserError: no texture to track in the first frame; points outside the image or NaN.
    """
    check_queries(queries, clip.size)
    lucas_kanade.require_texture(lucas_kanade.grey(clip.frames[0]))
    tracks_TN2, seen_TN = lucas_kanade.follow(clip.frames, queries.cpu().numpy())
    return Tracks(torch.from_numpy(tracks_TN2), torch.from_numpy(seen_TN), None, clip.size)


def _numbers(name: str, values: Any, kind: type) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"need {name} as one array, got {error}") from error
    if array.dtype.kind not in "buif":
        raise UserError(f"need {name} as numbers, got {array.dtype}")
    # What is too large for float32 becomes infinite, and is refused as such.
    with np.errstate(over="ignore"):
        return array.astype(kind)


def _fill(xy_TN2: np.ndarray, seen_TN: np.ndarray) -> np.ndarray:
    """Replace positions that are not finite and not visible by the last finite one, else by the first."""
    known_TN = np.isfinite(xy_TN2).all(-1)
    bad = ~known_TN & (seen_TN > 0)
    if bad.any():
        t, n = np.argwhere(bad)[0]
        raise UserError(
            f"need finite tracks where visibility is above 0, got {xy_TN2[t, n].tolist()} at frame {t}, point {n}"
        )
    if not known_TN.any(0).all():
        raise UserError(
            f"need a position for every point in some frame, got none for point {np.argmin(known_TN.any(0))}"
        )
    frame_T1 = np.arange(len(xy_TN2))[:, None]
    last_TN = np.maximum.accumulate(np.where(known_TN, frame_T1, -1), axis=0)
    source_TN = np.where(last_TN >= 0, last_TN, known_TN.argmax(0))
    return np.take_along_axis(xy_TN2, source_TN[..., None], axis=0)


def _size(size: Any) -> tuple[int, int]:
    values = _numbers("size", size, np.float64)
    if values.shape != (2,) or not (values >= 1).all() or not (values == np.floor(values)).all():
        raise UserError(
            f"need a size of two whole numbers (H, W) of at least 1 px, got {values.tolist()}"
        )
    return int(values[0]), int(values[1])


def _intrinsics(intrinsics: Any) -> Tensor:
    values = _numbers("intrinsics", intrinsics, np.float32)
    if values.shape != (4,) or not np.isfinite(values).all() or not (values[:2] > 0).all():
        raise UserError(
            f"need intrinsics (fx, fy, cx, cy) in px with fx, fy > 0, got {values.tolist()}"
        )
    return torch.from_numpy(values)
