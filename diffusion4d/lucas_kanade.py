r"""Following points by pyramidal Lucas-Kanade, with an honest word on how well they are seen.

From frame to frame a point moves by the shift d that minimises  sum_x (I_{t+1}(x + d) - I_t(x))^2  over a window
(Lucas & Kanade 1981; in pyramids Bouguet 2001). Going there and back should end where it began: with b the distance
between (Kalal et al. 2010), and c the correlation between the patch now and the same point's patch a few frames ago,

    visibility = exp(-b^2 / tau^2) * clip((c - c_0) / (c_1 - c_0), 0, 1),

and below `LOST` the point is lost. The first factor sees that the window no longer matches; the second sees an
occluder that slid over the window so slowly that each pair of frames matched. A lost point keeps its last
position at visibility 0, and comes back only if its patch of frame 0 is found again where its neighbours'
motion puts it, or where somebody else says: there and back from frame 0, with  exp(-b^2 / tau^2) * c >= `FOUND`.

OpenCV puts pixel centres at integers, this project at integer + 0.5: `follow` converts at both ends.

Shape letters:  T frames   N points   R points in the window of a patch.
"""

from collections import deque

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from diffusion4d.errors import UserError

TAU = 1.0
"""Forward-backward distance, px, at which visibility has fallen to 1 / e."""

CORRELATION = (0.2, 0.8)
"""Correlations with the recent patch at which the point counts as hidden, and as fully seen."""

RECENT = 10
"""The recent patch is from so many frames ago."""

LOST = 0.5
FOUND = 0.8
REACH = 12.0
"""A lost point is looked for within so many px of where its neighbours' motion puts it."""

WINDOW = 15
PATCH_RADIUS = 5
CAMERA_NOISE = 0.5
"""Grey levels. Patches that differ by no more are alike, however flat; more, and noise passes for a match."""

FLAT = 1.0
"""Texture, grey levels a px, below which there is nothing to track."""


def grey(frame: UInt8[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W"]:
    """Luma of an RGB frame (ITU-R BT.601)."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)


def texture(image: UInt8[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """How well each pixel can be tracked: gradient in the flattest direction, grey levels a px.

    The square root of the smaller eigenvalue of the structure tensor (Shi & Tomasi 1994) over 9 x 9 px. An edge
    scores 0 like a flat area: along it a point could slide.
    """
    import cv2

    levels = image.astype(np.float32)
    gx, gy = (cv2.Sobel(levels, -1, dx, 1 - dx, ksize=3, scale=1 / 8) for dx in (1, 0))
    xx, xy, yy = (cv2.boxFilter(g, -1, (9, 9)) for g in (gx * gx, gx * gy, gy * gy))
    smaller = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return np.sqrt(np.maximum(smaller, 0))


def require_texture(image: UInt8[np.ndarray, "H W"]) -> None:
    """Refuse a first frame in which nothing can be tracked.

    Raises:
        UserError: black, constant, or without a single corner.
    """
    best = float(texture(image).max())
    if best < FLAT:
        raise UserError(
            f"need texture to track in the first frame, got none: grey levels from {image.min()} to "
            f"{image.max()}, strongest corner {best:.2f} of at least {FLAT} levels/px; "
            "if the video fades in, start later"
        )


def likeness(
    frame: UInt8[Tensor, "3 H W"],
    points: Float32[np.ndarray, "N 2"],
    other_frame: UInt8[Tensor, "3 H W"],
    other_points: Float32[np.ndarray, "N 2"],
) -> Float32[np.ndarray, "N"]:
    """Correlation of the patch around each point (px, centres at + 0.5) with that around its other place."""
    here = _patches(grey(frame), points - np.float32(0.5))
    there = _patches(grey(other_frame), other_points - np.float32(0.5))
    return _correlation(here, there)


def follow(
    frames: UInt8[Tensor, "T 3 H W"],
    points: Float32[np.ndarray, "N 2"],
    *,
    find_again: bool = True,
    elsewhere: tuple[Float32[np.ndarray, "T N 2"], Bool[np.ndarray, "T N"]] | None = None,
) -> tuple[Float32[np.ndarray, "T N 2"], Float32[np.ndarray, "T N"]]:
    """Positions (px, centres at + 0.5) and visibility in [0, 1] of points given in frame 0.

    Frames are turned to grey one at a time, so memory does not grow with the clip. A point outside the image
    has visibility 0 and stays where it was last seen.

    Args:
        find_again: look for lost points where their neighbours' motion puts them.
        elsewhere: positions (px, centres at + 0.5), and where they are worth a try: where to look for points that
            are lost and that the neighbours' motion did not bring back.
    """
    num_frames, num_points = len(frames), len(points)
    height, width = frames.shape[2:]
    tracks_TN2 = np.repeat(points[None] - np.float32(0.5), num_frames, axis=0)
    seen_TN = np.zeros((num_frames, num_points), np.float32)
    seen_TN[0] = 1
    last_seen_N = np.zeros(num_points, int)
    near_NK = _neighbours(points) if find_again else None

    first = previous = grey(frames[0])
    anchor_NR = _patches(first, tracks_TN2[0])
    # A patch of before the point was lost would say nothing: after it is found again, patches start anew.
    recent = deque([anchor_NR], maxlen=RECENT)
    for t in range(1, num_frames):
        image = grey(frames[t])
        tracks_TN2[t] = tracks_TN2[t - 1]
        alive = np.flatnonzero(seen_TN[t - 1])
        if len(alive):
            there_A2, back_A = _there_and_back(previous, image, tracks_TN2[t - 1, alive])
            alike_A = _correlation(recent[0][alive], _patches(image, there_A2))
            low, high = CORRELATION
            sure_A = np.exp(-((back_A / TAU) ** 2)) * np.clip((alike_A - low) / (high - low), 0, 1)
            kept_A = (sure_A >= LOST) & _inside(there_A2, height, width)
            tracks_TN2[t, alive[kept_A]] = there_A2[kept_A]
            seen_TN[t, alive[kept_A]] = sure_A[kept_A]
        lost = np.flatnonzero((seen_TN[t] == 0) & (seen_TN[t - 1] == 0))
        found = lost[:0]
        if near_NK is not None and len(lost):
            guess_L2 = tracks_TN2[t, lost] + _drift(
                tracks_TN2, seen_TN, last_seen_N, near_NK, lost, t
            )
            found = _look_for(first, image, anchor_NR, tracks_TN2, seen_TN, t, lost, guess_L2)
        if elsewhere is not None:
            places_TN2, worth_TN = elsewhere
            still = lost[(seen_TN[t, lost] == 0) & worth_TN[t, lost]]
            guess_L2 = places_TN2[t, still] - np.float32(0.5)
            more = _look_for(first, image, anchor_NR, tracks_TN2, seen_TN, t, still, guess_L2)
            found = np.concatenate([found, more])
        last_seen_N[seen_TN[t] > 0] = t
        now_NR = _patches(image, tracks_TN2[t])
        for old_NR in recent:
            old_NR[found] = now_NR[found]
        recent.append(now_NR)
        previous = image
    return tracks_TN2 + np.float32(0.5), seen_TN


def _look_for(
    first: np.ndarray,
    image: np.ndarray,
    anchor: np.ndarray,
    tracks: np.ndarray,
    seen: np.ndarray,
    t: int,
    lost: np.ndarray,
    guess: np.ndarray,
) -> np.ndarray:
    """Look for lost points near guesses [L, 2] in frame t; writes those that are found, and says which these are."""
    if len(lost) == 0:
        return lost
    height, width = image.shape
    there_L2, back_L = _there_and_back(first, image, tracks[0, lost], guess)
    alike_L = _correlation(anchor[lost], _patches(image, there_L2))
    sure_L = np.exp(-((back_L / TAU) ** 2)) * alike_L
    found_L = (sure_L >= FOUND) & _inside(there_L2, height, width)
    found_L &= np.linalg.norm(there_L2 - guess, axis=1) <= REACH
    found = lost[found_L]
    tracks[t, found] = there_L2[found_L]
    seen[t, found] = sure_L[found_L]
    return found


def _there_and_back(
    source: np.ndarray, target: np.ndarray, points: np.ndarray, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of `source` are in `target`, and how far off the way back ends (inf: not found).

    With a guess the way back knows no more than the way there did: it starts as far from its end as the guess was from
    where it led. If it started at the point itself, a wrong place would be a step that neither way takes, and pass.
    """
    import cv2

    window, stop = (WINDOW, WINDOW), (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.01)
    start = points[:, None].copy()
    if guess is None:
        level, flags, towards = 3, 0, start.copy()
    else:
        # The guess stands in for the coarse levels, which could jump to a look-alike.
        level, flags, towards = 1, cv2.OPTFLOW_USE_INITIAL_FLOW, guess[:, None].copy()
    there, ok, _ = cv2.calcOpticalFlowPyrLK(
        source, target, start, towards, None, None, window, level, stop, flags
    )
    backwards = start.copy() if guess is None else start + there - guess[:, None]
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(
        target, source, there, backwards, None, None, window, level, stop, flags
    )
    distance = np.linalg.norm((back - start)[:, 0], axis=1)
    distance[(ok[:, 0] == 0) | (ok_back[:, 0] == 0)] = np.inf
    return there[:, 0], distance


def _patches(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear patches [N, R] around points (centres at integers)."""
    import cv2

    offset = np.arange(-PATCH_RADIUS, PATCH_RADIUS + 1, dtype=np.float32)
    dy, dx = (o.reshape(1, -1) for o in np.meshgrid(offset, offset, indexing="ij"))
    x, y = points[:, :1] + dx, points[:, 1:] + dy
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(
        np.float32
    )


def _inside(points: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.all((points >= -0.5) & (points <= (width - 0.5, height - 0.5)), axis=1)


def _neighbours(points: np.ndarray) -> np.ndarray:
    """The 32 nearest other points [N, K] of each in frame 0, nearest first."""
    from scipy.spatial import KDTree

    nearest = KDTree(points).query(points, k=min(33, len(points)))[1]
    return np.reshape(nearest, (len(points), -1))[:, 1:]


def _drift(
    tracks: np.ndarray,
    seen: np.ndarray,
    last_seen: np.ndarray,
    near: np.ndarray,
    lost: np.ndarray,
    t: int,
) -> np.ndarray:
    """How far [L, 2] the neighbours of lost points have moved since: the median of the 8 nearest seen then and now."""
    then_L1, near_LK = last_seen[lost, None], near[lost]
    both_LK = (seen[then_L1, near_LK] > 0) & (seen[t, near_LK] > 0)
    both_LK &= both_LK.cumsum(1) <= 8
    moved_LK2 = np.where(both_LK[..., None], tracks[t, near_LK] - tracks[then_L1, near_LK], np.nan)
    drift_L2 = np.zeros((len(lost), 2), np.float32)
    some = both_LK.any(1)
    drift_L2[some] = np.nanmedian(moved_LK2[some], axis=1)
    return drift_L2


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Normalised correlation [N] of patches [N, R]; noise alone does not make flat patches differ."""
    a, b = (p - p.mean(1, keepdims=True) for p in (a, b))
    noise = CAMERA_NOISE**2
    scale = np.sqrt(((a * a).mean(1) + noise) * ((b * b).mean(1) + noise))
    return ((a * b).mean(1) + noise) / scale
