"""Encoders against plain transformers calls; what they are fed, what they drop, what identifies them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from priors import dinov3
from priors.dinov3 import Encoder, load_encoder
from priors.preprocessing import Preprocessing
from priors.tiny import save_encoder, tiny_config


def noise(num_frames: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(num_frames, 3, height, width, generator=torch.Generator().manual_seed(3))


def small_config(**changes: Any) -> DINOv3ViTConfig:
    return DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        **changes,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("encoders") / "small"
    save_encoder(
        DINOv3ViTModel(small_config(num_register_tokens=3)), folder, Preprocessing(size=(64, 64))
    )
    return folder


def test_vits16_gives_the_patch_tokens_of_a_plain_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # The configuration of facebook/dinov3-vits16-pretrain-lvd1689m; its weights are gated.
    config = DINOv3ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=16,
        num_register_tokens=4,
    )
    model = DINOv3ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert (encoder.channels, encoder.patch) == (384, 16)

    frames = noise(2, 180, 320)
    tokens = encoder.encode(frames, torch.tensor([0.0, 1.0]))
    # 320 / 180 * 224 = 398 px, 24.9 patches: 25. Without a preprocessor_config.json: DINOv3's own.
    assert (tokens.grid, tokens.size) == ((14, 25), (180, 320))
    pixels = Preprocessing()(frames, 16)
    with torch.no_grad():
        hidden = model(pixels).last_hidden_state
    assert hidden.shape == (2, 1 + 4 + 14 * 25, 384)
    torch.testing.assert_close(tokens.values, hidden[:, 5:], rtol=1e-4, atol=1e-4)
    # The tokens differ from place to place by far more than that.
    assert (hidden[:, 5:-1] - hidden[:, 6:]).abs().max() > 0.1


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_with_patch_14_loads_through_the_same_door(tmp_path: Path, registers: int) -> None:
    torch.manual_seed(1)
    size: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    model = (
        Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                **size, patch_size=14, image_size=70, num_register_tokens=registers
            )
        )
        if registers
        else Dinov2Model(Dinov2Config(**size, patch_size=14, image_size=70))
    ).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": {"height": 70, "width": 70},
                "do_center_crop": True,
                "resample": 3,
                "size": {"shortest_edge": 80},
            }
        )
    )
    encoder = load_encoder(str(tmp_path))
    assert (encoder.channels, encoder.patch) == (48, 14)
    frames = noise(3, 100, 60)
    tokens = encoder.encode(frames, torch.linspace(0, 1, 3))
    assert tokens.grid == (8, 5)
    pixels = Preprocessing(size=(70, 70), resample="bicubic")(frames, 14)
    with torch.no_grad():
        hidden = model(pixels).last_hidden_state
    torch.testing.assert_close(tokens.values, hidden[:, 1 + registers :], rtol=1e-5, atol=1e-5)


def test_token_ij_belongs_to_patch_ij() -> None:
    # Layer scale 0 turns the layers into the identity: a token then knows its own patch only.
    encoder = Encoder(DINOv3ViTModel(small_config(layerscale_value=0.0)), Preprocessing(), "x")
    pixels = noise(1, 3 * 16, 5 * 16)
    changed = pixels.clone()
    changed[..., 2 * 16 : 3 * 16, 4 * 16 : 5 * 16] += 1
    difference = (encoder(changed) - encoder(pixels)).abs().amax(-1)[0]
    assert difference.nonzero().flatten().tolist() == [2 * 5 + 4]


def test_a_pixel_keeps_its_place_from_frame_to_sampled_token() -> None:
    # An encoder that averages each patch: sampling its tokens must give back the ramps of the
    # frame, whatever the resizing between. The frame's shape does not divide into patches.
    model = DINOv3ViTModel(small_config(layerscale_value=0.0))
    model.norm = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        convolution = model.embeddings.patch_embeddings
        convolution.weight.zero_()
        for channel in range(3):
            convolution.weight[channel, channel] = 1 / 256
        assert convolution.bias is not None
        convolution.bias.zero_()
    plain = Preprocessing(size=(96, 96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    height, width = 150, 211
    y = (torch.arange(height) + 0.5)[:, None].expand(height, width) / 256
    x = (torch.arange(width) + 0.5)[None].expand(height, width) / 256
    tokens = Encoder(model, plain, "x").encode(torch.stack([x, y, 0 * x])[None], torch.zeros(1))
    assert tokens.grid == (6, 8)
    points = torch.tensor([[60.0, 40.0], [105.5, 75.0], [131.7, 98.2], [150.0, 60.5]])
    sampled = tokens.sample(points[:, None])[:, 0, :2]
    # Pixels; float32 resizing is good to 2e-3 of them, and half a pixel astray would be 0.5.
    torch.testing.assert_close(sampled * 256, points, rtol=0, atol=1e-2)


def test_chunks_do_not_change_the_tokens(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(small)
    frames, u = noise(5, 64, 96), torch.linspace(0, 1, 5)
    whole = encoder.encode(frames, u)
    sizes: list[int] = []
    encoder.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    # 4 x 6 tokens a frame: two frames fit 60 tokens, and one goes through even if none fits.
    for limit, expected in ((60, [2, 2, 1]), (1, [1, 1, 1, 1, 1])):
        monkeypatch.setattr(dinov3, "CHUNK_TOKENS", limit)
        parts = encoder.encode(frames, u)
        torch.testing.assert_close(parts.values, whole.values, rtol=1e-5, atol=1e-5)
        assert sizes == expected
        sizes.clear()


def test_an_encoder_is_frozen(small: Path) -> None:
    encoder = load_encoder(small)
    around = torch.nn.ModuleList([encoder]).train()
    assert around.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.encode(noise(1, 64, 64), torch.zeros(1)).values.requires_grad


def test_bytes_and_floats_give_the_same_tokens_and_fit_chooses_the_grid(small: Path) -> None:
    encoder = load_encoder(small)
    frames = (noise(1, 50, 70) * 255).to(torch.uint8)
    u = torch.zeros(1, dtype=torch.float64)
    assert encoder.encode(frames, u).grid == (4, 6)
    assert load_encoder(small, fit="square").encode(frames, u).grid == (4, 4)
    assert torch.equal(encoder.encode(frames, u).values, encoder.encode(frames / 255, u).values)


def test_fingerprint_names_the_content(small: Path, tmp_path: Path) -> None:
    fingerprint = load_encoder(small).fingerprint
    assert len(fingerprint) == 32

    weights = load_file(small / "model.safetensors")
    config = json.loads((small / "config.json").read_text())
    preprocessor = json.loads((small / "preprocessor_config.json").read_text())

    def changed(name: str, **files: dict) -> str:
        folder = tmp_path / name
        folder.mkdir()
        save_file(files.get("weights", weights), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(files.get("config", config)))
        (folder / "preprocessor_config.json").write_text(
            json.dumps(files.get("preprocessor", preprocessor))
        )
        return load_encoder(folder).fingerprint

    bias = next(key for key in weights if key.endswith("up_proj.bias"))
    nudged = weights | {bias: weights[bias] + torch.eye(64)[17] * 1e-7}
    colours = preprocessor | {"image_mean": [0.5, 0.5, 0.5]}
    # The same content, stored apart, and at another resolution, is the same encoder.
    assert changed("copy", config=config | {"transformers_version": "9"}) == fingerprint
    resized = preprocessor | {"size": {"height": 96, "width": 96}}
    assert changed("resized", preprocessor=resized) == fingerprint
    others = [
        changed("weights", weights=nudged),
        changed("theta", config=config | {"rope_theta": 50.0}),
        changed("heads", config=config | {"num_attention_heads": 4}),
        changed("colours", preprocessor=colours),
    ]
    assert len({fingerprint, *others}) == 5


def test_the_tiny_configuration_is_a_dinov3_of_four_megabytes() -> None:
    model = DINOv3ViTModel(tiny_config())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 893_056
    assert 4 * parameters < 4_000_000
    assert model.config.patch_size == 16


def test_frames_and_times_must_fit(small: Path) -> None:
    encoder = load_encoder(small)
    with pytest.raises(ValueError, match=r"F >= 1, got \[0, 3, 8, 8\]"):
        encoder.encode(torch.zeros(0, 3, 8, 8), torch.zeros(0))
    with pytest.raises(ValueError, match="need square patches, got"):
        Encoder(DINOv3ViTModel(small_config(patch_size=(16, 8))), Preprocessing(), "x")
