r"""How far the hypotheses disagree, along the viewing ray and across it.

A point's deviation from the mean, d^k = X^k − X̄, splits at the mean's viewing ray r = X̄ / ‖X̄‖ into
depth, d·r, and lateral, ‖d − (d·r) r‖. Axes of the camera would not do: off the optical axis a pure
change of depth moves x and y too.

    depth spread   = √( Σ_k (d^k·r)² / (K − 1) )
    lateral spread = √( Σ_k ‖d^k − (d^k·r) r‖² / 2 / (K − 1) )      per axis: the plane across has two

Both follow from the covariance over k, S: depth² = r·S r, and 2 lateral² = tr S − r·S r. Both are in the units of the
points, in each frame's own camera; 0 for K = 1. A (frame, point) is seen or
hidden by its visibility; numbers over a set are the root mean square and the median.

Shape letters:  K hypotheses   N points   T frames
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d.hypotheses import Hypotheses

BLOCK = 1 << 18
"""Trajectory points whose covariances are held at once."""


@dataclass(frozen=True)
class Spread:
    """Disagreement of every (point, frame), in the units of the points."""

    depth: Float[Tensor, "N T"]
    lateral: Float[Tensor, "N T"]
    distance: Float[Tensor, "N T"]
    """Of the mean from the camera."""
    seen: Bool[Tensor, "N T"]


def spread_of(hypotheses: Hypotheses) -> Spread:
    """The spread at the clip's frames; see the module for the definitions."""
    N, T = hypotheses.num_points, hypotheses.num_frames
    depth_NT, lateral_NT, distance_NT = hypotheses.control_points.new_empty(3, N, T)
    for points in blocks(hypotheses):
        mean_nT3, square_nT33 = hypotheses.camera_covariance(points)
        distance_nT = mean_nT3.norm(dim=-1)
        ray_nT3 = mean_nT3 / distance_nT.clamp_min(1e-9)[..., None]
        along_nT = torch.einsum("nti,ntij,ntj->nt", ray_nT3, square_nT33, ray_nT3)
        across_nT = square_nT33.diagonal(dim1=-2, dim2=-1).sum(-1) - along_nT
        depth_NT[points] = along_nT.clamp_min(0).sqrt().to(depth_NT)
        lateral_NT[points] = (across_nT.clamp_min(0) / 2).sqrt().to(depth_NT)
        distance_NT[points] = distance_nT.to(depth_NT)
    return Spread(
        depth=depth_NT,
        lateral=lateral_NT,
        distance=distance_NT,
        seen=hypotheses.seen.transpose(0, 1),
    )


def blocks(hypotheses: Hypotheses) -> Iterator[slice]:
    """All points, in slices whose covariances fit in little memory."""
    size = max(1, BLOCK // hypotheses.num_frames)
    for start in range(0, hypotheses.num_points, size):
        yield slice(start, start + size)
