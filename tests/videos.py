"""Small videos for tests, written with PyAV."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

QUADRANTS = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 20]]], np.uint8)
"""Red, green over blue, yellow: all eight ways to turn and mirror it differ."""


def quadrants(height: int, width: int) -> np.ndarray:
    """RGB [H, W, 3], one colour a quadrant."""
    rows = (np.arange(height) * 2 >= height).astype(int)
    columns = (np.arange(width) * 2 >= width).astype(int)
    return QUADRANTS[rows[:, None], columns[None]]


def counting(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """RGB [T, H, W, 3] grey frames whose level says which they are: 4 levels a frame, from 16."""
    levels = (16 + 4 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def waves(seed: int = 0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A texture known at every (x, y) px, not only at pixels: 60 plane waves of 6 to 40 px, grey levels in 0..255."""
    rng = np.random.default_rng(seed)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, 60))
    number = 2 * np.pi / rng.uniform(6, 40, 60)
    kx, ky = number * np.cos(angle), number * np.sin(angle)

    def value(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total = sum(np.cos(kx[i] * x + ky[i] * y + phase[i]) for i in range(60))
        return np.clip(128 + 9 * total, 0, 255)

    return value


def centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y [H, W] px of the pixel centres, which are at integer + 0.5."""
    y, x = np.mgrid[:height, :width] + 0.5
    return x, y


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    times: Sequence[int] | None = None,
    rate: int = 10,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    rotation: tuple[float, bool, bool] | None = None,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    gop: int = 12,
) -> Path:
    """Write RGB frames [T, H, W, 3]; `times` (ms) make a variable rate; rotation is (degrees, hflip, vflip)."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "mpeg4":
            stream.codec_context.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        container.start_encoding()
        times = [index * 1000 // rate for index in range(len(frames))] if times is None else times
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
