"""Dense heads: closed form of the linear one, equivariance of the DPT, and heads on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from priors.dinov3 import load_encoder
from priors.heads import (
    HEAD_FILE,
    Dense,
    DPTHead,
    LinearHead,
    count_parameters,
    load_head,
    make_head,
    save_head,
    tapped,
)


def test_linear_head_is_linear_in_the_normalised_token() -> None:
    torch.manual_seed(0)
    head = LinearHead(6, (4,)).double()
    tokens = torch.randn(2, 15, 6, dtype=torch.float64)
    centred = tokens - tokens.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    wanted = unit @ head.read.weight[0] + head.read.bias
    assert torch.allclose(head([tokens], (3, 5)), wanted.unflatten(1, (3, 5))[:, None])


def test_outputs_are_read_by_their_meaning() -> None:
    """Each output of a linear head is a linear head of its own; descriptors have unit length."""
    torch.manual_seed(0)
    head = LinearHead(6, (4,), outputs=5)
    tokens = torch.randn(2, 15, 6)
    raw = head([tokens], (3, 5))
    dense = Dense.of(raw)
    for o in range(5):
        alone = LinearHead(6, (4,))
        alone.load_state_dict(
            {"read.weight": head.read.weight[o : o + 1], "read.bias": head.read.bias[o : o + 1]}
        )
        assert torch.allclose(alone([tokens], (3, 5))[:, 0], raw[:, o], atol=1e-6)
    assert torch.equal(dense.log_depth, raw[:, 0])
    assert dense.log_confidence is not None
    assert torch.equal(dense.log_confidence, raw[:, 1])
    assert dense.descriptors is not None
    length = raw[:, 2:].square().sum(1, keepdim=True).sqrt()
    assert torch.allclose(dense.descriptors * length, raw[:, 2:], atol=1e-5)
    one, two = Dense.of(raw[:, :1]), Dense.of(raw[:, :2])
    assert one.log_confidence is None
    assert two.log_confidence is not None
    assert two.descriptors is None


def test_dpt_moves_with_its_tokens() -> None:
    """A picture moved by a token moves its map by eight cells, as far from the border as the head can see."""
    torch.manual_seed(0)
    head = DPTHead(8, (2, 3, 4), width=6).double()
    maps = [torch.randn(1, 18, 19, 8, dtype=torch.float64) for _ in range(3)]
    here, there = ([m[:, :, i : i + 18].flatten(1, 2) for m in maps] for i in (0, 1))
    first, second = head(here, (18, 18)), head(there, (18, 18))
    assert first.shape == (1, 1, 144, 144)
    edge = 56
    a, b = first[..., edge:-edge, edge + 8 : -edge], second[..., edge:-edge, edge : -edge - 8]
    assert torch.allclose(a, b, atol=1e-12)
    assert (a - second[..., edge:-edge, edge + 8 : -edge]).abs().max() > 1e-3


def test_dpt_reads_all_its_layers_and_has_no_idle_weight() -> None:
    torch.manual_seed(0)
    head = DPTHead(8, (2, 3, 4), width=6)
    layers = [torch.randn(2, 6, 8, requires_grad=True) for _ in range(3)]
    head(layers, (2, 3)).square().sum().backward()
    assert all(layer.grad is not None and layer.grad.abs().sum() > 0 for layer in layers)
    assert all(p.grad is not None for p in head.parameters())
    assert count_parameters(make_head("dpt", 128, 4)) <= 400_000


def test_taps_are_layers_of_the_encoder() -> None:
    """The last tap, normalised by the model, is what the encoder gives out."""
    encoder = load_encoder("tiny")
    pixels = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    head = make_head("dpt", 128, 4)
    assert head.taps == (2, 3, 4)
    hidden = encoder.model(pixels, output_hidden_states=True).hidden_states
    last = tapped(hidden, head.taps, 6)[-1]
    norm = encoder.model.get_submodule("norm")
    assert torch.allclose(norm(last), encoder(pixels), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_a_head_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = make_head("dpt" if kind == "dpt" else "linear", 8, 4, outputs=3)
    save_head(head, tmp_path, "abc")
    again = load_head(tmp_path, "abc")
    assert type(again) is type(head)
    layers = [torch.randn(2, 6, 8) for _ in head.taps]
    assert torch.equal(again(layers, (2, 3)), head(layers, (2, 3)))
    with pytest.raises(ValueError, match=r"trained with \(abc\), got other"):
        load_head(tmp_path, "other")


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need a pointmap head"):
        load_head(tmp_path, "abc")
    save_head(make_head("dpt", 8, 4), tmp_path, "abc")
    path = tmp_path / HEAD_FILE
    assert "read.0.weight" in load_file(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot use"):
        load_head(tmp_path, "abc")
    with pytest.raises(ValueError, match="at least 3 layers"):
        make_head("dpt", 8, 2)
    with pytest.raises(ValueError, match="at least 1 output, the log depth, got 0"):
        make_head("linear", 8, 4, outputs=0)
    with pytest.raises(ValueError, match="need 3 layers to read"):
        DPTHead(8, (1, 2))
    with pytest.raises(ValueError, match="got a transformer of 2"):
        tapped([torch.zeros(1, 5, 8)] * 3, (3,), 4)
    with pytest.raises(ValueError, match="tokens, got grid"):
        LinearHead(8, (1,))([torch.zeros(1, 5, 8)], (2, 2))
