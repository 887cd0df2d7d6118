"""The bench: its gate fails when it should, its contenders are the samplers they claim to be, and it runs."""

import dataclasses
import importlib
import json
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from models import small_pipeline
from observed import some_evidence, some_network

import diffusion4d
from diffusion4d import denoiser, metrics, sampling

FOLDER = Path(__file__).parent.parent / "experiments" / "bench"
PACKAGED = Path(diffusion4d.__file__).parent / "weights" / "tiny"
SIBLINGS = (
    "processors",
    "gate",
    "record",
    "timing",
    "contenders",
    "ladder",
    "costs",
    "passes",
    "scores",
    "page",
    "peak",
    "run",
)


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


def test_the_gate_fails_when_it_should(scripts, tmp_path):
    Metric, shortfalls = scripts["gate"].Metric, scripts["gate"].shortfalls
    fast = Metric("speed", 9.0, "x", "higher", 0.1)
    small = Metric("share", 0.022, "", "lower", 0.1, goal=0.02)
    free = Metric("per_minute", 1.0, "/ min", "higher")
    assert not small.reached
    assert free.reached is None
    baseline = tmp_path / "baseline.json"
    with pytest.raises(ValueError, match="need a baseline"):
        shortfalls([fast, small, free], baseline, "one")
    scripts["gate"].write_baseline([fast, small, free], baseline, "one")
    assert json.loads(baseline.read_text()) == {"one": {"speed": 9.0, "share": 0.022}}
    assert shortfalls([fast, small, free], baseline, "one") == []
    within = dataclasses.replace(fast, value=8.11), dataclasses.replace(small, value=0.0241)
    assert shortfalls([*within, free], baseline, "one") == []
    beyond = dataclasses.replace(fast, value=8.09), dataclasses.replace(small, value=0.0243)
    assert len(shortfalls([*beyond, free], baseline, "one")) == 2
    wrong = dataclasses.replace(fast, value=float("nan"))
    assert len(shortfalls([wrong, small], baseline, "one")) == 1
    # Each processor is held to its own; one that is not known, to the worst of all.
    slow = dataclasses.replace(fast, value=3.0)
    scripts["gate"].write_baseline([slow, dataclasses.replace(small, value=0.01)], baseline, "two")
    assert shortfalls([slow, small], baseline, "three") == []
    assert len(shortfalls([slow, small], baseline, "two")) == 1
    assert len(shortfalls([slow, small], baseline, "one")) == 1
    with pytest.raises(ValueError, match=r"only one side has \['share'\]"):
        shortfalls([fast], baseline, "one")
    # A run of some parts is held to what it measured, and changes no more than that when it is accepted.
    assert len(shortfalls([slow], baseline, "one", some=True)) == 1
    with pytest.raises(ValueError, match=r"only one side has \['new'\]"):
        shortfalls([dataclasses.replace(fast, key="new")], baseline, "one", some=True)
    scripts["gate"].write_baseline([slow], baseline, "one")
    assert json.loads(baseline.read_text())["one"] == {"speed": 3.0, "share": 0.022}


def test_a_goal_that_was_reached_stays_reached(scripts, tmp_path):
    Metric, shortfalls = scripts["gate"].Metric, scripts["gate"].shortfalls
    baseline = tmp_path / "baseline.json"
    gain = Metric("gain", 1.05, "x", "higher", 0.25, goal=1.0)
    share = Metric("share", 0.029, "", "lower", 0.5, goal=0.03)
    scripts["gate"].write_baseline([gain, share], baseline, "one")
    lost = dataclasses.replace(gain, value=0.99), dataclasses.replace(share, value=0.031)
    found = shortfalls(lost, baseline, "one")
    assert [line.split(" ")[0] for line in found] == ["gain", "share"]
    assert all("not past the goal" in line for line in found)
    # One that was never reached on this processor fails nothing there, within the tolerance; it is told all the same.
    scripts["gate"].write_baseline(lost, baseline, "two")
    assert shortfalls(lost, baseline, "two") == []
    assert scripts["gate"].missed(lost) == [
        "gain = 0.99 x, goal ≥ 1",
        "share = 0.031, goal ≤ 0.03",
    ]
    assert scripts["gate"].missed([gain, share]) == []
    # An unknown processor has to keep the goals that all reached, and no others.
    assert shortfalls(lost, baseline, "three") == []
    scripts["gate"].write_baseline([gain, share], baseline, "two")
    assert len(shortfalls(lost, baseline, "three")) == 2


def test_scores_have_one_baseline_for_all_processors(scripts, tmp_path):
    Metric, gate = scripts["gate"].Metric, scripts["gate"]
    baseline = tmp_path / "baseline.json"
    score = Metric("energy", 1.0, "", "lower", 0.1, everywhere=True)
    ratio = Metric("ratio", 2.0, "x", "higher", 0.1)
    gate.write_baseline([score, ratio], baseline, "one")
    held = json.loads(baseline.read_text())
    assert held == {"every processor": {"energy": 1.0}, "one": {"ratio": 2.0}}
    assert gate.shortfalls([score, ratio], baseline, "two") == []
    worse = dataclasses.replace(score, value=1.2)
    assert len(gate.shortfalls([worse, ratio], baseline, "two")) == 1
    with pytest.raises(ValueError, match=r"only one side has \['energy'\]"):
        gate.shortfalls([ratio], baseline, "one")


CPUINFO = """processor\t: 0
vendor_id\t: {}
cpu family\t: {}
model\t\t: {}
model name\t: {}
stepping\t: 1
flags\t\t: fpu vme

processor\t: 1
vendor_id\t: second
"""


def test_keys_of_processors(scripts, tmp_path):
    module = scripts["processors"]
    path = tmp_path / "cpuinfo"

    def key(*told: object) -> str:
        path.write_text(CPUINFO.format(*told))
        return module.processor(path)

    xeon = key("GenuineIntel", 6, 167, "Intel(R) Xeon(R) Processor")
    assert xeon == "GenuineIntel family 6 model 167 stepping 1, Intel(R) Xeon(R) Processor"
    # Another Xeon of the same generic name is another processor.
    assert key("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Processor") != xeon
    path.write_text("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert module.processor(path) == "implementer 0x41 part 0xd40"
    assert module.processor(tmp_path / "none")
    # What was measured before keys had numbers holds for every Zen 5, and for nothing else of its family.
    known = {xeon: {}, module.ZEN_5: {}}
    assert module.known_as(xeon, known) == xeon
    assert module.known_as(key("AuthenticAMD", 26, 2, "AMD EPYC 9965"), known) == module.ZEN_5
    assert module.known_as(key("AuthenticAMD", 26, 0x44, "Ryzen"), known) == module.ZEN_5
    assert module.known_as(key("AuthenticAMD", 26, 0x50, "a Zen 6"), known) is None
    assert module.known_as(key("AuthenticAMD", 25, 0x44, "a Zen 4"), known) is None
    assert module.known_as(key("AuthenticAMD", 26, 2, "AMD EPYC 9965"), {xeon: {}}) is None
    # Its own baseline comes before the old one.
    own = key("AuthenticAMD", 26, 2, "AMD EPYC 9965")
    assert module.known_as(own, known | {own: {}}) == own


def test_the_committed_baseline_has_keys_that_a_processor_can_have(scripts):
    known = json.loads((FOLDER / "baseline.json").read_text())
    results = json.loads((FOLDER / "results.json").read_text())
    assert all(isinstance(value, float) for held in known.values() for value in held.values())
    assert known.pop(scripts["gate"].EVERYWHERE).keys() == {
        m["key"] for m in results["metrics"] if m["everywhere"]
    }
    written = [key for key in known if key != scripts["processors"].ZEN_5]
    assert all(" family " in key and " stepping " in key for key in written)
    # What a score is does not depend on the processor.
    timed = [run for run in results["runs"] if {*run["parts"]} - {*scripts["record"].SCORES}]
    assert {run["machine"]["processor"] for run in timed} <= known.keys()


def test_tolerances_are_those_of_repeated_runs(scripts):
    repeated = json.loads((FOLDER / "repeated.json").read_text())
    results = json.loads((FOLDER / "results.json").read_text())
    baseline = json.loads((FOLDER / "baseline.json").read_text())[repeated["processor"]]
    allowed = {m["key"]: m for m in results["metrics"]}
    for key, values in repeated["ratios"].items():
        m = allowed[key]
        assert m["rel_tol"] == scripts["gate"].tolerance_of(values, m["better"]), key
        assert baseline[key] == pytest.approx(statistics.median(values))
    assert scripts["gate"].tolerance_of([1.0, 1.0, 1.0], "higher") == 0.1
    assert scripts["gate"].tolerance_of([1.0, 0.9, 1.1], "higher") == 0.15
    assert scripts["gate"].tolerance_of([1.0, 0.9, 1.2], "lower") == 0.3


def test_results_of_another_model_are_refused(scripts, tmp_path):
    record = scripts["record"]
    results = json.loads((FOLDER / "results.json").read_text())
    assert record.stale(results, PACKAGED) == []
    folder = shutil.copytree(PACKAGED, tmp_path / "tiny")
    assert record.fingerprints(folder) == record.fingerprints(PACKAGED)
    config = folder / "transformer" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"temperature": [1.0, 1.0]}))
    assert record.stale(results, folder) == ["quality", "budgets"]
    config.write_text(json.dumps(told | {"trained_steps": 2}))
    assert record.stale(results, folder) == list(record.PARTS)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps(told))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert record.stale(results, folder) == ["quality", "budgets"]
    # What no run measured is refused, too.
    assert record.stale(results | {"runs": []}, PACKAGED) == list(record.PARTS)


def test_parts_are_replaced_and_the_rest_stays(scripts):
    def results(parts: list[str], value: float) -> dict:
        run = {"parts": parts, "model": {"scores": str(value)}}
        found = [{"key": part, "value": value} for part in parts]
        return {"runs": [run], "metrics": found, "seconds": dict.fromkeys(parts, value)} | {
            part: {"of": value} for part in parts
        }

    held = results(["a", "b", "c"], 1.0)
    both = scripts["record"].merged(held, results(["b"], 2.0))
    assert [(run["parts"], run["model"]["scores"]) for run in both["runs"]] == [
        (["a", "c"], "1.0"),
        (["b"], "2.0"),
    ]
    assert [(m["key"], m["value"]) for m in both["metrics"]] == [("a", 1.0), ("b", 2.0), ("c", 1.0)]
    assert (both["a"]["of"], both["b"]["of"], both["seconds"]["b"]) == (1.0, 2.0, 2.0)
    again = scripts["record"].merged(both, results(["a", "b", "c"], 3.0))
    assert [run["parts"] for run in again["runs"]] == [["a", "b", "c"]]
    with pytest.raises(ValueError, match=r"need parts out of ladder, .*, got \['scores'\]"):
        scripts["run"].Settings(parts=("scores",))


def test_a_budget_buys_the_first_samples_of_a_larger_one(scripts, monkeypatch):
    scores = scripts["scores"]
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(40, 3, 5, 3, generator=g)

    class case:
        seed = 0
        truth = torch.zeros(3, 5, 3)
        masks = torch.ones(1, 3, 5, dtype=torch.bool)

    class bench:
        pass

    bench.case = case
    place = {seed: i for i, seed in enumerate(sampling.seeds_from(0, 40))}

    def draw(_: object, seeds: list[int]) -> torch.Tensor:
        return drawn[[place[seed] for seed in seeds]]

    for name, value in {"CHUNK": 7, "SCORED": 9, "draw_ours": draw, "draw_ddim": draw}.items():
        monkeypatch.setattr(scores, name, value)
    rows = scores.at_budgets(bench, {"ours": 3.0, "diffusers": 0.5}, 33)
    assert [(r["seconds"], r["loop"], r["affordable"], r["drawn"]) for r in rows] == [
        (1, "ours", 3, 3),
        (1, "diffusers", 0, 0),
        (5, "ours", 15, 15),
        (5, "diffusers", 2, 2),
        (30, "ours", 90, 33),
        (30, "diffusers", 15, 15),
    ]
    for row in rows:
        K = row["drawn"]
        if K:
            best = metrics.min_ade_joint(drawn[:K], case.truth, case.masks)[0].item()
            assert row["min_ade"] == pytest.approx(best)
            score = metrics.energy_score(drawn[: min(K, 9)], case.truth, case.masks)[0].item()
            assert row["energy"] == pytest.approx(score)
    (mean, *_) = scores.mean_rows([rows, [row | {"min_ade": 0.0} for row in rows]])
    assert mean["min_ade"] == pytest.approx(rows[0]["min_ade"] / 2)
    assert "min_ade" not in scores.mean_rows([rows])[1]


def test_exponents_and_medians_of_known_costs(scripts):
    sizes = [1, 4, 16, 64, 256]
    costs = [5 + 1e-9, 5.1, *(3 * s**1.4 for s in sizes[2:])]
    assert scripts["timing"].exponent(sizes, costs) == pytest.approx(1.4)
    assert scripts["costs"].sizes(1, 1024) == [1, 4, 16, 64, 256, 1024]
    assert scripts["costs"].sizes(16, 1000) == [16, 64, 256, 1000]
    order = []
    scripts["timing"].side_by_side(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2
    )
    assert order == ["a", "b"] * 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets a peak")
def test_peaks_of_memory_are_seen(scripts):
    peak = scripts["timing"].peak_growth(lambda: torch.ones(2**24))
    assert 0.9 < peak / 2**26 < 1.2


def test_a_doubled_batch_says_what_the_network_says(scripts):
    network = some_network().float().requires_grad_(False)
    evidence = some_evidence(N=4, tokens=True, dtype=torch.float32)
    bench = scripts["contenders"].Bench(
        network, None, evidence, None, sampling.table_for("ddim", 2)
    )
    clip = denoiser.prepare(network, evidence)
    x_t = torch.randn(
        3, 4, network.config["num_ctrl"], 3, generator=torch.Generator().manual_seed(0)
    )
    given = clip.velocity(x_t[None], torch.tensor(0.4))[0]
    one = scripts["contenders"].BatchOfTwo(bench, 3, 1.0)(x_t, 0.4)
    torch.testing.assert_close(one, given, rtol=1e-4, atol=1e-5)
    none, twice = (scripts["contenders"].BatchOfTwo(bench, 3, w)(x_t, 0.4) for w in (0.0, 2.0))
    torch.testing.assert_close(twice - one, one - none, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, none, atol=1e-3)


def test_in_miniature(scripts, tmp_path, monkeypatch):
    for where, names in {
        "passes": {"SIZES": {"": (4, 8, 12, 16)}, "UPDATES": (0.1, 0.5)},
        "costs": {"SMALL_POINTS": 16, "SMALL_FRAMES": 9},
        "scores": {"POINTS": 16, "FRAMES": 9, "STEPS": 3},
        "ladder": {"STEPS": 3},
    }.items():
        for name, value in names.items():
            monkeypatch.setattr(scripts[where], name, value)
    small_pipeline("anchored").save_pretrained(tmp_path / "model")
    settings = scripts["run"].Settings(
        model=str(tmp_path / "model"),
        out=tmp_path / "results.json",
        baseline=tmp_path / "baseline.json",
        points=16,
        frames=9,
        hypotheses=2,
        rounds=1,
        worlds=1,
        budget_worlds=1,
        draws=3,
        largest=(4, 128, 32),
        many=8,
        accept=True,
    )
    assert scripts["run"].main(settings) == 0
    results = json.loads(settings.out.read_text())
    gated = {m["key"]: m["everywhere"] for m in results["metrics"] if m["rel_tol"] is not None}
    held = json.loads(settings.baseline.read_text())
    everywhere, own = held["every processor"], held[scripts["processors"].processor()]
    assert {key for key, which in gated.items() if which} == everywhere.keys()
    assert {key for key, which in gated.items() if not which} == own.keys()
    assert scripts["record"].stale(results, tmp_path / "model") == []
    # What the committed results say of goals and tolerances is what the gate goes by.
    committed = json.loads((FOLDER / "results.json").read_text())

    def gates(found: dict) -> dict:
        names = ("better", "rel_tol", "goal", "everywhere")
        return {m["key"]: [m[name] for name in names] for m in found["metrics"]}

    assert gates(results) == gates(committed)
    # Scores alone: they are measured again, with the rates that were recorded, and timings stay.
    scores = dataclasses.replace(settings, parts=("quality", "budgets"), gate=True, accept=False)
    assert scripts["run"].main(scores) == 0
    again = json.loads(settings.out.read_text())
    assert [run["parts"] for run in again["runs"]] == [
        [part for part in scripts["record"].PARTS if part not in scores.parts],
        list(scores.parts),
    ]
    for name in ("ladder", "rates", "budgets", "metrics"):
        assert again[name] == results[name]
    places = "\n".join(f"<!-- {name} -->\n<!-- end -->" for name in scripts["page"].TABLES)
    (tmp_path / "README.md").write_text(places)
    scripts["page"].fill_readme(results, tmp_path)
    assert scripts["page"].ladder_table(results) in (tmp_path / "README.md").read_text()
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_readme_says_what_the_results_say(scripts):
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    for make in scripts["page"].TABLES.values():
        assert make(results) in readme
