r"""Worlds to training examples: symmetries, a tracker's view of them, and the control points to be found.

Every batch is a pure function of (worlds, seed), so a run that was killed draws the same batches again.

Symmetries that leave the problem as it was: mirror, rotation about the optical axis, any crop of time, its reversal,
any subset of the points; in some clips it is one of those alone that move, as of lone objects, and in some of these
nothing hides them, as in sets of markers.
Evidence is dropped at random: all tracks but their first frame, or the focal length.
Where the focal length is withheld a default stands in, and the scene the network must answer with is the one a
camera of that focal length would see: X and Y stretched by the ratio of true to assumed, Z as it was, so that every
hypothesis still projects onto its tracks.

Shape letters:  B clips   N points   M control points   T frames.
"""

import dataclasses
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d import cameras, splines
from diffusion4d.config import Dropout
from diffusion4d.evidence import Evidence, observe_tracks
from diffusion4d.scenes.corruption import observe_through_tracker
from diffusion4d.scenes.pool import Worlds

CTRL_RIDGE = 1e-4

NEAREST = 0.05
"""Points nearer to the camera than this (scene units), or behind it, have no image."""

ALONE = 0.2
"""Share of clips whose points are those that move alone, as far as there are enough."""

MARKERS = 0.5
"""Share of clips of nothing but moving points that are seen wherever they are in view, as markers on a body are."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A batch of clips with truth.

    ctrl: [B, N, M, 3] control points to be found, camera frame, scene units. points: [B, N, T, 3] exact.
    tracks: [B, N, T, 2] px and visibility: [B, N, T], as observed. visible: [B, N, T] true visibility.
    """

    evidence: Evidence
    ctrl: Float[Tensor, "B N M 3"]
    points: Float[Tensor, "B N T 3"]
    visible: Bool[Tensor, "B N T"]
    moving: Bool[Tensor, "B N"]
    tracks: Float[Tensor, "B N T 2"]
    visibility: Float[Tensor, "B N T"]
    intrinsics: Float[Tensor, "B 4"]
    u: Float[Tensor, "T"]


def view(worlds: Worlds, generator: torch.Generator, *, num_points: int, augment: bool) -> Worlds:
    """Apply the symmetries and choose points; scale so that the median anchor depth is 1 again."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    points, visible = worlds.points, worlds.visible
    B, _, T, _ = points.shape
    if augment:
        length = int(T // 2 + uniform(1).item() * (T - T // 2 + 1))
        start = int(uniform(1).item() * (T - length + 1))
        points, visible = (x[:, :, start : start + length] for x in (points, visible))
        if uniform(1).item() < 0.5:
            points, visible = points.flip(2), visible.flip(2)
        angle = torch.randn(B, generator=generator) * math.radians(12)
        angle = torch.where(uniform(B) < 0.1, uniform(B) * 2 * math.pi, angle)
        angle = torch.where(uniform(B) < 0.4, 0.0, angle)
        mirror = torch.where(uniform(B) < 0.5, -1.0, 1.0)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], -1).unflatten(-1, (2, 2))
        lateral = torch.einsum("bij,bntj->bnti", turn, points[..., :2])
        points = torch.cat([lateral, points[..., 2:]], -1)
        # What a turn took out of the picture is seen no longer.
        visible = visible & in_view(points, worlds.intrinsics, worlds.size)
    # Points are asked for in the anchor frame; one that is hidden there is taken only where seen ones run out.
    odds = visible[:, :, 0].float() + 1e-4
    if augment:
        alone = uniform(B) < ALONE
        odds = odds * torch.where(alone[:, None] & ~worlds.moving, 1e-6, 1.0)
    chosen = torch.multinomial(odds, num_points, generator=generator)
    points = points.gather(1, chosen[..., None, None].expand(-1, -1, *points.shape[2:]))
    visible = visible.gather(1, chosen[..., None].expand(-1, -1, visible.shape[2]))
    moving = worlds.moving.gather(1, chosen)
    scale = points[:, :, 0, 2].median(-1).values
    return Worlds(
        points / scale[:, None, None, None], visible, moving, worlds.intrinsics, worlds.size
    )


def images_of(
    points: Float[Tensor, "B N T 3"], intrinsics: Float[Tensor, "B 4"]
) -> Float[Tensor, "B N T 2"]:
    """Pixels of points; one behind the camera has no image, and it does not matter where, as it is not visible."""
    ahead = torch.cat([points[..., :2], points[..., 2:].clamp_min(NEAREST)], -1)
    return cameras.project(ahead, intrinsics[:, None, None])


def in_view(
    points: Float[Tensor, "B N T 3"], intrinsics: Float[Tensor, "B 4"], size: Tensor
) -> Bool[Tensor, "B N T"]:
    """Whether points are before the camera and inside the picture."""
    pixels = images_of(points, intrinsics)
    inside = ((pixels >= 0) & (pixels <= size.flip(-1)[:, None, None])).all(-1)
    return inside & (points[..., 2] > NEAREST)


def draw(
    worlds: Worlds,
    generator: torch.Generator,
    *,
    num_ctrl: int,
    num_points: int,
    dropout: Dropout,
    augment: bool = True,
    multiplicity: int = 1,
) -> Example:
    """One batch from a stack of worlds; `multiplicity` is of the splines' interior knots."""
    worlds = view(worlds, generator, num_points=num_points, augment=augment)
    points, visible = worlds.points, worlds.visible
    B, _, T, _ = points.shape
    known = torch.rand(B, generator=generator) >= dropout.focal
    centre = worlds.size.flip(-1) / 2
    default = torch.stack(
        [cameras.intrinsics_from_fov((int(h), int(w))) for h, w in worlds.size.tolist()]
    )
    intrinsics = torch.where(known[:, None], worlds.intrinsics, default)
    intrinsics = torch.cat([intrinsics[:, :2], centre], -1)
    stretch = (worlds.intrinsics[:, 0] / intrinsics[:, 0])[:, None, None, None]
    points = torch.cat([points[..., :2] * stretch, points[..., 2:]], -1)
    pixels = images_of(points, intrinsics)
    if augment:
        markers = torch.rand(B, generator=generator) < MARKERS
        markers = (markers & worlds.moving.all(1))[:, None, None]
        visible = visible | (markers & in_view(points, intrinsics, worlds.size))
    limit = 4 * worlds.size.amax()
    tracks, visibility = observe_through_tracker(
        pixels.clamp(-limit, limit), visible, worlds.size, generator
    )
    without_tracks = torch.rand(B, generator=generator) < dropout.tracks
    visibility[..., 1:] = visibility[..., 1:] * ~without_tracks[:, None, None]
    u = torch.linspace(0, 1, T)
    evidence = observe_tracks(
        tracks,
        visibility,
        intrinsics,
        worlds.size,
        u,
        num_ctrl,
        focal_known=known.float(),
        multiplicity=multiplicity,
    )
    ctrl = splines.fit(
        points, u, num_ctrl, multiplicity=multiplicity, ridge=CTRL_RIDGE, penalty_order=2
    )
    return Example(
        evidence, ctrl, points, visible, worlds.moving, tracks, visibility, intrinsics, u
    )
