r"""A video in memory: shrunk frames and the clip time u of each.

A frame shown at s_i seconds sits at  u_i = (s_i - s_0) / (s_{T-1} - s_0),  so a clip of constant rate
has u_i = i / (T - 1) and a clip of variable rate keeps its own clock.

Memory is bounded by the shrunk frames: the file is streamed, each frame is shrunk as it is decoded, and
decoding stops with the last frame that is wanted.

Shape letters:  T frames   H, W height and width in px.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from diffusion4d import pictures, splines
from diffusion4d.errors import UserError
from diffusion4d.pictures import Picture

SMALLEST_SIDE = 16


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames with their times.

    frames: RGB. u: clip time, 0 at the first and 1 at the last frame, strictly increasing.
    seconds: since the first frame of the source, by its own clock; a source without one counts as
    30 frames a second. source_size: (H, W) in px before shrinking, upright.
    """

    frames: UInt8[Tensor, "T 3 H W"]
    u: Float64[Tensor, "T"]
    seconds: Float64[Tensor, "T"]
    source_size: tuple[int, int]
    name: str
    goes_on: bool = False
    """Whether the range asked for holds more frames than `max_frames` let through."""

    @property
    def T(self) -> int:
        """Number of frames."""
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in px."""
        return self.frames.shape[2], self.frames.shape[3]


def read_clip(
    source: str | Path | np.ndarray | Tensor,
    *,
    start: float = 0.0,
    end: float | None = None,
    stride: int = 1,
    max_frames: int | None = 48,
    max_size: int = 256,
) -> Clip:
    """Read a clip from a video file, a folder of images or an array.

    Args:
        source: a video (whatever FFmpeg decodes: mp4, mov, gif, ...); a folder of images, sorted naturally;
            or [T, 3, H, W] or [T, H, W, 3] frames, uint8 or floating in [0, 1].
        start, end: seconds since the first frame of the source; frames with start <= time < end.
        stride: keep one frame in so many.
        max_frames: stop after so many kept frames; None keeps all.
        max_size: px of the shorter side that frames are shrunk to. Smaller ones stay as they are.

    Raises:
        UserError: the source is missing, not a video, damaged or shorter than it says; fewer than 2 frames
            in the range; frames of different sizes; NaN; an argument out of its range.
    """
    _check_range(start, end, stride, max_frames, max_size)
    stream, name = _open(source, start)
    kept: list[np.ndarray] = []
    seconds: list[float] = []
    source_size: tuple[int, int] | None = None
    seen, last, goes_on = 0, 0.0, False
    for picture in stream:
        last = picture.seconds
        # Times are sums of rounded ticks; a microsecond keeps a frame at exactly `start` on the right side.
        if picture.seconds < start - 1e-6:
            continue
        if end is not None and picture.seconds >= end - 1e-6:
            break
        seen += 1
        if (seen - 1) % stride:
            continue
        if len(kept) == max_frames:
            goes_on = True
            break
        pixels, size = picture.read(max_size)
        source_size = source_size or size
        if size != source_size:
            raise UserError(
                f"need frames of one size, got {source_size[1]}x{source_size[0]} px and then "
                f"{size[1]}x{size[0]} px in {picture.label} of {name}"
            )
        kept.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        seconds.append(picture.seconds)
    if source_size is None or len(kept) < 2:
        if kept == [] and 0 < last < start:
            raise UserError(
                f"need a start within {name}, whose last frame is at {last:.2f} s, got {start}"
            )
        until = "its end" if end is None else f"{end} s"
        raise UserError(
            f"need at least 2 frames, got {len(kept)} from {name} "
            f"(from {start} s to {until}, one in {stride})"
        )
    clock = torch.tensor(seconds, dtype=torch.float64)
    u = (clock - clock[0]) / (clock[-1] - clock[0])
    frames = torch.from_numpy(np.stack(kept))
    return Clip(frames, u, clock, source_size, name, goes_on)


def _open(source: str | Path | np.ndarray | Tensor, start: float) -> tuple[Iterator[Picture], str]:
    if isinstance(source, np.ndarray | Tensor):
        return pictures.from_array(source), "array"
    path = Path(source)
    try:
        if path.is_dir():
            return pictures.from_folder(path), path.absolute().name
        if not path.is_file():
            raise UserError(f"need a video file or a folder of images, found nothing at {path}")
        if path.stat().st_size == 0:
            raise UserError(f"need a video, got an empty file: {path}")
    except OSError as error:
        raise UserError(f"need a readable video or folder, got {path}: {error.strerror}") from error
    return pictures.from_video(path, start), path.stem


def _check_range(
    start: float, end: float | None, stride: int, max_frames: int | None, max_size: int
) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise UserError(f"need a start of 0 s or later, got {start}")
    if end is not None and not end > start:
        raise UserError(f"need an end after the start ({start} s), got {end}")
    if stride < 1:
        raise UserError(f"need a stride of at least 1, got {stride}")
    if max_frames is not None and max_frames < 2:
        raise UserError(f"need at least 2 frames, got max_frames={max_frames}")
    if max_size < SMALLEST_SIDE:
        raise UserError(
            f"need a shorter side of at least {SMALLEST_SIDE} px, got max_size={max_size}"
        )


def key_frames(u: Float[Tensor, "T"], count: int) -> Int64[Tensor, "F"]:
    """Places of the frames nearest to the Greville abscissae of a cubic with `count` control points, in order.

    Each control point then has a picture of about its own time; the first and the last frame are among
    them. A clip of fewer frames, or whose frames bunch in time, gives fewer.
    """
    wanted = splines.greville(max(4, min(count, len(u))))
    return (u[None].double() - wanted[:, None]).abs().argmin(1).unique()
