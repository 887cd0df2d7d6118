r"""Patch tokens that know where they are in the image.

An encoder with patch size p turns a preprocessed image of (h p) x (w p) pixels into h w tokens:
token (i, j) covers columns [j p, (j+1) p) and rows [i p, (i+1) p), so its centre is at ((j + 1/2)
p, (i + 1/2) p). The preprocessed image is the source frame [0, W] x [0, H] resampled, border on
border; hence a point (x, y) of the source frame, in pixels, lies at

    column  x w / W - 1/2,    row  y h / H - 1/2        (token units: centres at the integers)

and its feature is interpolated bilinearly there. Less than half a patch from the border there is no
token centre on one side: the coordinate is clamped to the outermost centres, for points outside the
    image too.

Shape letters:  F frames   L = h w tokens a frame   C channels   N points
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Patch tokens of F frames.

    Attributes:
        values: [F, L, C], row by row from the top left; no CLS and no register tokens.
        grid: (h, w), tokens down and across; L = h w.
        size: (H, W) of the source frames that the grid spans, in pixels.
        u: [F], the clip time of each frame.

    Raises:
        ValueError: grid, size or u do not fit `values`.
    """

    values: Float[Tensor, "F L C"]
    grid: tuple[int, int]
    size: tuple[int, int]
    u: Float[Tensor, "F"]

    def __post_init__(self) -> None:
        num_frames, num_tokens, _ = self.values.shape
        if self.grid[0] * self.grid[1] != num_tokens:
            raise ValueError(f"need grid h * w = {num_tokens} tokens, got grid={self.grid}")
        if min(self.size) < 1:
            raise ValueError(f"need a size (H, W) of at least 1 px, got {self.size}")
        if self.u.shape != (num_frames,):
            raise ValueError(f"need u of shape ({num_frames},), got {tuple(self.u.shape)}")

    @property
    def maps(self) -> Float[Tensor, "F C h w"]:
        """The same values as images, [F, C, h, w]."""
        return self.values.unflatten(1, self.grid).permute(0, 3, 1, 2)

    def to(self, device: torch.device | str) -> "TokenGrid":
        """The same grid with its tensors on `device`."""
        return TokenGrid(self.values.to(device), self.grid, self.size, self.u.to(device))

    def sample(self, points: Float[Tensor, "N F 2"]) -> Float[Tensor, "N F C"]:
        """Features at points of the source frames, interpolated bilinearly; differentiable in both.

        Args:
            points: [N, F, 2], (x, y) in source pixels, pixel centres at +0.5; clamped outside the
                frame.

        Raises:
            ValueError: `points` has another number of frames than the grid.
        """
        if points.shape[1:] != (len(self.u), 2):
            raise ValueError(
                f"need points of shape [N, {len(self.u)}, 2], got {list(points.shape)}"
            )
        height, width = self.size
        extent = points.new_tensor([width, height])
        # grid_sample with align_corners=False puts -1 and 1 on the image borders, and "border"
        # clamps to the outermost centres: exactly the convention above.
        where_FN12 = (2 * points / extent - 1).transpose(0, 1)[:, :, None].to(self.values.dtype)
        sampled_FCN1 = torch.nn.functional.grid_sample(
            self.maps, where_FN12, mode="bilinear", padding_mode="border", align_corners=False
        )
        return sampled_FCN1[..., 0].permute(2, 0, 1)
