"""overlay.mp4: what was observed and what the hypotheses say, over the video.

White is observation: a filled dot where a point is seen, its recent path behind it. Colour is
hypothesis (`export.palette`): each one's reprojected path, fading with age, so that K equal answers
hide under the white one and the fan opens where the point is hidden. There a hollow ring stands at
the hypotheses' mean, and a small dot at each.

Frames are drawn and encoded one at a time, at an integer enlargement that leaves a 256 px clip legible,
and keep the clip's own timestamps.

Shape letters:  K hypotheses   N points   T frames
"""

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from diffusion4d.atomic import replace_when_done
from diffusion4d.clip import Clip
from diffusion4d.export.palette import colours, ramp
from diffusion4d.hypotheses import Hypotheses

SIDE = 512
"""Shorter side in px that small clips are enlarged to."""
DIM = 0.7
"""Brightness of the video under the drawing."""
DECAY = 0.86
"""What a trail keeps of its opacity from one frame to the next."""
TICKS = 60000
"""Of the video's clock, per second."""

_INK = (12, 14, 20)
_PAPER = (236, 239, 244)
# OpenCV draws at 1/16 px: coordinates are fixed-point with this many bits.
_SHIFT = 4


def write_overlay(
    hypotheses: Hypotheses,
    path: str | os.PathLike[str],
    *,
    seconds: Float[np.ndarray, "T"],
    clip: Clip | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw and encode the video (H.264, yuv420p, even sides), all of it or nothing.

    Args:
        seconds: when each frame is shown, increasing.
        clip: the frames below the drawing; a dark canvas without.
        progress: called as `progress(done, total)` after each frame.

    Raises:
        ValueError: the clip's frames are not those of the hypotheses.
        OSError: the file cannot be written.
    """
    import av

    path = Path(path)
    stamps = np.round((seconds - seconds[0]) * TICKS).astype(int)
    gaps = np.diff(stamps)
    with (
        replace_when_done(path) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        rate = Fraction(TICKS, max(1, int(np.median(gaps))) if len(gaps) else TICKS // 24)
        stream = container.add_stream("libx264", rate=rate.limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "19", "preset": "veryfast", "movflags": "+faststart"}
        stream.codec_context.time_base = Fraction(1, TICKS)
        for t, image in enumerate(frames(hypotheses, clip, seconds)):
            if t == 0:
                stream.height, stream.width = image.shape[:2]
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = int(stamps[t]), Fraction(1, TICKS)
            container.mux(stream.encode(picture))
            if progress is not None:
                progress(t + 1, hypotheses.num_frames)
        container.mux(stream.encode(None))
    return path


def frames(
    hypotheses: Hypotheses, clip: Clip | None, seconds: Float[np.ndarray, "T"]
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The drawn frames, RGB, one at a time; their sides are even."""
    if clip is not None and (clip.T, *clip.size) != (hypotheses.num_frames, *hypotheses.size):
        raise ValueError(
            f"need the clip the hypotheses are of, {hypotheses.num_frames} frames of (H, W) = "
            f"{hypotheses.size}, got {clip.T} of {clip.size}"
        )
    import cv2

    scale = max(1, min(4, round(SIDE / min(hypotheses.size))))
    height, width = (scale * side for side in hypotheses.size)
    legend = _Legend(width, hypotheses.num_hypotheses)
    seen_TN = hypotheses.seen.numpy()
    pixels_KNT2 = scale * hypotheses.project().numpy()
    tracks_TN2 = scale * hypotheses.tracks.numpy()
    ink = colours(hypotheses) * 255
    unit = max(1, round(min(height, width) / 420))
    trails = np.zeros((height, width, 4), np.uint8)
    # Rounding down, so that a trail ends instead of staying at opacity 1 / 255 for ever.
    fade = np.floor(np.arange(256) * DECAY).astype(np.uint8)
    for t in range(hypotheses.num_frames):
        if t > 0:
            trails = cv2.LUT(trails, fade)
            # Another hypothesis is on top in every frame, so none hides the others all along.
            for k in np.roll(np.arange(len(ink)), t * (1 + len(ink) // 3)):
                _segments(trails, pixels_KNT2[k, :, t - 1 : t + 1], ink[k], unit)
            both = seen_TN[t] & seen_TN[t - 1]
            _segments(trails, tracks_TN2[t - 1 : t + 1, both].swapaxes(0, 1), _PAPER, unit)
        ground = _ground(clip, t, height, width)
        opacity = 255 - trails[..., 3:].astype(np.uint16)
        image = trails[..., :3] + (ground * opacity // 255).astype(np.uint8)
        _points(image, pixels_KNT2[:, :, t], tracks_TN2[t], seen_TN[t], ink, unit)
        clock = float(seconds[t] - seconds[0])
        strip = legend.draw(clock, (t + 1) / hypotheses.num_frames)
        yield _even(np.concatenate([image, strip]))


def _ground(clip: Clip | None, t: int, height: int, width: int) -> np.ndarray:
    """The video, dimmed; a dark canvas without one."""
    import cv2

    if clip is None:
        return np.full((height, width, 3), (22, 25, 33), np.uint8)
    frame = clip.frames[t].permute(1, 2, 0).contiguous().numpy()
    frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.convertScaleAbs(frame, alpha=DIM)


def _segments(
    canvas: np.ndarray, ends_N22: np.ndarray, colour: Sequence[int] | np.ndarray, width: int
) -> None:
    """Lines between two positions of every point, on a premultiplied RGBA canvas."""
    import cv2

    inside = _drawable(ends_N22).all(1)
    ink = (*(float(c) for c in colour), 255.0)
    cv2.polylines(canvas, list(_fixed(ends_N22[inside])), False, ink, width, cv2.LINE_AA, _SHIFT)


def _points(
    image: np.ndarray,
    pixels_KN2: np.ndarray,
    track_N2: np.ndarray,
    seen_N: np.ndarray,
    ink_K3: np.ndarray,
    unit: int,
) -> None:
    """This instant's markers: dots and a ring for what is hidden, then filled dots for what is seen."""
    hidden_KN2 = pixels_KN2[:, ~seen_N]
    for k, hidden_N2 in enumerate(hidden_KN2):
        _dots(image, hidden_N2, 1.3 * unit, ink_K3[k])
    centre_N2 = hidden_KN2.mean(0)
    _dots(image, centre_N2, 4.0 * unit, _INK, width=unit + 1)
    _dots(image, centre_N2, 4.0 * unit, _PAPER, width=unit)
    _dots(image, track_N2[seen_N], 3.0 * unit, _INK)
    _dots(image, track_N2[seen_N], 2.0 * unit, _PAPER)


def _dots(
    image: np.ndarray,
    centres_N2: np.ndarray,
    radius: float,
    colour: Sequence[int] | np.ndarray,
    width: int = -1,
) -> None:
    """Circles, filled unless a line width is given."""
    import cv2

    ink = tuple(float(c) for c in colour)
    # cv2.circle draws diamonds below a radius of 3 px, so the polygons are ours.
    angles = np.arange(16) * (2 * np.pi / 16)
    rim_162 = radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    rims = list(_fixed(centres_N2[_drawable(centres_N2)][:, None] + rim_162))
    if width > 0:
        cv2.polylines(image, rims, True, ink, width, cv2.LINE_AA, _SHIFT)
        return
    for rim in rims:
        cv2.fillConvexPoly(image, rim, ink, cv2.LINE_AA, _SHIFT)


def _drawable(pixels: np.ndarray) -> np.ndarray:
    """Where a position is a number, and near enough for OpenCV's fixed point."""
    with np.errstate(invalid="ignore"):
        return np.all(np.abs(pixels) < 1e4, axis=-1)


def _fixed(pixels: np.ndarray) -> np.ndarray:
    # OpenCV counts from pixel centres, we from the image's corner.
    return np.round((pixels - 0.5) * 2**_SHIFT).astype(np.int32)


def _even(image: np.ndarray) -> np.ndarray:
    """yuv420p halves both axes: an odd side repeats its last row or column."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class _Legend:
    """The strip below the picture: what white and colour mean, and the clock."""

    def __init__(self, width: int, num_hypotheses: int) -> None:
        from matplotlib import get_data_path
        from PIL import Image, ImageDraw, ImageFont

        size = max(9, min(18, width // 42))
        font = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self.font = ImageFont.truetype(str(font), size)
        self.strip = Image.new("RGB", (width, 2 * size), _INK)
        draw = ImageDraw.Draw(self.strip)
        x, y = size // 2 + 2, size
        r = size / 3.2
        bar = (255 * ramp(np.linspace(0, 1, 6 * size))).astype(np.uint8)

        def write(text: str) -> None:
            nonlocal x
            draw.text((x, y), text, fill=_PAPER, font=self.font, anchor="lm")
            x += round(draw.textlength(text, font=self.font)) + size

        draw.ellipse((x, y - r, x + 2 * r, y + r), fill=_PAPER)
        x += round(3.2 * r)
        write("seen")
        draw.ellipse((x, y - r, x + 2 * r, y + r), outline=_PAPER, width=max(1, size // 9))
        x += round(3.2 * r)
        write("hidden")
        write(f"{num_hypotheses} hypotheses: near")
        self.strip.paste(
            Image.fromarray(bar[None].repeat(size // 2, 0)), (x - size // 2, y - size // 4)
        )
        x += len(bar)
        write("far")

    def draw(self, clock: float, done: float) -> np.ndarray:
        """The strip at `clock` seconds, with a line along its top as long as what is `done`."""
        from PIL import ImageDraw

        strip = self.strip.copy()
        draw = ImageDraw.Draw(strip)
        width, height = strip.size
        text = f"{clock:.2f} s"
        left = width - draw.textlength(text, font=self.font) - height // 4
        draw.rectangle((left - height // 4, 0, width, height), fill=_INK)
        draw.text((left, height // 2), text, fill=_PAPER, font=self.font, anchor="lm")
        draw.line((0, 0, done * width, 0), fill=_PAPER, width=2)
        return np.asarray(strip)
