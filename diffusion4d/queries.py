r"""Which points of frame 0 to follow.

The default is a mixture: half on what moves, half on the rest, each spread out and on corners. What moves is
judged by tracks, not by the look of an image: a few hundred corners are followed; the background's motion to a
frame is nothing at all where the rim of the image stands still, else a homography fitted by RANSAC to the
rim (exact for a turning camera and for a plane); a corner moves if it departs from that by more than

    max(1.5 px * min(H, W) / 256,  3 * median departure)

in any of the frames looked at. Then the neighbourhood of moving corners is searched again, finely, since what
moves is often small.

All functions give float32 [N, 2] px, pixel centres at + 0.5.  Shape letters:  N points   P candidates   T frames.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from diffusion4d import lucas_kanade
from diffusion4d.clip import Clip
from diffusion4d.errors import UserError

LOOK_AT = (1, 2, 4, 8, 12, 16, 24, 32, 47)
"""Frames in which departures from the background are measured."""

CANDIDATES = 600
CLEARLY = 0.2
"""A patch is where the track says, and not where the background would be, if its correlation is higher by so much."""

STILL_SHARE = 0.4
"""The camera counts as still where so much of the image's rim does not move."""


def query_points(
    clip: Clip,
    num_points: int,
    *,
    method: Literal["mixture", "grid"] = "mixture",
    mask: Bool[Tensor, "h w"] | None = None,
    seed: int = 0,
) -> Float32[Tensor, "N 2"]:
    """Points of frame 0 to follow.

    Args:
        num_points: how many; exactly so many are given.
        method: "mixture" of moving and well-trackable points, or a regular "grid".
        mask: points come from inside it only; of the size of the clip's frames or of its source. A mixture
            inside a mask is still one of moving and other points, and takes flat places where there are no others.
        seed: a mixture depends on it; the same seed gives the same points. Moving points come first.

    Raises:
        UserError: unknown method; num_points < 1; no texture in the first frame; not enough places for
            so many points; a mask of the wrong size or with nothing inside.
    """
    if num_points < 1:
        raise UserError(f"need at least 1 query point, got num_points={num_points}")
    inside = np.ones(clip.size, bool) if mask is None else _fit_mask(mask, clip)
    if inside.sum() < num_points:
        raise UserError(
            f"need {num_points} different pixels for the points, got a region of {inside.sum()}"
        )
    if method == "grid":
        points = _grid(inside, num_points)
    elif method == "mixture":
        points = np.concatenate(_mixture(clip, num_points, inside, mask is not None, seed))
    else:
        raise UserError(f'need method "mixture" or "grid", got {method!r}')
    return torch.from_numpy(points.astype(np.float32))


def check_queries(points: Float32[Tensor, "N 2"], size: tuple[int, int]) -> None:
    """Refuse a user's own points that cannot be followed.

    Raises:
        UserError: no points, NaN, or points outside the image [0, W] x [0, H].
    """
    if len(points) == 0:
        raise UserError("need at least 1 query point, got 0")
    height, width = size
    inside = ((points >= 0) & (points <= points.new_tensor([width, height]))).all(-1)
    if not inside.all():
        worst = int(torch.nonzero(~inside)[0])
        raise UserError(
            f"need query points within [0, {width}] x [0, {height}] px, got {points[worst].tolist()} at {worst}"
        )


def _fit_mask(mask: Tensor, clip: Clip) -> np.ndarray:
    shape = tuple(mask.shape)
    if shape not in (clip.size, clip.source_size):
        raise UserError(
            f"need a mask of the clip's {list(clip.size)} or its source's {list(clip.source_size)} px, "
            f"got {list(shape)}"
        )
    if not mask.any():
        raise UserError("need a mask with something inside, got one that is false everywhere")
    # The pixel of the mask in which each pixel centre of the clip lies.
    rows, columns = (
        ((np.arange(c) + 0.5) * s / c).astype(int) for c, s in zip(clip.size, shape, strict=True)
    )
    return mask.cpu().numpy()[rows[:, None], columns[None]]


def _grid(inside: np.ndarray, num_points: int) -> np.ndarray:
    """Rows of points, as square as the image allows; fine enough that so many lie inside."""
    height, width = inside.shape
    wanted = num_points
    while True:
        rows = max(1, min(wanted, round(math.sqrt(wanted * height / width))))
        share, extra = divmod(wanted, rows)
        points = [
            ((column + 0.5) * width / count, (row + 0.5) * height / rows)
            for row in range(rows)
            for count in [share + (row * extra // rows != (row + 1) * extra // rows)]
            for column in range(count)
        ]
        grid = np.array([(x, y) for x, y in points if inside[int(y), int(x)]])
        if len(grid) >= num_points:
            return grid[np.linspace(0, len(grid) - 1, num_points).round().astype(int)]
        wanted = wanted * 5 // 4 + 1


def _mixture(
    clip: Clip, num_points: int, inside: np.ndarray, anywhere: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moving points and others, together `num_points`."""
    rng = np.random.default_rng(seed)
    image = lucas_kanade.grey(clip.frames[0])
    lucas_kanade.require_texture(image)
    texture_HW = _without_rim(lucas_kanade.texture(image))
    frames = clip.frames[: LOOK_AT[-1] + 1]
    look_at = [t for t in LOOK_AT if t < clip.T]

    wanted = max(CANDIDATES, 2 * num_points)
    cell = max(4, int(math.sqrt(image.size / wanted)))
    pool_P2 = _best_per_cell(texture_HW, cell)
    tracks_TP2, seen_TP = lucas_kanade.follow(frames, pool_P2, find_again=False)
    backgrounds = {t: _background(tracks_TP2, seen_TP, t, clip.size) for t in look_at}
    moving_P = _moves(frames, tracks_TP2, seen_TP, backgrounds)
    # A mover on its own is a slip of its track.
    moving_P &= _company(pool_P2, moving_P) >= 2
    lifetime_P = seen_TP.mean(0)
    if moving_P.any():
        near_HW = _near(pool_P2[moving_P], pool_P2[~moving_P], cell, texture_HW.shape)
        fine_cell = max(3, int(math.sqrt(near_HW.sum() / wanted)))
        fine_P2 = _best_per_cell(texture_HW * near_HW, fine_cell)
        tracks_TP2, seen_TP = lucas_kanade.follow(frames, fine_P2, find_again=False)
        fine_moving_P = _moves(frames, tracks_TP2, seen_TP, backgrounds)
        # Half a window around what moves, still points are carried along; most of their neighbours are not.
        fine_moving_P &= _company(fine_P2, fine_moving_P) >= 5
        pool_P2 = np.concatenate([pool_P2[~moving_P], fine_P2])
        lifetime_P = np.concatenate([lifetime_P[~moving_P], seen_TP.mean(0)])
        moving_P = np.concatenate([np.zeros((~moving_P).sum(), bool), fine_moving_P])

    x, y = pool_P2.astype(int).T
    # Points that will be followed for long are worth more, but not so much that nothing is ever hidden.
    weight_P = np.sqrt(texture_HW[y, x]) * (0.25 + lifetime_P) * inside[y, x]

    def choose(chosen_P: np.ndarray, count: int, taken: np.ndarray) -> np.ndarray:
        usable_P = chosen_P & (weight_P > 0)
        return _spread(pool_P2[usable_P], weight_P[usable_P], count, rng, 3.0, taken)

    nothing = np.zeros((0, 2), np.float32)
    moving = choose(moving_P, num_points // 2, nothing)
    others = choose(~moving_P, num_points - len(moving), moving)
    if len(others) < num_points - len(moving):
        moving = choose(moving_P, num_points - len(others), others)
    missing = num_points - len(moving) - len(others)
    if missing == 0:
        return moving, others
    rows, columns = np.nonzero(inside & ((texture_HW >= lucas_kanade.FLAT) | anywhere))
    # Of all the pixels that could do, a random part is enough to choose from.
    some = rng.permutation(len(rows))[: 16 * num_points]
    rows, columns = rows[some], columns[some]
    places = (np.stack([columns, rows], -1) + 0.5).astype(np.float32)
    taken = np.concatenate([moving, others])
    filled = _spread(places, texture_HW[rows, columns] + 0.01, missing, rng, 1.0, taken)
    if len(filled) < missing:
        found = len(taken) + len(filled)
        raise UserError(
            f"need texture for {num_points} query points, got {found} places in the first frame"
        )
    return moving, np.concatenate([others, filled])


def _without_rim(texture: np.ndarray) -> np.ndarray:
    """Texture with a few px at the border set to 0: a window there is half outside."""
    rim = min(5, min(texture.shape) // 8)
    inner = np.zeros_like(texture)
    inner[rim:-rim, rim:-rim] = texture[rim:-rim, rim:-rim]
    return inner


def _best_per_cell(texture: np.ndarray, cell: int) -> np.ndarray:
    """The best-textured pixel [P, 2] of each cell that is not flat."""
    height, width = texture.shape
    padded = np.pad(texture, ((0, -height % cell), (0, -width % cell)))
    cells = padded.reshape(padded.shape[0] // cell, cell, -1, cell).swapaxes(1, 2)
    cells = cells.reshape(*cells.shape[:2], -1)
    rows, columns = np.nonzero(cells.max(-1) >= lucas_kanade.FLAT)
    within = cells.argmax(-1)[rows, columns]
    points = np.stack([columns * cell + within % cell, rows * cell + within // cell], -1)
    return points.astype(np.float32) + np.float32(0.5)


def _background(
    tracks: np.ndarray, seen: np.ndarray, t: int, size: tuple[int, int]
) -> tuple[np.ndarray, float] | None:
    """Homography [3, 3] of what is behind, from frame 0 to frame t, and the departure (px) from it that is motion.

    None where too little is left to tell.
    """
    import cv2

    alive = seen[t] > 0
    # Once most of the view has changed, what is left of it is no longer the background.
    if alive.sum() < max(12, 0.4 * len(alive)):
        return None
    start, end = tracks[0, alive], tracks[t, alive]
    extent = np.array(size[::-1])
    at_rim = (np.minimum(start, extent - start) < 0.2 * extent).any(1)
    rim = at_rim if at_rim.sum() >= 20 else np.ones_like(at_rim)
    unit = max(1.0, min(size) / 256)
    motion = np.eye(3)
    if (np.linalg.norm(end - start, axis=1)[rim] < unit).mean() < STILL_SHARE:
        motion = cv2.findHomography(start[rim], end[rim], cv2.RANSAC, 1.5 * unit, maxIters=500)[0]
        if motion is None:
            return None
    departure = float(np.median(np.linalg.norm(end - _carried(start, motion), axis=1)))
    return motion, max(1.5 * unit, 3 * departure)


def _carried(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Points [P, 2] moved by a homography."""
    moved = np.pad(points, ((0, 0), (0, 1)), constant_values=1) @ motion.T
    return (moved[:, :2] / moved[:, 2:]).astype(np.float32)


def _moves(
    frames: Tensor,
    tracks: np.ndarray,
    seen: np.ndarray,
    backgrounds: dict[int, tuple[np.ndarray, float] | None],
) -> np.ndarray:
    """Which points [P] depart from the background, in a frame that sees them and by a track that is to be believed."""
    moves = np.zeros(tracks.shape[1], bool)
    for t, background in backgrounds.items():
        if background is not None:
            motion, limit = background
            start, end, still = tracks[0], tracks[t], _carried(tracks[0], motion)
            departs = (np.linalg.norm(end - still, axis=1) > limit) & (seen[t] > 0)
            # What moves close by carries the track of a still point along; its patch stays behind.
            here = lucas_kanade.likeness(frames[0], start, frames[t], end)
            behind = lucas_kanade.likeness(frames[0], start, frames[t], still)
            moves |= departs & (here > behind + CLEARLY)
    return moves


def _company(points: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """How many of the 8 nearest points move, for each point [P]."""
    from scipy.spatial import KDTree

    nearest = KDTree(points).query(points, k=min(9, len(points)))[1]
    return moving[np.reshape(nearest, (len(points), -1))[:, 1:]].sum(1)


def _near(moving: np.ndarray, still: np.ndarray, cell: int, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels [H, W] within 1.5 cells of a moving point and no nearer to a still one."""
    from scipy.spatial import KDTree

    rows, columns = np.indices(shape)
    pixels = np.stack([columns, rows], -1).reshape(-1, 2) + 0.5
    to_moving = KDTree(moving).query(pixels, distance_upper_bound=1.5 * cell)[0]
    to_still = KDTree(still).query(pixels)[0] if len(still) else np.inf
    return (np.isfinite(to_moving) & (to_moving <= to_still)).reshape(shape)


def _spread(
    points: np.ndarray,
    weight: np.ndarray,
    count: int,
    rng: np.random.Generator,
    closest: float,
    taken: np.ndarray,
) -> np.ndarray:
    """At most `count` points [n, 2], drawn by weight and as far apart as that allows.

    They are at least `closest` px from each other and from those that are taken.
    """
    from scipy.spatial import KDTree

    if len(taken) and len(points):
        far = KDTree(taken).query(points)[0] >= closest
        points, weight = points[far], weight[far]
    if count == 0 or len(points) == 0:
        return points[:0]
    # Sorting by log weight + Gumbel noise draws without replacement; half the noise keeps to better corners.
    key = np.log(weight) + 0.5 * rng.gumbel(size=len(weight))
    points = points[np.argsort(-key, kind="stable")]
    apart = 1.5 * math.sqrt(float(np.prod(np.ptp(points, axis=0) + 1)) / count)
    while True:
        apart = max(apart, closest)
        free = np.ones(len(points), bool)
        chosen: list[int] = []
        while len(chosen) < count and free.any():
            chosen.append(int(free.argmax()))
            free &= ((points - points[chosen[-1]]) ** 2).sum(1) >= apart**2
        if len(chosen) == count or apart == closest:
            return points[chosen]
        apart *= 0.85
