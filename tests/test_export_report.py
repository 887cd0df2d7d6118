"""summary.json: its numbers on a fan whose answers are known."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fans import fan

from diffusion4d.export.palette import colours, depth_offset, depth_order
from diffusion4d.export.report import report, write_report
from diffusion4d.export.spread import spread_of
from diffusion4d.hypotheses import Hypotheses

SECONDS = np.linspace(1, 2.5, 12)


def _report(hyp: Hypotheses, **assumptions) -> dict:
    return report(hyp, seconds=SECONDS, assumptions=assumptions, timings={"sample": 1.5})


def test_depth_alone_has_no_lateral_spread():
    # Off the optical axis too: scaling along the ray moves x and y, but nothing across the ray.
    spread = spread_of(fan(drift=0.0))
    scale = (0.1 * torch.arange(4)).std()
    torch.testing.assert_close(spread.depth, spread.distance * scale, atol=1e-5, rtol=0)
    assert spread.lateral.max() < 1e-6


def test_lateral_spread_of_a_known_drift():
    # One point on the optical axis, drifting by k px at depth 1: x spreads by k / fx, per axis / √2.
    hyp = fan(4, 2, depth_step=0.0)
    offset = (torch.arange(4) - 1.5) * 9.0 / 180
    ctrl = torch.zeros_like(hyp.control_points)
    ctrl[..., 2] = 1.0
    ctrl[..., 0] = offset[:, None, None]
    spread = spread_of(dataclasses.replace(hyp, control_points=ctrl))
    torch.testing.assert_close(spread.depth, torch.zeros(2, 12))
    expected = (offset.std() / math.sqrt(2)).expand(2, 12)
    torch.testing.assert_close(spread.lateral, expected)


def test_numbers_of_a_known_case():
    hyp = fan(drift=0.0, error=torch.tensor([3.0, 0.5, 2.0, 1.0]))
    told = _report(hyp, model="tiny", fov=55.0)
    assert told["assumed"] == {"model": "tiny", "fov": 55.0}
    assert told["timings_s"] == {"sample": 1.5}
    size = told["hypotheses"]
    assert {k: size[k] for k in "KNMT"} == {"K": 4, "N": 6, "M": 7, "T": 12}
    assert size["seeds"] == [10, 11, 12, 13]
    assert (size["units"], size["frame"], size["seconds"]) == ("scene", "camera", 1.5)
    # Odd points, half of all, are hidden for the second half.
    assert told["observed"] == {
        "seen_share": 0.75,
        "points_seen_to_the_end": 3,
        "still_points_per_hypothesis": None,
    }
    fit = told["reprojection"]
    # 128 px on the shorter side, so an error counts twice at 256.
    assert fit["median_px_per_hypothesis"] == pytest.approx([6, 1, 4, 2], abs=5e-3)
    assert fit["median_px"] == pytest.approx(3, abs=5e-3)
    assert fit["p90_px"] == pytest.approx(6, abs=5e-3)
    assert size["rank"] == hyp.rank().tolist()


def test_spread_seen_and_hidden_apart():
    told = _report(fan(4, 20, 24))["spread"]
    assert told["lateral"]["hidden"]["rms"] > 10 * told["lateral"]["seen"]["rms"]
    ratio = told["lateral"]["hidden"]["rms"] / told["lateral"]["seen"]["rms"]
    assert told["lateral_hidden_over_seen"]["rms"] == pytest.approx(ratio, rel=1e-5)
    above, below = told["depth"]["hidden"]["median"], told["lateral"]["hidden"]["median"]
    assert told["depth_over_lateral"]["hidden"]["median"] == pytest.approx(above / below, rel=1e-5)
    # Both subsets together are all of it.
    shares = {"seen": 0.75, "hidden": 0.25}
    for kind in ("depth", "lateral"):
        mean = sum(share * told[kind][name]["rms"] ** 2 for name, share in shares.items())
        assert told[kind]["all"]["rms"] == pytest.approx(math.sqrt(mean), rel=1e-5)


def test_what_cannot_be_taken_is_null(tmp_path):
    hyp = fan()
    seen = _report(dataclasses.replace(hyp, visibility=torch.ones_like(hyp.visibility)))
    assert seen["spread"]["depth"]["hidden"] == {"rms": None, "median": None}
    assert seen["spread"]["lateral_hidden_over_seen"] == {"rms": None, "median": None}
    blind = _report(dataclasses.replace(hyp, visibility=torch.zeros_like(hyp.visibility)))
    assert blind["reprojection"]["median_px"] is None
    assert blind["reprojection"]["median_px_per_hypothesis"] == [None] * 4
    mirrored = torch.cat([-hyp.control_points[:1], hyp.control_points[1:]])
    behind = _report(dataclasses.replace(hyp, control_points=mirrored))
    assert behind["reprojection"]["median_px_per_hypothesis"][0] is None
    assert behind["hypotheses"]["rank"][-1] == 0
    alone = _report(fan(1))
    assert alone["spread"]["depth"]["all"]["rms"] == 0
    for content in (seen, blind, behind, alone):
        path = write_report(content, tmp_path / "summary.json")
        # Strict JSON: NaN would be a parse error elsewhere.
        back = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert back == content


def test_assumptions_of_any_kind_become_plain():
    told = _report(
        fan(),
        folder=Path("a") / "b",
        intrinsics=torch.tensor([1.5, 2.5]),
        nested={"fov": np.float32(55), 3: (True, None)},
    )
    assert told["assumed"] == {
        "folder": str(Path("a") / "b"),
        "intrinsics": [1.5, 2.5],
        "nested": {"fov": 55.0, "3": [True, None]},
    }


def test_colours_run_from_near_to_far():
    hyp = fan(5, depth_step=-0.05)
    # The last hypothesis is the nearest here.
    assert depth_order(hyp).tolist() == [4, 3, 2, 1, 0]
    torch.testing.assert_close(
        depth_offset(hyp), -0.05 * (torch.arange(5) - 2.0), atol=1e-5, rtol=0
    )
    ink = colours(hyp)
    yellow_blue = ink[:, :2].mean(-1) - ink[:, 2]
    lightness = ink @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(yellow_blue) > 0).all()
    assert (np.diff(lightness) > 0).all()
    assert colours(fan(1)).shape == (1, 3)
