r"""The coordinates in which trajectories are diffused: a projective residual, whitened.

A control point c = (X, Y, Z) is written as its offset from the evidence on the image plane and its log depth,

    delta = f ((X, Y) / Z - e) / s(w),        zeta = f^p log(Z) / s_z,

where e is the evidence control point, f the focal length over the longer side of the image, and s(w) the scale such
offsets have at control points of which a share w was seen: small where the video fixes the point, large where it was
hidden. Times f, an offset is a share of the picture whatever the lens. Depth, too, varies less in what a long
lens shows; the power p is fitted. With these scales one unit means the same everywhere. Offsets are clipped: where
evidence is extrapolated they have heavy tails.

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

    lateral: scale of the image-plane offset at w = 0, 1/8, ..., 1 (shares of the longer side of the image).
    depth: scale of the log depth at f = 1.
    power: p, how much less depths vary through a longer lens.
    limit: offsets are clipped to [-limit, limit], in units of their scale.
    """

    lateral: tuple[float, ...]
    depth: float
    power: float = 0.0
    limit: float = 8.0

    def scale(self, evidence: Evidence) -> Float[Tensor, "B N M 3"]:
        """Standard deviation of (offset x, offset y, log depth), by the share that was seen and the lens."""
        weight = evidence.weight
        table = torch.tensor(self.lateral, dtype=weight.dtype, device=weight.device).log()
        place = weight.clamp(0, 1) * (BINS - 1)
        low = place.long().clamp(max=BINS - 2)
        log_focal = evidence.log_focal.to(weight)[:, None, None]
        lateral = (torch.lerp(table[low], table[low + 1], place - low) - log_focal).exp()
        depth = (self.depth * (-self.power * log_focal).exp()).expand_as(lateral)
        return torch.stack([lateral, lateral, depth], -1)

    def encode(
        self, ctrl: Float[Tensor, "*K B N M 3"], evidence: Evidence
    ) -> Float[Tensor, "*K B N M 3"]:
        """Scene-space control points (camera frame) to diffusion coordinates."""
        depth = ctrl[..., 2:].clamp_min(NEAREST)
        residual = torch.cat([ctrl[..., :2] / depth - evidence.ctrl, depth.log()], -1)
        return (residual / self.scale(evidence)).clamp(-self.limit, self.limit)

    def decode(
        self, x: Float[Tensor, "B K N M 3"], evidence: Evidence
    ) -> Float[Tensor, "B K N M 3"]:
        """Diffusion coordinates of K hypotheses to scene-space control points (camera frame)."""
        residual = x * self.scale(evidence)[:, None]
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
        scales = {
            b: max(_trimmed_rms(lateral_sq[place == b]), 1e-4)
            for b in range(BINS)
            if bool((place == b).any())
        }
        # A share that no control point has takes its scale from the shares beside it.
        between = np.exp(np.interp(range(BINS), list(scales), np.log(list(scales.values()))))
        lateral = tuple(scales.get(b, float(between[b])) for b in range(BINS))
        power = _lens_power(residual[..., 2], evidence.log_focal)
        flattened = (
            residual[..., 2] * (power * evidence.log_focal.to(residual)).exp()[:, None, None]
        )
        return cls(lateral, _trimmed_rms(flattened.flatten().square()), power)


def _trimmed_rms(squares: Tensor) -> float:
    """Root mean square without the largest 1 %."""
    if squares.numel() > 1_000_000:
        squares = squares[:: squares.numel() // 1_000_000]
    return squares[squares <= squares.quantile(0.99)].mean().sqrt().item()


def _lens_power(log_depth: Float[Tensor, "B N M"], log_focal: Float[Tensor, "B"]) -> float:
    """Minus the slope of a clip's log spread of depth against its log focal length, within [0, 1]."""
    spread = log_depth.square().mean((1, 2)).clamp_min(1e-8).log() / 2
    x = (log_focal - log_focal.mean()).to(spread)
    return float((-(x @ spread) / (x @ x).clamp_min(1e-3)).clamp(0, 1))
