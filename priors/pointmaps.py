r"""Pointmaps: for each pixel its surface point, up to one factor an image.

The ray of a pixel (x, y) has the direction d = ((x - cx) / fx, (y - cy) / fy, 1) in camera axes
(OpenCV: x right, y down, z ahead), and its surface point is  X = exp(a) d  with a the log depth
that a head (`priors.heads`) tells. One image does not tell its scale, so a is known up to an
additive constant, and so is what is compared: with r = a - log z over the pixels that have a truth,

    loss   mean |r - median r|  +  weight · mean over scales of mean |grad r|     (Ranftl et al. 2020,
                                                     arXiv:1907.01341, eqs. 7 and 11, on log depth)
    AbsRel mean |z' - z| / z,  z' = exp(a - median r)         delta  share with max(z'/z, z/z') < 1.25

A head that also tells a log confidence k says that r - median r follows Laplace's law of scale exp(-k):

    likelihood   mean exp(k) |r - median r| - k        (DUSt3R's confidence loss with alpha = 1: Wang
                                                        et al. 2024, arXiv:2312.14132, eq. 4)

least where exp(-k) is the mean error to be expected.

Since X is linear in z along a fixed ray, a relative error of z is the same relative error of X.

Shape letters:  F images   y, x cells of a map
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from priors.checkpoints import find_folder
from priors.dinov3 import Encoder, load_encoder
from priors.heads import Dense, Head, load_head, tapped


@dataclass(frozen=True)
class Pointmapper:
    """An encoder and the head that was trained with it."""

    encoder: Encoder
    head: Head

    def log_depth(
        self, frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"]
    ) -> Float[Tensor, "F y x"]:
        """Log depth over the whole of each frame, its median 0; y x as the head has cells."""
        log_depth_Fyx = self.dense(frames).log_depth
        return log_depth_Fyx - log_depth_Fyx.flatten(1).median(1).values[:, None, None]

    @torch.no_grad()
    def dense(self, frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"]) -> Dense:
        """All that the head says of each cell of the frames."""
        pixels = self.encoder.preprocess(frames)
        patch = self.encoder.patch
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        model = self.encoder.model
        hidden = model(
            pixels.to(model.device, model.dtype), output_hidden_states=True
        ).hidden_states
        layers = tapped(hidden, self.head.taps, grid[0] * grid[1])
        return Dense.of(self.head([layer.float() for layer in layers], grid))

    def pointmap(
        self,
        frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"],
        intrinsics: Float[Tensor, "4"] | Float[Tensor, "F 4"],
    ) -> Float[Tensor, "F H W 3"]:
        """The surface point of each pixel in its frame's camera axes, median depth 1.

        Args:
            frames: [F, 3, H, W] sRGB, float in [0, 1] or uint8.
            intrinsics: (fx, fy, cx, cy) px of the frames.

        Raises:
            ValueError: `frames` is no [F, 3, H, W].
        """
        size = (frames.shape[-2], frames.shape[-1])
        fine_FHW = functional.interpolate(
            self.log_depth(frames)[:, None], size=size, mode="bilinear", align_corners=False
        )[:, 0]
        return unproject(fine_FHW, intrinsics, size)


def load_pointmapper(name_or_folder: str | Path) -> Pointmapper:
    """The encoder of that name or folder (`load_encoder`), and the head beside it.

    Raises:
        ValueError: no such encoder, or no head beside it.
    """
    encoder = load_encoder(name_or_folder)
    return Pointmapper(encoder, load_head(find_folder(str(name_or_folder)), encoder.fingerprint))


def unproject(
    log_depth: Float[Tensor, "F y x"],
    intrinsics: Float[Tensor, "4"] | Float[Tensor, "F 4"],
    size: tuple[int, int],
) -> Float[Tensor, "F y x 3"]:
    """Surface points of a map that spans a frame of `size` (H, W) px, whose intrinsics are given."""
    rows, columns = log_depth.shape[-2:]
    y_y = (torch.arange(rows).to(log_depth) + 0.5) * (size[0] / rows)
    x_x = (torch.arange(columns).to(log_depth) + 0.5) * (size[1] / columns)
    fx, fy, cx, cy = (part[..., None] for part in intrinsics.to(log_depth).unbind(-1))
    across_Fyx = ((x_x - cx) / fx)[..., None, :].expand_as(log_depth)
    down_Fyx = ((y_y - cy) / fy)[..., :, None].expand_as(log_depth)
    rays = torch.stack([across_Fyx, down_Fyx, torch.ones_like(log_depth)], -1)
    return log_depth.exp()[..., None] * rays


def without_scale(
    log_depth: Float[Tensor, "F y x"],
    truth: Float[Tensor, "F y x"],
    valid: Bool[Tensor, "F y x"],
) -> Float[Tensor, "F y x"]:
    """r - median r with r = log_depth - truth: 0 where not valid, all 0 in an image without truth."""
    residual = torch.where(valid, log_depth - truth.nan_to_num(), torch.nan)
    # The median is a constant to the gradient: it is one pixel's residual, of measure zero.
    middle_F = residual.detach().flatten(1).nanmedian(1).values.nan_to_num()
    return torch.where(valid, residual - middle_F[:, None, None], 0.0)


def pointmap_loss(
    log_depth: Float[Tensor, "F y x"],
    truth: Float[Tensor, "F y x"],
    valid: Bool[Tensor, "F y x"],
    *,
    edges: float = 0.5,
    scales: int = 3,
) -> Float[Tensor, ""]:
    """Scale-invariant error of log depth, and of its gradients at several scales.

    Args:
        truth: log depth, anything where not valid.
        edges: weight of the gradients.
        scales: each has half the resolution of the one before, by taking every other cell.

    Returns:
        A scalar; 0 (with a gradient) where nothing is valid.
    """
    residual = without_scale(log_depth, truth, valid)
    total = residual.abs().sum() / valid.sum().clamp_min(1)
    if edges == 0:
        return total
    for scale in range(scales):
        r, v = (t[:, :: 2**scale, :: 2**scale] for t in (residual, valid))
        down, across = v[:, 1:] & v[:, :-1], v[:, :, 1:] & v[:, :, :-1]
        slopes = (torch.diff(r, dim=1).abs() * down).sum()
        slopes = slopes + (torch.diff(r, dim=2).abs() * across).sum()
        total = total + edges / scales * slopes / (down.sum() + across.sum()).clamp_min(1)
    return total


def confidence_loss(
    log_depth: Float[Tensor, "F y x"],
    log_confidence: Float[Tensor, "F y x"],
    truth: Float[Tensor, "F y x"],
    valid: Bool[Tensor, "F y x"],
) -> Float[Tensor, ""]:
    """Negative log likelihood of Laplace's law, without its constant; 0 (with a gradient) where nothing is valid."""
    residual = without_scale(log_depth, truth, valid)
    cost = log_confidence.exp() * residual.abs() - log_confidence
    return torch.where(valid, cost, 0.0).sum() / valid.sum().clamp_min(1)


def depth_errors(
    log_depth: Float[Tensor, "F y x"],
    truth: Float[Tensor, "F y x"],
    valid: Bool[Tensor, "F y x"],
) -> dict[str, Float[Tensor, "F"]]:
    """AbsRel and the share with delta < 1.25 of each image, after the median's scale; NaN without truth."""
    residual = without_scale(log_depth, truth, valid)
    count_F = valid.flatten(1).sum(1)
    off = torch.where(valid, residual.expm1().abs(), 0.0).flatten(1).sum(1) / count_F
    close = (valid & (residual.abs().exp() < 1.25)).flatten(1).sum(1) / count_F
    return {"abs_rel": off, "delta": close}
