"""Sampling: seeds, chunks, errors."""

import dataclasses
from typing import get_args

import pytest
import torch
from jaxtyping import config
from observed import M, some_evidence, some_network

from diffusion4d import denoiser, posterior, sampling
from diffusion4d.config import SamplerName
from diffusion4d.errors import UserError
from diffusion4d.noise import PointNoise
from samplers.guidance import corrected
from samplers.noise import SeededNoise
from samplers.solve import solve

N = 4


def some_clip() -> denoiser.ClipDenoiser:
    over_time = tuple(tuple(0.8 ** abs(i - j) for j in range(M)) for i in range(M))
    noise = PointNoise((0.3, 0.5), (0.4, 0.3), (0.5, 0.5), (0.5, 0.5), (over_time, over_time))
    network = some_network(noise=dataclasses.asdict(noise)).float()
    evidence = some_evidence(N=N, tokens=True, dtype=torch.float32)
    return denoiser.prepare(network, evidence)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "renoised"])
def test_a_hypothesis_depends_on_its_seed_alone(sampler):
    clip, table = some_clip(), sampling.table_for(sampler, 4)
    alone = sampling.sample(clip, [7], table)
    beside = sampling.sample(clip, [3, 7], table)
    torch.testing.assert_close(beside[1], alone[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(beside[0], beside[1], atol=1e-2)
    assert torch.equal(sampling.sample(clip, [7], table), alone)


def test_chunks_do_not_change_the_result(monkeypatch):
    clip, table = some_clip(), sampling.table_for("ancestral", 3)
    seeds = sampling.seeds_from(0, 5)
    together = sampling.sample(clip, seeds, table)
    monkeypatch.setattr(sampling, "CHUNK_ROWS", 2 * N)
    widths, progress = [], []
    clip.network.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    parts = sampling.sample(clip, seeds, table, lambda *done: progress.append(done))
    torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
    assert widths == [2] * 6 + [1] * 3
    assert progress == [(i, 9) for i in range(1, 10)]
    monkeypatch.setattr(sampling, "CHUNK_ROWS", 1)
    torch.testing.assert_close(sampling.sample(clip, seeds, table), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "rows"), [("heun", (1, 1, 3, 3, 5)), ("dpmpp_2s", (1, 2, 2, 4, 4))]
)
def test_evaluations_are_at_most_those_asked_for(sampler, rows):
    tables = [sampling.table_for(sampler, steps) for steps in range(1, 6)]
    assert tuple(table.num_steps for table in tables) == rows
    assert all(table.times[0] == 1 and table.times[-1] == 0 for table in tables)


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_more_steps_come_to_the_same_flow(sampler):
    """An untrained network says v = 0 in x̂_0's place α x_t: the flow of standard normal data, which stands still."""
    table = sampling.table_for(sampler, 400)
    x_1 = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = SeededNoise(range(1), (20_000,), dtype=torch.float64)
    x_0 = solve(table, lambda x, t: denoiser.SCHEDULE.alpha(t) * x, x_1[None], noise)[0]
    assert abs(x_0.std() - 1) < 0.02
    if not table.is_stochastic:
        torch.testing.assert_close(x_0, x_1, rtol=0.02, atol=0.02)


def test_a_gradient_in_one_step_is_refused():
    """At t = 1 it moves nothing, and the packaged model asks nowhere else."""
    clip = some_clip()

    def guide(denoise, seeds):
        return posterior.guided(clip, denoise, [(0.1, lambda ctrl: ctrl.square().sum((1, 2, 3)))])

    with pytest.raises(UserError, match="need at least 2 steps, got 1"):
        sampling.sample(clip, [1], sampling.table_for("angular", 1), guide=guide)
    free = sampling.sample(clip, [1], sampling.table_for("angular", 2))
    held = sampling.sample(clip, [1], sampling.table_for("angular", 2), guide=guide)
    assert (held - free).abs().max() > 1e-4
    # The snap needs no gradient, and does something in one step as well.
    halved = sampling.sample(
        clip,
        [1],
        sampling.table_for("angular", 1),
        guide=lambda d, _: corrected(d, lambda x: x / 2),
    )
    assert halved.isfinite().all()


def test_the_one_answer_is_the_decoded_mean():
    network = some_network(output="mean")
    clip = denoiser.prepare(network, some_evidence(N=N))
    mean = denoiser.regress(network, clip.evidence).mean[:, None].double()
    torch.testing.assert_close(
        sampling.answer(clip).double(), clip.coordinates.decode(mean, clip.evidence)[0]
    )


def test_the_first_seeds_are_the_same_however_many_are_asked_for():
    many = sampling.seeds_from(5, 64)
    assert len(set(many)) == 64
    for count in (1, 2, 17):
        assert sampling.seeds_from(5, count) == many[:count]
    assert not set(sampling.seeds_from(6, 64)) & set(many)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(UserError, match="at least 1 hypothesis, got 0"):
        sampling.seeds_from(0, 0)
    with pytest.raises(UserError, match="seed of at least 0, got -1"):
        sampling.seeds_from(-1, 4)
    with pytest.raises(UserError, match="at least 1 inference step, got 0"):
        sampling.table_for("ddim", 0)
    config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(UserError, match=r"out of ancestral, .*, unipc, got 'pndm'"):
            sampling.table_for("pndm", 4)
    finally:
        config.update("jaxtyping_disable", False)


def test_what_a_network_was_trained_for_is_what_is_usual():
    for trained, expected in (
        ({}, ("ancestral", 8)),
        ({"trained_steps": 2}, ("angular", 2)),
        ({"trained_steps": 1, "trained_sampler": "renoised"}, ("renoised", 1)),
    ):
        assert sampling.usual(some_network(**trained)) == expected


def test_temperature_scales_the_noise_of_each_group():
    # A network that says v = 0 leaves angular steps where they began: at the noise.
    found = []
    for temperature in ((1.0, 1.0), (1.0, 2.0), (2.0, 1.0)):
        network = some_network(trained=False, temperature=temperature).float()
        clip = denoiser.prepare(network, some_evidence(N=N, dtype=torch.float32))
        ctrl = sampling.sample(clip, [1, 2], sampling.table_for("angular", 2))
        offset = ctrl[..., :2] / ctrl[..., 2:] - clip.evidence.ctrl
        found.append((offset, ctrl[..., 2].log()))
    (offset, depth), (same_offset, deeper), (wider, same_depth) = found
    torch.testing.assert_close(deeper, 2 * depth, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same_offset, offset, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(wider, 2 * offset, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same_depth, depth, rtol=1e-3, atol=1e-4)


def test_tails_scale_a_hypothesis_as_a_whole_by_its_seed_alone():
    network = some_network(trained=False).float()
    heavy = some_network(trained=False).float()
    white = dataclasses.asdict(PointNoise.white(M))
    heavy.register_to_config(noise={**white, "tail": 0.5})
    evidence = some_evidence(N=N, dtype=torch.float32)
    plain, scaled = (
        sampling.CorrelatedNoise.of(denoiser.prepare(n, evidence), [1, 2, 3]).initial()
        for n in (network, heavy)
    )
    ratio = scaled / plain
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio))
    assert len(set(ratio[:, 0, 0, 0].tolist())) == 3
    alone = sampling.CorrelatedNoise.of(denoiser.prepare(heavy, evidence), [2]).initial()
    assert torch.equal(alone[0], scaled[1])
