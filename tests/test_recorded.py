"""What hypotheses alone know of their clip: by summary.json where that tells it, assumed where it does not."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fans import fan

from diffusion4d.clip import read_clip
from diffusion4d.export.recorded import REPORT, clock, length, reading, start_of


def _summary(folder: Path, seconds: object = 1.1, source: object = None) -> None:
    told = {"hypotheses": {"seconds": seconds}, "assumed": {"source": source}}
    (folder / REPORT).write_text(json.dumps(told))


def test_the_clip_comes_before_the_report_and_the_report_before_30_frames_a_second(
    tmp_path: Path,
) -> None:
    hyp = fan(2, 3, 12)
    clip = read_clip(torch.zeros(12, 3, 128, 200, dtype=torch.uint8))
    clip = dataclasses.replace(clip, seconds=4 + hyp.times)
    _summary(tmp_path)
    u = np.linspace(0, 1, 12)
    np.testing.assert_allclose(clock(hyp, clip, tmp_path), 4 + u)
    assert length(hyp, clip, tmp_path) == pytest.approx(1)
    for source in (tmp_path, tmp_path / "hypotheses.npz"):
        np.testing.assert_allclose(clock(hyp, source=source), 1.1 * u)
    np.testing.assert_allclose(clock(hyp), 11 / 30 * u)
    # The seconds are those from the first frame to the last, wherever these lie in [0, 1].
    within = dataclasses.replace(hyp, times=0.2 + 0.5 * hyp.times)
    assert length(within, source=tmp_path) == pytest.approx(1.1)


@pytest.mark.parametrize("seconds", [None, 0, -2, float("nan"), float("inf"), "long", [3]])
def test_seconds_that_are_none_are_not_taken(tmp_path: Path, seconds: object) -> None:
    _summary(tmp_path, seconds)
    assert length(fan(2, 3, 12), source=tmp_path) == pytest.approx(11 / 30)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"assumed": 3, "hypotheses": 3}'])
def test_a_report_that_says_nothing_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / REPORT).write_text(text)
    assert length(fan(2, 3, 12), source=tmp_path) == pytest.approx(11 / 30)
    assert reading(tmp_path) == {}
    assert start_of(None, tmp_path) == 0


def test_one_frame_lasts_a_thirtieth_of_a_second(tmp_path: Path) -> None:
    hyp = fan(2, 3, 12)
    one = dataclasses.replace(
        hyp,
        times=hyp.times[:1],
        tracks=hyp.tracks[:1],
        visibility=hyp.visibility[:1],
        extrinsics=hyp.extrinsics[:1],
    )
    _summary(tmp_path, 0.8)
    assert length(one, source=tmp_path) == pytest.approx(1 / 30)


def test_where_the_clip_starts(tmp_path: Path) -> None:
    _summary(tmp_path, source={"video": "a.mp4", "start": 1.5, "end": None})
    assert reading(tmp_path)["video"] == "a.mp4"
    assert start_of(None, tmp_path) == 1.5
    assert start_of(0.0, tmp_path) == 0
    assert start_of(None, None) == 0
    _summary(tmp_path, source={"start": "1.5"})
    assert start_of(None, tmp_path) == 0
