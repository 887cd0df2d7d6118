r"""Tokens and Lucas-Kanade on real clips.

Shape letters:  N points   T frames.
"""

from pathlib import Path

import numpy as np

from diffusion4d import lucas_kanade
from diffusion4d.clip import Clip, read_clip
from diffusion4d.queries import query_points
from diffusion4d.token_tracks import SIDE, TRUSTED
from priors.dinov3 import load_encoder
from priors.matching import Matcher, match_to_anchor
from priors.refinement import refine


def on_real_clips(folder: Path, frames: int, only: tuple[str, ...]) -> dict[str, object]:
    """Token tracks and "fused" on real clips, 128 points each."""
    out: dict[str, object] = {}
    encoder = load_encoder("tiny").at_size((SIDE, SIDE))
    for video in sorted(folder.rglob("*.mp4")):
        if only and video.stem not in only:
            continue
        clip = read_clip(video, stride=2, max_frames=frames)
        queries = query_points(clip, 128)
        alone, seen = lucas_kanade.follow(clip.frames, queries.numpy())
        held = (seen > 0).all(0)
        row: dict[str, object] = {
            "lk seen share": round(float((seen > 0).mean()), 3),
            "held end to end": int(held.sum()),
        }
        scale = 256 / min(clip.size)
        grid = encoder.encode(clip.frames, clip.u.float())
        for method in ("hough", "sinkhorn"):
            found = refine(clip.frames, match_to_anchor(grid, queries, Matcher(method)))
            off = np.linalg.norm(found.tracks.numpy() - alone, axis=-1)[1:, held] * scale
            name = "dino" if method == "hough" else method
            row[f"{name} to lk, median px"] = round(float(np.median(off)), 2)
            row[f"{name} to lk, within 8 px"] = round(float((off <= 8).mean()), 3)
            if method == "hough":
                elsewhere = (found.tracks.numpy(), found.visibility.numpy() >= TRUSTED)
                row |= brought_back(clip, queries.numpy(), seen, elsewhere)
        out[video.stem] = row
        print(video.stem, row, flush=True)
    return out


def brought_back(
    clip: Clip,
    queries: np.ndarray,
    seen_alone: np.ndarray,
    elsewhere: tuple[np.ndarray, np.ndarray],
) -> dict[str, object]:
    """What "fused" sees and Lucas-Kanade alone does not, and how much of it holds when it is followed back.

    A point brought back in frame t is followed from there to frame 0 through the reversed clip by Lucas-Kanade without
    help. It holds if it arrives within 2 px of its query point (256 px shorter side). Where it was hidden between, it
    cannot be followed, and is not counted as traced.
    """
    tracks, seen = lucas_kanade.follow(clip.frames, queries, elsewhere=elsewhere)
    more_TN = (seen > 0) & (seen_alone == 0)
    scale = 256 / min(clip.size)
    points = np.flatnonzero(more_TN.any(0))
    first = more_TN.argmax(0)
    alike, off = [], []
    for t in np.unique(first[points]):
        some = points[first[points] == t]
        there = tracks[t, some]
        alike += lucas_kanade.likeness(
            clip.frames[0], queries[some], clip.frames[t], there
        ).tolist()
        back, kept = lucas_kanade.follow(clip.frames[: t + 1].flip(0), there, find_again=False)
        arrived = (kept > 0).all(0)
        off += (np.linalg.norm(back[-1] - queries[some], axis=1) * scale)[arrived].tolist()
    return {
        "fused seen share": round(float((seen > 0).mean()), 3),
        "points brought back": len(points),
        "frames brought back": int(more_TN.sum()),
        "patch correlation, median": round(float(np.median(alike)), 3) if alike else None,
        "traced back to frame 0": len(off),
        "of which within 2 px": int((np.array(off) <= 2).sum()),
    }
