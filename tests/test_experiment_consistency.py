"""The experiment on consistency energies: its numbers in cases with known answers, and its README."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "experiments" / "consistency"


def script(name: str) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    # What its scripts share lies beside them.
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"consistency_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, report = script("run"), script("report")


def test_ranks_correlate_as_spearman_says() -> None:
    error = torch.tensor([0.1, 0.5, 0.2, 0.9])
    assert run.rank_correlation(error.exp(), error) == pytest.approx(1)
    assert run.rank_correlation(-error, error) == pytest.approx(-1)
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # Ranks 0 2 1 3 against 0 1 2 3: 1 − 6 Σ d² / (n (n² − 1)) = 1 − 12 / 60.
    assert run.rank_correlation(scores, error) == pytest.approx(0.8)


def test_light_and_colours_change_little_by_little() -> None:
    images = torch.rand(5, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    coloured = run.tinted(images)
    assert torch.equal(coloured[0], images[0])
    torch.testing.assert_close(coloured[-1], images[-1].roll(1, 0))
    lit = run.lit(0.5 * torch.ones(5, 3, 8, 10))
    # The slope turns round: right is brighter at first and darker in the end, when all is dimmed to 0.6.
    assert lit[0, 0, 0, -1] > lit[0, 0, 0, 0]
    assert lit[-1, 0, 0, -1] < lit[-1, 0, 0, 0]
    assert float(lit[-1].mean()) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("how", ["joint", "each"])
def test_a_line_search_goes_down_whatever_the_first_step(how: str) -> None:
    """Two bowls of very different steepness about two places: what both ways lower is the sum of their shares."""
    g = torch.Generator().manual_seed(0)
    places = torch.randn((2, 3, 2, 3), generator=g, dtype=torch.float64)
    start = places.mean(0) + 1e-3 * torch.randn((4, 3, 2, 3), generator=g, dtype=torch.float64)
    known = {
        "steep": lambda x: 1e6 * (x - places[0]).square().sum((1, 2, 3)),
        "flat": lambda x: (x - places[1]).square().sum((1, 2, 3)),
    }
    weights = {name: 1 / float(energy(start).mean()) for name, energy in known.items()}

    def total(x: torch.Tensor) -> torch.Tensor:
        return sum((w * known[n](x) for n, w in weights.items()), torch.zeros(4))

    # The first step is longer than the way to the lowest place, which is half-way between the bowls' middles.
    before, taken = total(start), 0
    after, taken = run.down(known, start, how, steps=20)
    assert (total(after) <= before).all()
    assert total(after).max() - total(places.mean(0)[None].expand(4, -1, -1, -1)).max() < 1e-4
    assert taken > 20


def test_shares_are_pooled_over_pairs() -> None:
    row = {"change": "none", "energy": "patch", "baseline": "wide"}
    clips = [
        {"holds": [{**row, "hits": 3.0, "pairs": 4}]},
        {"holds": [{**row, "hits": 1.0, "pairs": 4}]},
        {},
    ]
    assert report.share(clips, "none", "patch", "wide") == (0.5, 8)


def test_the_readme_is_filled_from_its_results() -> None:
    clips = json.loads((FOLDER / "results.json").read_text())["clips"]
    readme = (FOLDER / "README.md").read_text()
    for table in (report.holds, report.ranks, report.spread, report.backward):
        assert table(clips) in readme
