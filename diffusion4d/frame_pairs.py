r"""What the encoder is trained on: pairs of key frames of a rendered clip, each looked at in its own way.

Every frame is seen through its own crop and turn, and in its own colours; points and depth maps go along exactly. A
batch is a pure function of its step: it draws from a generator seeded by (seed, step).

Shape letters:  B clips   N points   F key frames (2 of them in a pair)   h, w image   y, x depth map.
"""

import dataclasses
import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from diffusion4d.cameras import project
from diffusion4d.config import TrainEncoder
from diffusion4d.scenes.rendered import RenderedWorlds
from diffusion4d.train import seeded

PATCH = 16


@dataclasses.dataclass(frozen=True)
class Views:
    """Pairs of augmented frames with the points that both show.

    images: [B, 2, 3, h, w] sRGB in [0, 1], h and w whole patches. pixels: [B, N, 2, 2] (frame, then x, y) px.
    valid: [B, N] visible and inside in both. log_depth: [B, 2, y, x] log z of each frame's camera, half the images'
    resolution; NaN where nothing is seen.
    """

    images: Float[Tensor, "B 2 3 h w"]
    pixels: Float[Tensor, "B N 2 2"]
    valid: Bool[Tensor, "B N"]
    log_depth: Float[Tensor, "B 2 y x"]


def key_pixels(clips: RenderedWorlds) -> Float[Tensor, "B N F 2"]:
    """Where the points are in the key images, px of the images."""
    worlds = clips.worlds
    points_BNF3 = worlds.points[:, :, clips.frames]
    pixels_BNF2 = project(points_BNF3, worlds.intrinsics[:, None, None])
    height, width = clips.images.shape[-2:]
    return pixels_BNF2 * (torch.tensor([width, height]) / worlds.size.flip(-1))[:, None, None]


def draw_views(config: TrainEncoder, stacks: list[RenderedWorlds], step: int) -> Views:
    """The batch of a step, all of one image shape: a pure function of its arguments."""
    generator = seeded(config.seed, step)
    share = torch.tensor([float(len(stack)) for stack in stacks])
    stack = stacks[int(torch.multinomial(share, 1, generator=generator))]
    clips = stack.take(torch.randint(len(stack), (config.batch,), generator=generator))
    order = torch.rand(config.batch, len(clips.frames), generator=generator).argsort(1)[:, :2]
    rows = torch.arange(config.batch)[:, None]
    images_shape = clips.images.shape[-2:]
    # Advanced indices go in front: [B, 2, N] and so on.
    pixels_B2N2 = key_pixels(clips)[rows, :, order]
    seen_B2N = clips.worlds.visible[:, :, clips.frames][rows, :, order]
    look = draw_look(config.batch, (images_shape[0], images_shape[1]), generator)
    images_B23hw = recolour(look.images(clips.images[rows, order]), generator)
    pixels_B2N2 = look.points(pixels_B2N2)
    height, width = images_B23hw.shape[-2:]
    inside_B2N = ((pixels_B2N2 > 0) & (pixels_B2N2 < torch.tensor([width, height]))).all(-1)
    valid_BN = (seen_B2N & inside_B2N).all(1)
    ranked_BN = torch.rand(valid_BN.shape, generator=generator) + valid_BN
    kept_BN = ranked_BN.argsort(1, descending=True)[:, : config.points]
    return Views(
        images_B23hw,
        pixels_B2N2.transpose(1, 2)[rows, kept_BN],
        valid_BN[rows, kept_BN],
        look.depth(clips.depth[rows, order]).log(),
    )


@dataclasses.dataclass(frozen=True)
class Look:
    """How each frame is looked at: from places of the new image to places of the frame, both from −1 to 1.

    theta: [B, 2, 2, 3] affine maps (new x, y, 1) → (x, y). before, after: (h, w) px of the frames, of the new images.
    """

    theta: Float[Tensor, "B 2 2 3"]
    before: tuple[int, int]
    after: tuple[int, int]

    def images(self, images: UInt8[Tensor, "B 2 3 h w"]) -> Float[Tensor, "B 2 3 H W"]:
        """The new images, in [0, 1]; beyond the border, frames are mirrored."""
        return self._sampled(images.flatten(0, 1).float() / 255, self.after, "bilinear")

    def depth(self, depth: Float[Tensor, "B 2 y x"]) -> Float[Tensor, "B 2 Y X"]:
        """Depth maps of half the resolution, as the frames have them. Nothing is mixed across an edge.

        Turning and cropping an image leaves the depth along the camera's axis as it is.
        """
        half = (self.after[0] // 2, self.after[1] // 2)
        return self._sampled(depth.flatten(0, 1)[:, None].float(), half, "nearest")[:, :, 0]

    def points(self, pixels: Float[Tensor, "B 2 N 2"]) -> Float[Tensor, "B 2 N 2"]:
        """Where points of the frames are in the new images, px of each."""
        from_middle = 2 * pixels / torch.tensor(self.before[::-1]) - 1
        inverse = torch.linalg.inv(self.theta[..., :2])
        seen_from_middle = (from_middle - self.theta[:, :, None, :, 2]) @ inverse.mT
        return (seen_from_middle + 1) / 2 * torch.tensor(self.after[::-1], dtype=pixels.dtype)

    def _sampled(self, maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        theta = self.theta.flatten(0, 1)
        grid = functional.affine_grid(theta, [len(theta), 1, *size], align_corners=False)
        seen = functional.grid_sample(
            maps, grid, mode=mode, padding_mode="reflection", align_corners=False
        )
        return seen.unflatten(0, (-1, 2))


def draw_look(count: int, size: tuple[int, int], generator: torch.Generator) -> Look:
    """Each frame through its own crop, turned a little; whole clips may be mirrored.

    A point q of the result, from the middle in units of the shorter half side, shows the point S R q + d of the frame,
    where S holds zooms between 0.62 and 1.1 and R turns by up to 0.2 rad. New images have whole patches.
    """
    height, width = size

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    shape = torch.tensor([width, height]) / min(height, width)
    zoom_B2 = torch.exp(uniform(math.log(0.62), math.log(1.1), 2))
    stretch_B22 = torch.exp(uniform(-0.08, 0.08, 2, 2))
    angle_B2 = uniform(-0.2, 0.2, 2)
    mirror_B1 = 1 - 2 * (uniform(0.0, 1.0, 1) < 0.5).float()
    cos, sin = angle_B2.cos(), angle_B2.sin()
    turn_B222 = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    matrix_B222 = zoom_B2[..., None, None] * stretch_B22[..., None] * turn_B222
    matrix_B222 = matrix_B222 * torch.stack([mirror_B1, torch.ones_like(mirror_B1)], -1)[:, :, None]
    shift_B22 = uniform(-1.0, 1.0, 2, 2) * (1 - zoom_B2).clamp_min(0.05)[..., None] * shape
    # grid_sample's coordinates run from -1 to 1 along both sides.
    theta_B223 = torch.cat(
        [matrix_B222 * shape / shape[:, None], (shift_B22 / shape)[..., None]], -1
    )
    after = (PATCH * round(height / PATCH), PATCH * round(width / PATCH))
    return Look(theta_B223, size, after)


def recolour(
    images_B23hw: Float[Tensor, "B 2 3 h w"], generator: torch.Generator
) -> Float[Tensor, "B 2 3 h w"]:
    """Exposure, contrast, white balance, saturation, blur and noise of each frame; some clips are grey."""
    images = images_B23hw.flatten(0, 1)
    count = len(images)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=generator)

    grey = images.mean(1, keepdim=True)
    saturation = uniform(0.5, 1.4)
    greyed_B = torch.rand(count // 2, generator=generator) < 0.1
    saturation[greyed_B.repeat_interleave(2)] = 0
    images = grey + saturation * (images - grey)
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + uniform(0.65, 1.35) * (images - middle)
    images = images * uniform(0.75, 1.3) * uniform(0.88, 1.12, 3) + uniform(-0.1, 0.1)
    images = images.clamp(1e-4, 1) ** torch.exp(uniform(-0.3, 0.3))
    # Blur is a lower resolution, the same for a batch; each frame takes its own share of it.
    size = images.shape[-2:]
    coarser = 1.5 + 1.5 * float(torch.rand((), generator=generator))
    small = functional.interpolate(images, size=[int(side / coarser) for side in size], mode="area")
    blurred = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    share = uniform(-0.5, 1.0).clamp_min(0)
    images = images + share * (blurred - images)
    level = uniform(-0.03, 0.06).clamp_min(0)
    images = images + level * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1).unflatten(0, (count // 2, 2))
