"""Evaluation: subsets, pooled statistics with known values, and a miniature run from worlds to files."""

import dataclasses
import json
import math
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from models import CTRL, simple_worlds, small_pipeline

from diffusion4d import baselines, evaluation, metrics, sampling
from diffusion4d.baselines import Dressing
from diffusion4d.config import Evaluate
from diffusion4d.errors import UserError
from diffusion4d.evaluation import command, fits, summary
from diffusion4d.evaluation.cases import SUBSETS, Case, world_clips
from diffusion4d.evaluation.methods import HEADS, NUM_SCORED, Model, Models, head_samples
from diffusion4d.evaluation.scores import EDGES, Scored, score
from diffusion4d.noise import PointNoise
from diffusion4d.sampling import NUM_STEPS

POINTS = 12


def a_case() -> Case:
    return Case.of(next(world_clips(simple_worlds(1), POINTS)), seed=0)


def scored(values: dict[str, float], **more) -> Scored:
    """The same numbers in every subset; what is not given is absent."""
    empty = {"spread": {}, "ranks": None, "binned": None}
    return Scored({k: np.full(len(SUBSETS), v) for k, v in values.items()}, **(empty | more))


def test_a_world_is_what_it_is_alone():
    worlds = simple_worlds(3)
    every = list(world_clips(worlds, POINTS))
    last = next(world_clips(worlds.take(torch.tensor([2])), POINTS, first=2))
    assert torch.equal(every[2].tracks, last.tracks)
    assert every[2].name == last.name == "world-000002"
    assert Case.of(every[2]).seed == Case.of(last).seed != Case.of(every[1]).seed
    case = Case.of(every[0], 0)
    everything, visible, occluded, moving = case.masks
    assert torch.equal(everything, visible | occluded)
    assert not (visible & occluded).any()
    assert torch.equal(moving, every[0].moving[:, None].expand_as(moving))
    assert case.truth[:, 0, 2].median() == pytest.approx(1)


def test_a_withheld_focal_length_stretches_the_truth_onto_the_same_tracks():
    clips = list(world_clips(simple_worlds(20), POINTS))
    withheld = [clip for clip in clips if not clip.focal_known]
    assert withheld
    for clip in withheld:
        case = Case.of(clip, 0)
        told = Case.of(dataclasses.replace(clip, focal_known=True), 0)
        assert not torch.allclose(case.intrinsics, told.intrinsics)
        torch.testing.assert_close(
            case.project(case.truth[None]), told.project(told.truth[None]), atol=1e-3, rtol=1e-4
        )
        assert torch.equal(case.truth[..., 2], told.truth[..., 2])


def test_the_truth_has_no_error_and_a_shift_has_its_own():
    case = a_case()
    samples = case.truth.expand(metrics.CALIBRATION_DRAWS, -1, -1, -1)
    exact = score(samples, case)
    for name in ("energy_score", "crps_depth", "min_ade_joint", "min_fde_joint", "rms_lateral"):
        assert exact.values[name] == pytest.approx(0, abs=1e-6), name
    shifted = score(samples + torch.tensor([0.3, 0.0, 0.4]), case).values
    assert shifted["rms"] == pytest.approx(0.5, rel=1e-4)
    assert shifted["energy_score_lateral"] == pytest.approx(0.3, rel=1e-4)
    assert shifted["crps_lateral"] == pytest.approx(0.15, rel=1e-4)
    assert shifted["point_energy_score_depth"] == pytest.approx(0.4, rel=1e-4)
    assert shifted["min_ade_marginal_4"] == pytest.approx(0.5, rel=1e-4)
    assert shifted["diversity"] == pytest.approx(0, abs=1e-6)
    # Realism is of whole scenes; stretch does not see a shift.
    truth = score(case.truth[None], case).values
    assert shifted["edge_stretch"][0] == pytest.approx(truth["edge_stretch"][0], abs=1e-4)
    assert np.isnan(shifted["jitter"][1:]).all()
    # The noise of the tracker, in px at 256.
    assert 0 < truth["reprojection"][0] < 3
    assert score(samples[:1], case).ranks is None


def test_errors_are_binned_by_what_was_predicted():
    case = a_case()
    g = torch.Generator().manual_seed(0)
    noise = torch.randn((metrics.CALIBRATION_DRAWS, *case.truth.shape), generator=g)
    found = score(case.truth + 0.1 * noise, case)
    binned = found.binned[0]
    count = case.truth[..., 0].numel()
    assert binned[..., 0].sum(1).tolist() == [2 * count, count]
    place = np.searchsorted(EDGES, 0.1) - 1
    assert binned[1, place - 1 : place + 2, 0].sum() == count
    # The mean misses by 0.1 / sqrt(39); the variance stands for a fresh draw.
    mean_square = binned[1, :, 2].sum() / count
    assert mean_square == pytest.approx(0.01 / metrics.CALIBRATION_DRAWS, rel=0.3)
    assert binned[1, :, 1].sum() / count == pytest.approx(0.01, rel=0.1)
    assert found.ranks.shape == (4, 3, 40)
    assert found.ranks[0].sum() == 3 * count
    variance, error = found.spread["_depth"][0]
    assert (variance, error) == pytest.approx((0.01, mean_square), rel=0.1)


def test_means_ratios_and_their_intervals():
    rng = np.random.default_rng(0)
    values = 1 + 0.3 * rng.standard_normal(200)
    rows = [
        {"samples": scored({"energy_score": v, "ade": v}), "l2 twin": scored({"energy_score": 2.0, "ade": 1.0}),
         "dressed l2 twin": scored({"energy_score": 2 * v, "ade": 1.0})}
        for v in values
    ]  # fmt: skip
    cell = summary.table(rows)["samples"]["all"]["energy_score"]
    assert cell["value"] == pytest.approx(values.mean())
    width = 2 * 1.96 * values.std() / math.sqrt(200)
    assert cell["high"] - cell["low"] == pytest.approx(width, rel=0.1)
    ratios = summary.ratios(rows)
    # Paired: above and below rise and fall together.
    paired = ratios["energy score / dressed twin's"]["all"]
    assert paired == {"value": 0.5, "low": 0.5, "high": 0.5, "typical": 0.5}
    unpaired = ratios["energy score / twin's error"]["occluded"]
    assert unpaired["value"] == pytest.approx(values.mean() / 2)
    assert unpaired["typical"] == pytest.approx(np.median(values) / 2)
    assert "energy score / Gaussian head's" not in ratios
    # Of means, not the mean of ratios.
    assert summary.ratio_with_interval([1.0, 3.0], [1.0, 1.0])["ratio"] == 2


def test_the_strongest_twin_is_the_one_that_counts():
    def row(l2: float, l1: float, dressed_l2: float, dressed_l1: float) -> dict[str, Scored]:
        names = ("l2 twin", "l1 twin", "dressed l2 twin", "dressed l1 twin")
        numbers = zip(names, (l2, l1, dressed_l2, dressed_l1), strict=True)
        return {name: scored({"energy_score": v, "ade": v}) for name, v in numbers}

    names = summary.stand_ins([row(1.0, 4.0, 2.0, 1.0), row(2.0, 2.0, 2.0, 2.0)])
    assert names["twin"] == "l2 twin"
    assert names["dressed twin"] == "dressed l1 twin"


def test_a_subset_without_points_is_left_out_of_means():
    some = scored({"energy_score": 3.0, "ade": 1.0})
    without = scored({"energy_score": 1.0, "ade": 1.0})
    without.values["energy_score"][2] = without.values["ade"][2] = np.nan
    table = summary.table([{"samples": some}, {"samples": without}])["samples"]
    assert table["all"]["clips"] == 2
    assert table["all"]["energy_score"]["value"] == 2
    assert table["occluded"]["clips"] == 1
    assert table["occluded"]["energy_score"]["value"] == 3


def test_variances_and_ranks_are_pooled():
    uniform = np.ones((len(SUBSETS), 3, 40), dtype=np.int64)
    low = np.zeros_like(uniform)
    low[..., 0] = 40

    def row(variance: float, error: float, ranks: np.ndarray) -> dict[str, Scored]:
        spread = {s: np.tile([variance, error], (len(SUBSETS), 1)) for s in ("", "_lateral", "_depth")}  # fmt: skip
        return {"samples": scored({"ade": 1.0}, spread=spread, ranks=ranks)}

    cells = summary.table([row(4.0, 1.0, uniform), row(0.0, 15.0, uniform)])["samples"]["all"]
    assert cells["spread_skill_depth"]["value"] == 0.5
    assert cells["calibration_error"]["value"] == pytest.approx(0, abs=1e-6)
    assert cells["ranks_lateral"] == [4] * 40
    # Truth always below every sample: nothing is covered, and the error is the mean of the levels.
    cells = summary.table([row(1.0, 1.0, low)])["samples"]["all"]
    assert cells["calibration_error_depth"]["value"] == pytest.approx(0.5)
    cells = summary.table([row(1.0, 1.0, low), row(1.0, 1.0, uniform)])["samples"]["all"]
    assert cells["coverage_lateral"] == pytest.approx([q / 2 for q in metrics.LEVELS])


def test_an_odd_first_clip_takes_no_metric_from_the_others():
    rows = [{"samples": scored({"ade": 1.0})}, {"samples": scored({"ade": 3.0, "jitter": 2.0})}]
    cells = summary.table(rows)["samples"]["all"]
    assert (cells["ade"]["value"], cells["jitter"]["value"]) == (2, 2)


def test_a_subset_without_anything_in_it_has_no_numbers_that_are_none():
    nothing = {s: np.zeros((len(SUBSETS), 2)) for s in ("", "_lateral", "_depth")}
    ranks = np.zeros((len(SUBSETS), 3, 40), dtype=np.int64)
    ranks[0] = np.arange(40) + 40 * np.arange(3)[:, None]
    row = {"samples": scored({"ade": 1.0}, spread=nothing, ranks=ranks)}
    found = summary.table([row, row])["samples"]
    json.dumps(found, allow_nan=False)
    assert "spread_skill" not in found["all"]
    assert found["all"]["ranks_y"] == (2 * ranks[0, 1]).tolist()
    assert "ranks_y" not in found["occluded"]


def test_steps_are_compared_on_the_clips_that_have_them_all():
    def row(score: float, *, swept: bool) -> dict[str, Scored]:
        numbers = {"samples": score, "l2 twin": 3.0, "dressed l2 twin": 2.0}
        if swept:
            numbers["samples@1"] = 1.5
        return {name: scored({"energy_score": v, "ade": v}) for name, v in numbers.items()}

    curve = summary.steps_curve([row(1.0, swept=True), row(9.0, swept=False)], steps=8)
    assert {n: r["value"] for n, r in curve["all"].items()} == {"1": 0.75, "8": 0.5}
    assert summary.steps_curve([row(1.0, swept=False)], steps=8) == {}


def test_a_method_without_an_answer_leaves_the_others_theirs():
    bins = np.ones((len(SUBSETS), 2, 25, 3))
    names = ("samples", "samples@1", "l2 twin", "l1 twin", "dressed l2 twin", "dressed l1 twin")
    nowhere = dict.fromkeys(("samples@1", "l2 twin", "dressed l2 twin"), np.nan)

    def row(**more: float) -> dict[str, Scored]:
        numbers = dict.fromkeys(names, 1.0) | nowhere | more
        return {
            name: scored({"energy_score": v, "ade": v}, binned=v * bins)
            for name, v in numbers.items()
        }

    rows = [row(), row(samples=np.nan)]
    assert summary.stand_ins(rows)["dressed twin"] == "dressed l1 twin"
    assert summary.steps_curve(rows, steps=8) == {}
    spread = summary.spread_against_error(rows)
    json.dumps(spread, allow_nan=False)
    assert spread["samples"]["all"]["depth"] == [[1, 1, 1]] * 25
    assert "samples@1" not in spread


def saved_models(folder) -> dict[str, str]:
    small_pipeline("anchored").save_pretrained(folder / "sampler")
    small_pipeline("twin").save_pretrained(folder / "twin")
    return {"model": str(folder / "sampler"), "twin": str(folder / "twin")}


def test_a_miniature_evaluation(tmp_path, monkeypatch):
    asked = []

    def draw_pool(folder, spec, **_):
        asked.append(spec)
        return []

    monkeypatch.setattr(command, "draw_pool", draw_pool)
    monkeypatch.setattr(command, "load_pool", lambda _: simple_worlds(5))
    fitted = []

    def fit_dressing(cases):
        fitted.append(len(cases))
        return Dressing(0.1, 0.05, 0.02)

    monkeypatch.setattr(baselines, "fit_dressing", fit_dressing)
    models = saved_models(tmp_path)
    config = Evaluate(
        **models,
        l1_twin=models["twin"],
        peer=models["model"],
        sampler="ancestral",
        out=tmp_path / "new" / "scores",
        scenes=3,
        fitting_scenes=2,
        points=POINTS,
        pool_points=20,
        sweep=(1,),
        sweep_clips=2,
    )
    result = evaluation.run(config)
    assert json.loads((config.out / "scores.json").read_text()) == result
    assert asked[0].first_seed == 2**31
    assert (asked[0].points, asked[0].splits) == (20, ("held-out",))
    answers = {"l2 twin", "l1 twin", "regressor", "trajectory basis", "flat lift"}
    assert fitted == [2] * len(answers)
    samplers = {"samples", "samples@1", "gaussian head", "gaussian head, joint", "peer setting"}
    dressed = {f"dressed {name}" for name in answers}
    assert set(result["scores"]) == samplers | answers | dressed | {"truth"}
    for name, method in result["scores"].items():
        assert method["all"]["clips"] == (2 if name == "samples@1" else 3)
        for cell in method["all"].values():
            if isinstance(cell, dict):
                assert all(math.isfinite(v) for v in cell.values())
    # The same model under another name is the same method.
    table = result["scores"]
    assert table["peer setting"] == table["samples"]
    assert table["l1 twin"] == table["l2 twin"]
    assert set(result["steps"]["all"]) == {"1", str(NUM_STEPS)}
    assert result["steps_taken"] == NUM_STEPS
    assert result["ratios"]["energy score / peer setting's"]["all"]["value"] == 1
    written = {path.name for path in config.out.iterdir()}
    pictures = {"calibration.png", "ranks.png", "spread.png", "steps.png", "energy.png"}
    assert written == {"scores.json", "scores.md"} | pictures
    report = (config.out / "scores.md").read_text()
    assert report == evaluation.markdown(result)
    assert "| peer setting | occluded | 3 |" in report
    # Of how many samples each number is.
    assert f"diversity and realism are over {NUM_SCORED} samples; the rest over" in report
    assert f"all there are: {metrics.CALIBRATION_DRAWS}, and {NUM_SCORED} at other" in report


def test_baselines_are_fitted_on_other_worlds(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "draw_pool", lambda *_, **__: [])
    monkeypatch.setattr(command, "load_pool", lambda _: simple_worlds(5))
    config = Evaluate(scenes=3, fitting_scenes=2, points=POINTS, pool_points=20)
    fold = command.pool_fold(config, MagicMock())
    scored, fitting = list(fold.scored()), list(fold.fitting())
    assert [clip.name for clip in scored + fitting] == [f"world-{i:06d}" for i in range(5)]
    for clip in fitting:
        assert not any(torch.equal(clip.points, other.points) for other in scored)


def models_of(kind: str, **more) -> Models:
    sampler = Model(small_pipeline(kind), None)
    settings = {"twins": {}, "peer": None, "steps": 2, "sweep": (), "precision": "fp32"}
    return Models(sampler, name="ancestral", **(settings | more))


def test_heads_differ_in_what_joins_points_alone():
    models, case = models_of("anchored"), a_case()
    together = {**dataclasses.asdict(PointNoise.white(CTRL)), "shared": (0.8, 0.8)}
    models.sampler.pipe.transformer.register_to_config(noise=together)
    heads = models.heads(case, {}, dict.fromkeys(HEADS, 1.0))
    spread = {name: points[:, :, 0, 2].log().std(0).median() for name, points in heads.items()}
    # Most of the joint one's deviation is common to the scene, which is scaled to a depth of 1.
    assert spread["gaussian head, joint"] < 0.7 * spread["gaussian head"]
    wide = models.heads(case, {}, {"gaussian head": 2.0, "gaussian head, joint": 1.0})
    assert torch.equal(wide["gaussian head, joint"], heads["gaussian head, joint"])
    ratio = wide["gaussian head"][:, :, 0, 2].log().std(0).median() / spread["gaussian head"]
    assert ratio.item() == pytest.approx(2, rel=0.3)


def test_the_temperature_of_a_head_is_the_one_that_scores_best(monkeypatch):
    def heads(_, case, grids, temperatures):
        generator = torch.Generator().manual_seed(case.seed)
        centre = case.truth + torch.randn(case.truth.shape, generator=generator)
        noise = torch.randn((16, *case.truth.shape), generator=generator)
        too_wide = {"gaussian head": 0.2, "gaussian head, joint": 0.6}
        return {name: centre + (t - too_wide[name]) * noise for name, t in temperatures.items()}

    monkeypatch.setattr(Models, "heads", heads)
    monkeypatch.setattr(Models, "answers", lambda *_: {})
    found = fits.fit(models_of("anchored"), world_clips(simple_worlds(4), POINTS), lambda: None)
    assert found.temperatures == {"gaussian head": 1.2, "gaussian head, joint": 1.6}
    assert found.dressings == {}


def test_several_samples_doubt_their_tracks_and_one_answer_does_not():
    case = a_case()
    ctrl = torch.ones((POINTS, CTRL, 3))
    alone = case.trajectories(ctrl[None])
    several = case.trajectories(ctrl.expand(3, -1, -1, -1))
    seen = case.clip.visibility > 0
    assert (several[0] - several[1])[seen].abs().max() > 1e-4
    assert torch.equal(alone, case.trajectories(ctrl[None]))


def test_a_model_of_the_wrong_kind_is_refused(tmp_path):
    models = saved_models(tmp_path)
    with pytest.raises(UserError, match="need a model that gives one answer as l2 twin, got one"):
        evaluation.run(Evaluate(model=models["model"], twin=models["model"]))
    with pytest.raises(UserError, match="need a model that gives samples as model, got one"):
        evaluation.run(Evaluate(model=models["twin"], twin=models["twin"]))


def test_an_untrained_sampler_is_its_gaussian_head():
    # Without a velocity, ancestral steps that know the variance draw from the regressor's Gaussian.
    pipe = small_pipeline("anchored")
    with torch.no_grad():
        pipe.transformer.project_out.weight.zero_()
        pipe.transformer.project_out.bias.zero_()
    case = a_case()
    clip = Model(pipe, None).prepared(case, None)
    draws = [head_samples(clip, clip.anchor, clip.factors, seed) for seed in range(20)]
    head = torch.cat(draws)
    table = sampling.table_for("ancestral", 8)
    drawn = sampling.sample(clip, sampling.seeds_from(0, 780), table)
    assert drawn.shape[-2] == CTRL
    depth, expected = drawn[..., 2].log(), head[..., 2].log()
    assert (depth.std(0) / expected.std(0)).mean().item() == pytest.approx(1, abs=0.03)
