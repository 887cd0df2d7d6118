"""The network: symmetries, sharing, absence of evidence, configuration, attention backends."""

import dataclasses
import importlib.util

import pytest
import torch
from diffusers.models import attention_dispatch
from observed import CHANNELS, COORDINATES, M, reordered, seeded, some_evidence, some_network
from torch import Tensor, nn

from diffusion4d.attention import BACKENDS, Attention, check_backend, written_out
from diffusion4d.denoiser import coordinates_of, noise_of
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.noise import PointNoise

F64 = torch.float64


def noised(B: int = 1, K: int = 3, N: int = 6) -> tuple[Tensor, Tensor]:
    g = seeded(2)
    return torch.randn((B, K, N, M, 3), generator=g, dtype=F64), torch.rand(
        (B, K), generator=g, dtype=F64
    )


@pytest.mark.parametrize("tokens", [True, False])
def test_order_of_points_carries_over(tokens):
    network, evidence = some_network(), some_evidence(tokens=tokens)
    x_t, t = noised()
    order = torch.randperm(6, generator=seeded())
    plain = network(x_t, t, network.condition(evidence))
    turned = network(x_t[:, :, order], t, network.condition(reordered(evidence, order)))
    torch.testing.assert_close(turned, plain[:, :, order], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(turned, plain, atol=1e-3)


@pytest.mark.parametrize(("N", "K"), [(1, 1), (2, 5), (9, 2)])
def test_any_number_of_points_and_hypotheses(N, K):
    network = some_network()
    evidence = some_evidence(B=2, N=N, tokens=True)
    x_t, t = noised(2, K, N)
    together = network(x_t, t, network.condition(evidence))
    assert together.shape == (2, K, N, M, 3)
    # A hypothesis does not know of the others, nor a clip of the other.
    for k in range(K):
        alone = network(x_t[:, k : k + 1], t[:, k : k + 1], network.condition(evidence))
        torch.testing.assert_close(alone[:, 0], together[:, k], rtol=1e-9, atol=1e-9)


def test_points_see_each_other():
    network, evidence = some_network(), some_evidence()
    x_t, t = noised()
    moved = x_t.clone()
    moved[:, :, 0] += 1
    condition = network.condition(evidence)
    change = (network(moved, t, condition) - network(x_t, t, condition)).abs()
    assert (change[:, :, 1:].amax((-2, -1)) > 1e-6).all()


@pytest.mark.parametrize("what", ["tokens", "weight", "log_focal", "focal_known", "ctrl", "t"])
def test_everything_that_is_known_counts(what):
    network, evidence = some_network(), some_evidence(tokens=True)
    x_t, t = noised()
    plain = network(x_t, t, network.condition(evidence))
    if what == "tokens":
        assert evidence.tokens is not None
        # Away from the points, so through cross-attention alone.
        tokens = dataclasses.replace(evidence.tokens, values=evidence.tokens.values.flip(-1))
        evidence = dataclasses.replace(evidence, tokens=tokens)
    elif what == "t":
        t = t / 2
    else:
        evidence = dataclasses.replace(evidence, **{what: getattr(evidence, what) * 0.5})
    assert not torch.allclose(network(x_t, t, network.condition(evidence)), plain, atol=1e-4)


def test_untrained_networks_answer_zero():
    x_t, t = noised()
    evidence = some_evidence(tokens=True)
    network = some_network(trained=False)
    assert (network(x_t, t, network.condition(evidence)) == 0).all()
    gaussian = some_network(trained=False, output="gaussian")
    out = gaussian(None, None, gaussian.condition(evidence))
    assert out.shape == (1, 1, 6, M, 6)
    assert (out == 0).all()


def test_networks_that_take_no_noise_give_one_answer_to_the_point():
    network, order = some_network(output="mean"), torch.tensor([3, 1, 5, 0, 2, 4])
    evidence = some_evidence(tokens=True)
    out = network(None, None, network.condition(evidence))
    assert out.shape == (1, 1, 6, M, 3)
    turned = network(None, None, network.condition(reordered(evidence, order)))
    torch.testing.assert_close(turned, out[:, :, order])


def test_tokens_can_be_absent():
    x_t, t = noised()
    with_tokens, without = some_evidence(tokens=True), some_evidence()
    network = some_network()
    seen = network(x_t, t, network.condition(with_tokens))
    blind = network(x_t, t, network.condition(without))
    assert blind.isfinite().all()
    assert not torch.allclose(seen, blind, atol=1e-4)
    # A network that takes no tokens does not see whether there are any.
    plain = some_network(token_channels=0)
    torch.testing.assert_close(
        plain(x_t, t, plain.condition(with_tokens)), plain(x_t, t, plain.condition(without))
    )


def test_keys_and_values_are_those_of_the_clip_alone():
    # Computed once by `condition`, used by every hypothesis and every time.
    network, evidence = some_network(), some_evidence(tokens=True)
    condition = network.condition(evidence)
    assert condition.keys_values is not None
    assert len(condition.keys_values) == 1
    calls = []
    cross = network.blocks[1].get_submodule("cross.key_value")
    cross.register_forward_hook(lambda *_: calls.append(1))
    x_t, t = noised()
    network(x_t, t, condition)
    network(x_t, t / 2, condition)
    assert calls == []


def test_evidence_that_does_not_fit_is_refused():
    network = some_network()
    with pytest.raises(ValueError, match="5 control points, got 7"):
        network.condition(some_evidence(num_ctrl=7))
    with pytest.raises(ValueError, match=f"{CHANNELS} token channels, got 9"):
        network.condition(some_evidence(tokens=True, channels=9))
    evidence = some_evidence(tokens=True)
    condition = network.condition(evidence)
    with pytest.raises(ValueError, match="5 noised control points, got 4"):
        network(torch.zeros(1, 1, 6, 4, 3, dtype=F64), torch.zeros(1, 1, dtype=F64), condition)
    with pytest.raises(ValueError, match="diffusion time"):
        network(None, None, condition)
    with pytest.raises(ValueError, match="anchored=False"):
        network.condition(evidence, torch.zeros(1, 6, M, 6, dtype=F64))
    with pytest.raises(ValueError, match="anchored=True"):
        some_network(anchored=True).condition(evidence)


def test_save_and_load(tmp_path):
    noise = dataclasses.replace(PointNoise.white(M), shared=(0.25, 0.5))
    network = some_network(noise=dataclasses.asdict(noise)).float()
    network.save_pretrained(tmp_path)
    loaded = TrajectoryDiT.from_pretrained(tmp_path).eval()
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert coordinates_of(loaded) == COORDINATES
    assert noise_of(loaded) == noise
    evidence = some_evidence(tokens=True, dtype=torch.float32)
    x_t, t = (v.float() for v in noised())
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in network.state_dict().items())
    torch.testing.assert_close(
        loaded(x_t, t, loaded.condition(evidence)), network(x_t, t, network.condition(evidence))
    )


def test_queries_and_keys_are_normalised():
    attention = Attention(16, 2, 16).double()
    x = torch.randn((1, 5, 16), generator=seeded(), dtype=F64)
    plain = attention(x, attention.keys_values(x), "native")
    with torch.no_grad():
        for part in (attention.key_value.weight[:16], attention.key_value.bias[:16]):
            part *= 7
        for part in (attention.query.weight, attention.query.bias):
            part *= 7
    torch.testing.assert_close(
        attention(x, attention.keys_values(x), "native"), plain, rtol=1e-4, atol=1e-4
    )


def test_native_and_plain_attention_agree():
    network, evidence = some_network(), some_evidence(tokens=True)
    x_t, t = noised()
    native = network(x_t, t, network.condition(evidence))
    network.set_attention_backend("_native_math")
    assert network.config["attention_backend"] == "_native_math"
    plain = network(x_t, t, network.condition(evidence))
    torch.testing.assert_close(plain, native, rtol=1e-10, atol=1e-10)
    network.reset_attention_backend()
    assert network.config["attention_backend"] == "native"


@pytest.mark.parametrize("backend", [name for name, needs in BACKENDS.items() if needs.cuda])
def test_a_backend_for_cuda_is_refused_on_the_cpu(backend):
    active = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    network = some_network().bfloat16()
    with pytest.raises(ValueError, match=f"'{backend}' needs a CUDA device, got 'cpu'"):
        network.set_attention_backend(backend)
    assert network.config["attention_backend"] == "native"
    # A checkpoint that was saved with it is refused before anything runs, and can be told otherwise.
    saved = some_network(attention_backend=backend).bfloat16()
    with pytest.raises(ValueError, match="CUDA"):
        saved.condition(some_evidence())
    saved.reset_attention_backend()
    saved.double().condition(some_evidence())
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend() == active


def test_backends_are_checked_in_order():
    cpu, half = torch.device("cpu"), torch.bfloat16
    with pytest.raises(ValueError, match=r"out of native, .*, got 'nativ'"):
        check_backend("nativ", 7, F64, cpu)
    with pytest.raises(ValueError, match="multiple of 8 channels, got 7"):
        check_backend("flash", 7, F64, cpu)
    with pytest.raises(ValueError, match=r"float16, bfloat16, got torch\.float32"):
        check_backend("flash", 64, torch.float32, cpu)
    with pytest.raises(ValueError, match="CUDA device, got 'cpu'"):
        check_backend("flash", 64, half, cpu)
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(ValueError, match="package flash_attn"):
            check_backend("flash", 64, half, torch.device("cuda"))
    with pytest.raises(ValueError, match="got 'nativ'"):
        some_network(attention_backend="nativ")
    # All of them are names that diffusers knows.
    assert set(BACKENDS) <= {name.value for name in attention_dispatch.AttentionBackendName}


@pytest.mark.skipif(
    importlib.util.find_spec("xformers") is None or not torch.cuda.is_available(),
    reason="needs xformers and a CUDA device",
)
def test_xformers_agrees_with_native():
    network = some_network().float()
    torch.nn.Module.to(network, "cuda")
    evidence = some_evidence(tokens=True, dtype=torch.float32).to("cuda")
    x_t, t = (v.float().to("cuda") for v in noised())
    native = network(x_t, t, network.condition(evidence))
    network.set_attention_backend("xformers")
    torch.testing.assert_close(
        network(x_t, t, network.condition(evidence)), native, rtol=1e-3, atol=1e-3
    )


@pytest.mark.skipif(
    importlib.util.find_spec("xformers") is None or torch.cuda.is_available(),
    reason="needs xformers on a machine without CUDA",
)
def test_xformers_on_the_cpu_is_refused_although_it_imports():
    import xformers.ops  # noqa: F401  # pyright: ignore[reportMissingImports]

    with pytest.raises(ValueError, match="CUDA"):
        some_network().float().set_attention_backend("xformers")


def test_attention_written_out_is_attention():
    q, k, v = (torch.randn(2, n, 3, 8, generator=seeded(n), dtype=torch.float64) for n in (5, 7, 7))
    expected = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(written_out(q, k, v), expected.transpose(1, 2))


def test_evidence_is_not_rounded_to_half_precision():
    told = {"parallax": True, "token_channels": 0}
    network = some_network(**told).float()
    evidence = some_evidence(tokens=False, N=20, dtype=torch.float32)
    exact = network.condition(evidence).points
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.condition(evidence).points, exact)
