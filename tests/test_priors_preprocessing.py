"""Preprocessing against Pillow and numpy, which share no code with torch."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from priors.preprocessing import FILE_NAME, Preprocessing, in_unit_range

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The file that DINOv3's ViT-S/16 comes with, and the one of DINOv2's ViT-S/14, where they matter.
DINOV3 = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": None,
    "crop_size": None,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
DINOV2 = DINOV3 | {
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "size": {"shortest_edge": 256},
}


def photo(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Noise and hard edges, [H, W, 3] uint8: where a missing antialiasing shows."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image[size[0] // 3 : size[0] // 2, ::2] = 255
    return image


def as_frames(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def pillow(image: np.ndarray, size: tuple[int, int], bicubic: bool = False) -> np.ndarray:
    """[3, h, w]: each channel resized by Pillow in floating point, then mean and deviation."""
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    channels = [
        np.asarray(Image.fromarray(channel).resize((size[1], size[0]), resample))
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    resized = np.clip(np.stack(channels).astype(np.float64) / 255, 0, 1)
    return (resized - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))


@pytest.mark.parametrize(
    ("source", "config", "fit", "patch", "target"),
    [
        ((256, 256), DINOV3, "aspect", 16, (224, 224)),
        ((256, 455), DINOV3, "aspect", 16, (224, 400)),  # 398.1 px, 24.9 patches
        ((455, 256), DINOV3, "aspect", 16, (400, 224)),
        ((256, 455), DINOV3, "square", 16, (224, 224)),
        ((101, 57), DINOV3, "square", 16, (224, 224)),  # enlarged
        ((101, 57), DINOV3, "aspect", 16, (400, 224)),  # 396.9 px, 24.8 patches
        ((300, 480), DINOV2, "aspect", 14, (224, 364)),  # 358.4 px, 25.6 patches; never cropped
        ((90, 640), DINOV3 | {"size": {"height": 96, "width": 96}}, "aspect", 16, (96, 688)),
    ],
)
def test_pixel_values_equal_pillow(
    source: tuple[int, int], config: dict[str, Any], fit: Any, patch: int, target: tuple[int, int]
) -> None:
    image = photo(source)
    values = Preprocessing.from_config(config, fit)(as_frames(image), patch)
    assert values.shape == (1, 3, *target)
    # The kernels are the same; torch computes its weights in float32, Pillow in float64. At column
    # 640 a float32 coordinate is good to 4e-5 px, and so is a weight; neighbours differ by up to
    # 1 / 0.224. That makes 2e-4 per neighbour, where one 8-bit level is 1.7e-2.
    expected = pillow(image, target, bicubic=config["resample"] == 3)
    assert np.abs(values[0].numpy() - expected).max() < 5e-4


def test_eight_bit_pillow_is_within_its_own_rounding() -> None:
    image = photo((270, 480))
    rounded = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    expected = (rounded / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    values = Preprocessing.from_config(DINOV3, "square")(as_frames(image), 16)[0].permute(1, 2, 0)
    # Pillow rounds to 8 bits after each of its two passes: at most one level, over the deviation.
    assert np.abs(values.numpy() - expected).max() < 1 / 255 / 0.224


def test_float_frames_and_bytes_agree() -> None:
    frames = as_frames(photo((40, 60)))
    preprocess = Preprocessing()
    assert torch.equal(preprocess(frames, 16), preprocess(frames / 255, 16))


def test_floats_of_another_range_are_refused() -> None:
    frames = as_frames(photo((40, 60)))
    preprocess = Preprocessing()
    for wrong, said in (
        (frames.float(), r"got 0 to 25\d"),
        (frames / 255 - 0.5, r"got -0\.5 to 0\."),
        (frames * torch.nan, "got nan to nan"),
    ):
        with pytest.raises(ValueError, match=r"need float frames in \[0, 1\], " + said):
            preprocess(wrong, 16)
    # Half precision rounds a little over 1.
    assert preprocess(frames / 255 + 1e-4, 16).isfinite().all()
    with pytest.raises(ValueError, match=r"need frames as uint8 or float .*, got torch\.int64"):
        inspect.unwrap(in_unit_range)(frames.long())


def test_defaults_are_dinov3s_own() -> None:
    assert Preprocessing() == Preprocessing.from_config(DINOV3) == Preprocessing.from_config({})


def test_rescaling_and_normalising_can_be_configured() -> None:
    frames = as_frames(photo((32, 32)))
    raw = {"size": 32, "do_rescale": False, "do_normalize": False}
    values = Preprocessing.from_config(raw)(frames, 16)
    torch.testing.assert_close(values, frames.float(), rtol=0, atol=1e-4)
    half = {"size": 32, "rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}
    values = Preprocessing.from_config(half)(frames, 16)
    torch.testing.assert_close(values, frames / 127.5 - 1, rtol=0, atol=1e-5)


def test_without_resizing_a_frame_is_fitted_to_whole_patches() -> None:
    preprocessing = Preprocessing.from_config({"do_resize": False})
    assert preprocessing.grid((50, 71), 16) == (3, 4)
    assert preprocessing.grid((4, 5), 16) == (1, 1)


def test_bicubic_overshoot_is_clamped() -> None:
    step = torch.zeros(1, 3, 32, 32)
    step[..., 16:] = 1
    plain = {"size": 64, "resample": 3, "do_normalize": False}
    values = Preprocessing.from_config(plain)(step, 16)
    assert values.min() == 0
    assert values.max() == 1


def test_configuration_survives_the_file(tmp_path: Path) -> None:
    written = Preprocessing(size=(160, 192), mean=(0.1, 0.2, 0.3), resample="bicubic", scale=2.0)
    (tmp_path / FILE_NAME).write_text(json.dumps(written.to_config()))
    read = Preprocessing.from_folder(tmp_path)
    assert read.size == written.size
    assert read.identity() == written.identity()
    assert Preprocessing.from_folder(tmp_path / "absent", "square") == Preprocessing(fit="square")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot use .*preprocessor_config.json"),
        ("[]", "cannot use"),
        ('{"resample": 1}', r"need resample 2 \(bilinear\) or 3 \(bicubic\), got 1"),
        ('{"size": {"longest_edge": 9}}', "need size as height and width, shortest_edge or a"),
        ('{"image_std": [1, 0, 1]}', "need std > 0"),
        ('{"image_mean": [1, 0]}', "cannot use"),
    ],
)
def test_unusable_configurations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_folder(tmp_path)


def test_frames_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"need frames of shape \[F, 3, H, W\], got \[1, 3, 0, 4\]"
    ):
        Preprocessing()(torch.zeros(1, 3, 0, 4), 16)
