r"""Frames to pixel values, as the encoder's own `preprocessor_config.json` says.

    values = (scale * resize(frame) - mean) / std          frame in [0, 1], resize antialiased

Hugging Face's image processors for DINO need torchvision; these few lines of torch do not. They
differ from those processors on purpose in one thing, and otherwise agree:

- `fit="square"` resizes to the configured (H, W) whatever the shape of the frame, as DINOv3's own
  processor does (`DINOv3ViTImageProcessor`: rescale, resize with antialiasing, normalise). A wide
  frame is squeezed.
- `fit="aspect"`, the default, keeps the aspect ratio: the shorter side becomes the configured size
  and the longer one follows, each rounded to whole patches. A token then covers a nearly square
  piece of a wide frame (the rounding stretches a side by at most half a patch), and there are more
  tokens along the longer side. DINOv3 takes any grid.
- Nothing is ever cropped. DINOv2's own processor resizes to 256 and keeps the middle 224 x 224; a
  point near the border would have no feature. Where a configuration crops, the crop's size is taken
  as the size to resize to.

Bicubic weights overshoot; the result is clamped to [0, 1], as 8-bit resizing in Pillow is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Fit = Literal["aspect", "square"]
FILE_NAME = "preprocessor_config.json"
# Pillow's codes, as the files write them. torch antialiases no other filter.
RESAMPLING = {2: "bilinear", 3: "bicubic"}
ROUNDING = 1e-3
"""How far float pixels may lie outside [0, 1]: what rounding and half precision do."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a frame before the encoder sees it. The defaults are DINOv3's own.

    Attributes:
        size: (H, W) in pixels that the configuration asks for; None keeps the frame's own size.
        mean, std: a colour channel each, applied after `scale`.
        scale: factor on pixels in [0, 1]; 255 for a model that wants raw values.
        resample: the antialiased filter.
        fit: "aspect" keeps the frame's aspect ratio, "square" does not.
    """

    size: tuple[int, int] | None = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1.0
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Fit = "aspect"

    def __post_init__(self) -> None:
        if self.fit not in ("aspect", "square"):
            raise ValueError(f"need fit 'aspect' or 'square', got {self.fit!r}")
        if self.resample not in RESAMPLING.values():
            raise ValueError(f"need resample 'bilinear' or 'bicubic', got {self.resample!r}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"need a size of at least 1 px, got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"need std > 0, got {self.std}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fit: Fit = "aspect") -> "Preprocessing":
        """Read the fields of a `preprocessor_config.json`; what is absent or null is DINOv3's own.

        Raises:
            ValueError: a resampling filter other than bilinear (2) and bicubic (3), or a size that
                is none of `{"height", "width"}`, `{"shortest_edge"}` and a number.
        """
        default = cls()
        given = {key: value for key, value in config.items() if value is not None}
        code = given.get("resample", 2)
        if code not in RESAMPLING:
            raise ValueError(f"need resample 2 (bilinear) or 3 (bicubic), got {code!r}")
        size = given.get("size", {"height": 224, "width": 224})
        if given.get("do_center_crop", False):
            size = given.get("crop_size", size)
        normalised = given.get("do_normalize", True)
        # Frames arrive in [0, 1]; the configured factor is meant for 0..255.
        factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
        return cls(
            size=_height_width(size) if given.get("do_resize", True) else None,
            mean=_colour(given.get("image_mean", default.mean)) if normalised else (0.0, 0.0, 0.0),
            std=_colour(given.get("image_std", default.std)) if normalised else (1.0, 1.0, 1.0),
            scale=float(255 * factor),
            resample="bicubic" if RESAMPLING[code] == "bicubic" else "bilinear",
            fit=fit,
        )

    @classmethod
    def from_folder(cls, folder: Path, fit: Fit = "aspect") -> "Preprocessing":
        """Read `folder/preprocessor_config.json`; without that file, DINOv3's own.

        Raises:
            ValueError: the file is not JSON, or says what `from_config` refuses.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return cls(fit=fit)
        try:
            return cls.from_config(json.loads(path.read_text()), fit)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"cannot use {path}: {error}") from error

    def to_config(self) -> dict[str, Any]:
        """The same as a `preprocessor_config.json`; `fit` has no place there."""
        return {
            "image_processor_type": "DINOv3ViTImageProcessor",
            "do_resize": self.size is not None,
            "size": self.size and {"height": self.size[0], "width": self.size[1]},
            "resample": next(code for code, name in RESAMPLING.items() if name == self.resample),
            "do_rescale": True,
            "rescale_factor": self.scale / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def identity(self) -> str:
        """What the values of a pixel depend on, in one line; size and fit only choose the grid."""
        values = (*self.mean, *self.std, self.scale)
        return " ".join([self.resample, *(f"{value:.6g}" for value in values)])

    def grid(self, size: tuple[int, int], patch: int) -> tuple[int, int]:
        """Tokens (h, w) for a frame of `size` (H, W) px: whole patches, rounded, at least one."""
        target = self.size or size
        if self.fit == "aspect":
            shrink = min(target) / min(size)
            target = (size[0] * shrink, size[1] * shrink)
        height, width = (max(1, int(side / patch + 0.5)) for side in target)
        return height, width

    def __call__(
        self, frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"], patch: int
    ) -> Float[Tensor, "F 3 hp wp"]:
        """Pixel values for the encoder, [F, 3, h patch, w patch], float32.

        Args:
            frames: [F, 3, H, W] sRGB, float in [0, 1] or uint8.
            patch: the side of a patch in pixels.

        Raises:
            ValueError: `frames` is no [F, 3, H, W], neither bytes nor floats, or floats outside [0, 1].
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape[2:]:
            raise ValueError(f"need frames of shape [F, 3, H, W], got {list(frames.shape)}")
        frames = in_unit_range(frames)
        height, width = self.grid((frames.shape[2], frames.shape[3]), patch)
        resized = torch.nn.functional.interpolate(
            frames,
            size=(height * patch, width * patch),
            mode=self.resample,
            antialias=True,
            align_corners=False,
        ).clamp(0, 1)
        mean, std = (resized.new_tensor(colour)[:, None, None] for colour in (self.mean, self.std))
        return (self.scale * resized - mean) / std


def in_unit_range(
    frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"],
) -> Float[Tensor, "F 3 H W"]:
    """Bytes or floats in [0, 1] as float32 in [0, 1].

    Raises:
        ValueError: another type, or floats outside [0, 1], of which 0 ... 255 are the usual ones.
    """
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not frames.is_floating_point():
        raise ValueError(f"need frames as uint8 or float in [0, 1], got {frames.dtype}")
    low, high = (float(value) for value in frames.detach().aminmax()) if len(frames) else (0, 0)
    # Written so that NaN fails too.
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(f"need float frames in [0, 1], got {low:.4g} to {high:.4g}")
    return frames.float()


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise ValueError(f"need size as height and width, shortest_edge or a number, got {size!r}")


def _colour(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
