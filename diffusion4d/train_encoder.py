r"""Training of the small image encoder: the same surface point should look the same in every frame.

Two key frames of a rendered clip, each seen through its own random crop, turn and colours, are encoded. The points
visible in both give features a_n and b_n, by bilinear interpolation of the tokens. Three losses:

    InfoNCE      a_n finds b_n among all points of the batch, and the other way round (`priors.correspondence`)
    place        a_n finds its place in the other frame: cross-entropy over the cells of the token grid, refined
                 twice; the target is the bilinear weights of the true place, so that it is exact below a cell
    depth        a linear function of a_n says log z, relative to the median over the image's points

Geometry is exact, since frames are rendered. Step i draws its batch from a generator seeded by (seed, i), so a run
that was killed goes on with the same losses as one that was not.
Shape letters:  B clips   N points   F = 2 frames a clip   C channels   L tokens   D cells.
"""

import dataclasses
import math
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from jaxtyping import Bool, Float, UInt8
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from diffusion4d import checkpoint
from diffusion4d.cameras import project
from diffusion4d.config import TrainEncoder
from diffusion4d.errors import UserError
from diffusion4d.scenes.pool import HELD_OUT
from diffusion4d.scenes.rendered import RenderedWorlds, draw_rendered, load_rendered
from diffusion4d.stages import bars_with_notes
from diffusion4d.train import seeded
from priors.correspondence import info_nce
from priors.preprocessing import Preprocessing
from priors.tiny import save_encoder, tiny_config

PATCH = 16
REFINE = 2
"""Cells of the place loss along a side of a token."""


@dataclasses.dataclass(frozen=True)
class Views:
    """Pairs of augmented frames with the points that both show.

    images: [B, 2, 3, h, w] sRGB in [0, 1], h and w whole patches. pixels: [B, N, 2, 2] (frame, then x, y) px.
    valid: [B, N] visible and inside in both. log_depth: [B, N, 2] log z of each frame's camera.
    """

    images: Float[Tensor, "B 2 3 h w"]
    pixels: Float[Tensor, "B N 2 2"]
    valid: Bool[Tensor, "B N"]
    log_depth: Float[Tensor, "B N 2"]


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
    # Advanced indices go in front: [B, 2, N] and so on.
    pixels_B2N2 = key_pixels(clips)[rows, :, order]
    seen_B2N = clips.worlds.visible[:, :, clips.frames][rows, :, order]
    depth_B2N = clips.worlds.points[:, :, clips.frames, 2][rows, :, order]
    images_B23hw, pixels_B2N2 = warp(clips.images[rows, order], pixels_B2N2, generator)
    images_B23hw = recolour(images_B23hw, generator)
    height, width = images_B23hw.shape[-2:]
    inside_B2N = ((pixels_B2N2 > 0) & (pixels_B2N2 < torch.tensor([width, height]))).all(-1)
    valid_BN = (seen_B2N & inside_B2N).all(1)
    ranked_BN = torch.rand(valid_BN.shape, generator=generator) + valid_BN
    kept_BN = ranked_BN.argsort(1, descending=True)[:, : config.points]
    return Views(
        images_B23hw,
        pixels_B2N2.transpose(1, 2)[rows, kept_BN],
        valid_BN[rows, kept_BN],
        depth_B2N.clamp_min(1e-3).log().transpose(1, 2)[rows, kept_BN],
    )


def warp(
    images_B23hw: UInt8[Tensor, "B 2 3 h w"],
    pixels_B2N2: Float[Tensor, "B 2 N 2"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B 2 3 H W"], Float[Tensor, "B 2 N 2"]]:
    """Look at each frame through its own crop, turned a little; whole clips may be mirrored.

    A point q of the result, from the middle in units of the shorter half side, shows the point S R q + d of the frame,
    where S holds zooms between 0.62 and 1.1 and R turns by up to 0.2 rad. Beyond the border, frames are mirrored.

    Returns:
        Images in [0, 1] of whole patches, and where the points are in them, px.
    """
    count = len(images_B23hw)
    height, width = images_B23hw.shape[-2:]
    size = [PATCH * round(side / PATCH) for side in (height, width)]

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
        [
            matrix_B222 * shape / shape[:, None],
            (shift_B22 / shape)[..., None],
        ],
        -1,
    )
    grid = functional.affine_grid(
        theta_B223.flatten(0, 1), [2 * count, 3, *size], align_corners=False
    )
    seen = functional.grid_sample(
        images_B23hw.flatten(0, 1).float() / 255,
        grid,
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    from_middle_B2N2 = 2 * pixels_B2N2 / torch.tensor([width, height]) - 1
    inverse_B222 = torch.linalg.inv(theta_B223[..., :2])
    normal_B2N2 = (from_middle_B2N2 - theta_B223[:, :, None, :, 2]) @ inverse_B222.mT
    new_pixels_B2N2 = (normal_B2N2 + 1) / 2 * torch.tensor([float(size[1]), float(size[0])])
    return seen.unflatten(0, (count, 2)), new_pixels_B2N2


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


class Objective(nn.Module):
    """The encoder with a linear read-out of depth, and the three losses."""

    def __init__(self, config: TrainEncoder) -> None:
        from transformers import DINOv3ViTModel

        super().__init__()
        torch.manual_seed(config.seed)
        self.config = config
        self.preprocessing = Preprocessing(size=(config.worlds.side, config.worlds.side))
        # Evaluation mode: in training mode DINOv3 jitters its positions with numbers that no seed of ours decides.
        self.encoder = DINOv3ViTModel(tiny_config()).eval()
        self.depth = nn.Linear(self.encoder.config.hidden_size, 1)

    def forward(self, views: Views) -> dict[str, Tensor]:
        """The losses by name; "loss" is their weighted sum."""
        config = self.config
        height, width = views.images.shape[-2:]
        grid = (height // PATCH, width // PATCH)
        mean, std = (
            torch.tensor(c)[:, None, None]
            for c in (self.preprocessing.mean, self.preprocessing.std)
        )
        values = (views.images.flatten(0, 1) - mean) / std
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            hidden = self.encoder(values).last_hidden_state
        maps = hidden[:, -grid[0] * grid[1] :].float().mT.unflatten(2, grid)
        extent = torch.tensor([width, height])
        where = (2 * views.pixels / extent - 1).transpose(1, 2).flatten(0, 1)
        sampled = functional.grid_sample(
            maps, where[:, :, None], padding_mode="border", align_corners=False
        )
        features_B2NC = sampled[..., 0].mT.unflatten(0, (-1, 2))
        first, second = features_B2NC.unbind(1)
        pair = info_nce(
            first,
            second,
            valid=views.valid,
            positions=views.pixels[:, :, 0],
            radius=config.radius,
            temperature=config.temperature,
        )
        maps_B2 = maps.unflatten(0, (-1, 2))
        place = (
            place_loss(first, maps_B2[:, 1], views.pixels[:, :, 1] / extent, views.valid, config)
            + place_loss(second, maps_B2[:, 0], views.pixels[:, :, 0] / extent, views.valid, config)
        ) / 2
        relative = views.log_depth - views.log_depth.median(1, keepdim=True).values
        missed_BN2 = functional.smooth_l1_loss(
            self.depth(features_B2NC)[..., 0].transpose(1, 2), relative, beta=0.1, reduction="none"
        )
        weight_BN1 = views.valid[..., None].float()
        depth = (missed_BN2 * weight_BN1).sum() / (2 * weight_BN1.sum()).clamp_min(1)
        total = pair + place + config.depth_weight * depth
        return {"loss": total, "pair": pair, "place": place, "depth": depth}


def place_loss(
    features_BNC: Float[Tensor, "B N C"],
    maps_BChw: Float[Tensor, "B C h w"],
    place_BN2: Float[Tensor, "B N 2"],
    valid_BN: Bool[Tensor, "B N"],
    config: TrainEncoder,
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each point's place (as a share of width and height) among the refined cells."""
    height, width = (REFINE * side for side in maps_BChw.shape[-2:])
    refined = functional.interpolate(
        maps_BChw, size=(height, width), mode="bilinear", align_corners=False
    )
    cells_BCD = functional.normalize(refined.flatten(2), dim=1)
    logits_BND = functional.normalize(features_BNC, dim=-1) @ cells_BCD / config.temperature
    log_share_BND = logits_BND.log_softmax(-1)
    cell_BN2 = place_BN2 * torch.tensor([width, height]) - 0.5
    low_BN2 = cell_BN2.floor()
    part_BN2 = cell_BN2 - low_BN2
    total = torch.zeros(place_BN2.shape[:2])
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column = (low_BN2[..., 0] + dx).clamp(0, width - 1).long()
        row = (low_BN2[..., 1] + dy).clamp(0, height - 1).long()
        across = part_BN2[..., 0] if dx else 1 - part_BN2[..., 0]
        down = part_BN2[..., 1] if dy else 1 - part_BN2[..., 1]
        found = log_share_BND.gather(2, (row * width + column)[..., None])[..., 0]
        total = total - across * down * found
    return (total * valid_BN).sum() / valid_BN.sum().clamp_min(1)


def run(config: TrainEncoder) -> Path:
    """Train to the end, from the last checkpoint if there is one; returns the folder of the finished encoder.

    Raises:
        UserError: the worlds reach into the seeds held out for evaluation, or the checkpoint is another network's.
    """
    if config.worlds.first_seed + config.worlds.worlds > HELD_OUT:
        raise UserError(f"seeds from {HELD_OUT} are held out for evaluation")
    with bars_with_notes() as progress:
        bar = progress.add_task("worlds", note="")

        def report(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        paths = draw_rendered(
            config.pool, config.worlds, processes=config.processes, progress=report
        )
        return fit(config, load_rendered(paths), progress)


def fit(config: TrainEncoder, stacks: list[RenderedWorlds], progress: Progress) -> Path:
    """The steps that are left; returns the folder of the finished encoder."""
    from torch.utils.tensorboard import SummaryWriter

    model = Objective(config)
    parameters = list(model.parameters())
    ema = EMAModel(parameters, decay=config.ema, use_ema_warmup=True, power=0.75)
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    config.out.mkdir(parents=True, exist_ok=True)
    state = config.out / "checkpoint.safetensors"
    done = checkpoint.load(state, model, ema, optimiser) if state.exists() else 0
    for group in optimiser.param_groups:
        group["initial_lr"] = config.learning_rate
    schedule = get_cosine_schedule_with_warmup(
        optimiser, config.warmup, config.steps, last_epoch=done - 1
    )
    bar = progress.add_task("encoder", total=config.steps, completed=done, note="")
    with SummaryWriter(str(config.out / "logs"), purge_step=done) as log:
        for step in range(done, config.steps):
            losses = model(draw_views(config, stacks, step))
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            ema.step(parameters)
            for name, value in losses.items():
                log.add_scalar(name, value.item(), step)
            progress.update(bar, completed=step + 1, note=f"loss {losses['loss'].item():.4f}")
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                checkpoint.save(state, step + 1, model, ema, optimiser)
    ema.copy_to(parameters)
    finished = config.out / "model"
    save_encoder(model.encoder, finished, model.preprocessing)
    return finished
