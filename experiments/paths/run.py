r"""Is it better to diffuse along the circle or along the straight line, with everything else the same?

    cosine       x_t = cos(pi t / 2) x_0 + sin(pi t / 2) eps      the network says v = alpha eps - sigma x_0
    straight     x_t = (1 - t) x_0 + t eps                        the network says eps - x_0, the flow

Same network and first weights, same regressor below it, same batches, same correlated noise at the same ratios of
signal to noise, same multiply-adds. Sampled in 1 to 16 steps, equal in t on either path: ancestral steps with unit
data variance, ddim (Euler's method on the straight path), angular (Euler's method on the circle, for either path).

    PYTHONPATH=experiments/trials python experiments/paths/run.py       trials in results.json are skipped
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from clips import Data
from records import begun, mean, write
from spaces import Trial, Way
from training import Compute, run

from diffusion4d.train import read_network

STEPS = (1, 2, 4, 8, 16)
ALL: tuple[Way, ...] = (
    *(("ancestral", steps) for steps in STEPS),
    *(("ddim", steps) for steps in STEPS),
    *(("angular", steps) for steps in STEPS[:3]),
)
FEW: tuple[Way, ...] = (("ancestral", 2), ("ancestral", 8), ("ddim", 2), ("ddim", 8))
"""For the second seed, which is to say how much of a difference is chance."""

TRIALS = {
    "cosine": Trial(ALL),
    "straight": Trial(ALL, kind="flow_prediction"),
    "cosine, seed 1": Trial(FEW, seed=1),
    "straight, seed 1": Trial(FEW, kind="flow_prediction", seed=1),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train the same network on two paths between noise and data, and score both in few and many steps."""

    out: Path = Path(__file__).parent / "results.json"
    pool: Path = Path("runs/pool")
    """Folder of training worlds; the first `shards` are used."""
    choosing: Path = Path("runs/choosing")
    """Folder of worlds to score, not among those that any table of results is made from."""
    regressor: Path = Path("diffusion4d/weights/tiny/regressor")
    shards: int = 48
    scored: int = 96
    compute: Annotated[Compute, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Compute(tera_macs=6.0)
    )

    def recorded(self) -> dict:
        """What the numbers depend on: no folders."""
        return {"shards": self.shards, "scored": self.scored, **self.compute.recorded()}


def main(settings: Settings) -> dict:
    """Run what is missing; results.json is replaced after every trial.

    Raises:
        ValueError: results.json was made with other settings.
    """
    results = begun(settings.out, settings.recorded(), "trials")
    data = Data.tracked(
        settings.pool,
        settings.choosing,
        shards=settings.shards,
        scored=settings.scored,
        num_points=settings.compute.points,
    )
    given = read_network(settings.regressor).requires_grad_(False).eval()
    for name, trial in TRIALS.items():
        if name in results["trials"]:
            continue
        results["trials"][name] = run(trial, data, given, settings.compute)
        write(results, settings.out)
        scores = results["trials"][name]["scores"]
        print(
            name, {way: round(mean(s["all"]["energy"]), 4) for way, s in scores.items()}, flush=True
        )
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
