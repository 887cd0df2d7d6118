r"""The clip of hypotheses: when its frames are shown, and where in the video it starts.

Whoever has the clip asks the clip. Whoever has the hypotheses alone asks the summary.json beside them, which
`diffusion4d sample` wrote; and where that does not say, `ASSUMED_RATE` and the video's start are taken:

    s_t = s u_t / (u_{T−1} − u_0),  with s the seconds from the first frame to the last

Everything that lasts as long as the clip goes by this: GLB, USD, modes, the page of the viewer.

Shape letters:  T frames
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion4d.clip import Clip
from diffusion4d.hypotheses import Hypotheses

REPORT = "summary.json"
ASSUMED_RATE = 30.0
"""Frames per second of tracks that come without a clock."""


def clock(
    hypotheses: Hypotheses, clip: Clip | None = None, source: Path | None = None
) -> Float[np.ndarray, "T"]:
    """When each frame is shown, in s: by the clip, by summary.json, or at `ASSUMED_RATE`.

    Args:
        source: folder of the hypotheses, or its hypotheses.npz.
    """
    if clip is not None:
        return clip.seconds.numpy()
    u = hypotheses.times.numpy()
    told, span = _told_seconds(source), float(np.ptp(u))
    if told is None or span == 0:
        return u * (hypotheses.num_frames - 1) / ASSUMED_RATE
    return u * told / span


def length(hypotheses: Hypotheses, clip: Clip | None = None, source: Path | None = None) -> float:
    """Seconds of an animation of the clip, by `clock`; one frame lasts no time, but an animation must."""
    return float(np.ptp(clock(hypotheses, clip, source))) or 1 / ASSUMED_RATE


def reading(source: Path | None) -> dict[str, Any]:
    """How the clip was read (video, start, end, stride, …), by summary.json; nothing where that does not say."""
    found = (assumed(source) or {}).get("source")
    return found if isinstance(found, dict) else {}


def assumed(source: Path | None) -> dict[str, Any] | None:
    """What the run took for granted, by summary.json; None where that does not say."""
    try:
        found = _summary(source)["assumed"]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def start_of(asked: float | None, source: Path | None) -> float:
    """Seconds into the video where the clip starts: as asked, as summary.json has it, or 0."""
    if asked is not None:
        return asked
    found = reading(source).get("start")
    return float(found) if isinstance(found, int | float) else 0.0


def stride_of(source: Path | None) -> int:
    """One frame in so many was read: as summary.json has it, or 1."""
    found = reading(source).get("stride")
    return found if isinstance(found, int) and found > 0 else 1


def _told_seconds(source: Path | None) -> float | None:
    try:
        seconds = float(_summary(source)["hypotheses"]["seconds"])
    except (KeyError, TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _summary(source: Path | None) -> Any:
    """The content of summary.json; None where there is none that can be read."""
    if source is None:
        return None
    try:
        folder = source if source.is_dir() else source.parent
        return json.loads((folder / REPORT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
