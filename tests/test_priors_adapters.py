"""LoRA and precision: adapters train and merge into the same function; fewer bits give nearly the same tokens."""

import copy
from pathlib import Path

import pytest
import torch

from priors.adapters import merged, with_adapters
from priors.cache import FeatureCache
from priors.dinov3 import load_encoder
from priors.precision import in_precision
from priors.tiny import save_encoder


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Something with structure: smooth colours."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(small, size=(96, 96), mode="bicubic").clamp(0, 1)


def test_adapters_train_and_merge_into_the_same_function(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    torch.manual_seed(0)
    plain = load_encoder("tiny")
    before = {name: values.clone() for name, values in plain.model.state_dict().items()}
    wanted = torch.randn(2, 36, 128)
    adapted = with_adapters(copy.deepcopy(plain.model), rank=4)
    numbers = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    # A and B of rank 4, of two projections in each of four layers.
    assert numbers == 4 * 2 * 2 * 4 * 128

    def tokens() -> torch.Tensor:
        return adapted(pixels).last_hidden_state[:, -36:]

    assert torch.allclose(tokens(), plain(pixels), atol=1e-6)
    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(8):
        loss = (tokens() - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    with torch.no_grad():
        trained = tokens()
    model = merged(adapted)
    save_encoder(model, tmp_path, plain.preprocessing)
    again = load_encoder(tmp_path)
    assert torch.allclose(again(pixels), trained, atol=1e-5)
    assert (trained - plain(pixels)).abs().max() > 0.05
    assert again.fingerprint != plain.fingerprint
    # Only the adapted projections differ from what they were.
    after = again.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}


def test_unusable_adapters_are_refused() -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    model = load_encoder("tiny").model
    with pytest.raises(ValueError, match="need rank >= 1, got 0"):
        with_adapters(model, rank=0)
    with pytest.raises(ValueError, match="need layers called qkv in the model"):
        with_adapters(model, targets=("qkv",))


def test_fewer_bits_give_nearly_the_same_tokens(tmp_path: Path, pixels: torch.Tensor) -> None:
    plain = load_encoder("tiny")
    whole = plain.encode(pixels, torch.zeros(2)).values
    cache = FeatureCache(tmp_path)
    plain.encode(pixels, torch.zeros(2), cache)
    for precision, close in (("bf16", 0.999), ("int8", 0.99)):
        less = in_precision(plain, "bf16" if precision == "bf16" else "int8")
        tokens = less.encode(pixels, torch.zeros(2), cache).values.float()
        alike = torch.cosine_similarity(tokens, whole, dim=-1)
        assert alike.min() > close, precision
        # Other numbers all the same: neither the network nor the cache gave back those of float32.
        assert (tokens - whole).abs().max() > 1e-4, precision
        assert less.fingerprint == plain.fingerprint
    # The one it was made of is as it was.
    assert torch.equal(plain.encode(pixels, torch.zeros(2)).values, whole)
    assert torch.equal(in_precision(plain, "fp32").encode(pixels, torch.zeros(2)).values, whole)
