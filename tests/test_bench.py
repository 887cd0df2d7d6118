"""The bench: its gate fails when it should, its contenders are the samplers they claim to be, and it runs."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from models import small_pipeline
from observed import some_evidence, some_network

from diffusion4d import denoiser, sampling

FOLDER = Path(__file__).parent.parent / "experiments" / "bench"
SIBLINGS = (
    "gate",
    "timing",
    "contenders",
    "ladder",
    "costs",
    "passes",
    "scores",
    "page",
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
    fast = Metric("speed", 9.0, "x", "higher", 0.1, goal=8.0)
    small = Metric("share", 0.022, "", "lower", 0.1, goal=0.02)
    free = Metric("per_minute", 1.0, "/ min", "higher")
    assert fast.reached
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
        accept=True,
    )
    assert scripts["run"].main(settings) == 0
    results = json.loads(settings.out.read_text())
    gated = {m["key"] for m in results["metrics"] if m["rel_tol"] is not None}
    (held,) = json.loads(settings.baseline.read_text()).values()
    assert gated == held.keys()
    places = "\n".join(
        f"<!-- {name} -->\n<!-- end -->" for name in ("ladder", "metrics", "budgets")
    )
    (tmp_path / "README.md").write_text(places)
    scripts["page"].fill_readme(results, tmp_path)
    assert scripts["page"].ladder_table(results) in (tmp_path / "README.md").read_text()
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_readme_says_what_the_results_say(scripts):
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    for name in ("ladder", "metrics", "budgets"):
        assert getattr(scripts["page"], f"{name}_table")(results) in readme
