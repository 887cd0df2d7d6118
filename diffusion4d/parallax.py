r"""Parallax: what is left of the observed motion when a motion of the whole picture is taken off.

A camera that turns moves the picture as a whole; one that travels moves near points more than far ones, along lines
that all points share; what moves by itself does neither. So to the motion of every control point m, d_{n,m} = e_{n,m} -
e_{n,0}, a smooth field of the picture is fitted, robustly (reweighted least squares with Cauchy weights),

    d_{n,m} ~ A_m phi(q_n),    phi(q) = (1, x, y, x^2, xy, y^2),    q_n = e_{n,0},

and the residual is the parallax (plane + parallax: Irani & Anandan 1998). The residuals of still points under a camera
that translates lie in few directions (Tomasi & Kanade 1992: rank 3 for an affine camera); the coordinates of a point
along the strongest ones say how near it is, up to a sign and a scale that a clip's points share. The sign is chosen so
that what is lower in the picture has the larger coordinates.

Shape letters:  B clips   N points   M control points   D directions.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.evidence import Evidence

DIRECTIONS = 3
ROUNDS = 3
RIDGE = 1e-5
LEAST = 1e-4
"""Motions below this share of the picture are noise of the tracks."""


@dataclasses.dataclass(frozen=True)
class Parallax:
    """residual: [B, N, M, 2] shares of the picture. coordinates: [B, N, D], unit root mean square over the points.
    strength: [B, D], log root mean square of the residual along each direction, strongest first."""

    residual: Float[Tensor, "B N M 2"]
    coordinates: Float[Tensor, "B N D"]
    strength: Float[Tensor, "B D"]


@torch.no_grad()
def parallax(evidence: Evidence) -> Parallax:
    """Take the motion of the picture off what was observed."""
    ctrl = evidence.in_view().float()
    place = ctrl[..., 0, :]
    motion = (ctrl - ctrl[..., :1, :]).flatten(-2)
    x, y = place.unbind(-1)
    design = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)
    seen = evidence.weight.float().mean(-1).clamp_min(0.01)
    weight = seen
    eye = torch.eye(design.shape[-1], device=ctrl.device)
    residual = motion
    for _ in range(ROUNDS):
        weighted = design * weight[..., None]
        gram = weighted.mT @ design + RIDGE * weight.sum(-1)[:, None, None] * eye
        field = torch.linalg.solve(gram, weighted.mT @ motion)
        residual = motion - design @ field
        size = residual.square().mean(-1).sqrt()
        usual = size.median(-1, keepdim=True).values.clamp_min(LEAST)
        weight = seen / (1 + (size / usual).square())
    weighted = residual * weight[..., None].sqrt()
    _, directions = torch.linalg.eigh(weighted.mT @ weighted)
    directions = directions.flip(-1)[..., :DIRECTIONS]
    along = residual @ directions
    share = (weight / weight.sum(-1, keepdim=True))[..., None]
    scale = (share * along.square()).sum(1).sqrt().clamp_min(LEAST)
    below = (share * along * (y - (share[..., 0] * y).sum(-1, keepdim=True))[..., None]).sum(1)
    sign = torch.where(below < 0, -1.0, 1.0)
    coordinates = (along / scale[:, None] * sign[:, None]).clamp(-8, 8)
    return Parallax(residual.unflatten(-1, (-1, 2)), coordinates, scale.log())
