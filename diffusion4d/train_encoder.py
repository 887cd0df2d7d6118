r"""Training of the small image encoder: the same surface point should look the same in every frame.

Two key frames of a rendered clip, each seen through its own random crop, turn and colours, are encoded. The points
visible in both give features a_n and b_n, by bilinear interpolation of the tokens. Three losses:

    InfoNCE      a_n finds b_n among all points of the batch, and the other way round (`priors.correspondence`)
    place        a_n finds its place in the other frame: cross-entropy over the cells of the token grid, refined
                 twice; the target is the bilinear weights of the true place, so that it is exact below a cell
    pointmap     a head over several layers says how deep each pixel is, up to a factor an image (`priors.pointmaps`)

A head that also tells confidence and descriptors (`priors.heads`) is trained for them by two more: Laplace's likelihood
of the depth it told, which is held fixed in it, and InfoNCE of the descriptors at the points. With `frozen` the
encoder stays as it was, and the head is all that is trained.

Geometry is exact, since frames are rendered. Step i draws its batch from a generator seeded by (seed, i), so a run
that was killed goes on with the same losses as one that was not.
Shape letters:  B clips   N points   F = 2 frames a clip   C channels   L tokens   D cells   y, x depth map.
"""

import math
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from jaxtyping import Bool, Float
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from diffusion4d import checkpoint
from diffusion4d.bounds import require_at_least
from diffusion4d.config import TrainEncoder
from diffusion4d.errors import UserError
from diffusion4d.frame_pairs import PATCH, Views, draw_views
from diffusion4d.scenes.pool import refuse_held_out
from diffusion4d.scenes.rendered import RenderedWorlds, draw_rendered, load_rendered
from diffusion4d.stages import bars_with_notes
from priors.checkpoints import find_folder
from priors.correspondence import info_nce
from priors.dinov3 import load_encoder
from priors.heads import HEAD_FILE, Dense, load_head, make_head, save_head, take_over, tapped
from priors.pointmaps import confidence_loss, pointmap_loss
from priors.preprocessing import Preprocessing
from priors.tiny import save_encoder, tiny_config

REFINE = 2
"""Cells of the place loss along a side of a token."""


class Objective(nn.Module):
    """The encoder with a head for pointmaps, and the three losses."""

    def __init__(self, config: TrainEncoder) -> None:
        from transformers import DINOv3ViTModel

        super().__init__()
        torch.manual_seed(config.seed)
        self.config = config
        self.preprocessing = Preprocessing(size=(config.worlds.side, config.worlds.side))
        # Evaluation mode: in training mode DINOv3 jitters its positions with numbers that no seed of ours decides.
        self.encoder = DINOv3ViTModel(tiny_config()).eval()
        shape = self.encoder.config
        outputs = 2 + config.descriptors if config.descriptors else 1
        self.head = make_head(config.head, shape.hidden_size, shape.num_hidden_layers, outputs)
        if config.start_from is not None:
            self._start_from(config.start_from)
        self.encoder.requires_grad_(not config.frozen)

    def _start_from(self, name: str) -> None:
        """First weights: an encoder of this architecture, and its head if there is one of this shape."""
        found = load_encoder(name)
        mine, theirs = (m.state_dict() for m in (self.encoder, found.model))
        if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in theirs.items()}:
            raise UserError(f"need an encoder of the tiny architecture to start from, got {name!r}")
        self.encoder.load_state_dict(theirs)
        folder = find_folder(name)
        if (folder / HEAD_FILE).is_file():
            head = load_head(folder, found.fingerprint)
            if head.kind == self.head.kind and head.taps == self.head.taps:
                take_over(self.head, head)

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
            out = self.encoder(values, output_hidden_states=True)
            layers = tapped(out.hidden_states, self.head.taps, grid[0] * grid[1])
            dense = Dense.of(self.head(layers, grid).float())
        maps = out.last_hidden_state[:, -grid[0] * grid[1] :].float().mT.unflatten(2, grid)
        extent = torch.tensor([width, height]).float()
        first, second = features_at(maps, views.pixels, extent)
        pair = self._found(first, second, views)
        maps_B2 = maps.unflatten(0, (-1, 2))
        place = (
            place_loss(first, maps_B2[:, 1], views.pixels[:, :, 1] / extent, views.valid, config)
            + place_loss(second, maps_B2[:, 0], views.pixels[:, :, 0] / extent, views.valid, config)
        ) / 2
        truth = views.log_depth.flatten(0, 1)
        # A head coarser than the map is compared at the middles of its own cells.
        coarser = truth.shape[-1] // dense.log_depth.shape[-1]
        truth = truth[:, coarser // 2 :: coarser, coarser // 2 :: coarser]
        valid = truth.isfinite()
        geometry = pointmap_loss(dense.log_depth, truth, valid)
        losses = {"pair": pair, "place": place}
        if dense.log_confidence is not None:
            told = dense.log_depth.detach()
            losses["confidence"] = confidence_loss(told, dense.log_confidence, truth, valid)
        if dense.descriptors is not None:
            first, second = features_at(dense.descriptors, views.pixels, extent)
            losses["descriptor"] = self._found(first, second, views)
        total = sum(losses.values(), config.pointmap_weight * geometry)
        return {"loss": total, "pointmap": geometry, **losses}

    def _found(
        self, first: Float[Tensor, "B N C"], second: Float[Tensor, "B N C"], views: Views
    ) -> Float[Tensor, ""]:
        """InfoNCE of the points by these features."""
        return info_nce(
            first,
            second,
            valid=views.valid,
            positions=views.pixels[:, :, 0],
            radius=self.config.radius,
            temperature=self.config.temperature,
        )


def features_at(
    maps: Float[Tensor, "F C y x"], pixels: Float[Tensor, "B N 2 2"], extent: Float[Tensor, "2"]
) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N C"]]:
    """Features of the points in both frames of a clip, bilinear; `extent` is the frames' (W, H) px, F = 2 B."""
    where = (2 * pixels / extent - 1).transpose(1, 2).flatten(0, 1)
    sampled = functional.grid_sample(
        maps, where[:, :, None], padding_mode="border", align_corners=False
    )
    first, second = sampled[..., 0].mT.unflatten(0, (-1, 2)).unbind(1)
    return first, second


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
    if config.frozen and config.start_from is None:
        raise UserError("need an encoder to start from where it is to stay frozen")
    counts = ("steps", "batch", "save_every", "processes", "worlds.worlds")
    least = {"points": 2, "warmup": 0, "ema": 0, "learning_rate": 1e-12, "temperature": 1e-6}
    require_at_least(config, dict.fromkeys(counts, 1) | least)
    refuse_held_out(config.worlds)
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
    parameters = [p for p in model.parameters() if p.requires_grad]
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
            norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            if not math.isfinite(losses["loss"].item() + norm.item()):
                raise UserError(
                    f"need a finite loss, got {losses['loss'].item()} with gradient norm {norm.item()} at step {step}: "
                    f"go on from the last checkpoint in {config.out}, if there is one, with a lower learning rate"
                )
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
    save_head(model.head, finished, load_encoder(finished).fingerprint)
    return finished
