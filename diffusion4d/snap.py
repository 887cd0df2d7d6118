r"""Every hypothesis must fit what was seen: a closed-form step to the observed tracks.

Given the depths Z(u) of a hypothesis, its projection is linear in the lateral control points: X(u) / Z(u) = y(u) is
X(u) = y(u) Z(u). So the lateral control points nearest to the sampled ones that explain the tracks are

    min_x  sum_t v_t |sum_m N_m(u_t) x_m - y_t Z_t|^2 / Z_t^2  +  sum_i lambda_i |D_i (x - x_sampled)|^2,

one small linear system a trajectory (the mean of a Gaussian posterior). D is the first difference: the
correction is held where nothing was seen, so what was hidden stays as sampled, up to an offset. Depths are not touched.

What a step of the correction costs depends on what was seen there. With s_i the visibility under step i, averaged by
the basis of the derivative, lambda_i = `RIDGE`^s_i `HELD`^(1 - s_i): where the point is seen the tracks rule, and where
it is not, the doubts about the last frames before must not swing the correction on.

Trackers err, and by how much is known only roughly. So every hypothesis is snapped to the tracks as they may have
been: y plus errors of the kind and size that trackers make (`doubted`). The idea is that of randomise-then-optimise
(Bardsley et al. 2014), which is exact for samples of a prior and a matched noise model. Here it is a heuristic: the
samples know the tracks already, and the weights take frames as independent though a drift is not. Calibration
judges it. One answer that stands for all is snapped to y itself.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import splines
from diffusion4d.splines.basis import basis_functions
from samplers.noise import SeededNoise

RIDGE = 0.01
"""Variance of the track noise over that of a sample's lateral steps from control point to control point."""

HELD = 5.0
"""The same where the point is hidden. On 96 worlds kept for choosing the lateral calibration error of hidden points
is .040, and .077 with `RIDGE` there too; their energy score .1633 and .1643, and the reprojection .470 and .457 px."""

NEAREST = 0.01
"""Depths (scene units) below this weigh no more than this one."""

JITTER, DRIFT = (0.05, 0.8), (0.01, 0.25)
"""Errors of trackers, px a frame at a shorter side of 256 px: independent ones, and the steps of a random walk."""

NEVER = 1e-3
"""A point with less visibility than this, summed over the frames, was never seen."""


def snap(
    ctrl: Float[Tensor, "K N M 3"],
    rays: Float[Tensor, "*K N T 2"],
    visibility: Float[Tensor, "N T"],
    u: Float[Tensor, "T"],
    *,
    degree: int = 3,
    multiplicity: int = 1,
    ridge: float = RIDGE,
    held: float = HELD,
) -> Float[Tensor, "K N M 3"]:
    """Move lateral control points so that the hypotheses project onto the tracks where these were seen.

    Args:
        ctrl: camera frame, scene units.
        rays: observed tracks in normalised image coordinates, the same for all hypotheses or one set for each.
        visibility: in [0, 1]; 0 leaves an instant out.
    """
    # A point that was never seen has nothing to be moved to. It has a place in the batch, so its system must be
    # regular, and its answer is not used.
    seen = visibility.sum(-1) > NEVER
    weights = torch.where(seen[:, None], visibility, 1)
    M = ctrl.shape[-2]
    basis_TM = splines.basis_matrix(u, M, degree, multiplicity)
    knots = splines.knot_vector(M, degree, multiplicity)
    steps_TR = basis_functions(u, knots[1:-1], degree - 1)
    share_NR = (weights @ steps_TR) / steps_TR.sum(0).clamp_min(1e-9)
    depth = (ctrl[..., 2] @ basis_TM.mT).clamp_min(NEAREST)
    lateral = splines.fit(
        rays * depth[..., None],
        u,
        M,
        weights=weights / depth.square(),
        degree=degree,
        multiplicity=multiplicity,
        ridge=ridge**share_NR * held ** (1 - share_NR),
        penalty_order=1,
        prior=ctrl[..., :2],
    )
    lateral = torch.where(seen[:, None, None], lateral, ctrl[..., :2])
    return torch.cat([lateral, ctrl[..., 2:]], -1)


def doubted(
    rays: Float[Tensor, "N T 2"], pixel: float, seeds: Sequence[int]
) -> Float[Tensor, "K N T 2"]:
    """Tracks as each hypothesis takes them, with an error in every frame and a drift from the anchor frame on.

    Args:
        pixel: the size in normalised image coordinates of a pixel of an image whose shorter side is 256 px.
        seeds: of the hypotheses; each draws how good its tracker was, and what it did.
    """
    N, T, _ = rays.shape
    # Beside the seeds of the diffusion noise, which are below 2^32.
    white = SeededNoise([seed + 2**32 for seed in seeds], (N, T, 5)).initial().to(rays)
    # One more normal number a hypothesis, as a place on the log-uniform scale.
    place = torch.special.ndtr(white[:, 0, 0, 4])[:, None, None, None]
    jitter, drift = (
        pixel * torch.exp(place * float(np.log(high / low)) + float(np.log(low)))
        for low, high in (JITTER, DRIFT)
    )
    # The anchor frame is where the point was asked for: there is nothing to doubt.
    later = (torch.arange(T) > 0).to(rays)[:, None]
    walk = (later * white[..., 2:4]).cumsum(2)
    return rays + later * jitter * white[..., :2] + drift * walk


def misfit(
    pixels: Float[Tensor, "N T 2"],
    visibility: Float[Tensor, "N T"],
    u: Float[Tensor, "T"],
    num_ctrl: int,
    *,
    degree: int = 3,
) -> float:
    """How far the nearest splines pass by the tracks: median over what was seen, in the unit of `pixels`."""
    seen = visibility > 0
    # Hidden frames weigh next to nothing, but a point that was never seen still has a spline.
    weight = visibility.clamp_min(1e-6)
    ctrl = splines.fit(
        pixels, u, num_ctrl, weights=weight, degree=degree, ridge=1e-3, penalty_order=1
    )
    passed = splines.basis_matrix(u, num_ctrl, degree) @ ctrl
    distance = (passed - pixels).norm(dim=-1)[seen]
    return distance.median().item() if len(distance) else 0.0
