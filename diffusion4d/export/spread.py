r"""How far the hypotheses disagree, along the viewing ray and across it.

A point's deviation from the mean, d^k = X^k − X̄, splits at the mean's viewing ray r = X̄ / ‖X̄‖ into
depth, d·r, and lateral, ‖d − (d·r) r‖. Axes of the camera would not do: off the optical axis a pure
change of depth moves x and y too.

    depth spread   = √( Σ_k (d^k·r)² / (K − 1) )
    lateral spread = √( Σ_k ‖d^k − (d^k·r) r‖² / 2 / (K − 1) )      per axis: the plane across has two

Both in the units of the points, in each frame's own camera; 0 for K = 1. A (frame, point) is seen or
hidden by its visibility; numbers over a set are the root mean square and the median.

Shape letters:  K hypotheses   N points   T frames
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d.hypotheses import Hypotheses


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
    points_KNT3 = hypotheses.camera_points()
    mean_NT3 = points_KNT3.mean(0)
    distance_NT = mean_NT3.norm(dim=-1)
    ray_NT3 = mean_NT3 / distance_NT.clamp_min(1e-9)[..., None]
    offset_KNT3 = points_KNT3 - mean_NT3
    along_KNT = (offset_KNT3 * ray_NT3).sum(-1)
    across_KNT = (offset_KNT3 - along_KNT[..., None] * ray_NT3).square().sum(-1) / 2
    freedom = max(1, hypotheses.num_hypotheses - 1)
    return Spread(
        depth=(along_KNT.square().sum(0) / freedom).sqrt(),
        lateral=(across_KNT.sum(0) / freedom).sqrt(),
        distance=distance_NT,
        seen=hypotheses.seen.transpose(0, 1),
    )
