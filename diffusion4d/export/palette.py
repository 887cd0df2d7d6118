"""One colour per hypothesis, the same in every file: warm puts the scene nearer, cool farther.

Hypotheses have no natural order but depth, which is what a monocular clip leaves open. So they are
sorted by their depth relative to the mean, over the points that they disagree about, and neighbours
in depth are neighbours in colour. The ramp runs along the yellow–blue axis, which the common colour
deficiencies keep, and its lightness falls all the way, which the rare ones keep too; no entry is dark
or pale enough to vanish on a black, grey or white ground.

Shape letters:  K hypotheses   N points   T frames
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion4d.export.spread import blocks
from diffusion4d.hypotheses import Hypotheses

GROUND, PANEL, GRID = "#0e1117", "#171c26", "#2b3342"
TEXT, FAINT = "#e8ecf3", "#9aa4b5"
SEEN_INK, HIDDEN_INK = "#6fd3c3", "#ff9f5a"
"""Of the pictures, which are dark so that the hypotheses shine."""

# Near to far, sRGB.
_ANCHORS = np.array(
    [(255, 190, 60), (250, 125, 75), (220, 85, 140), (150, 90, 215), (65, 110, 245)], float
)


def ramp(fraction: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1], shape [..., 3], at fractions in [0, 1] from near (0) to far (1)."""
    position = np.clip(fraction, 0, 1) * (len(_ANCHORS) - 1)
    knots = np.arange(len(_ANCHORS))
    return np.stack([np.interp(position, knots, channel) for channel in _ANCHORS.T], -1) / 255


def depth_offset(hypotheses: Hypotheses) -> Float[Tensor, "K"]:
    """How much farther than the mean each hypothesis puts the points, as a share of their depth.

    Each (point, frame) counts by the variance of its relative depth, so that the still background,
    about which all agree, does not drown what is uncertain.
    """
    hyp = hypotheses
    if hyp.frame == "world" and hyp.extrinsics.ndim == 4:
        # Each hypothesis has cameras of its own, so its depths are no shared linear map of its control points.
        depth_KNT = hyp.camera_points()[..., 2].double()
        mean_NT = depth_KNT.mean(0)
        relative_KNT = (depth_KNT - mean_NT) / mean_NT.abs().clamp_min(1e-6)
        weight_NT = relative_KNT.square().mean(0)
        off_K = (relative_KNT * weight_NT).sum((1, 2))
        return (off_K / weight_NT.sum().clamp_min(1e-12)).float()
    offset_K = hyp.control_points.new_zeros(hyp.num_hypotheses, dtype=torch.float64)
    total = 0.0
    depth_axis_T3 = hyp.extrinsics.double()[:, 2, :3]
    if hyp.frame == "camera":
        depth_axis_T3 = torch.tensor([0.0, 0.0, 1.0]).to(depth_axis_T3).expand_as(depth_axis_T3)
    share = (hyp.num_hypotheses - 1) / hyp.num_hypotheses
    for points in blocks(hyp):
        mean_nT3, square_nT33 = hyp.camera_covariance(points)
        scale_nT = mean_nT3[..., 2].abs().clamp_min(1e-6)
        weight_nT = share * square_nT33[..., 2, 2] / scale_nT.square()
        total += float(weight_nT.sum())
        # The sum over frames is linear in the control points, so it is taken before they are: no curve is decoded.
        pull_nT3 = (weight_nT / scale_nT)[..., None] * depth_axis_T3
        pull_nM3 = torch.einsum("nti,tm->nmi", pull_nT3, hyp.basis.double())
        offset_K += torch.einsum(
            "knmi,nmi->k", hyp.control_points[:, points], pull_nM3.to(hyp.control_points)
        )
    return ((offset_K - offset_K.mean()) / max(total, 1e-12)).float()


def depth_order(hypotheses: Hypotheses) -> Int64[Tensor, "K"]:
    """Indices of the hypotheses from near to far."""
    return depth_offset(hypotheses).argsort(stable=True)


def colours(hypotheses: Hypotheses) -> np.ndarray:
    """sRGB in [0, 1] of every hypothesis, [K, 3]."""
    count = hypotheses.num_hypotheses
    place = torch.empty(count, dtype=torch.int64)
    place[depth_order(hypotheses)] = torch.arange(count)
    # A lone hypothesis takes the middle of the ramp.
    fraction = place.numpy() / (count - 1) if count > 1 else np.full(1, 0.5)
    return ramp(fraction)
