"""Sizes and costs: the published numbers of parameters, a closed form, and the very model that is packaged."""

import pytest
import torch

from priors.describe import SIZES, config_of, describe, table
from priors.dinov3 import load_encoder
from priors.heads import count_parameters, make_head

# Simeoni et al. 2025, table 1, in millions, as rounded there.
PUBLISHED = {
    "vits16": 21,
    "vits16plus": 29,
    "vitb16": 86,
    "vitl16": 300,
    "vith16plus": 840,
    "vit7b16": 6716,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_the_published_ones(name: str) -> None:
    backbone = describe(name).backbone
    assert backbone.parameters / 1e6 == pytest.approx(PUBLISHED[name], rel=0.03)
    assert backbone.shape == (1, 5 + 256, config_of(name).hidden_size)


def test_multiply_adds_have_a_closed_form() -> None:
    """Patch embedding, then per block 12 S C^2 in projections and 2 S^2 C in attention."""
    channels, tokens = 384, 16 * 20
    total = tokens + 5
    block = 12 * total * channels**2 + 2 * total**2 * channels
    wanted = tokens * 16 * 16 * 3 * channels + 12 * block
    found = describe("vits16", (256, 320))
    # The rotary positions take a product of 2 numbers a token and head, which is nothing beside it.
    assert found.backbone.multiply_adds == pytest.approx(wanted, rel=1e-3)
    linear = found.heads["linear"]
    assert linear.parameters == 2 * (channels + 1)
    assert linear.multiply_adds == 2 * channels * tokens
    assert linear.shape == (1, 2, 16, 20)
    assert found.heads["dpt"].shape == (1, 2, 128, 160)


def test_the_packaged_encoder_is_what_is_described() -> None:
    found = describe("tiny", outputs=1)
    assert found.backbone.parameters == count_parameters(load_encoder("tiny").model)
    assert found.heads["dpt"].parameters == count_parameters(make_head("dpt", 128, 4))
    rows = table([found]).splitlines()
    assert len(rows) == 3
    assert "0.89 M" in rows[2]
    assert "1x128x128" in rows[2]


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need a size out of tiny, vits16, .*, got 'vitg'"):
        describe("vitg")
    with pytest.raises(ValueError, match=r"whole patches of 16 px, got \(100, 256\)"):
        describe("tiny", (100, 256))
    assert not torch.empty(1).is_meta
