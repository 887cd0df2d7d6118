"""The matching experiment: scores of known answers, a linear head that is planted, and a README that agrees."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "experiments" / "matching"


def script(name: str) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


scores, depth = script("matching_scores"), script("depth_heads")


def world() -> SimpleNamespace:
    """Four points, one of which moves far and one of which is hidden in the last frame."""
    queries = torch.tensor([[10.0, 10.0], [50.0, 50.0], [90.0, 20.0], [30.0, 80.0]])
    truth = queries + torch.zeros(3, 4, 2)
    truth[1:, 0] += 40.0
    seen = torch.ones(3, 4, dtype=torch.bool)
    seen[2, 3] = False
    return SimpleNamespace(queries=queries, truth=truth, seen=seen)


def test_hits_are_counted_where_points_are_seen() -> None:
    tally, clip = scores.Tally(), world()
    answer = clip.truth.clone()
    answer[1, 1] += torch.tensor([0.0, 6.0])
    answer[2, 3] += 100.0
    tally.add(clip, answer, torch.ones(3, 4))
    tally.add(clip, clip.queries.expand(3, 4, 2))
    found = tally.score(draws=50)
    # 7 of 8 are seen in the two frames; the first answer misses one at 4 px, the second misses the mover twice.
    assert found["all points"] == 14
    assert found["all pck4"][0] == pytest.approx((6 + 5) / 14, abs=1e-3)
    assert found["all pck8"][0] == pytest.approx((7 + 5) / 14, abs=1e-3)
    assert found["wide points"] == 4
    assert found["wide pck8"][0] == pytest.approx(2 / 4)
    assert found["all pck8"][1] <= found["all pck8"][0] <= found["all pck8"][2]


def test_area_under_the_curve_counts_pairs() -> None:
    score = torch.tensor([0.9, 0.8, 0.5, 0.5, 0.1])
    good = torch.tensor([True, False, True, False, False])
    # Pairs (good, bad): .9 beats all three; .5 loses to .8, ties with .5, beats .1.
    assert scores.auc(score, good) == pytest.approx((3 + 0 + 0.5 + 1) / 6)


def test_a_linear_law_of_depth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that tell depth linearly, with another constant in each image, and some pixels without truth."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 16, 6, generator=generator)
    unit = torch.nn.functional.layer_norm(tokens, (6,))
    law = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.25, -0.45])
    log_depth = (unit @ law + torch.tensor([[0.0], [1.0], [-1.0], [0.5]])).unflatten(1, (4, 4))
    fine = log_depth.repeat_interleave(2, 1).repeat_interleave(2, 2).exp()
    fine[:, 0, :2] = torch.nan
    monkeypatch.setattr(depth, "layers_of", lambda *_: ([tokens], (4, 4)))
    encoder = SimpleNamespace(
        channels=6, model=SimpleNamespace(config=SimpleNamespace(num_hidden_layers=4))
    )

    class Stack(SimpleNamespace):
        def __len__(self) -> int:
            return 1

    stack = Stack(images=torch.zeros(1, 4, 3, 8, 8), depth=fine[None])
    with torch.no_grad():
        head = depth.fit_linear(encoder, [stack])
        out = head([tokens], (4, 4))[:, 0]
    off = (out - log_depth)[:, 1:]
    assert (off - off.mean((1, 2), keepdim=True)).abs().max() < 0.02
    # What normalised tokens cannot tell apart (their sum is 0) is the only freedom.
    assert torch.allclose(
        head.read.weight[0] - head.read.weight.mean(), law - law.mean(), atol=0.02
    )


def test_the_readme_says_what_the_results_say() -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    rendered = results["rendered"]["scores"]
    for name in ("tiny, hough, refined", "tiny, soft", "raw pixels, mutual", "same place"):
        for key in ("all pck4", "all pck8", "wide pck4", "wide pck8"):
            assert f"{rendered[name][key][0]:.3f}" in readme, (name, key)
    for name in ("anchor", "all pairs"):
        assert f"{results['pairs']['exponent'][name]:.2f}" in readme
    for name in ("linear", "dpt"):
        assert f"{results['heads'][name]['abs_rel'][0]:.3f}" in readme
    for name in ("bf16", "int8"):
        assert f"{results['precision'][name]['time over fp32']:.2f}" in readme
    for name, row in results["real"].items():
        assert f"| {name} | {row['lk seen share']:.3f} | {row['fused seen share']:.3f} |" in readme


def test_what_a_tracker_claims_is_judged() -> None:
    full_rate = script("full_rate")
    claimed = np.array([True, True, True, False, False])
    seen = np.array([True, True, False, True, False])
    error = np.array([1.0, 9.0, 2.0, 0.5, 0.5])
    found = full_rate.quality(claimed, error, seen)
    assert found["found of visible"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["right of claimed"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["hidden of claimed"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["median px of claimed"] == 2.0
    assert full_rate.quality(~claimed & claimed, error, seen)["claimed"] == 0
