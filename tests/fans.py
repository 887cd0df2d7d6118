"""A fan of hypotheses with everything known: what the tests of the answer and its files share."""

import math

import torch
from torch import Tensor

from diffusion4d.cameras import unproject
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import BSpline, fit, knot_vector

SIZE = (128, 200)
INTRINSICS = torch.tensor([180.0, 175.0, 98.0, 66.0])


def fan(
    num_hypotheses: int = 4,
    num_points: int = 6,
    num_frames: int = 12,
    num_ctrl: int = 7,
    *,
    depth_step: float = 0.1,
    drift: float = 8.0,
    error: Tensor | None = None,
) -> Hypotheses:
    """Points on circles in the image, seen in the first half; odd ones hidden in the second half.

    Hypothesis k scales depth by 1 + depth_step (k − (K − 1) / 2), drifts hidden points sideways by
    drift · (k − (K − 1) / 2) px at the end, and misses the tracks by `error[k]` px all along.
    """
    K, N, T = num_hypotheses, num_points, num_frames
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    rank = torch.arange(K, dtype=torch.float64) - (K - 1) / 2
    angle_N1 = torch.linspace(0, 2 * math.pi, N + 1, dtype=torch.float64)[:N, None]
    circle_NT2 = torch.stack([(angle_N1 + 2 * u).cos(), (angle_N1 + 2 * u).sin()], -1)
    truth_NT2 = INTRINSICS[2:].double() + 40 * circle_NT2
    # Tracks that the spline holds exactly make reprojection known by construction.
    ctrl_NM2 = fit(truth_NT2, u, num_ctrl)
    visibility_TN = torch.ones(T, N)
    visibility_TN[T // 2 :, 1::2] = 0.2
    odd_N = torch.arange(N) % 2
    ramp_M = torch.linspace(0, 1, num_ctrl, dtype=torch.float64).clamp_min(0.5) - 0.5
    side_KNM = drift * 2 * rank[:, None, None] * odd_N[:, None] * ramp_M
    miss_K = torch.zeros(K) if error is None else error
    shift_KNM2 = torch.stack([side_KNM, miss_K.double()[:, None, None].expand_as(side_KNM)], -1)
    depth_KNM = (1 + depth_step * rank)[:, None, None].expand_as(side_KNM)
    # At a depth that is constant along the curve, the projection of a spline is a spline.
    ctrl_KNM3 = unproject(ctrl_NM2 + shift_KNM2, depth_KNM, INTRINSICS.double())
    tracks_TN2 = BSpline.clamped(ctrl_NM2).evaluate(u).transpose(0, 1).float()
    return Hypotheses(
        control_points=ctrl_KNM3.float(),
        knots=knot_vector(num_ctrl),
        degree=3,
        times=u,
        query_points=tracks_TN2[0],
        tracks=tracks_TN2,
        visibility=visibility_TN,
        intrinsics=INTRINSICS,
        size=SIZE,
        extrinsics=torch.eye(4).repeat(T, 1, 1),
        seeds=torch.arange(K) + 10,
    )
