r"""Train a trial's network until its multiply-adds are spent, and score it.

Counted are the multiply-adds of matrix products as they run, forward and backward, of everything that the loss
evaluates, frozen networks included. The learning rate falls with what is spent, not with steps. Trials of a seed see
the same batches in the same order, as far as they get.

Shape letters:  B clips   K samples   N points   M control points.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import torch
from clips import Data
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from scoring import SAMPLES, score_all
from spaces import COSINE, Space, Trial
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion4d import denoiser, objectives, sampling
from diffusion4d.config import Dropout, Network, Optimisation, Train
from diffusion4d.coordinates import Coordinates
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.train import draw_example, seeded
from samplers.predictions import target


@dataclasses.dataclass(frozen=True)
class Compute:
    """What a trial may spend, and how."""

    tera_macs: float = 4.0
    """Multiply-adds of a trial's training, 10^12."""
    batch: int = 16
    points: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.05
    """Share of the compute."""
    ema: float = 0.995
    calibration: int = 256
    """Clips that whitening and noise are fitted on."""

    def recorded(self) -> dict:
        """As results.json keeps it."""
        return {**dataclasses.asdict(self), "samples": SAMPLES}

    def config(self, trial: Trial) -> Train:
        """The library's settings, as far as they apply."""
        withheld = trial.withheld
        channels = 0 if withheld is None else 128
        return Train(
            image_share=0.5,
            seed=trial.seed,
            network=Network(
                width=trial.width, num_heads=trial.width // 64, token_channels=channels
            ),
            optimisation=Optimisation(batch=self.batch, points=self.points),
            dropout=Dropout(tokens=withheld or 0.0),
        )


def prediction_loss(
    network: TrajectoryDiT,
    space: Space,
    example: Example,
    generator: torch.Generator,
    trial: Trial,
    noisy_power: float,
) -> Float[Tensor, ""]:
    """`objectives.velocity_loss` for any kind of prediction; at the same ratios of signal to noise on either path."""
    r, anchor = space.encode(example)
    r = r[:, None]
    white = torch.randn(r.shape, generator=generator)
    noise = space.noise.factors(example.evidence).correlate(white)
    t = torch.rand((len(r), 1), generator=generator) ** noisy_power
    schedule = trial.schedule
    if schedule is not COSINE:
        t = schedule.t_of_log_snr(COSINE.log_snr(t))
    alpha, sigma = (f(t)[..., None, None, None] for f in (schedule.alpha, schedule.sigma))
    stacked = None if anchor is None else anchor.stacked()
    conditioning = network.condition(example.evidence, stacked)
    answer = network(alpha * r + sigma * noise, t, conditioning)
    return (answer.float() - target(trial.kind, r, noise, alpha, sigma)).square().mean()


def energy_loss(
    network: TrajectoryDiT, space: Space, example: Example, generator: torch.Generator, trial: Trial
) -> Float[Tensor, ""]:
    """The library's, of 2 samples."""
    table = sampling.table_for("angular", trial.energy_steps)
    clip = denoiser.prepare(network, example.evidence, space.regressor)
    return objectives.energy_loss(clip, example, generator, table=table, num_samples=2)


Loss = Callable[[TrajectoryDiT, Example, torch.Generator], Tensor]


def spend(
    network: TrajectoryDiT,
    loss: Loss,
    batches: Callable[[int], Example],
    budget: float,
    seed: int,
    compute: Compute,
    rate: float = 1.0,
) -> dict:
    """Train until the multiply-adds of `budget` are spent; the network ends with its averaged weights.

    rate: factor on the learning rate.
    """
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(parameters, decay=compute.ema, use_ema_warmup=True, power=0.75)
    begun, spent, step, losses = time.process_time(), 0.0, 0, []
    cost: dict[object, float] = {}
    while spent < budget:
        example = batches(step)
        tokens = example.evidence.tokens
        kind = None if tokens is None else tokens.values.shape
        with FlopCounterMode(display=False) if kind not in cost else torch.enable_grad() as counter:
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(network, example, seeded(seed, step, 1))
            value.backward()
        if isinstance(counter, FlopCounterMode):
            cost[kind] = counter.get_total_flops() / 2
        now = rate * compute.learning_rate * falling(spent / budget, compute.warmup)
        for group in optimiser.param_groups:
            group["lr"] = now
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.step(parameters)
        losses.append(value.item())
        spent, step = spent + cost[kind], step + 1
    if step:
        ema.copy_to(parameters)
    last = losses[-max(1, step // 10) :]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "steps": step,
        "clips": step * compute.batch,
        "tera_macs": round(spent / 1e12, 3),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "loss": round(sum(last) / max(1, len(last)), 4),
    }


def falling(spent: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine, over the share of the compute that is spent."""
    if spent < warmup:
        return (spent + 0.01) / (warmup + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (spent - warmup) / (1 - warmup)))


def regressor_of_its_own(
    config: Train, example: Example, batches: Callable[[int], Example], compute: Compute
) -> tuple[TrajectoryDiT, dict]:
    """A "gaussian" network from half of the compute, frozen."""
    coordinates = dataclasses.asdict(Coordinates.fit(example.ctrl, example.evidence))
    torch.manual_seed(config.seed)
    sizes = dataclasses.asdict(config.network)
    network = TrajectoryDiT(**sizes, output="gaussian", coordinates=coordinates)

    def loss(network: TrajectoryDiT, example: Example, _: torch.Generator) -> Tensor:
        x = denoiser.coordinates_of(network).encode(example.ctrl, example.evidence)
        return objectives.gaussian_loss(network, example.evidence, x)

    spent = spend(network, loss, batches, compute.tera_macs * 5e11, config.seed, compute)
    return network.requires_grad_(False).eval(), spent


def run(trial: Trial, data: Data, given: TrajectoryDiT, compute: Compute) -> dict:
    """Train a sampler, on the given regressor or otherwise, and score it."""
    config = compute.config(trial)
    imaged = [] if trial.withheld is None else data.imaged

    def batches(step: int) -> Example:
        return draw_example(config, data.worlds, step, 0, imaged)

    chosen = torch.arange(min(compute.calibration, len(data.worlds)))
    example = draw(
        data.worlds.take(chosen),
        seeded(trial.seed, -1),
        num_ctrl=config.network.num_ctrl,
        num_points=compute.points,
        dropout=config.dropout,
    )
    budget = compute.tera_macs * 1e12 * trial.share
    regressor, training = None, {}
    if trial.anchor == "given":
        regressor = given
    elif trial.anchor == "own":
        regressor, training["regressor"] = regressor_of_its_own(config, example, batches, compute)
        budget -= training["regressor"]["tera_macs"] * 1e12
    space = Space.fit(trial, example, regressor)
    network = space.network(trial, config)

    def predict(network: TrajectoryDiT, example: Example, generator: torch.Generator) -> Tensor:
        return prediction_loss(network, space, example, generator, trial, config.noisy_power)

    def through_steps(
        network: TrajectoryDiT, example: Example, generator: torch.Generator
    ) -> Tensor:
        return energy_loss(network, space, example, generator, trial)

    if trial.start == "velocity":
        training["velocity"] = spend(network, predict, batches, budget / 2, trial.seed, compute)
        budget -= training["velocity"]["tera_macs"] * 1e12
    loss = through_steps if trial.energy_steps else predict
    training |= spend(network, loss, batches, budget, trial.seed, compute, trial.rate)
    network.eval()
    begun = time.process_time()
    scores = {
        " ".join(map(str, way)): score_all(network, space, trial, way, data.scenes)
        for way in trial.ways
    }
    if trial.withheld is not None:
        for name, scenes in (("images", data.pictured), ("images withheld", data.blind())):
            scores[name] = score_all(network, space, trial, trial.ways[0], scenes)
    training["scoring_cpu_seconds"] = round(time.process_time() - begun, 1)
    return {"training": training, "scores": scores}
