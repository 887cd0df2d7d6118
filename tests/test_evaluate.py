"""Scores: known numbers, and a miniature evaluation from worlds to a table."""

import dataclasses
import json
import math

import pytest
import torch
from models import CTRL, simple_worlds, small_pipeline

from diffusion4d import evaluate
from diffusion4d.baselines import Dressing
from diffusion4d.config import Evaluate
from diffusion4d.evaluate import Scores, ratio_with_interval, scenes, score, summarise

SUBSETS = ("all", "visible", "occluded")


@pytest.fixture(autouse=True)
def _few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "NUM_POINTS", 12)


def row(energy: float, variance: float, error: float, subsets=SUBSETS) -> Scores:
    """One scene's scores; the dressed twin's energy score is 2."""
    values = {"energy_score": energy, "variance": variance, "squared_error": error}
    return {
        "samples": dict.fromkeys(subsets, values),
        "dressed twin": {subset: {"energy_score": 2.0} for subset in subsets},
    }


def test_a_ratio_of_means_with_its_interval():
    flat = ratio_with_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert flat == {"ratio": 0.5, "low": 0.5, "high": 0.5}
    ours = [1.0 + 0.1 * math.sin(i) for i in range(200)]
    found = ratio_with_interval(ours, [1.0] * 200)
    # The standard error of a mean of sines of variance 0.005.
    assert found["ratio"] == pytest.approx(sum(ours) / 200)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * (0.005 / 200) ** 0.5, rel=0.15)
    # Not the mean of ratios.
    assert ratio_with_interval([1.0, 3.0], [1.0, 1.0])["ratio"] == 2


def test_a_summary_pools_variances_and_pairs_scenes():
    rows = [row(1.0, 4.0, 1.0), row(2.0, 0.0, 15.0, subsets=("all", "visible"))]
    result = summarise(rows, Evaluate(), {"twin": Dressing(0.1, 0.1, 0.1)})
    table = result["scores"]["samples"]
    assert table["all"] == {"scenes": 2, "energy_score": 1.5, "spread_skill": 0.5}
    assert table["occluded"] == {"scenes": 1, "energy_score": 1.0, "spread_skill": 2.0}
    assert result["energy_score_over_dressed_twin"]["all"]["ratio"] == 0.75
    assert result["energy_score_over_dressed_twin"]["occluded"]["ratio"] == 0.5
    json.dumps(result)


def test_scenes_are_what_they_are_alone():
    worlds = simple_worlds(3)
    every = list(scenes(worlds, CTRL))
    first = next(iter(scenes(worlds.take(torch.arange(1)), CTRL)))
    assert torch.equal(every[0].example.tracks, first.example.tracks)
    assert len(every) == 3
    subsets = every[0].subsets
    assert torch.equal(subsets["all"], subsets["visible"] | subsets["occluded"])
    assert not (subsets["visible"] & subsets["occluded"]).any()


def test_the_truth_has_no_error_and_a_shift_has_its_own():
    scene = next(iter(scenes(simple_worlds(1), CTRL)))
    samples = scene.truth.expand(evaluate.NUM_DRAWN, -1, -1, -1)
    for values in score(samples, scene).values():
        assert values["energy_score"] == pytest.approx(0, abs=1e-6)
        assert values["coverage"] == 1
    shifted = score(samples + torch.tensor([0.3, 0.0, 0.4]), scene)["all"]
    assert shifted["rms"] == pytest.approx(0.5, rel=1e-4)
    assert shifted["min_ade_joint"] == pytest.approx(0.5, rel=1e-4)
    # Of three axes one is right.
    assert shifted["coverage"] == pytest.approx(1 / 3)
    assert shifted["coverage_lateral"] == pytest.approx(1 / 2)
    assert shifted["coverage_depth"] == 0
    assert "coverage" not in score(samples[:1], scene)["all"]


def test_a_miniature_evaluation(tmp_path, monkeypatch):
    small_pipeline("anchored").save_pretrained(tmp_path / "sampler")
    small_pipeline("twin").save_pretrained(tmp_path / "twin")
    asked = []

    def draw_pool(folder, spec, **_):
        asked.append(spec)
        return []

    monkeypatch.setattr(evaluate, "draw_pool", draw_pool)
    monkeypatch.setattr(evaluate, "load_pool", lambda _: simple_worlds(5))
    fitted = []

    def fit_dressing(cases):
        fitted.extend(cases)
        return Dressing(0.1, 0.05, 0.02)

    monkeypatch.setattr(evaluate.baselines, "fit_dressing", fit_dressing)
    config = Evaluate(
        model=str(tmp_path / "sampler"),
        twin=str(tmp_path / "twin"),
        out=tmp_path / "new" / "scores.json",
        scenes=3,
        fitting_scenes=2,
        steps=2,
    )
    result = evaluate.run(config)
    assert json.loads(config.out.read_text()) == result
    assert asked[0].first_seed == 2**31
    assert len(fitted) == 4
    heads = {"regressor", "dressed regressor", "Gaussian head"}
    assert set(result["scores"]) == {"samples", "twin", "dressed twin", "flat lift"} | heads
    for method in result["scores"].values():
        assert method["all"]["scenes"] == 3
        assert all(math.isfinite(value) for subset in method.values() for value in subset.values())
    assert {"coverage", "spread_skill"} <= set(result["scores"]["samples"]["all"])
    again = evaluate.run(dataclasses.replace(config, scenes=2))
    assert again["scores"]["samples"]["all"] != result["scores"]["samples"]["all"]
    table = evaluate.markdown(result)
    assert table.count("\n| ") == 21
    assert "Energy score over the dressed twin's, occluded" in table
