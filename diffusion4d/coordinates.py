r"""The coordinates in which trajectories are diffused: a projective residual, whitened.

A control point c = (X, Y, Z) is written as its offset from the evidence on the image plane and its log depth,

    delta = ((X, Y) / Z - e) / s(w),        zeta = log(Z) / s_z,

where e is the evidence control point and s(w) the scale such offsets have at control points of which a share w
was seen: small where the video fixes the point, large where it was hidden. With s known, one unit means
the same everywhere. Offsets are clipped: where evidence is extrapolated they have heavy tails.

Shape letters:  B clips   K hypotheses   N points   M control points.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.evidence import Evidence

NEAREST = 0.05
"""Control points nearer than this (scene units) are moved out to it, so that log depth exists."""

BINS = 9


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Whitening constants, fitted on training clips and stored with a checkpoint.

    lateral: scale of the image-plane offset at w = 0, 1/8, ..., 1 (normalised image coordinates).
    depth: scale of the log depth.
    limit: offsets are clipped to [-limit, limit], in units of their scale.
    """

    lateral: tuple[float, ...]
    depth: float
    limit: float = 8.0

    def scale(self, weight: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M 3"]:
        """Standard deviation of (offset x, offset y, log depth), by the share that was seen."""
        table = torch.tensor(self.lateral, dtype=weight.dtype, device=weight.device).log()
        place = weight.clamp(0, 1) * (BINS - 1)
        low = place.long().clamp(max=BINS - 2)
        lateral = torch.lerp(table[low], table[low + 1], place - low).exp()
        return torch.stack([lateral, lateral, torch.full_like(lateral, self.depth)], -1)

    def encode(
        self, ctrl: Float[Tensor, "B N M 3"], evidence: Evidence
    ) -> Float[Tensor, "B N M 3"]:
        """Scene-space control points (camera frame) to diffusion coordinates."""
        depth = ctrl[..., 2:].clamp_min(NEAREST)
        residual = torch.cat([ctrl[..., :2] / depth - evidence.ctrl, depth.log()], -1)
        return (residual / self.scale(evidence.weight)).clamp(-self.limit, self.limit)

    def decode(
        self, x: Float[Tensor, "B K N M 3"], evidence: Evidence
    ) -> Float[Tensor, "B K N M 3"]:
        """Diffusion coordinates of K hypotheses to scene-space control points (camera frame)."""
        residual = x * self.scale(evidence.weight)[:, None]
        depth = residual[..., 2:].exp()
        lateral = residual[..., :2] + evidence.ctrl[:, None]
        return torch.cat([lateral * depth, depth], -1)

    @classmethod
    def fit(cls, ctrl: Float[Tensor, "B N M 3"], evidence: Evidence) -> "Coordinates":
        """Measure the scales on a batch of training clips (root mean square, tails trimmed at 1 %)."""
        unit = cls(lateral=(1.0,) * BINS, depth=1.0, limit=float("inf"))
        residual = unit.encode(ctrl, evidence)
        lateral_sq = residual[..., :2].square().mean(-1)
        place = (evidence.weight.clamp(0, 1) * (BINS - 1)).round().long()

        def trimmed_rms(squares: Tensor) -> float:
            if squares.numel() > 1_000_000:
                squares = squares[:: squares.numel() // 1_000_000]
            return squares[squares <= squares.quantile(0.99)].mean().sqrt().item()

        scales = {
            b: max(trimmed_rms(lateral_sq[place == b]), 1e-4)
            for b in range(BINS)
            if bool((place == b).any())
        }
        # A share that no control point has takes its scale from the shares beside it.
        between = np.exp(np.interp(range(BINS), list(scales), np.log(list(scales.values()))))
        lateral = tuple(scales.get(b, float(between[b])) for b in range(BINS))
        return cls(lateral=lateral, depth=trimmed_rms(residual[..., 2].flatten().square()))
