"""The fused loop is the network, to rounding; what it cannot run is refused."""

import dataclasses

import pytest
import torch
from observed import M, seeded, some_evidence, some_network

from diffusion4d import denoiser, sampling
from diffusion4d.errors import UserError
from diffusion4d.fused import FusedNetwork
from diffusion4d.loops import Loop, choose, multiplies_bf16, ready
from diffusion4d.noise import PointNoise

TIMES = torch.tensor([1.0, 0.75, 0.125], dtype=torch.float64)
FP32 = Loop("fused", "fp32", "test")
BF16 = Loop("fused", "bf16", "test")

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


def both(N: int, tokens: bool, **config):
    """The same network and clip in float64 and in float32."""
    exact, rounded = some_network(**config), some_network(**config).float()
    evidence = some_evidence(N=N, tokens=tokens)
    return (exact, exact.condition(evidence)), (rounded, rounded.condition(in_float32(evidence)))


def in_float32(value):
    """The same evidence, rounded."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (f.name for f in dataclasses.fields(value))
        return dataclasses.replace(value, **{n: in_float32(getattr(value, n)) for n in names})
    return value.float() if isinstance(value, torch.Tensor) else value


@needs_onednn
@pytest.mark.parametrize(("K", "N"), [(1, 1), (3, 5), (7, 12)])
@pytest.mark.parametrize("tokens", [True, False])
def test_it_errs_no_more_than_the_network_itself(K, N, tokens):
    (exact, exact_clip), (rounded, clip) = both(N, tokens)
    fused = FusedNetwork.of(rounded, clip, TIMES, "fp32")
    half = FusedNetwork.of(rounded, clip, TIMES, "bf16")
    x_t = torch.randn((K, N, M, 3), generator=seeded(), dtype=torch.float64)
    for t in TIMES:
        truth = exact(x_t[None], t.expand(1, K), exact_clip)[0]
        plain = rounded(x_t[None].float(), t.float().expand(1, K), clip)[0]
        own = (plain - truth).abs().max()
        assert (fused(x_t.float(), t.float()) - truth).abs().max() <= 2 * own + 1e-6
        # Half precision is held to what torch's own mixed precision makes of the network.
        with torch.autocast("cpu", torch.bfloat16):
            mixed = rounded(x_t[None].float(), t.float().expand(1, K), clip)[0]
        error, usual = ((x - truth).square().mean() for x in (half(x_t.float(), t.float()), mixed))
        assert (10 * own).square() < error <= 4 * usual


@needs_onednn
def test_a_larger_network_with_several_cross_attentions():
    (exact, exact_clip), (rounded, clip) = both(6, True, width=48, num_heads=3, depth=5)
    x_t = torch.randn((2, 6, M, 3), generator=seeded(3), dtype=torch.float64)
    truth = exact(x_t[None], TIMES[1].expand(1, 2), exact_clip)[0]
    fused = FusedNetwork.of(rounded, clip, TIMES)(x_t.float(), TIMES[1].float())
    plain = rounded(x_t[None].float(), TIMES[1].float().expand(1, 2), clip)[0]
    assert (fused - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-6


def some_clip() -> denoiser.ClipDenoiser:
    over_time = tuple(tuple(0.8 ** abs(i - j) for j in range(M)) for i in range(M))
    noise = PointNoise((0.3, 0.5), (0.4, 0.3), (0.5, 0.5), (0.5, 0.5), (over_time, over_time))
    network = some_network(noise=dataclasses.asdict(noise)).float().requires_grad_(False)
    return denoiser.prepare(network, some_evidence(N=4, tokens=True, dtype=torch.float32))


@needs_onednn
@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m"])
def test_samples_are_those_of_the_plain_loop(sampler):
    clip, table = some_clip(), sampling.table_for(sampler, 4)
    plain = sampling.sample(clip, [3, 7, 9], table)
    torch.testing.assert_close(sampling.sample(clip, [3, 7, 9], table, loop=FP32), plain)


@needs_onednn
@pytest.mark.parametrize("loop", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_hypothesis_is_the_same_whatever_its_chunk(loop):
    clip, table, seeds = some_clip(), sampling.table_for("angular", 2), sampling.seeds_from(0, 11)
    together = sampling.sample(clip, seeds, table, loop=loop)
    for chunk in (1, 2, 5):
        parts = sampling.sample(clip, seeds, table, loop=loop, chunk=chunk)
        torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        sampling.sample(clip, seeds[4:5], table, loop=loop)[0], together[4], rtol=1e-5, atol=1e-5
    )


@needs_onednn
@pytest.mark.parametrize("loop", [None, FP32], ids=["plain", "fused"])
def test_guidance_mixes_two_answers_and_costs_nothing_at_one(loop):
    clip, table = some_clip(), sampling.table_for("ddim", 1)
    options = {} if loop is None else {"loop": loop}
    bare = sampling.sample(clip.without_tokens(), [5], table, **options)
    full = sampling.sample(clip, [5], table, **options)
    evaluations = []
    clip.network.register_forward_pre_hook(lambda *_: evaluations.append(1))
    assert torch.equal(sampling.sample(clip, [5], table, guidance=1.0, **options), full)
    assert len(evaluations) == (loop is None)
    torch.testing.assert_close(sampling.sample(clip, [5], table, guidance=0.0, **options), bare)
    # One step from noise returns x_0, which is mixed linearly; so is log depth, its last coordinate.
    guided = sampling.sample(clip, [5], table, guidance=1.5, **options)
    expected = bare[..., 2].log() + 1.5 * (full[..., 2].log() - bare[..., 2].log())
    torch.testing.assert_close(guided[..., 2].log(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(full, bare, atol=1e-4)


def test_what_the_fused_loop_cannot_run_is_refused():
    def refused(network, match: str) -> None:
        with pytest.raises(UserError, match=match):
            choose(network, "fused")
        # "auto" takes the plain loop instead, and says why.
        chosen = choose(network)
        assert (chosen.name, chosen.precision) == ("plain", "fp32")
        assert match in str(chosen)

    refused(some_network(output="mean").float(), "velocity")
    refused(some_network(), "weights in torch.float32, got torch.float64")
    refused(some_network(attention_backend="_native_math").float(), "attention backend 'native'")
    refused(some_network().to("meta", torch.float32), "on a CPU, got a network on 'meta'")


@needs_onednn
def test_times_clips_and_gradients_are_checked():
    clip = ready(some_clip(), FP32, TIMES)
    assert clip.fused is not None
    x_t = torch.zeros(1, 4, M, 3)
    # The last time of a table is where the sample is: the network is not prepared for it.
    with pytest.raises(ValueError, match=r"need a time out of .* got 0\.125"):
        clip.fused(x_t, TIMES[2])
    with pytest.raises(ValueError, match="no gradients"):
        clip.fused(x_t.requires_grad_(), TIMES[0])
    network = clip.network
    several = network.condition(some_evidence(B=2, dtype=torch.float32))
    with pytest.raises(ValueError, match="one clip, got 2"):
        FusedNetwork.of(network, several, TIMES)


def test_loops_and_precisions_are_chosen_in_the_open(monkeypatch):
    network = some_network().float()
    monkeypatch.setattr("diffusion4d.loops.multiplies_bf16", lambda: False)
    assert choose(network).precision == "fp32"
    with pytest.raises(UserError, match="this one emulates it"):
        choose(network, "plain", "bf16")
    monkeypatch.setattr("diffusion4d.loops.multiplies_bf16", lambda: True)
    assert choose(network, "plain").precision == "fp32"
    assert choose(network, "plain", "bf16").precision == "bf16"
    if torch.backends.mkldnn.is_available():
        assert str(choose(network)) == "fused, bf16 (on a CPU; bfloat16 in hardware)"
        assert choose(network, "fused", "fp32").precision == "fp32"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler on a CPU, found no no-such"):
        choose(network, "compiled")
    assert isinstance(multiplies_bf16(), bool)
