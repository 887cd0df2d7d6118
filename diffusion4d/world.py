r"""Hypotheses from each instant's own camera into a world that stands still.

A hypothesis' points at the frames, X_{n,t} in camera t, are E_t^{-1} X_{n,t} in the world. Cameras E_t are

    given     a file's, the same for all hypotheses but for the unit of length: the given one. A hypothesis' scale
              s is the median over its still points of the ratio of depths, s = z_given / z, where z_given is
              triangulated from the tracks, by points with enough parallax. Those stand still at the place where
              their rays meet, each hypothesis' own, whatever depth it was sampled with. Of the others, and under
              a camera that does not travel, the depths of the hypothesis are a part of the fit (`priors.bundle`);
    estimated from the largest rigid subset of each hypothesis (`priors.rigid`). Cameras differ as shapes do.

A path through the world, seen from a moving camera, is no spline of the basis even where its camera-frame twin is one.
So control points are fitted again, by least squares at the frames with weights 1 / z², the world's splines having the
same knots; how far the refitted paths' images are from the old ones' is told (`Placed.refit`). Points that are judged
to stand still do so exactly: their control points are one place, the A_n of the fit or where their rays meet. That is
a part of the hypothesis corrected by what its own still points say together.

Where the camera is still there is nothing to do: its frame is the world's. Where most hypotheses have no rigid subset
worth the name, they are left as they are. Else each is placed by itself, whatever its mates.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d import splines
from diffusion4d.camera_paths import CameraPath
from diffusion4d.cameras import normalise, transform
from diffusion4d.errors import UserError
from diffusion4d.hypotheses import REFERENCE_SIDE, Hypotheses
from priors.rigid import RigidMotion, rigid_motion, standing

RIDGE = 1e-6
"""Of the refit, on second differences: clips of fewer frames than control points have one answer too."""
PARALLAX = 0.02
"""Baseline over depth (1.1 degrees) from which a triangulated depth is believed."""
ENOUGH = 6
"""Points that tell the scale."""
AT_ONCE = 64
"""Hypotheses that are placed together: what placing needs beside them does not grow with their number."""


@dataclass(frozen=True)
class Placed:
    """Hypotheses in the frame that could be had; in words, which; and what it cost.

    refit: px at a shorter side of 256 px between images before and after, [median, 95 %] over seen instants of points
    that move; 0 where nothing was refitted.
    """

    hypotheses: Hypotheses
    camera: str
    refit: tuple[float, float] = (0.0, 0.0)


def place(hypotheses: Hypotheses, given: CameraPath | None = None) -> Placed:
    """Put camera-frame hypotheses into the world.

    Args:
        given: world to camera at the clip's frames; estimated without.

    Raises:
        UserError: hypotheses that are in the world already, or cameras of another number of frames.
    """
    hyp = hypotheses
    if hyp.frame != "camera":
        raise UserError("need hypotheses in the camera frame, got some in the world already")
    if given is not None:
        return _with(hyp, given)
    motion = _rigid_motion(hyp)
    if not motion.moves:
        return Placed(replace(hyp, static=motion.static), "still: its frame is the world's")
    if float(motion.found.float().mean()) <= 0.5:
        return Placed(
            hyp,
            "moves or is unknown: no rigid background was found, each instant has its own frame",
        )
    # A hypothesis with a smaller set than most keeps its own camera all the same: what is said of it must not
    # depend on the others. Only the frame is the decision of all.
    return _moved(hyp, motion, "estimated: the world is the camera of the first frame")


def _parts(hyp: Hypotheses) -> list[Hypotheses]:
    """`AT_ONCE` hypotheses each."""
    return [hyp.select(some) for some in torch.arange(hyp.num_hypotheses).split(AT_ONCE)]


def _rigid_motion(hyp: Hypotheses) -> RigidMotion:
    """Of every hypothesis; whether the camera moves is said by the tracks, and the same for all."""
    parts = [
        rigid_motion(
            part.evaluate(),
            part.visibility.transpose(0, 1),
            part.intrinsics,
            part.size,
            part.tracks.transpose(0, 1),
        )
        for part in _parts(hyp)
    ]
    told = ("extrinsics", "anchors", "error", "static", "found")
    return replace(
        parts[0], **{name: torch.cat([getattr(p, name) for p in parts]) for name in told}
    )


def _moved(hyp: Hypotheses, motion: RigidMotion, camera: str, *, rescale: bool = True) -> Placed:
    """Refit in the world of the motion's cameras; with `rescale` the median anchor depth stays 1."""
    refitted = []
    for part, extrinsics in zip(_parts(hyp), motion.extrinsics.split(AT_ONCE), strict=True):
        points_KNT3 = part.evaluate().double()
        inverse = torch.linalg.inv(extrinsics)
        world_KNT3 = transform(inverse, points_KNT3.transpose(1, 2)).transpose(1, 2)
        refitted.append(_refitted(world_KNT3, points_KNT3[..., 2], part))
    ctrl = torch.cat(refitted)
    ctrl = torch.where(motion.static[..., None, None], motion.anchors[:, :, None], ctrl)
    moved = replace(
        hyp,
        control_points=ctrl.float(),
        extrinsics=motion.extrinsics.float(),
        frame="world",
        static=motion.static,
    )
    if rescale:
        moved = _scaled(moved, 1 / moved.camera_points()[:, :, 0, 2].median(-1).values)
    return Placed(moved, camera, _refit(hyp, moved))


def _scaled(hyp: Hypotheses, factor_K: Float[Tensor, "K"]) -> Hypotheses:
    """The same images from a world that is larger by a factor, the camera's way with it."""
    cameras = hyp.cameras.clone()
    cameras[..., :3, 3] *= factor_K[:, None, None]
    return replace(
        hyp, control_points=hyp.control_points * factor_K[:, None, None, None], extrinsics=cameras
    )


def _refitted(
    world: Float[Tensor, "K N T 3"], depth: Float[Tensor, "K N T"], hyp: Hypotheses
) -> Float[Tensor, "K N M 3"]:
    uniform = splines.knot_vector(hyp.num_ctrl, hyp.degree)
    if not torch.equal(uniform, hyp.knots.to(uniform)):
        raise UserError("need uniform clamped knots to refit in the world, got others")
    # An error counts for what is seen of it.
    weights = 1 / depth.clamp_min(1e-3).square()
    weights = weights / weights.mean(-1, keepdim=True)
    return splines.fit(
        world,
        hyp.times,
        hyp.num_ctrl,
        weights=weights,
        degree=hyp.degree,
        ridge=RIDGE,
        penalty_order=min(2, hyp.degree),
    )


def _refit(before: Hypotheses, after: Hypotheses) -> tuple[float, float]:
    gaps = []
    for old, new in zip(_parts(before), _parts(after), strict=True):
        assert new.static is not None
        gap_KNT = (old.project() - new.project()).norm(dim=-1)
        kept = old.seen.transpose(0, 1) & ~new.static[..., None]
        gaps.append(gap_KNT[kept & gap_KNT.isfinite()])
    gap = torch.cat(gaps) * (REFERENCE_SIDE / min(before.size))
    if len(gap) == 0:
        return 0.0, 0.0
    return float(gap.median()), float(gap.double().quantile(0.95))


def _with(hyp: Hypotheses, given: CameraPath) -> Placed:
    """The user's cameras: find each hypothesis' unit of length, then move it, and hold what stands still."""
    if len(given.extrinsics) != hyp.num_frames:
        raise UserError(
            f"need a camera for each of the {hyp.num_frames} frames of the clip, "
            f"got {len(given.extrinsics)}; choose the range of the video that they belong to"
        )
    extrinsics = given.extrinsics.double()
    centres = torch.linalg.inv(extrinsics)[:, :3, 3]
    travels = bool((centres - centres[:1]).norm(dim=-1).max() > 1e-6)
    K = hyp.num_hypotheses
    cameras = extrinsics.expand(K, -1, -1, -1)
    visibility = hyp.visibility.transpose(0, 1)
    if not travels:
        motion = standing(hyp.evaluate(), visibility, hyp.intrinsics, hyp.size, cameras)
        placed = _moved(
            hyp,
            motion,
            "given; it does not travel, so the unit of length is still the scene's",
            rescale=False,
        )
        return replace(placed, hypotheses=replace(placed.hypotheses, extrinsics=extrinsics.float()))
    found = triangulated(
        hyp.tracks.transpose(0, 1).double(),
        visibility.double(),
        hyp.intrinsics.double(),
        min(hyp.size),
        extrinsics,
    )
    if found.kept.sum() < ENOUGH:
        return Placed(
            hyp,
            "given, but too little parallax of still points tells its unit of length: "
            "each instant has its own frame",
        )
    factor_K = _unit(hyp, found)
    hyp = replace(
        hyp, control_points=hyp.control_points * factor_K[:, None, None, None].float(), units="m"
    )
    motion = standing(hyp.evaluate(), visibility, hyp.intrinsics, hyp.size, cameras)
    # What parallax tells needs no depth of the model's; that is for points of which it tells too little.
    motion = replace(
        motion,
        static=motion.static | found.kept,
        anchors=torch.where(found.kept[:, None], _held(hyp, found, extrinsics), motion.anchors),
    )
    placed = _moved(hyp, motion, "given", rescale=False)
    return replace(placed, hypotheses=replace(placed.hypotheses, extrinsics=extrinsics.float()))


@dataclass(frozen=True)
class Triangulated:
    """Places of still points in the world, their depths in every camera, and which are believed: `triangulated`."""

    places: Float[Tensor, "N 3"]
    depth: Float[Tensor, "N T"]
    kept: Bool[Tensor, "N"]


def _unit(hyp: Hypotheses, found: Triangulated) -> Float[Tensor, "K"]:
    """The given unit of length in each hypothesis' own."""
    use_NT = found.kept[:, None] & hyp.seen.transpose(0, 1) & (found.depth > 0)
    ratio_KS = (found.depth / hyp.evaluate()[..., 2].double().clamp_min(1e-6))[:, use_NT]
    return ratio_KS.median(-1).values


def _held(
    hyp: Hypotheses, found: Triangulated, extrinsics: Float[Tensor, "T 4 4"]
) -> Float[Tensor, "K N 3"]:
    """Each hypothesis' own places: of the tracks as it takes them, so that a doubt about a track is one about a place.

    Where those meet behind a camera that saw the point, the place is the tracks' own.
    """
    plane = normalise(hyp.project().double(), hyp.intrinsics.double())
    seen_KNT = hyp.visibility.transpose(0, 1) * plane.isfinite().all(-1)
    own_KN3 = nearest(plane.nan_to_num(), seen_KNT, extrinsics)
    ahead = ((_before(extrinsics, own_KN3)[..., 2] > 0) | (seen_KNT == 0)).all(-1, keepdim=True)
    return torch.where(ahead, own_KN3, found.places)


def _before(
    extrinsics: Float[Tensor, "T 4 4"], places: Float[Tensor, "*K N 3"]
) -> Float[Tensor, "*K N T 3"]:
    """Places of the world before every camera."""
    turned = torch.einsum("tij,...nj->...nti", extrinsics[:, :3, :3], places)
    return turned + extrinsics[:, :3, 3]


def triangulated(
    tracks: Float[Tensor, "N T 2"],
    visibility: Float[Tensor, "N T"],
    intrinsics: Float[Tensor, "4"],
    side: int,
    extrinsics: Float[Tensor, "T 4 4"],
) -> Triangulated:
    """Where still points are, and which points stand still with enough parallax for that to be believed.

    A point stands still if the place nearest to its rays (`nearest`) projects onto its track to 3 px (RMS, at a shorter
    side of 256 px).
    """
    plane = normalise(tracks.nan_to_num(), intrinsics)
    seen = visibility * tracks.isfinite().all(-1)
    place_N3 = nearest(plane, seen, extrinsics)
    camera = _before(extrinsics, place_N3)
    depth = camera[..., 2]
    miss = (camera[..., :2] / depth[..., None].clamp_min(1e-9) - plane).square().sum(-1)
    total = seen.sum(-1).clamp_min(1e-9)
    pixel = side / REFERENCE_SIDE / float(intrinsics[:2].mean())
    error_N = ((miss * seen).sum(-1) / total).sqrt() / pixel
    centre_T3 = torch.linalg.inv(extrinsics)[:, :3, 3]
    mean_N3 = torch.einsum("nt,ti->ni", seen, centre_T3) / total[:, None]
    spread = (seen[..., None] * (centre_T3 - mean_N3[:, None]).square()).sum((1, 2)) / total
    believed = spread.sqrt() / depth[:, 0].abs().clamp_min(1e-9) > PARALLAX
    kept = (error_N < 3.0) & believed & ((depth > 0) | (seen == 0)).all(-1)
    return Triangulated(place_N3, depth, kept)


def nearest(
    plane: Float[Tensor, "*K N T 2"],
    weight: Float[Tensor, "*K N T"],
    extrinsics: Float[Tensor, "T 4 4"],
) -> Float[Tensor, "*K N 3"]:
    """The places nearest to all rays o_t + z d_t of a point, min_A Σ_t w_t |(1 − d_t d_tᵀ)(A − o_t)|²."""
    rays = torch.cat([plane, torch.ones_like(plane[..., :1])], -1)
    rotation, shift = extrinsics[:, :3, :3], extrinsics[:, :3, 3]
    centre_T3 = -torch.einsum("tji,tj->ti", rotation, shift)
    direction = torch.einsum("tji,...ntj->...nti", rotation, rays)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    # Σ w (1 − d dᵀ) and Σ w (1 − d dᵀ) o, without a matrix for every instant.
    weighted = weight[..., None] * direction
    along = (direction * centre_T3).sum(-1, keepdim=True)
    gram = weight.sum(-1)[..., None, None] * torch.eye(3).to(direction) - weighted.mT @ direction
    moment = (weight[..., None] * centre_T3 - weighted * along).sum(-2)
    # Two parallel rays meet anywhere; the ridge makes that the nearest place, which no test lets through.
    gram = gram + 1e-9 * torch.eye(3).to(gram)
    return torch.linalg.solve(gram, moment[..., None])[..., 0]
