"""The experiment on scenes with two answers: its measures on cases with known answers, in miniature, and its README."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from diffusion4d.evaluation.report import fill

FOLDER = Path(__file__).parent.parent / "experiments" / "two_answers"


def script(name: str) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location(f"two_answers_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, report = script("run"), script("report")


@pytest.fixture
def answers() -> torch.Tensor:
    return torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))


def test_places_are_coordinates_on_the_line_between_answers(answers: torch.Tensor) -> None:
    wanted = torch.tensor([0.0, 1.0, 0.5, -0.5, 0.3])
    points = torch.lerp(answers[0], answers[1], wanted[:, None, None, None])
    torch.testing.assert_close(run.place(points, answers), wanted, atol=1e-5, rtol=0)
    # What is at right angles to the line does not count.
    aside = torch.randn(answers[0].shape, generator=torch.Generator().manual_seed(1))
    along = answers[1] - answers[0]
    aside = aside - (aside * along).sum() / along.square().sum() * along
    torch.testing.assert_close(run.place(points + aside, answers), wanted, atol=1e-5, rtol=0)


def test_distance_is_to_the_nearer_answer_in_units_of_their_distance(answers: torch.Tensor) -> None:
    mask = torch.ones(5, 7, dtype=torch.bool)
    share = torch.tensor([0.0, 1.0, 0.5, 0.9, -1.0])
    points = torch.lerp(answers[0], answers[1], share[:, None, None, None])
    wanted = torch.tensor([0.0, 0.0, 0.5, 0.1, 1.0])
    torch.testing.assert_close(
        run.distance_to_nearest(points, answers, mask), wanted, atol=1e-5, rtol=0
    )
    # Outside the mask nothing counts.
    mask[2] = False
    points[:, 2] += 100
    torch.testing.assert_close(
        run.distance_to_nearest(points, answers, mask)[:2], torch.zeros(2), atol=1e-5, rtol=0
    )


def test_shares_of_samples_at_either_answer_and_between() -> None:
    found = run.shares(torch.tensor([0.0, 0.1, 0.3, 0.45, 0.55, 0.7, 0.9, 1.0, 1.2, 2.0]))
    assert found == pytest.approx({"first": 0.4, "second": 0.6, "between": 0.4})


def row(first: float) -> dict[str, float]:
    return {"first": first, "second": 1 - first, "between": 0.25, "distance": 0.1}


def test_a_forecast_that_knows_the_odds_has_the_perfect_scores() -> None:
    """Odds 0.7 and outcomes that are true at just that rate: the Brier score is odds (1 − odds)."""
    outcomes = [0] * 7 + [1] * 3
    result = run.forecast([row(0.7)] * 10, outcomes, [(0.7, 0.3)] * 10)
    assert result["both_found"] == 1
    assert result["brier"] == result["perfect_brier"] == pytest.approx(0.21)
    assert result["share_at_truth"] == result["perfect_share_at_truth"] == pytest.approx(0.58)
    assert result["error_of_share"] == pytest.approx(0)
    assert result["reliability"] == [{"said": 0.7, "was": 0.7, "scenes": 10}]


def test_a_sampler_of_one_answer_finds_one_and_is_scored_as_sure() -> None:
    result = run.forecast([row(1.0)] * 4, [0, 1, 0, 1], [(0.5, 0.5)] * 4)
    assert result["both_found"] == 0
    assert result["brier"] == 0.5
    assert result["perfect_brier"] == 0.25
    assert result["share_at_truth"] == 0.5
    split = run.forecast([row(0.0), row(1.0), row(1.0)], [1, 0, 1], [(0.5, 0.5)] * 3)
    assert split["reliability"] == [
        {"said": 0.0, "was": 0.0, "scenes": 1},
        {"said": 1.0, "was": 0.5, "scenes": 2},
    ]


@pytest.mark.parametrize("kind", ["reversal", "fork"])
def test_answers_are_in_the_order_of_the_examples_points(kind: str) -> None:
    settings = run.Settings(scenes=2, points=10, frames=9)
    for case in run.cases(kind, settings, 6):
        torch.testing.assert_close(
            case.answers[case.truth], case.example.points[0], atol=1e-4, rtol=0
        )
        assert run.place(case.answers, case.answers).tolist() == pytest.approx([0, 1])
        shown = run.shown(case.answers, case)
        apart = (case.answers[1] - case.answers[0]).norm(dim=-1).max()
        assert shown == pytest.approx([-float(apart) / 2, float(apart) / 2], abs=1e-3)
        hidden = ~case.example.visible[0]
        if kind == "fork":
            assert not (case.apart & ~hidden).any()


def test_in_miniature(tmp_path: Path) -> None:
    settings = run.Settings(
        out=tmp_path / "results.json", scenes=2, points=6, frames=8, samples=4, steps=1
    )
    results = run.main(settings)
    assert json.loads(settings.out.read_text())["kinds"] == results["kinds"]
    for kind in ("reversal", "fork"):
        assert set(results["kinds"][kind]) == {"samples", "Gaussian", "twin"}
        assert len(results["pictures"][kind]) == 2
        assert np.isfinite(results["pictures"][kind][0]["samples"]).all()
    marks = "<!-- scores -->\nold\n<!-- end -->\n<!-- reliability -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(marks)
    report.main(tmp_path)
    assert report.table(results) in (tmp_path / "README.md").read_text()
    assert (tmp_path / "two_answers.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="one place for the table 'scores'"):
        fill("nothing", {"scores": ""})


def test_the_readme_says_what_the_results_say() -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    assert report.table(results) in readme
    assert report.reliability(results) in readme


def test_so_does_the_trial_with_more_of_them() -> None:
    kinds = json.loads((FOLDER / "half.json").read_text())["kinds"]
    readme = (FOLDER / "README.md").read_text()
    for kind, title in report.KINDS.items():
        row = kinds[kind]["samples"]
        told = (
            f"| {title} | {row['both_found']:.0%} | {row['between']:.0%} | {row['distance']:.2f} |"
        )
        assert told in readme
