r"""Local motion: how the picture around a point stretches, shears and turns.

A surface that turns is foreshortened, and one that comes nearer grows: the first derivatives of the picture's motion
tell slopes and relative depths over time, where a point's own motion tells neither. Around every point n and for every
control point m an affine motion is fitted to the points that are near and move alike (weighted least squares),

    d_{j,m} ~ c_{n,m} + G_{n,m} (q_j - q_n),    q_j = e_{j,0},  d_{j,m} = e_{j,m} - q_j,

with weights  s_{j,m} exp(-|q_j - q_n|^2 / 2 l^2 - |d_j - d_n|^2 / 2 k^2),  s the share that was seen. Under a scaled
orthographic camera G_{n,m} is the affine motion of the tangent plane, from which shape follows up to a reversal
(Koenderink & van Doorn 1991); what the plane leaves, d_{n,m} - c_{n,m}, is the parallax of the point against it.

Shape letters:  B clips   N points   M control points.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.evidence import Evidence

REACH, ALIKE = 0.15, 0.06
"""l and k, shares of the picture's longer side."""

RIDGE = 0.02**2
"""Added to the variances of the places, so that no fit rests on points closer than this to one another."""

UNSEEN = 0.01
"""Least weight of a control point that nothing was seen of."""

LIMIT = 2.0


@dataclasses.dataclass(frozen=True)
class LocalMotion:
    """gradient: [B, N, M, 4] G, row by row. residual: [B, N, M, 2] of the point itself, shares of the picture.
    support: [B, N] log of the sum of the weights around the point."""

    gradient: Float[Tensor, "B N M 4"]
    residual: Float[Tensor, "B N M 2"]
    support: Float[Tensor, "B N"]


@torch.no_grad()
def local_motion(evidence: Evidence) -> LocalMotion:
    """Fit the affine motion around every point."""
    ctrl = evidence.in_view().float()
    seen_BNM = evidence.weight.float().clamp_min(UNSEEN)
    place_BN2 = ctrl[..., 0, :]
    motion_BNM2 = ctrl - ctrl[..., :1, :]
    near_BNN = torch.exp(
        -torch.cdist(place_BN2, place_BN2).square() / (2 * REACH**2)
        - _apart(motion_BNM2, seen_BNM) / (2 * ALIKE**2)
    )
    x, y = place_BN2[:, :, None].expand_as(motion_BNM2).unbind(-1)
    u, v = motion_BNM2.unbind(-1)
    one = torch.ones_like(x)
    terms = torch.stack([one, x, y, u, v, x * x, x * y, y * y, u * x, u * y, v * x, v * y], -1)
    sums = near_BNN @ (seen_BNM[..., None] * terms).flatten(2)
    total, *means = sums.unflatten(2, (-1, terms.shape[-1])).unbind(-1)
    mx, my, mu, mv, xx, xy, yy, ux, uy, vx, vy = (mean / total for mean in means)
    xx, xy, yy = xx - mx * mx + RIDGE, xy - mx * my, yy - my * my + RIDGE
    ux, uy, vx, vy = ux - mu * mx, uy - mu * my, vx - mv * mx, vy - mv * my
    determinant = xx * yy - xy * xy
    gradient = torch.stack(
        [ux * yy - uy * xy, uy * xx - ux * xy, vx * yy - vy * xy, vy * xx - vx * xy], -1
    )
    gradient = gradient / determinant[..., None]
    away = torch.stack([x - mx, y - my], -1)
    carried = torch.einsum("bnmij,bnmj->bnmi", gradient.unflatten(-1, (2, 2)), away)
    residual = motion_BNM2 - torch.stack([mu, mv], -1) - carried
    return LocalMotion(
        gradient.clamp(-LIMIT, LIMIT), residual.clamp(-LIMIT, LIMIT), near_BNN.sum(-1).log()
    )


def _apart(
    motion: Float[Tensor, "B N M 2"], seen: Float[Tensor, "B N M"]
) -> Float[Tensor, "B N N"]:
    """Mean square difference of two points' motions over the control points that were seen of both."""
    both = seen @ seen.mT
    own = (seen * motion.square().sum(-1)) @ seen.mT
    weighted = (seen[..., None] * motion).flatten(2)
    squares = own + own.mT - 2 * weighted @ weighted.mT
    return (squares / both).clamp_min(0)
