r"""One case of an evaluation: what every method is told of a clip, and what it is scored against.

The truth is put in scene units (median anchor depth 1), as is every answer; no other alignment is ever done. Where the
focal length is withheld a default stands in, and the scene to be found is the one a camera of that focal length would
see: X and Y stretched, Z as it was, so that truth and answers project onto the same tracks.

Shape letters:  K samples   N points   M control points   T frames   S subsets.
"""

import dataclasses
import zlib
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d import cameras, splines
from diffusion4d.config import Dropout
from diffusion4d.evaluation.clips import TrueClip
from diffusion4d.evidence import Evidence, observe_tracks
from diffusion4d.hypotheses import REFERENCE_SIDE
from diffusion4d.sampling import seeds_from
from diffusion4d.scenes.batches import draw
from diffusion4d.scenes.pool import Worlds
from diffusion4d.scenes.rendered import RenderedWorlds
from diffusion4d.snap import doubted, snap

SUBSETS = ("all", "visible", "occluded", "moving")

DROPOUT = Dropout(tracks=0.0, focal=0.3, tokens=0.0)
"""Of generated worlds nothing is withheld but, in three of ten, the focal length."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A clip with truth as the methods see it.

    intrinsics: known or assumed, px. truth: scene units, 0 where not known. masks: in the order of SUBSETS.
    seed: of everything that is drawn for this clip.
    """

    clip: TrueClip
    seed: int
    intrinsics: Float[Tensor, "4"]
    truth: Float[Tensor, "N T 3"]
    masks: Bool[Tensor, "S N T"]

    @classmethod
    def of(cls, clip: TrueClip, seed: int | None = None) -> "Case":
        """Settle the camera, scale the truth, and divide it into subsets.

        Without a seed it is a hash of the clip's name, so that a clip is the same case beside whichever others.
        """
        if seed is None:
            seed = zlib.crc32(clip.name.encode())
        intrinsics = clip.intrinsics
        points = clip.points
        if not clip.focal_known:
            assumed = cameras.intrinsics_from_fov(clip.size)
            lateral = points[..., :2] * intrinsics[:2] + points[..., 2:] * (
                intrinsics[2:] - assumed[2:]
            )
            points = torch.cat([lateral / assumed[:2], points[..., 2:]], -1)
            intrinsics = assumed
        known = points.isfinite().all(-1)
        scale = points[:, 0, 2].nanmedian()
        truth = torch.where(known[..., None], points / scale, 0.0)
        visible = clip.visible & known
        masks = torch.stack([known, visible, known & ~visible, known & clip.moving[:, None]])
        return cls(clip, seed, intrinsics, truth, masks)

    @property
    def rays(self) -> Float[Tensor, "N T 2"]:
        """Observed tracks in normalised image coordinates."""
        return cameras.normalise(self.clip.tracks, self.intrinsics)

    def evidence(self, num_ctrl: int, multiplicity: int = 1) -> Evidence:
        """The tracks as a network takes them."""
        clip = self.clip
        return observe_tracks(
            clip.tracks[None],
            clip.visibility[None],
            self.intrinsics[None],
            torch.tensor([clip.size], dtype=torch.float32),
            clip.u,
            num_ctrl,
            focal_known=torch.tensor([float(clip.focal_known)]),
            multiplicity=multiplicity,
        )

    def trajectories(
        self, ctrl: Float[Tensor, "K N M 3"], multiplicity: int = 1
    ) -> Float[Tensor, "K N T 3"]:
        """Snap control points to the tracks, decode, and scale: the same for every method.

        Of several samples each has its own doubts about the tracks; one answer has none.
        """
        u, rays = self.clip.u, self.rays
        if len(ctrl) > 1:
            pixel = min(self.clip.size) / REFERENCE_SIDE / self.intrinsics[:2].mean().item()
            rays = doubted(rays, pixel, seeds_from(self.seed, len(ctrl)))
        ctrl = snap(ctrl, rays, self.clip.visibility, u, multiplicity=multiplicity)
        basis_TM = splines.basis_matrix(u, ctrl.shape[-2], multiplicity=multiplicity)
        return self.scaled(basis_TM @ ctrl)

    def scaled(self, points: Float[Tensor, "K N T 3"]) -> Float[Tensor, "K N T 3"]:
        """Put the median anchor depth at 1."""
        return points / points[:, :, 0, 2].median(-1).values[:, None, None, None]

    def project(self, points: Float[Tensor, "K N T 3"]) -> Float[Tensor, "K N T 2"]:
        """To px of the clip; a point behind the camera is moved before it."""
        ahead = torch.cat([points[..., :2], points[..., 2:].clamp_min(1e-3)], -1)
        return cameras.project(ahead, self.intrinsics)


def world_clips(worlds: Worlds, num_points: int, first: int = 0) -> Iterator[TrueClip]:
    """Generated worlds through a tracker. World i draws from the seed first + i, so any share can be run alone."""
    for index in range(len(worlds)):
        one = worlds.take(torch.tensor([index]))
        example = draw(
            one,
            torch.Generator().manual_seed(first + index),
            # The control points to be found are not used: the fewest are the cheapest.
            num_ctrl=4,
            num_points=num_points,
            dropout=DROPOUT,
            augment=False,
        )
        known = bool(example.evidence.focal_known[0])
        true = one.intrinsics[0]
        # `draw` stretches the truth for an assumed camera. The clip keeps the true one.
        stretch = torch.cat([example.intrinsics[0, :2] / true[:2], torch.ones(1)])
        height, width = one.size[0].tolist()
        yield TrueClip(
            name=f"world-{first + index:06d}",
            points=example.points[0] * stretch,
            visible=example.visible[0],
            moving=example.moving[0],
            intrinsics=torch.tensor([true[0], true[1], width / 2, height / 2]),
            size=(int(height), int(width)),
            u=example.u,
            tracks=example.tracks[0],
            visibility=example.visibility[0],
            focal_known=known,
        )


def rendered_clips(
    stacks: list[RenderedWorlds], num_points: int, first: int = 0
) -> Iterator[TrueClip]:
    """Rendered worlds through a tracker, with the pictures of their key frames."""
    for stack in stacks:
        for clip, images in zip(
            world_clips(stack.worlds, num_points, first), stack.images, strict=True
        ):
            yield dataclasses.replace(clip, images=images, frames=stack.frames)
        first += len(stack)
