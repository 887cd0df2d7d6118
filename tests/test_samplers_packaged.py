"""Every sampler that can be chosen runs the packaged model, and the packed loop says what the plain one says."""

import dataclasses
from typing import get_args

import pytest
import torch
from models import flowing_tracks

from diffusion4d import Diffusion4DPipeline
from diffusion4d.config import SamplerName
from diffusion4d.observation import Given, Observation, observe
from diffusion4d.pipeline import Settings

AT_MOST = {"heun": (1, 3, 3), "dpmpp_2s": (2, 2, 4)}


@pytest.fixture(scope="module")
def pipe() -> Diffusion4DPipeline:
    pipe = Diffusion4DPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def observation() -> Observation:
    tracks, visibility = flowing_tracks()
    return observe(Given(tracks=tracks, visibility=visibility, size=(64, 80)))


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_each_sampler(
    pipe: Diffusion4DPipeline, observation: Observation, sampler: SamplerName
) -> None:
    settings = Settings(2, 4, sampler, 5, loop="fused", precision="fp32", frame="camera")
    for steps, rows in zip((2, 3, 4), AT_MOST.get(sampler, (2, 3, 4)), strict=True):
        result = pipe.sample(observation, dataclasses.replace(settings, steps=steps))
        assert result.assumptions["sampler"] == sampler
        assert result.assumptions["steps"] == rows
        fused = result.hypotheses.control_points
        assert fused.isfinite().all()
        assert (fused[0] - fused[1]).abs().max() > 1e-3
    plain = pipe.sample(observation, dataclasses.replace(settings, loop="plain"))
    torch.testing.assert_close(fused, plain.hypotheses.control_points, rtol=1e-3, atol=1e-4)
