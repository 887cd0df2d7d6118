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
from pathlib import Path
from typing import Annotated

import tyro
from clips import Data
from records import begun, write
from spaces import Trial, Way
from training import Compute, run

from diffusion4d.train import read_network

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
    encoder: str = "4274f123"
    """How the fingerprint of the encoder starts whose tokens are used."""
    only: tuple[str, ...] = ()
    """Trials to run; all by default."""
    shards: int = 24
    scored: int = 96
    held_back: int = 40
    """One in so many of the rendered worlds is scored."""
    compute: Annotated[Compute, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Compute)

    def recorded(self) -> dict:
        """What the numbers depend on: no folders."""
        counted = {
            name: getattr(self, name) for name in ("encoder", "shards", "scored", "held_back")
        }
        return {**counted, **self.compute.recorded()}


def main(settings: Settings) -> dict:
    """Run what is missing; results.json is replaced after every trial.

    Raises:
        ValueError: results.json was made with other settings.
    """
    results = begun(settings.out, settings.recorded(), "trials")
    data = Data.load(
        settings.pool,
        settings.choosing,
        settings.rendered,
        encoder=settings.encoder,
        shards=settings.shards,
        scored=settings.scored,
        held_back=settings.held_back,
        num_points=settings.compute.points,
    )
    given = read_network(settings.regressor).requires_grad_(False).eval()
    for name, trial in TRIALS.items():
        if name in results["trials"] or (settings.only and name not in settings.only):
            continue
        results["trials"][name] = run(trial, data, given, settings.compute)
        write(results, settings.out)
        first = next(iter(results["trials"][name]["scores"].values()))
        energy = first["all"]["energy"]
        print(name, results["trials"][name]["training"], sum(energy) / len(energy), flush=True)
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
