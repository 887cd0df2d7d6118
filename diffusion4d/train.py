"""Training on generated worlds: draw the pool, fit the whitening, take the steps, save the moving average.

Step i draws its batch from a generator seeded by (seed, i), so a run that was killed goes on with the same
losses as one that was not. Two commands make a sampler that stands on a regressor, and one its twin:

    diffusion4d train --objective gaussian --out runs/regressor
    diffusion4d train --objective velocity --regressor runs/regressor/model --out runs/tiny
    diffusion4d train --objective mean --out runs/tiny-l2

A third makes a sampler of few steps out of one of many:

    diffusion4d train --objective progressive --teacher runs/tiny/model --solver-steps 4 --out runs/four

A finished run holds `model`, the network, and for a sampler or a twin also `pipeline`, the folder that
`diffusion4d sample --model` takes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from rich.progress import Progress

from diffusion4d import checkpoint, denoiser
from diffusion4d.bounds import require_at_least
from diffusion4d.config import Train
from diffusion4d.coordinates import Coordinates
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.noise import PointNoise
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import Worlds, draw_pool, load_pool, refuse_held_out
from diffusion4d.scenes.rendered import draw_rendered
from diffusion4d.scenes.tokenised import TokenisedWorlds, draw_with_tokens, tokenise_pool
from diffusion4d.stages import bars_with_notes
from diffusion4d.training_objective import (
    Objective,
    few_steps_of,
    load_regressor,
    load_teacher,
    output_of,
    read_network,
)
from diffusion4d.warm_start import take_over
from priors.dinov3 import load_encoder

CALIBRATION_CLIPS = 512


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose state is a function of these numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def draw_example(
    config: Train,
    worlds: Worlds,
    step: int,
    rank: int = 0,
    imaged: Sequence[TokenisedWorlds] = (),
) -> Example:
    """The batch of a step: a pure function of its arguments."""
    generator = seeded(config.seed, step, rank)
    settings = {
        "num_ctrl": config.network.num_ctrl,
        "num_points": config.optimisation.points,
        "dropout": config.dropout,
        "multiplicity": config.network.multiplicity,
    }
    batch = config.optimisation.batch
    if imaged and torch.rand((), generator=generator) < config.image_share:
        return draw_with_tokens(list(imaged), generator, batch=batch, **settings)
    chosen = torch.randint(len(worlds), (batch,), generator=generator)
    return draw(worlds.take(chosen), generator, **settings)


def calibration_example(config: Train, worlds: Worlds) -> Example:
    """A large batch with the training distribution, on which whitening and noise are fitted."""
    count = min(CALIBRATION_CLIPS, len(worlds))
    generator = seeded(config.seed, -1)
    chosen = torch.randperm(len(worlds), generator=generator)[:count]
    return draw(
        worlds.take(chosen),
        generator,
        num_ctrl=config.network.num_ctrl,
        num_points=config.optimisation.points,
        dropout=config.dropout,
        multiplicity=config.network.multiplicity,
    )


def build(config: Train, worlds: Worlds, regressor: TrajectoryDiT | None) -> TrajectoryDiT:
    """A network with its coordinates and noise, fitted to the worlds or taken over from what it starts from."""
    start = config.teacher or config.start_from
    given = read_network(start) if start else None
    goes_on = given is not None and given.config["output"] == output_of(config)
    if given is not None and goes_on:
        coordinates, noise = given.config["coordinates"], given.config["noise"]
    else:
        coordinates, noise = fit_whitening(config, worlds, regressor)
    if config.objective == "energy":
        white = dataclasses.asdict(PointNoise.white(config.network.num_ctrl))
        noise = {**(noise or white), "tail": config.tail}
    torch.manual_seed(config.seed)
    network = TrajectoryDiT(
        **dataclasses.asdict(config.network),
        output=output_of(config),
        **few_steps_of(config),
        anchored=regressor is not None,
        coordinates=coordinates,
        noise=noise,
    )
    if given is not None:
        take_over(network, given, with_output=goes_on)
    return network


def fit_whitening(
    config: Train, worlds: Worlds, regressor: TrajectoryDiT | None
) -> tuple[dict, dict | None]:
    """Coordinates, and for a sampler the covariance of its noise, as they are kept in a configuration."""
    example = calibration_example(config, worlds)
    if regressor is None:
        coordinates = Coordinates.fit(example.ctrl, example.evidence)
        residual = coordinates.encode(example.ctrl, example.evidence)
    else:
        coordinates = denoiser.coordinates_of(regressor)
        with torch.no_grad():
            anchor = denoiser.regress(regressor, example.evidence)
        residual = anchor.encode(coordinates.encode(example.ctrl, example.evidence))
    fitted = dataclasses.asdict(coordinates)
    if output_of(config) != "velocity" or config.network.path == "rectified":
        # The setting that the rectified path is kept for starts from white noise.
        return fitted, None
    return fitted, dataclasses.asdict(PointNoise.fit(residual, example.evidence))


def worlds_for(config: Train, progress: Progress) -> Worlds:
    """The pool of the configuration, generated as far as it is missing."""
    bar = progress.add_task("worlds", note="")

    def report(done: int, total: int) -> None:
        progress.update(bar, completed=done, total=total)

    paths = draw_pool(config.pool, config.worlds, processes=config.processes, progress=report)
    return load_pool(paths)


def images_for(config: Train, progress: Progress) -> list[TokenisedWorlds]:
    """The rendered worlds of the configuration, as the encoder sees them; none where none are asked for."""
    if config.rendered is None:
        return []
    bar = progress.add_task("images", note="")

    def report(done: int, total: int) -> None:
        progress.update(bar, completed=done, total=total)

    shards = draw_rendered(
        config.rendered, config.images, processes=config.processes, progress=report
    )
    return tokenise_pool(shards, config.rendered, load_encoder(config.encoder), report)


def check(config: Train) -> None:
    """Refuse settings that would come to nothing.

    Raises:
        UserError: a number is too small, or does not go with another.
    """
    least = {f"optimisation.{name}": 1 for name in ("steps", "batch", "points")}
    others = ("save_every", "processes", "solver_steps", "intervals", "worlds.worlds")
    least |= dict.fromkeys(others, 1) | {"solver_samples": 2, "optimisation.warmup": 0}
    least |= {"optimisation.learning_rate": 1e-12, "optimisation.ema": 0, "tail": 0}
    require_at_least(config, least)
    if config.optimisation.ema >= 1:
        raise UserError(f"need --optimisation.ema below 1, got {config.optimisation.ema}")
    network, points = config.network, config.optimisation.points
    if network.num_heads < 1 or network.width < 1 or network.width % network.num_heads:
        raise UserError(
            f"need --network.width to be a multiple of --network.num-heads, got {network.width} and {network.num_heads}"
        )
    pools = {"worlds": config.worlds, **({"images": config.images} if config.rendered else {})}
    for name, spec in pools.items():
        if points > spec.points:
            raise UserError(
                f"need --{name}.points of at least the {points} of --optimisation.points, got {spec.points}"
            )
        refuse_held_out(spec)


def purpose_of(
    config: Train, regressor: TrajectoryDiT | None, teacher: TrajectoryDiT | None
) -> dict[str, str]:
    """What tells a run from another of the same network."""
    return {
        "objective": config.objective,
        "regressor": checkpoint.digest(regressor),
        "teacher": checkpoint.digest(teacher),
    }


def require_same(
    config: Train,
    network: TrajectoryDiT,
    regressor: TrajectoryDiT | None,
    wanted_purpose: Mapping[str, str],
    purpose: Mapping[str, str],
) -> None:
    """Refuse to go on with the checkpoint of another network, or of one that was to learn something else.

    Raises:
        UserError: size or purpose differ from the configuration's.
    """
    wanted = {
        **dataclasses.asdict(config.network),
        "output": output_of(config),
        "anchored": regressor is not None,
        **few_steps_of(config),
    }
    for name, value in wanted.items():
        if network.config[name] != value:
            raise UserError(
                f"the checkpoint in {config.out} is of another network, with {name} {network.config[name]}, "
                f"got {value}; choose another --out"
            )
    for name, value in purpose.items():
        if value != wanted_purpose[name]:
            raise UserError(
                f"the checkpoint in {config.out} is of another run, with {name} {value or 'none'}, "
                f"got {wanted_purpose[name] or 'none'}; choose another --out"
            )


def save_finished(config: Train, network: TrajectoryDiT, regressor: TrajectoryDiT | None) -> Path:
    """Write the network and, for one that can answer, its pipeline; returns the more useful folder."""
    from diffusion4d.pipeline import Diffusion4DPipeline, preprocessing_of

    model = config.out / "model"
    network.save_pretrained(model)
    if config.objective == "gaussian":
        return model
    trained_with = {}
    if config.rendered is not None:
        encoder = load_encoder(config.encoder)
        trained_with = {
            "encoder": config.encoder,
            "encoder_fingerprint": encoder.fingerprint,
            "encoder_preprocessing": preprocessing_of(encoder),
        }
    pipeline = config.out / "pipeline"
    Diffusion4DPipeline(network, regressor, **trained_with).save_pretrained(pipeline)
    return pipeline


def run(config: Train) -> Path:
    """Train to the end, from the last checkpoint if there is one; returns the folder of the finished model."""
    with bars_with_notes() as progress:
        return _run(config, progress)


def _run(config: Train, progress: Progress) -> Path:
    steps = config.optimisation.steps
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with="tensorboard",
        project_config=ProjectConfiguration(
            project_dir=str(config.out), logging_dir=str(config.out)
        ),
    )
    # What may be refused comes before hours of drawing worlds.
    check(config)
    regressor = load_regressor(config)
    teacher = load_teacher(config, regressor)
    state = config.out / "checkpoint.safetensors"
    network = checkpoint.network(state) if state.exists() else None
    purpose = purpose_of(config, regressor, teacher)
    if network is not None:
        require_same(config, network, regressor, purpose, checkpoint.purpose(state))
    worlds = worlds_for(config, progress)
    imaged = images_for(config, progress)
    if network is None:
        network = build(config, worlds, regressor)
    ema = EMAModel(
        network.parameters(), decay=config.optimisation.ema, use_ema_warmup=True, power=0.75
    )
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=config.optimisation.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    done = checkpoint.load(state, network, ema, optimiser) if state.exists() else 0
    for group in optimiser.param_groups:
        group["initial_lr"] = config.optimisation.learning_rate
    schedule = get_cosine_schedule_with_warmup(
        optimiser, config.optimisation.warmup, steps, last_epoch=done - 1
    )
    accelerator.init_trackers("logs")
    bar = progress.add_task(config.objective, total=steps, completed=done, note="")
    model = accelerator.prepare_model(Objective(config, network, regressor, teacher))
    for step in range(done, steps):
        example = draw_example(config, worlds, step, accelerator.process_index, imaged)
        generator = seeded(config.seed, step, accelerator.process_index, 1)
        loss = model(example, generator)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.optimisation.clip_norm)
        assert norm is not None
        if not math.isfinite(loss.item() + float(norm)):
            raise UserError(
                f"need a finite loss, got {loss.item()} with gradient norm {float(norm)} at step {step}; the last "
                f"checkpoint in {config.out} is whole: go on from it with a lower learning rate"
            )
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        ema.step(network.parameters())
        accelerator.log({"loss": loss.item(), "gradient_norm": float(norm)}, step=step)
        progress.update(bar, completed=step + 1, note=f"loss {loss.item():.4f}")
        if accelerator.is_main_process and (
            (step + 1) % config.save_every == 0 or step + 1 == steps
        ):
            checkpoint.save(state, step + 1, network, ema, optimiser, purpose)
    accelerator.end_training()
    ema.copy_to(network.parameters())
    return save_finished(config, network, regressor)
