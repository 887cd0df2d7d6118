"""Every sampler that can be chosen runs the packaged model, and the packed loop says what the plain one says."""

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
    for steps, rows in zip((2, 3, 4), AT_MOST.get(sampler, (2, 3, 4)), strict=True):
        results = [
            pipe.sample(observation, Settings(2, steps, sampler, 5, loop=loop, precision="fp32"))
            for loop in ("fused", "plain")
        ]
        fused, plain = (result.hypotheses.control_points for result in results)
        assert results[0].assumptions["sampler"] == sampler
        assert results[0].assumptions["steps"] == rows
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4)
        assert (fused[0] - fused[1]).abs().max() > 1e-3
