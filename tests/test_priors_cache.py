"""The token cache: hits are exact, misses are recomputed, damage is harmless, size is bounded."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from priors.cache import FeatureCache, default_folder
from priors.dinov3 import Encoder
from priors.preprocessing import Preprocessing


class Counting(Encoder):
    """Counts the frames that really go through the model."""

    frames = 0

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.frames += len(pixel_values)
        return super().forward(pixel_values)


def encoder(seed: int = 0) -> Counting:
    torch.manual_seed(seed)
    config = DINOv3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    return Counting(DINOv3ViTModel(config), Preprocessing(size=(32, 32)), "small")


def clip(num_frames: int = 3) -> torch.Tensor:
    return torch.rand(num_frames, 3, 40, 60, generator=torch.Generator().manual_seed(2))


def u(num_frames: int = 3) -> torch.Tensor:
    return torch.linspace(0, 1, num_frames)


def test_a_hit_is_exact_and_costs_no_forward_pass(tmp_path: Path) -> None:
    first, cache = encoder(), FeatureCache(tmp_path / "tokens")
    computed = first.encode(clip(), u(), cache)
    assert first.frames == 3
    # Another process, another object of the same content, another time in the clip.
    second = encoder()
    found = second.encode(clip().flip(0), u(), FeatureCache(tmp_path / "tokens"))
    assert second.frames == 0
    assert torch.equal(found.values, computed.values.flip(0))
    assert torch.equal(found.u, u())
    assert found.grid == computed.grid == (2, 3)


def test_only_new_frames_are_computed(tmp_path: Path) -> None:
    subject, cache = encoder(), FeatureCache(tmp_path)
    subject.encode(clip(), u(), cache)
    changed = clip(4)
    changed[1, 0, 20, 30] += 0.1
    mixed = subject.encode(changed, u(4), cache)
    assert subject.frames == 3 + 2
    torch.testing.assert_close(mixed.values, subject.encode(changed, u(4)).values)


def test_another_encoder_or_precision_misses(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    encoder().encode(clip(), u(), cache)
    other = encoder(seed=1)
    other.encode(clip(), u(), cache)
    assert other.frames == 3
    half = encoder().to(torch.bfloat16)
    assert half.encode(clip(), u(), cache).values.dtype == torch.bfloat16
    assert half.frames == 3
    half.encode(clip(), u(), cache)
    assert half.frames == 3


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(500)),
    ],
    ids=["flipped", "truncated", "empty", "noise"],
)
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    subject, cache = encoder(), FeatureCache(tmp_path)
    computed = subject.encode(clip(), u(), cache)
    damage(sorted(tmp_path.iterdir())[1])
    subject.frames = 0
    again = subject.encode(clip(), u(), cache)
    assert subject.frames == 1
    torch.testing.assert_close(again.values, computed.values)
    # The entry is whole again.
    subject.encode(clip(), u(), cache)
    assert subject.frames == 1


def test_the_oldest_use_goes_first(tmp_path: Path) -> None:
    tokens = torch.zeros(10, 10)
    cache = FeatureCache(tmp_path)
    cache.put(dict.fromkeys("abc", tokens))
    entry_bytes = (tmp_path / "a.safetensors").stat().st_size
    for age, name in enumerate("cba"):
        os.utime(tmp_path / f"{name}.safetensors", (1000 + age, 1000 + age))
    # c is the oldest, then b; using c makes it the newest.
    assert cache.get("c") is not None
    FeatureCache(tmp_path, max_bytes=3 * entry_bytes).put({"d": tokens})
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_an_unusable_folder_warns_once_and_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file" / "tokens")
    subject = encoder()
    with pytest.warns(UserWarning, match="tokens are not cached in .*file"):
        tokens = subject.encode(clip(), u(), cache)
    assert torch.equal(tokens.values, subject.encode(clip(), u(), cache).values)


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path).put({"a": torch.zeros(2, 2)})
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_chosen_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION4D_CACHE", str(tmp_path))
    cache = FeatureCache.default()
    assert cache is not None
    assert cache.folder == tmp_path / "tokens"
    monkeypatch.setenv("DIFFUSION4D_CACHE", "off")
    assert FeatureCache.default() is None
    monkeypatch.delenv("DIFFUSION4D_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "diffusion4d"
    with pytest.raises(ValueError, match="need max_bytes >= 0, got -1"):
        FeatureCache(tmp_path, max_bytes=-1)
