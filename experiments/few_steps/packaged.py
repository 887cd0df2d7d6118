r"""Is the packaged sampler, in its own number of steps, as good as 50 DDIM steps of a velocity network?

Held-out actors kept for choosing, tracks alone, through the pipeline's own snap with its doubts about the tracks; every
network with its own noise temperature. 19 samples. Fair energy score and 90 % coverage of whole scenes and of hidden
points, a value a world, in packaged.json.

    PYTHONPATH=experiments/trials python experiments/few_steps/packaged.py --velocity runs/velocity/pipeline
"""

import dataclasses
import itertools
import math
import sys
from pathlib import Path

import torch
import tyro
from records import begun, difference, mean, ratio, write

from diffusion4d import metrics, sampling
from diffusion4d.atomic import replace_when_done
from diffusion4d.config import PoolSpec
from diffusion4d.evaluation.cases import Case, world_clips
from diffusion4d.evaluation.methods import Model
from diffusion4d.evaluation.report import fill
from diffusion4d.sampling import SamplerName
from diffusion4d.scenes.pool import HELD_OUT, draw_pool, load_pool

FOLDER = Path(__file__).parent
FIRST = HELD_OUT + 100_000
SUBSETS = ("all", "occluded")
SAMPLES = 19
"""So that 90 % is the interval from the least to the greatest."""
LEVEL = 0.9
WAYS: dict[str, tuple[str, tuple[SamplerName, int] | None]] = {
    "packaged": ("tiny", None),
    "packaged, 50 DDIM": ("tiny", ("ddim", 50)),
    "velocity, 50 DDIM": ("velocity", ("ddim", 50)),
    "velocity, 1 DDIM": ("velocity", ("ddim", 1)),
    "velocity, 4 DDIM": ("velocity", ("ddim", 4)),
    "velocity, 1 angular": ("velocity", ("angular", 1)),
    "velocity, 8 ancestral": ("velocity", ("ancestral", 8)),
}
"""Network and sampler; None: its own."""
REFERENCE = "velocity, 50 DDIM"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compare the packaged sampler with a velocity network's 50 steps."""

    velocity: Path = Path("runs/velocity/pipeline")
    pool: Path = Path("runs/choosing")
    """Folder of worlds to score; missing ones are drawn."""
    pack: Path = Path("runs/pack")
    worlds: int = 128
    points: int = 64
    out: Path = FOLDER / "packaged.json"


@torch.no_grad()
def score(model: Model, way: tuple[SamplerName, int] | None, case: Case) -> dict[str, list]:
    """Energy score and coverage, a value for each subset."""
    table = sampling.table_for(*(way or sampling.usual(model.pipe.transformer)))
    prepared = model.prepared(case, None)
    ctrl = sampling.sample(prepared, sampling.seeds_from(case.seed, SAMPLES), table)
    samples = case.trajectories(ctrl, model.multiplicity)
    masks = case.masks[[0, 2]]
    inside = metrics.covered(samples, case.truth, LEVEL).float().mean(-1)
    rows = {
        "energy": metrics.energy_score(samples[:16], case.truth, masks),
        "coverage": (inside * masks).sum((-2, -1)) / masks.sum((-2, -1)),
    }
    return {
        name: [round(v, 6) if math.isfinite(v) else None for v in row.tolist()]
        for name, row in rows.items()
    }


def table(results: dict) -> str:
    """Every way beside 50 DDIM steps of the velocity network."""
    lines = [
        "| way | ES all | ÷ velocity 50 | ES occluded | ÷ velocity 50 | coverage of 90 % | − velocity 50 |",
        "|---|---|---|---|---|---|---|",
    ]
    reference = results["ways"][REFERENCE]
    for name, scores in results["ways"].items():
        cells = [name]
        for subset in SUBSETS:
            mine, theirs = scores[subset]["energy"], reference[subset]["energy"]
            middle, low, high = ratio(mine, theirs)
            cells += [f"{mean(mine):.4f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]"]
        mine, theirs = scores["all"]["coverage"], reference["all"]["coverage"]
        middle, low, high = difference(mine, theirs)
        cells += [f"{mean(mine):.3f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    """Score what is not scored yet, and fill the table of the README."""
    told = {"worlds": settings.worlds, "points": settings.points, "samples": SAMPLES}
    results = begun(settings.out, told, "ways")
    spec = PoolSpec(
        worlds=settings.worlds,
        points=128,
        first_seed=FIRST,
        pack=settings.pack,
        splits=("held-out",),
        actors_only=True,
    )
    pool = load_pool(draw_pool(settings.pool, spec))
    clips = list(itertools.islice(world_clips(pool, settings.points), settings.worlds))
    models = {
        "tiny": Model.load("tiny", with_tokens=False),
        "velocity": Model.load(settings.velocity, with_tokens=False),
    }
    for name, (network, way) in WAYS.items():
        if name in results["ways"]:
            continue
        held: dict = {subset: {"energy": [], "coverage": []} for subset in SUBSETS}
        for seed, clip in enumerate(clips):
            for metric, values in score(models[network], way, Case.of(clip, seed)).items():
                for subset, value in zip(SUBSETS, values, strict=True):
                    held[subset][metric].append(value)
        results["ways"][name] = held
        write(results, settings.out)
        print(name, mean(held["all"]["energy"]), mean(held["all"]["coverage"]), file=sys.stderr)
    page = FOLDER / "README.md"
    with replace_when_done(page) as temporary:
        temporary.write_text(fill(page.read_text(), {"packaged": table(results)}))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
