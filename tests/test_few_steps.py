"""The experiments on few steps, on guidance and on paths: in miniature, and READMEs that say what their results say."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffusion4d.config import Dropout, PoolSpec
from diffusion4d.coordinates import Coordinates
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evaluation.report import fill
from diffusion4d.noise import PointNoise
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import Worlds, draw_shard

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SHARED = ("spaces", "scoring", "clips", "records", "training")
OWN = ("run", "report")
TOPICS = ("few_steps", "guidance", "paths")
MEASURED = [topic for topic in TOPICS if (EXPERIMENTS / topic / "results.json").exists()]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Scripts by folder and name. They import one another as neighbours, under names others may have."""
    names = (*SHARED, *OWN)
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    found = {}
    sys.path.insert(0, str(EXPERIMENTS / "trials"))
    for name in SHARED:
        found[name] = importlib.import_module(name)
    for topic in TOPICS:
        sys.path.insert(0, str(EXPERIMENTS / topic))
        for name in OWN:
            found[f"{topic}.{name}"] = importlib.import_module(name)
            sys.modules.pop(name)
        if topic == "few_steps":
            found["few_steps.packaged"] = importlib.import_module("packaged")
            sys.modules.pop("packaged")
        sys.path.remove(str(EXPERIMENTS / topic))
    yield found
    sys.path.remove(str(EXPERIMENTS / "trials"))
    for name in SHARED:
        sys.modules.pop(name)
    sys.modules.update(before)


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds(**draw_shard(PoolSpec(worlds=4, points=12, frames=13), 5, 4))


@pytest.fixture(scope="module")
def example(worlds: Worlds) -> Example:
    generator = torch.Generator().manual_seed(0)
    settings = {"num_ctrl": 12, "num_points": 8, "dropout": Dropout(0.0, 0.0)}
    return draw(worlds, generator, **settings)


@pytest.fixture(scope="module")
def networks(example: Example) -> tuple[TrajectoryDiT, TrajectoryDiT]:
    """A velocity network and its regressor, that have learnt nothing but say something."""
    torch.manual_seed(1)
    coordinates = dataclasses.asdict(Coordinates.fit(example.ctrl, example.evidence))
    sizes = {"width": 64, "depth": 1, "num_heads": 1, "token_channels": 0}
    regressor = TrajectoryDiT(**sizes, output="gaussian", coordinates=coordinates)
    white = dataclasses.asdict(PointNoise.white(12))
    velocity = TrajectoryDiT(**sizes, anchored=True, coordinates=coordinates, noise=white)
    for network in (velocity, regressor):
        torch.nn.init.normal_(network.project_out.weight, std=0.02)
        network.requires_grad_(False).eval()
    return velocity, regressor


def test_rows_spend_what_they_may_and_a_rate_of_zero_changes_nothing(
    scripts: dict[str, ModuleType], worlds: Worlds, example: Example, networks
) -> None:
    run = scripts["few_steps.run"]
    data = scripts["clips"].Data(worlds, [example], [], [])
    compute = scripts["training"].Compute(tera_macs=2e-4, batch=2, points=8)
    settings = run.Settings(compute=compute, rate=0.0)
    velocity = run.run(
        run.Row("nothing", (("angular", 1), ("angular", 2))), data, *networks, settings
    )
    for objective, sampler in (
        ("velocity", "angular"), ("energy", "angular"), ("consistency", "renoised"),
    ):  # fmt: skip
        found = run.run(run.Row(objective, ((sampler, 1),), 1), data, *networks, settings)
        told = found["training"]
        one = told["tera_macs"] / told["steps"]
        assert told["tera_macs"] - one < 2e-4 <= told["tera_macs"] + 5e-4
        assert told["steps"] >= 1
        # A consistency model's one step is the one step along the circle.
        assert found["scores"][f"{sampler} 1"] == velocity["scores"]["angular 1"]
    halved = run.run(run.ROWS["progressive"], data, *networks, settings)
    assert set(halved["training"]) == {"4", "2", "1"}
    assert halved["scores"]["angular 2"] == velocity["scores"]["angular 2"]


def test_training_changes_what_is_scored(
    scripts: dict[str, ModuleType], worlds: Worlds, example: Example, networks
) -> None:
    run = scripts["few_steps.run"]
    data = scripts["clips"].Data(worlds, [example], [], [])
    compute = scripts["training"].Compute(tera_macs=1e-3, batch=2, points=8, learning_rate=0.01)
    settings = run.Settings(compute=compute, rate=1.0)
    row = run.Row("consistency", (("renoised", 1),))
    trained, other = (
        run.run(r, data, *networks, settings)["scores"] for r in (row, run.Row("nothing", row.ways))
    )
    assert trained["renoised 1"] != other["renoised 1"]


def test_a_gradient_of_no_weight_is_no_guidance_and_the_snap_meets_the_tracks(
    scripts: dict[str, ModuleType], example: Example, networks
) -> None:
    run = scripts["guidance.run"]
    clips = list(run.alone(example))
    assert len(clips) == len(example.ctrl)
    assert torch.equal(clips[2].points[0], example.points[2])
    assert torch.equal(clips[2].evidence.ctrl[0], example.evidence.ctrl[2])
    seen = run.Observed.of(clips[0])
    velocity, regressor = networks
    pipe = Diffusion4DPipeline(velocity, regressor)
    clip = run.denoiser.prepare(velocity, clips[0].evidence, regressor)
    seeds = list(range(run.SAMPLES))
    drawn = {
        name: run.sampled(clip, way, seen, seeds)
        for name, way in {
            "none": run.Way(end=False), "nothing": run.Way("gradient", 0.0, end=False),
            "end": run.Way(),
        }.items()
    }  # fmt: skip
    torch.testing.assert_close(drawn["nothing"], drawn["none"])
    errors = {n: run.score(s, seen)["tracks"]["reprojection"] for n, s in drawn.items()}
    assert errors["end"] < 0.5 * errors["none"]
    ways = {name: run.WAYS[name] for name in ("end", "gradient 0.01")}
    held = run.run(pipe, [seen], ways)
    # Eight steps, and gradients for all but the first, which starts from pure noise.
    assert held["end"]["nfe"] >= 8
    ratio = held["gradient 0.01"]["nfe"] / held["end"]["nfe"]
    assert 1.5 < ratio < 2.2


def test_a_difference_of_known_values(scripts: dict[str, ModuleType]) -> None:
    found = scripts["records"].difference([1.0, None, 3.0, 5.0], [0.5, 2.0, 2.5, 4.5])
    assert found == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("topic", MEASURED)
def test_the_tables_are_what_the_results_say(scripts: dict[str, ModuleType], topic: str) -> None:
    results = json.loads((EXPERIMENTS / topic / "results.json").read_text())
    readme = (EXPERIMENTS / topic / "README.md").read_text()
    assert fill(readme, scripts[f"{topic}.report"].all_tables(results)) == readme


def test_the_readme_has_the_packaged_sampler_as_it_was_scored(
    scripts: dict[str, ModuleType],
) -> None:
    folder = EXPERIMENTS / "few_steps"
    results = json.loads((folder / "packaged.json").read_text())
    assert scripts["few_steps.packaged"].table(results) in (folder / "README.md").read_text()
