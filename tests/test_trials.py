"""The experiment on ways of training: its own losses and coordinates against the library's, and what ends a trial."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffusion4d import denoiser, objectives
from diffusion4d.config import Dropout, PoolSpec
from diffusion4d.coordinates import Coordinates
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evaluation.report import fill
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import Worlds, draw_shard

FOLDER = Path(__file__).parent.parent / "experiments" / "trials"
SIBLINGS = ("spaces", "scoring", "clips", "records", "training", "run", "report")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Experiments are not installed: their scripts import one another as neighbours, under names others may have."""
    before = {name: sys.modules.pop(name) for name in SIBLINGS if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in SIBLINGS}
    sys.path.remove(str(FOLDER))
    for name in SIBLINGS:
        sys.modules.pop(name)
    sys.modules.update(before)


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds(**draw_shard(PoolSpec(worlds=4, points=12, frames=13), 5, 4))


@pytest.fixture(scope="module")
def example(worlds: Worlds) -> Example:
    generator = torch.Generator().manual_seed(0)
    return draw(worlds, generator, num_ctrl=12, num_points=8, dropout=Dropout(0.0, 0.0))


@pytest.fixture(scope="module")
def regressor(example: Example) -> TrajectoryDiT:
    """One that has learnt nothing, but says something."""
    torch.manual_seed(1)
    coordinates = dataclasses.asdict(Coordinates.fit(example.ctrl, example.evidence))
    sizes = {"width": 64, "depth": 1, "num_heads": 1, "token_channels": 0}
    network = TrajectoryDiT(**sizes, output="gaussian", coordinates=coordinates)
    torch.nn.init.normal_(network.project_out.weight, std=0.02)
    return network.requires_grad_(False).eval()


def test_the_loss_of_v_is_the_librarys(
    scripts: dict[str, ModuleType], example: Example, regressor: TrajectoryDiT
) -> None:
    """The same numbers from the same generator; and its denoiser is the library's."""
    trial = scripts["spaces"].Trial(width=64)
    space = scripts["spaces"].Space.fit(trial, example, regressor)
    network = space.network(trial, scripts["training"].Compute().config(trial))
    torch.nn.init.normal_(network.project_out.weight, std=0.02)
    found = scripts["training"].prediction_loss(
        network, space, example, torch.Generator().manual_seed(2), trial, 0.5
    )
    anchor = denoiser.regress(regressor, example.evidence)
    x = denoiser.coordinates_of(network).encode(example.ctrl, example.evidence)
    expected = objectives.velocity_loss(
        network,
        example.evidence,
        x,
        torch.Generator().manual_seed(2),
        anchor=anchor,
        noisy_power=0.5,
    )
    assert torch.equal(found, expected)
    x_t, t = torch.randn(4, 2, 8, 12, 3), torch.tensor(0.4)
    own = space.prepare(network, example.evidence, trial)
    library = denoiser.prepare(network, example.evidence, regressor)
    assert torch.equal(own.denoise(x_t, t), library.denoise(x_t, t))
    assert torch.equal(own.decode(x_t), library.decode(x_t))


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction"])
def test_a_network_that_is_right_samples_the_data(
    scripts: dict[str, ModuleType], example: Example, kind: str
) -> None:
    """The loss of the right answer is 0, and the denoiser then gives back what was noised, on either path."""
    trial = scripts["spaces"].Trial(kind=kind, anchor="none")
    r, noise = torch.randn(2, 1, 3, 4, 3), torch.randn(2, 1, 3, 4, 3)
    t = torch.tensor(0.3)
    alpha, sigma = trial.schedule.alpha(t), trial.schedule.sigma(t)
    answer = scripts["training"].target(kind, r, noise, alpha, sigma)
    clips = scripts["spaces"].Clips(_Says(answer), Coordinates((1.0,) * 9, 1.0), trial)
    assert torch.allclose(clips.denoise(alpha * r + sigma * noise, t), r, atol=1e-5)


@dataclasses.dataclass
class _Says:
    """Stands for a prepared clip whose network gives this answer."""

    answer: torch.Tensor
    anchor: None = None

    def velocity(self, _: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_cartesian_coordinates_come_back_whitened(
    scripts: dict[str, ModuleType], worlds: Worlds
) -> None:
    many = worlds.take(torch.arange(4).repeat(8))
    example = draw(
        many, torch.Generator().manual_seed(0), num_ctrl=12, num_points=8, dropout=Dropout(0.0, 0.0)
    )
    space = scripts["spaces"].Cartesian.fit(example.ctrl, example.evidence)
    # Twice the limit, so that nothing is clipped.
    wide = dataclasses.replace(space, whitening=dataclasses.replace(space.whitening, limit=1e3))
    x = wide.encode(example.ctrl, example.evidence)
    back = wide.decode(x[:, None], example.evidence)[:, 0]
    assert torch.allclose(back, example.ctrl, atol=1e-4)
    # The evidence lifted at depth 1 is the origin.
    lifted = scripts["spaces"].lifted(example.evidence)
    assert torch.equal(space.encode(lifted, example.evidence), torch.zeros_like(lifted))
    # Without the tail that the fit leaves out; equal values at the cut are in, as they are there.
    squares = x[..., 2].square().flatten()
    rms = squares[squares <= squares.quantile(0.99)].mean().sqrt()
    assert rms == pytest.approx(1, abs=0.02)


def test_compute_ends_a_trial(
    scripts: dict[str, ModuleType], example: Example, regressor: TrajectoryDiT
) -> None:
    """Multiply-adds of a linear layer are known: B inputs x outputs forward, twice that backward less the input's."""
    layer = torch.nn.Linear(5, 3)

    def loss(network: torch.nn.Module, _: Example, __: torch.Generator) -> torch.Tensor:
        return network(torch.ones(7, 5)).square().mean()

    macs = 2 * 7 * 5 * 3
    compute = scripts["training"].Compute(batch=7)
    spent = scripts["training"].spend(layer, loss, lambda _: example, 3.5 * macs, 0, compute)
    assert spent["steps"] == 4
    assert spent["clips"] == 28
    falling = [scripts["training"].falling(f, 0.05) for f in (0.0, 0.05, 0.5, 1.0)]
    assert falling[0] < 0.2
    assert falling[1] == 1
    assert 0 < falling[2] < 1
    assert falling[3] == pytest.approx(0)


def test_scores_of_known_samples(scripts: dict[str, ModuleType], example: Example) -> None:
    """19 samples about the truth: symmetric errors are covered, spread and energy have closed forms."""
    offsets = torch.arange(-9, 10)[:, None, None, None] / 10.0
    truth = example.points[0]
    row = scripts["scoring"].score(truth + offsets, example, 0)
    assert row["coverage"][0] == 1
    assert row["squared_error"][0] == pytest.approx(0, abs=1e-6)
    one_axis = torch.arange(-9, 10) / 10.0
    expected = one_axis.abs().mean() - torch.pdist(one_axis[:, None]).mean() / 2
    assert row["energy"][0] == pytest.approx(float(3**0.5 * expected), rel=1e-4)


def test_the_table_is_what_results_say(scripts: dict[str, ModuleType]) -> None:
    """README and results.json agree, and a trial against itself has the ratio 1."""
    report = scripts["report"]
    results = json.loads((FOLDER / "results.json").read_text())
    assert set(results["trials"]) == set(scripts["run"].TRIALS)
    readme = (FOLDER / "README.md").read_text()
    assert fill(readme, report.all_tables(results)) == readme
    values = [1.0, 2.0, 4.0]
    assert report.ratio(values, values) == (1, 1, 1)
    assert report.ratio([2.0, None, 8.0], values)[0] == pytest.approx(2)
