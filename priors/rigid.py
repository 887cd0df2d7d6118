r"""The largest rigid subset of moving points, and the camera that sees it stand still.

`priors.bundle` fits cameras and points to a set, whose members have weights w_n. Here the set is found. Weights

    w_n = (c² / (c² + e_n²))²,        e_n² the mean of the bundle's squares over a point's visible instants,

start wide and narrow (Geman-McClure with graduated non-convexity; Yang et al. 2020). From one start this finds what
most points do, so it starts from many: all points, and neighbourhoods of points that move alike. The best set is the
*largest by image area*, not by count, since points crowd on what moves: each counts for the share of the first image
that it is the nearest point of. Instants are thinned out for the search.

Whether the camera moves at all is asked first: among the points that hardly move in the image, does a moving camera
explain more than its freedoms would by chance? An F ratio decides. So a still camera is exactly still.

Nothing in points alone tells a still thing before a moving camera from a moving thing before a still one. What is
told is that a set which spans little of the image is not taken for the world.

Shape letters:  K reconstructions   N points   T instants   J starts.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from priors.bundle import HIDDEN, INLIER, SIGMA_IMAGE, Fit, Seen

WIDE = 8.0
"""c at the start."""
ROUNDS = 12
"""Reweightings from wide to narrow."""
REFINEMENTS = 8
"""Steps on all instants."""
SEARCH_INSTANTS = 8
STARTS = 8
CELLS = 4096
"""Of an image, for areas."""
CHUNK = 400_000
"""Points times instants that are fitted at once, so that memory does not grow with K."""
SMALLEST = 6
"""Points that a set must have; three points are always nearly rigid."""
SMALLEST_SHARE = 0.15
"""Of the image's area that must stand still before a still camera."""
SMALLEST_HULL = 0.25
"""Of the image that a set before a moving camera must span: what spans less is as likely a thing that turns."""
STILL = 2.5
"""A point that moves less than this many pixels (RMS) may stand still before a still camera."""
LASTING = 0.5
"""Share of the instants in which a point must be seen to say whether the camera is still."""
NOISE = 0.3
"""Pixels that tracks are good to at best."""
F_RATIO = 2.0
"""A moving camera must lower the mean square by more than this factor, freedoms counted."""


@dataclass(frozen=True)
class RigidMotion:
    """Camera paths, and what stands still before them.

    extrinsics: world to camera. anchors: A_n, where each point would stand. error: e_n in σ, infinite for a point that
    was never seen. static: the points of the set. moves: whether the camera does. found: whether the set is large
    enough to be the world.
    """

    extrinsics: Float[Tensor, "K T 4 4"]
    anchors: Float[Tensor, "K N 3"]
    error: Float[Tensor, "K N"]
    static: Bool[Tensor, "K N"]
    moves: bool
    found: Bool[Tensor, "K"]


def area_shares(pixels: Float[Tensor, "N 2"], size: tuple[int, int]) -> Float[Tensor, "N"]:
    """The share of an image (H, W) that each point is the nearest point of; they sum to 1."""
    height, width = size
    cell = math.sqrt(height * width / CELLS)
    rows, columns = max(1, round(height / cell)), max(1, round(width / cell))
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) * (height / rows),
        (torch.arange(columns) + 0.5) * (width / columns),
        indexing="ij",
    )
    centres = torch.stack([x, y], -1).flatten(0, 1).to(pixels)
    nearest = torch.cdist(centres, pixels).argmin(1)
    return torch.bincount(nearest, minlength=len(pixels)).to(pixels) / len(nearest)


def hull_share(pixels: Float[Tensor, "N 2"], size: tuple[int, int]) -> float:
    """The share of an image (H, W) that the convex hull of points covers; 0 for points on a line."""
    from scipy.spatial import ConvexHull, QhullError

    if len(pixels) < 3:
        return 0.0
    try:
        return float(ConvexHull(pixels.double().numpy()).volume) / (size[0] * size[1])
    except QhullError:
        return 0.0


def rigid_motion(
    points: Float[Tensor, "K N T 3"],
    visibility: Float[Tensor, "N T"],
    intrinsics: Float[Tensor, "4"],
    size: tuple[int, int],
    tracks: Float[Tensor, "N T 2"] | None = None,
) -> RigidMotion:
    """Camera path and static set of each reconstruction, whichever others there are.

    Args:
        points: in each instant's own camera, in front of it (others are moved there).
        visibility: in [0, 1].
        intrinsics: (fx, fy, cx, cy) px of an image of `size` (H, W).
        tracks: px that were observed, for what is the same for all: whether the camera is still, and areas. Without
            them, the images of the first reconstruction.

    Raises:
        ValueError: shapes that do not fit, points or intrinsics that are not finite, a visibility outside [0, 1], a
            focal length that is not positive.
    """
    seen = Seen.of(points, visibility, intrinsics, size)
    if tracks is not None and tracks.shape != (*points.shape[1:3], 2):
        raise ValueError(f"need tracks {[*points.shape[1:3], 2]}, got {list(tracks.shape)}")
    intrinsics = intrinsics.double()
    if tracks is None:
        plane = points[0, ..., :2].double() / points[0, ..., 2:].double().clamp_min(1e-6)
    else:
        plane = (tracks.double().nan_to_num() - intrinsics[2:]) / intrinsics[:2]
    pixels = plane[:, 0] * intrinsics[:2] + intrinsics[2:]
    shares = area_shares(pixels, size)
    flat = Seen.lifted(plane, seen)
    K, _, T, _ = points.shape
    still = torch.eye(4).expand(K, T, 4, 4)
    if T < 2 or _is_still(flat, shares):
        return standing(points, visibility, intrinsics, size, still)
    if seen.ever.sum() < SMALLEST:
        few = standing(points, visibility, intrinsics, size, still)
        return replace(few, moves=True, found=torch.zeros(K, dtype=torch.bool))
    starts_JN = _starts(flat.target[0], shares)
    fits = []
    for part in _chunks(seen):
        start_KN = _search(part, starts_JN, shares).double()
        fit = Fit.starting(part, start_KN)
        for step in range(REFINEMENTS):
            weight = start_KN if step < 2 else _membership(fit.error(part), INLIER)
            fit = fit.stepped(part, weight)
        fits.append(fit)
    motion = _judged(fits, seen, moves=True)
    hulls = [hull_share(pixels[static], size) for static in motion.static]
    return replace(motion, found=motion.found & (torch.tensor(hulls) >= SMALLEST_HULL))


def standing(
    points: Float[Tensor, "K N T 3"],
    visibility: Float[Tensor, "N T"],
    intrinsics: Float[Tensor, "4"],
    size: tuple[int, int],
    extrinsics: Float[Tensor, "K T 4 4"],
) -> RigidMotion:
    """What stands still where the cameras are known; as `rigid_motion`, with world to camera in units of the points.

    Raises:
        ValueError: as `rigid_motion`, or extrinsics that are not finite.
    """
    seen = Seen.of(points, visibility, intrinsics, size)
    wanted = (len(points), points.shape[2], 4, 4)
    if extrinsics.shape != wanted or not bool(extrinsics.isfinite().all()):
        raise ValueError(f"need finite extrinsics {list(wanted)}, got {list(extrinsics.shape)}")
    poses = extrinsics.to(seen.target)
    fits = []
    for part, cameras in zip(_chunks(seen), poses.split(_chunk(seen)), strict=True):
        fit = Fit.posed(part, cameras)
        for _ in range(REFINEMENTS):
            fit = fit.anchored(part)
        fits.append(fit)
    moves = bool((poses - poses[:, :1]).abs().max() > 0)
    motion = _judged(fits, seen, moves=moves)
    return replace(motion, extrinsics=poses)


def _membership(error: Tensor, width: float) -> Tensor:
    return (width**2 / (width**2 + error.square())).square()


def _members(error: Tensor) -> Tensor:
    """Below a few times what is usual in the set, since trackers differ."""
    inside = torch.where(error < INLIER, error, torch.nan)
    usual = inside.nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
    return error < (2.5 * usual).clamp(1.0, INLIER)


def _judged(fits: list[Fit], seen: Seen, *, moves: bool) -> RigidMotion:
    rotation, shift = (
        torch.cat([getattr(f, name) for f in fits]) for name in ("rotation", "shift")
    )
    extrinsics = torch.eye(4).to(shift).repeat(*shift.shape[:2], 1, 1)
    extrinsics[..., :3, :3], extrinsics[..., :3, 3] = rotation, shift
    error = torch.cat([f.error(part) for f, part in zip(fits, _chunks(seen), strict=True)])
    static = _members(error)
    found = static.sum(-1) >= SMALLEST
    return RigidMotion(extrinsics, torch.cat([f.anchor for f in fits]), error, static, moves, found)


def _chunk(seen: Seen) -> int:
    _, N, T, _ = seen.target.shape
    return max(1, CHUNK // (N * max(T, (STARTS + 1) * SEARCH_INSTANTS)))


def _chunks(seen: Seen) -> list[Seen]:
    return [replace(seen, target=part) for part in seen.target.split(_chunk(seen))]


def _is_still(flat: Seen, shares: Tensor) -> bool:
    """Whether enough points hardly move in the image, and a moving camera explains no more of them than by chance."""
    weight = flat.weight / flat.weight.sum(-1, keepdim=True)
    image = flat.target[0, ..., :2]
    middle = (weight[..., None] * image).sum(1, keepdim=True)
    travel_N = ((image - middle).square().sum(-1) * weight).sum(-1).sqrt()
    # A point that is soon lost has not had the time to move.
    lasting_N = (flat.weight > HIDDEN).double().mean(-1) >= LASTING
    kept_N = lasting_N & (travel_N < STILL / SIGMA_IMAGE)
    covered = (shares * kept_N).sum() / (shares * lasting_N).sum().clamp_min(1e-9)
    if kept_N.sum() < SMALLEST or covered < SMALLEST_SHARE:
        return False
    # What moves slowly may be among them, and would ask for a moving camera: the stiller half decides.
    order = torch.where(kept_N, travel_N, torch.inf).argsort()
    half = int((shares[order].cumsum(0) < 0.5 * (shares * kept_N).sum()).sum()) + 1
    kept_N = torch.zeros_like(kept_N)
    kept_N[order[: max(half, SMALLEST)]] = True
    some = _thinned(flat)
    T = some.target.shape[2]
    moving = Fit.starting(some, kept_N[None].double())
    for _ in range(ROUNDS):
        moving = moving.stepped(some, kept_N[None].double())
    still = Fit.posed(some, torch.eye(4).to(moving.shift).expand(1, T, 4, 4))
    for _ in range(REFINEMENTS):
        still = still.anchored(some)
    squares = [_image_squares(fit, some, kept_N) for fit in (still, moving)]
    numbers = 2 * float((some.weight[kept_N] > HIDDEN).sum())
    points, poses = float(kept_N.sum()), 6.0 * (T - 1)
    # A point before a still camera has two freedoms in the image, before a moving one three.
    freedoms = numbers - 2 * points, numbers - 3 * points - poses
    if freedoms[1] <= 0:
        return True
    floor = NOISE**2
    return squares[0] / freedoms[0] + floor <= F_RATIO * (squares[1] / freedoms[1] + floor)


def _thinned(seen: Seen) -> Seen:
    T = seen.target.shape[2]
    return seen.at(torch.linspace(0, T - 1, min(T, SEARCH_INSTANTS)).round().long())


def _image_squares(fit: Fit, seen: Seen, kept_N: Tensor) -> float:
    squared = fit.residual(seen)[..., :2].square().sum(-1)
    return float((squared * seen.weight)[:, kept_N].sum())


def _search(seen: Seen, starts_JN: Tensor, shares: Tensor) -> Tensor:
    """Members [K, N] of the largest rigid set of each reconstruction, from many starts."""
    K, N = seen.target.shape[:2]
    J = len(starts_JN)
    some = _thinned(seen)
    many = replace(some, target=some.target.repeat_interleave(J, 0))
    weight = starts_JN.repeat(K, 1)
    fit = Fit.starting(many, weight)
    for width in torch.logspace(math.log10(WIDE), math.log10(INLIER), ROUNDS).tolist():
        fit = fit.stepped(many, weight)
        weight = shares * N * _membership(fit.error(many), width)
    member = fit.error(many) < INLIER
    best = (member * shares).sum(-1).unflatten(0, (K, J)).argmax(1)
    return member.unflatten(0, (K, J))[torch.arange(K), best]


def _starts(target_NT3: Tensor, shares: Tensor) -> Tensor:
    """Weights [J, N]: all points by their shares, and neighbourhoods of points that are near and move alike."""
    N = len(target_NT3)
    place = target_NT3[:, 0, :2]
    motion = (target_NT3[:, :, :2] - target_NT3[:, :1, :2]).flatten(1)
    # Both in units of their own spread, so that neither rules.
    feature = torch.cat(
        [
            place / place.std(0).mean().clamp_min(1e-9),
            2 * motion / motion.norm(dim=1).median().clamp_min(1.0),
        ],
        1,
    )
    distance = torch.cdist(feature, feature)
    centres = [int(shares.argmax())]
    while len(centres) < min(STARTS, N):
        centres.append(int(distance[centres].min(0).values.argmax()))
    count = max(min(N, SMALLEST), N // 6)
    near = distance[centres].topk(count, largest=False).indices
    starts = torch.zeros(len(centres), N).to(shares).scatter(1, near, 1.0)
    return torch.cat([(shares * N)[None], starts])
