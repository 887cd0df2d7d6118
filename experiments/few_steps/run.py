r"""What makes a sampler of 1, 2 or 4 steps out of a velocity network, for the same multiply-adds?

All start from the same velocity network, on the same regressor, and see the same batches:

    velocity      nothing: samplers that need no training, in 1 to 50 steps
    further       more of the objective it already had
    energy        the energy score of 2 samples through 1, 2 or 4 steps (one network for each)
    progressive   8 steps halved to 4, to 2, to 1, each with a third of the compute   (Salimans & Ho 2022)
    consistency   the way to the data from any time, against itself one of 8 steps of the velocity network further
                  (Song et al. 2023): one network, for any number of steps with fresh noise between them

A row ends when its multiply-adds are spent, those of teachers and of the regressor included (`training.py` of trials).
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from clips import Data
from records import begun, mean, write
from scoring import Scores, score_all
from spaces import Space, Trial, Way
from torch import Generator, Tensor
from training import Compute, Loss, spend

from diffusion4d import denoiser, objectives, sampling
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.scenes.batches import Example
from diffusion4d.train import draw_example, read_network

HALVINGS = (4, 2, 1)
INTERVALS = 8
FEW = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Row:
    """What a network is trained with, for how many steps, and the ways it is sampled."""

    objective: Literal["nothing", "velocity", "energy", "progressive", "consistency"]
    ways: tuple[Way, ...]
    steps: int = 0


ROWS = {
    "velocity": Row(
        "nothing",
        (
            *(("ddim", steps) for steps in (50, 8, 4, 2, 1)),
            *(("ancestral", steps) for steps in (1, 2, 4, 8)),
            *(("angular", steps) for steps in (1, 2, 4, 8)),
            *(("dpmpp_2m", steps) for steps in (1, 2, 4, 8)),
        ),
    ),
    "energy, 2 steps": Row("energy", (("angular", 2),), 2),
    "consistency": Row("consistency", tuple(("renoised", steps) for steps in FEW)),
    "progressive": Row("progressive", tuple(("angular", steps) for steps in HALVINGS)),
    "velocity, further": Row(
        "velocity", (("ancestral", 8), *(("angular", steps) for steps in FEW)), 0
    ),
    "energy, 1 step": Row("energy", (("angular", 1),), 1),
    "energy, 4 steps": Row("energy", (("angular", 4),), 4),
}
REST = {
    "velocity, 50 steps": Row("nothing", (("ancestral", 50), ("angular", 50), ("dpmpp_2m", 50)))
}
"""What takes longest to score and decides nothing: run last."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train few-step samplers out of one velocity network in several ways at equal compute, and score them."""

    out: Path = Path(__file__).parent / "results.json"
    pool: Path = Path("runs/pool")
    """Folder of training worlds; the first `shards` are used."""
    choosing: Path = Path("runs/choosing")
    """Folder of worlds to score, not among those that any table of results is made from."""
    regressor: Path = Path("runs/regressor/model")
    velocity: Path = Path("runs/velocity/model")
    shards: int = 48
    scored: int = 96
    rate: float = 0.3
    """Learning rate over that of `compute`: all rows start from a trained network."""
    compute: Annotated[Compute, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Compute)

    def recorded(self) -> dict:
        """What the numbers depend on: no folders."""
        told = {name: getattr(self, name) for name in ("shards", "scored", "rate")}
        return {**told, "intervals": INTERVALS, **self.compute.recorded()}


def loss_of(
    objective: str, steps: int, teacher: TrajectoryDiT, regressor: TrajectoryDiT, power: float
) -> Loss:
    """The library's loss for a network with this regressor and teacher."""

    def velocity(network: TrajectoryDiT, example: Example, generator: Generator) -> Tensor:
        x = denoiser.coordinates_of(network).encode(example.ctrl, example.evidence)
        anchor = denoiser.regress(regressor, example.evidence)
        return objectives.velocity_loss(
            network, example.evidence, x, generator, anchor=anchor, noisy_power=power
        )

    def energy(network: TrajectoryDiT, example: Example, generator: Generator) -> Tensor:
        clip = denoiser.prepare(network, example.evidence, regressor)
        table = sampling.table_for("angular", steps)
        return objectives.energy_loss(clip, example, generator, table=table, num_samples=2)

    def progressive(network: TrajectoryDiT, example: Example, generator: Generator) -> Tensor:
        student, taught = (
            denoiser.prepare(n, example.evidence, regressor) for n in (network, teacher)
        )
        return objectives.progressive_loss(student, taught, example, generator, num_steps=steps)

    def consistency(network: TrajectoryDiT, example: Example, generator: Generator) -> Tensor:
        student, taught = (
            denoiser.prepare(n, example.evidence, regressor) for n in (network, teacher)
        )
        return objectives.consistency_loss(
            student, taught, example, generator, num_intervals=INTERVALS, noisy_power=power
        )

    losses = {
        "velocity": velocity,
        "energy": energy,
        "progressive": progressive,
        "consistency": consistency,
    }
    return losses[objective]


def run(
    row: Row, data: Data, given: TrajectoryDiT, regressor: TrajectoryDiT, settings: Settings
) -> dict:
    """Train as the row says and score every way; a progressive network is scored at each halving."""
    config = settings.compute.config(Trial())
    space = Space(denoiser.coordinates_of(given), regressor, denoiser.noise_of(given))

    def batches(step: int) -> Example:
        return draw_example(config, data.worlds, step)

    def scored(network: TrajectoryDiT, ways: Sequence[Way]) -> dict[str, Scores]:
        network.eval()
        return {
            " ".join(map(str, way)): score_all(network, space, Trial(), way, data.scenes)
            for way in ways
        }

    def taught(steps: int, teacher: TrajectoryDiT, share: float) -> tuple[TrajectoryDiT, dict]:
        network = copy.deepcopy(teacher).requires_grad_(True).train()
        loss = loss_of(row.objective, steps, teacher, regressor, config.noisy_power)
        budget = settings.compute.tera_macs * 1e12 * share
        spent = spend(network, loss, batches, budget, 0, settings.compute, settings.rate)
        return network.requires_grad_(False).eval(), spent

    if row.objective == "nothing":
        return timed({}, lambda: scored(given, row.ways))
    if row.objective != "progressive":
        network, spent = taught(row.steps, given, 1.0)
        return timed(spent, lambda: scored(network, row.ways))
    training, scores, teacher = {}, {}, given
    for way in row.ways:
        teacher, training[str(way[1])] = taught(way[1], teacher, 1 / len(row.ways))
        scores |= scored(teacher, [way])
    return {"training": training, "scores": scores}


def timed(training: dict, scored: Callable[[], dict[str, Scores]]) -> dict:
    """Scores, and how long they took."""
    begun = time.process_time()
    scores = scored()
    seconds = round(time.process_time() - begun, 1)
    return {"training": {**training, "scoring_cpu_seconds": seconds}, "scores": scores}


def main(settings: Settings) -> dict:
    """Run what is missing; results.json is replaced after every row.

    Raises:
        ValueError: results.json was made with other settings.
    """
    results = begun(settings.out, settings.recorded(), "rows")
    data = Data.tracked(
        settings.pool,
        settings.choosing,
        shards=settings.shards,
        scored=settings.scored,
        num_points=settings.compute.points,
    )
    regressor, given = (
        read_network(folder).requires_grad_(False).eval()
        for folder in (settings.regressor, settings.velocity)
    )
    for name, row in {**ROWS, **REST}.items():
        if name in results["rows"]:
            continue
        results["rows"][name] = run(row, data, given, regressor, settings)
        write(results, settings.out)
        scores = results["rows"][name]["scores"]
        print(
            name, {way: round(mean(s["all"]["energy"]), 4) for way, s in scores.items()}, flush=True
        )
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
