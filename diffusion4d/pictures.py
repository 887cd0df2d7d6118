r"""Pictures with times, one after another, from a video file, a folder or an array.

A source is an iterator, so that a reader which has enough can stop and nothing behind is decoded; a picture
is turned into RGB pixels only when it is asked for. Times are seconds since the first frame, by the file's own clock:
nothing is resampled. Folders and arrays have no clock and count as `ASSUMED_FPS` frames a second.

Containers store pixels as the sensor gave them and say beside it how to show them: a matrix that
turns or mirrors, and the shape of a pixel. Both are applied here, after the shrinking, which is cheaper.

Shape letters:  T frames   H, W height and width in px.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from diffusion4d.errors import UserError

if TYPE_CHECKING:
    import av

ASSUMED_FPS = 30.0
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
SEEK_FROM = 1.0
"""Start times (s) beyond this are reached by seeking, not by decoding all that lies before."""
ROUNDED = 2
"""px of the shorter side by which a picture that was shrunk may miss its proportion: sizes are whole px."""


def in_proportion(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes (H, W) in px can be those of one picture, shrunk as a whole."""
    (rows, columns), (height, width) = size, other
    return abs(width * rows / (height * columns) - 1) <= ROUNDED / min(*size, *other)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One frame, not yet converted.

    pixels: gives uint8 RGB [H, W, 3] as stored. The picture to show is those pixels, stretched by
    `pixel_aspect` (width over height of a pixel), transposed if `transpose`, then mirrored.
    """

    seconds: float
    label: str
    pixels: Callable[[], np.ndarray]
    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False
    pixel_aspect: float = 1.0

    def read(self, max_size: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Pixels to show, uint8 [h, w, 3] with a shorter side of at most `max_size`, and their (H, W) before shrinking.

        Shrinking averages over the area of each new pixel, so it does not alias, and maps the span
        [0, W] x [0, H] onto [0, w] x [0, h]. Nothing is enlarged: a pixel that is not square shrinks
        along its longer side.
        """
        pixels = np.ascontiguousarray(self.pixels())
        height, width = pixels.shape[:2]
        shown_h, shown_w = height / max(self.pixel_aspect, 1), width * min(self.pixel_aspect, 1)
        scale = min(1.0, max_size / min(shown_h, shown_w))
        target_h, target_w = max(1, round(shown_h * scale)), max(1, round(shown_w * scale))
        if (target_h, target_w) != (height, width):
            import cv2

            pixels = cv2.resize(pixels, (target_w, target_h), interpolation=cv2.INTER_AREA)
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
            height, width = width, height
        pixels = pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(pixels), (height, width)


def from_array(array: np.ndarray | Tensor) -> Iterator[Picture]:
    """Pictures of a [T, 3, H, W] or [T, H, W, 3] array, uint8 or floating in [0, 1].

    Raises:
        UserError: another shape or type; values that are NaN or outside [0, 1] (when such a frame is read).
    """
    shape = tuple(array.shape)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or 0 in shape:
        raise UserError(f"need frames of shape [T, 3, H, W] or [T, H, W, 3], got {list(shape)}")
    kind = str(array.dtype).removeprefix("torch.")
    if kind != "uint8" and not kind.startswith(("float", "bfloat")):
        raise UserError(f"need frames of type uint8, or floating in [0, 1], got {kind}")
    channels_first = shape[1] == 3

    def pixels(index: int) -> np.ndarray:
        frame = array[index]
        if isinstance(frame, Tensor):
            frame = frame.detach().cpu()
            frame = (frame if kind == "uint8" else frame.float()).numpy()
        if kind != "uint8":
            low, high = float(frame.min()), float(frame.max())
            # A NaN anywhere makes both NaN, and every comparison with NaN is false.
            if not (low >= -1e-3 and high <= 1 + 1e-3):
                raise UserError(
                    f"need floating frames within [0, 1], got [{low:g}, {high:g}] in frame {index}"
                )
            frame = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
        return frame.transpose(1, 2, 0) if channels_first else frame

    for index in range(shape[0]):
        yield Picture(index / ASSUMED_FPS, f"frame {index}", functools.partial(pixels, index))


def from_folder(folder: Path) -> Iterator[Picture]:
    """Pictures of a folder's images in natural order (frame2 before frame10). Hidden files are passed over.

    Raises:
        UserError: the folder holds no image; an image that cannot be read (when it is read).
    """

    def natural(path: Path) -> list[tuple[int, str]]:
        return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"([0-9]+)", path.name)]

    paths = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    paths = sorted((p for p in paths if not p.name.startswith(".") and p.is_file()), key=natural)
    if not paths:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"need a folder of images ({kinds}), found none in {folder}")
    for index, path in enumerate(paths):
        yield Picture(index / ASSUMED_FPS, path.name, functools.partial(read_image, path))


def read_image(path: Path) -> np.ndarray:
    """uint8 RGB [H, W, 3] of an image file, turned as its EXIF orientation says.

    Raises:
        UserError: not an image, damaged, or of a kind that has no 8-bit meaning (32-bit, floating).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            if image.mode in ("I", "F"):
                raise UserError(f"need 8- or 16-bit images, got mode {image.mode} in {path}")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"need a readable image, got {path}: {error}") from error


def from_video(path: Path, start: float = 0.0) -> Iterator[Picture]:
    """Pictures of a video file, from at or before `start` (s) on, in the order they are shown.

    Times run from the start of the video stream. A frame whose time does not advance is passed over: it was
    never shown. The iterator reaches the end of the file only if it is asked to; then it
    compares what was decoded with what the container promised.

    Raises:
        UserError: not a video, no video stream, damaged, or shorter than the container says.
    """
    from av.error import FFmpegError

    try:
        if start > SEEK_FROM:
            pictures = _decode(path, start)
            first = next(pictures, None)
            # A poor index can land a seek behind its target, or on nothing.
            if first is not None and first.seconds <= start:
                yield from itertools.chain([first], pictures)
                return
            pictures.close()
        yield from _decode(path, None)
    except FFmpegError as error:
        raise UserError(f"need a readable video, got {path}: {error.strerror}") from error


def _decode(path: Path, seek_to: float | None) -> Generator[Picture, None, None]:
    import av
    from av.error import FFmpegError

    # Only local files: a playlist in disguise must not open network addresses. The path is absolute, so
    # that a colon in it is not read as a protocol.
    options = {"protocol_whitelist": "file"}
    with av.open(str(path.absolute()), options=options, metadata_errors="ignore") as container:
        if not container.streams.video:
            raise UserError(f"need a file with a video stream, got none in {path}")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UserError(f"need a video in a known codec, got an unknown one in {path}")
        stream.thread_type = "AUTO"
        tick = float(stream.time_base) if stream.time_base else 0.0
        origin = None if stream.start_time is None else stream.start_time * tick
        if seek_to is not None and tick and origin is not None:
            try:
                container.seek(int((origin + seek_to) / tick), stream=stream)
            except FFmpegError:
                return
        elif seek_to is not None:
            return

        seconds, longest, end, turn = -math.inf, 0.0, 0.0, None
        frames = container.decode(stream)
        for index in itertools.count():
            try:
                frame = next(frames, None)
            except FFmpegError as error:
                raise UserError(
                    f"need an intact video, got {path}, damaged after {max(end, 0.0):.2f} s "
                    f"({error.strerror}); an end before that reads the intact part"
                ) from error
            if frame is None:
                break
            # Raw streams carry no times; only there does the nominal rate stand in.
            rate = float(stream.average_rate or ASSUMED_FPS)
            time = index / rate if frame.time is None else frame.time
            origin = time if origin is None else origin
            if time - origin <= seconds:
                continue
            if seconds > -math.inf:
                longest = max(longest, time - origin - seconds)
            seconds = time - origin
            end = seconds + (frame.duration or 0) * tick
            convert = functools.partial(frame.to_ndarray, format="rgb24")
            # Asked once: frame and side data refer to each other, and would wait for the garbage collector.
            turn = _orientation(frame) if turn is None else turn
            yield Picture(
                seconds, f"frame at {seconds:.3f} s", convert, *turn, _pixel_aspect(stream)
            )

        promised = _promised_duration(container, stream)
        # Durations are rounded, and where they say nothing of the last frame's own, it is missing from `end`.
        # Samples that never came make even half a frame suspicious; on their own they prove nothing.
        slack = (0.5 if seek_to is None and index < stream.frames else 1.5) * longest
        if seconds > -math.inf and max(end, seconds) + slack < promised:
            raise UserError(
                f"need a whole video, got {path}, which promises {promised:.2f} s and ends "
                f"after {end:.2f} s; an end before that reads the intact part"
            )


def _orientation(frame: "av.VideoFrame") -> tuple[bool, bool, bool]:
    """(transpose, mirror x, mirror y) of a frame's display matrix.

    The matrix [a b u; c d v; x y w] sends a stored pixel (p, q) to (a p + c q + x, b p + d q + y),
    y down (libavutil/display.h). `frame.rotation` alone would show a mirrored video upside down.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _pixel_aspect(stream: Any) -> float:
    """Width over height of a pixel; 1 where the file says nothing or nonsense."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.2 <= aspect <= 5 else 1.0


def _promised_duration(container: Any, stream: Any) -> float:
    """Seconds of video the container says it holds; 0 where it does not say.

    The number of samples alone would not do: an edit list rightly hides some of them from the viewer.
    """
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    stated = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if stated:
        hours, minutes, seconds = map(float, stated.groups())
        return 3600 * hours + 60 * minutes + seconds
    # The duration of the whole may be that of the sound.
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6
    return 0.0
