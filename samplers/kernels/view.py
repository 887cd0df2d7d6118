"""What a reprojection error is taken against: the tensors of one view, and no more of a camera than that."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class View:
    """Observed image positions and the pinhole they were seen through.

    A position X is seen at (fx x / z + cx, fy y / z + cy) of R_t X + t_t where `cameras` is given, of X itself
    where it is None.

    Raises:
        ValueError: the number of points or frames differs from one field to another.
    """

    tracks: Float[Tensor, "N T 2"]
    """px; read only where `seen` by what asks for seen positions alone."""
    seen: Bool[Tensor, "N T"]
    intrinsics: Float[Tensor, "4"]
    """(fx, fy, cx, cy) px."""
    cameras: Float[Tensor, "T 3 4"] | None = None
    """Rows (R_t | t_t); None where positions are in each frame's own camera."""

    def __post_init__(self) -> None:
        if self.tracks.shape[:2] != self.seen.shape:
            raise ValueError(
                f"need tracks [N, T, 2] and seen [N, T], got {list(self.tracks.shape)} and {list(self.seen.shape)}"
            )
        if self.cameras is not None and len(self.cameras) != self.seen.shape[1]:
            raise ValueError(
                f"need one camera a frame, got {len(self.cameras)} for {self.seen.shape[1]} frames"
            )

    def to(self, dtype: torch.dtype) -> "View":
        """The same view in another precision."""
        cameras = None if self.cameras is None else self.cameras.to(dtype)
        return View(self.tracks.to(dtype), self.seen, self.intrinsics.to(dtype), cameras)
