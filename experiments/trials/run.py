r"""Which way of training a sampler of residual trajectories gives most for the same multiply-adds?

One trial changes one thing of a baseline: residuals of a given regressor in projective coordinates, noise that is
correlated over points and time, v-prediction on the cosine path. What changes:

    coordinates   projective  (X / Z - e, log Z)       Cartesian  (X - e, Z - 1): off the evidence e lifted at depth 1
    prediction    v = alpha eps - sigma x_0            x_0, or eps - x_0 on the straight path (flow)
    noise         correlated                           white
    objective     velocity, then 1 to 8 steps          energy score of 2 samples, through 1 or 2 steps; after velocity
    anchor        a given regressor                    none, or one trained within the same compute
    width         192                                  128, 256
    tokens        none                                 on half of the batches, withheld in 10 or 50 % of these

A trial ends when its multiply-adds are spent: those of matrix products, counted as they run, forward and backward,
the frozen regressor's included. The learning rate falls with what is spent, not with steps. Trials of a seed see the
same batches in the same order, as far as they get.

    python experiments/trials/run.py            trials that are in results.json are skipped

Shape letters:  B clips   K samples   N points   M control points   T frames.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from clips import Data
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from scoring import SAMPLES, score_all
from spaces import COSINE, Space, Trial, Way
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion4d import denoiser, objectives, sampling
from diffusion4d.atomic import replace_when_done
from diffusion4d.config import Dropout, Network, Optimisation, Train
from diffusion4d.coordinates import Coordinates
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.train import draw_example, read_network, seeded
from samplers.predictions import target

USUAL: tuple[Way, ...] = (("ancestral", 8),)
EVERY: tuple[Way, ...] = (
    *USUAL,
    *(("ancestral", steps) for steps in (1, 2, 4)),
    *(("angular", steps) for steps in (1, 2, 4)),
)
EULER: Way = ("ddim", 8)
"""On the straight path, DDIM is Euler's method."""

TRIALS = {
    "untrained": Trial((("angular", 1),), share=0.0),
    "untrained, white noise": Trial((("angular", 1),), noise="white", share=0.0),
    "baseline": Trial(EVERY),
    "energy, 1 step": Trial((("angular", 1),), energy_steps=1),
    "energy, 2 steps": Trial((("angular", 2),), energy_steps=2),
    "energy, 2 steps, after v": Trial((("angular", 2),), energy_steps=2, start="velocity"),
    "energy, 2 steps, rate ÷ 3": Trial((("angular", 2),), energy_steps=2, rate=1 / 3),
    "x0": Trial(kind="sample"),
    "flow": Trial((*USUAL, EULER), kind="flow_prediction"),
    "white noise": Trial(noise="white"),
    "no anchor": Trial(anchor="none"),
    "no anchor, Cartesian": Trial(anchor="none", coordinates="cartesian"),
    "own anchor": Trial(anchor="own"),
    "width 128": Trial(width=128),
    "width 256": Trial(width=256),
    "baseline, seed 1": Trial(seed=1),
    "tokens, 10 % withheld": Trial(withheld=0.1),
    "tokens, 50 % withheld": Trial(withheld=0.5),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train samplers in several ways at equal compute, and score them on held-out worlds."""

    out: Path = Path(__file__).parent / "results.json"
    pool: Path = Path("runs/pool3")
    """Folder of training worlds; the first `shards` are used."""
    choosing: Path = Path("runs/choosing3")
    """Folder of worlds to score, not among those that any table of results is made from."""
    rendered: Path = Path("runs/rendered")
    """Folder of rendered worlds with cached tokens; each stack's last ones are scored."""
    regressor: Path = Path("runs/regressor3/model")
    encoder: str = "a86c0b00"
    """How the fingerprint of the encoder starts whose tokens are used."""
    only: tuple[str, ...] = ()
    """Trials to run; all by default."""
    shards: int = 24
    scored: int = 96
    held_back: int = 40
    """One in so many of the rendered worlds is scored."""
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
        """What the numbers depend on: no folders."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if not isinstance(v, Path) and k != "only"}
        return {**kept, "samples": SAMPLES}

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
    settings: Settings,
    rate: float = 1.0,
) -> dict:
    """Train until the multiply-adds of `budget` are spent; the network ends with its averaged weights.

    rate: factor on the settings' learning rate.
    """
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.99), weight_decay=0.01)
    ema = EMAModel(parameters, decay=settings.ema, use_ema_warmup=True, power=0.75)
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
        now = rate * settings.learning_rate * falling(spent / budget, settings.warmup)
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
        "clips": step * settings.batch,
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
    config: Train, example: Example, batches: Callable[[int], Example], settings: Settings
) -> tuple[TrajectoryDiT, dict]:
    """A "gaussian" network from half of the compute, frozen."""
    coordinates = dataclasses.asdict(Coordinates.fit(example.ctrl, example.evidence))
    torch.manual_seed(config.seed)
    sizes = dataclasses.asdict(config.network)
    network = TrajectoryDiT(**sizes, output="gaussian", coordinates=coordinates)

    def loss(network: TrajectoryDiT, example: Example, _: torch.Generator) -> Tensor:
        x = denoiser.coordinates_of(network).encode(example.ctrl, example.evidence)
        return objectives.gaussian_loss(network, example.evidence, x)

    spent = spend(network, loss, batches, settings.tera_macs * 5e11, config.seed, settings)
    return network.requires_grad_(False).eval(), spent


def run(trial: Trial, data: Data, given: TrajectoryDiT, settings: Settings) -> dict:
    """Train a sampler, on the given regressor or otherwise, and score it."""
    config = settings.config(trial)
    imaged = [] if trial.withheld is None else data.imaged

    def batches(step: int) -> Example:
        return draw_example(config, data.worlds, step, 0, imaged)

    chosen = torch.arange(min(settings.calibration, len(data.worlds)))
    example = draw(
        data.worlds.take(chosen),
        seeded(trial.seed, -1),
        num_ctrl=config.network.num_ctrl,
        num_points=settings.points,
        dropout=config.dropout,
    )
    budget = settings.tera_macs * 1e12 * trial.share
    regressor, training = None, {}
    if trial.anchor == "given":
        regressor = given
    elif trial.anchor == "own":
        regressor, training["regressor"] = regressor_of_its_own(config, example, batches, settings)
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
        training["velocity"] = spend(network, predict, batches, budget / 2, trial.seed, settings)
        budget -= training["velocity"]["tera_macs"] * 1e12
    loss = through_steps if trial.energy_steps else predict
    training |= spend(network, loss, batches, budget, trial.seed, settings, trial.rate)
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


def write(results: dict, path: Path) -> None:
    """Whole or not at all; a list of numbers is one line."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    with replace_when_done(path) as temporary:
        temporary.write_text(text + "\n")


def main(settings: Settings) -> dict:
    """Run what is missing; results.json is replaced after every trial.

    Raises:
        ValueError: results.json was made with other settings.
    """
    results: dict = {"settings": settings.recorded(), "trials": {}}
    if settings.out.exists():
        results = json.loads(settings.out.read_text())
        if results["settings"] != settings.recorded():
            raise ValueError(f"need the settings of {settings.out}, or another --out")
    data = Data.load(
        settings.pool,
        settings.choosing,
        settings.rendered,
        encoder=settings.encoder,
        shards=settings.shards,
        scored=settings.scored,
        held_back=settings.held_back,
        num_points=settings.points,
    )
    given = read_network(settings.regressor).requires_grad_(False).eval()
    for name, trial in TRIALS.items():
        if name in results["trials"] or (settings.only and name not in settings.only):
            continue
        results["trials"][name] = run(trial, data, given, settings)
        write(results, settings.out)
        first = next(iter(results["trials"][name]["scores"].values()))
        energy = first["all"]["energy"]
        print(name, results["trials"][name]["training"], sum(energy) / len(energy), flush=True)
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
