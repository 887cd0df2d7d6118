r"""Decoding, plainly: every position is written out, then read again for each thing asked of it.

    X^k_n(u_t) = Σ_m N_m(u_t) c^k_{n,m}          basis[t, m] = N_m(u_t)

This is the specification of `decode`: each function here has twins of the same signature in
`decode_blocked` and `decode_triton`. It needs memory for [K, N, T, D], several times over.

Shape letters:  K hypotheses   N points   M control points   T frames   D axes   L levels
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from samplers.kernels.view import View


def positions(
    ctrl: Float[Tensor, "*batch M D"], basis: Float[Tensor, "T M"]
) -> Float[Tensor, "*batch T D"]:
    """X at every frame: one product with the basis."""
    return torch.einsum("tm,...md->...td", basis, ctrl)


def moments(
    ctrl: Float[Tensor, "K N M D"], basis: Float[Tensor, "T M"]
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
    """Mean and standard deviation over K of every coordinate; the unbiased one (K − 1), 0 for K = 1."""
    points_KNTD = positions(ctrl, basis)
    if len(points_KNTD) == 1:
        return points_KNTD[0], torch.zeros_like(points_KNTD[0])
    return points_KNTD.mean(0), points_KNTD.std(0)


def covariance(
    ctrl: Float[Tensor, "K N M D"], basis: Float[Tensor, "T M"]
) -> tuple[Float64[Tensor, "N T D"], Float64[Tensor, "N T D D"]]:
    """Mean and covariance over K (over K − 1; 0 for K = 1) of every position, in float64.

    A deviation along some direction and across it are differences of these entries; in float32 the
    smaller would drown in the larger one's rounding.
    """
    points_KNTD = positions(ctrl.double(), basis.double())
    mean_NTD = points_KNTD.mean(0)
    offset_KNTD = points_KNTD - mean_NTD
    square_NTDD = torch.einsum("kntd,knte->ntde", offset_KNTD, offset_KNTD)
    return mean_NTD, square_NTDD / max(1, len(points_KNTD) - 1)


def quantiles(
    ctrl: Float[Tensor, "K N M D"],
    basis: Float[Tensor, "T M"],
    levels: Float64[Tensor, "L"],
) -> Float[Tensor, "L N T D"]:
    """Quantiles over K of every coordinate, linear between order statistics, as `torch.quantile`."""
    points_KNTD = positions(ctrl, basis)
    # torch.quantile refuses more than 2^24 numbers; its definition does not.
    return torch.stack(
        [
            torch.quantile(points_KNTD[:, n], levels.to(points_KNTD), dim=0)
            for n in range(ctrl.shape[1])
        ],
        1,
    )


def reprojection(
    ctrl: Float[Tensor, "K N M 3"], basis: Float[Tensor, "T M"], view: View
) -> Float[Tensor, "K N T"]:
    """px between every position's image and its track; infinite at or behind the camera plane.

    NaN where the track is NaN and the position before the camera.
    """
    points_KNT3 = positions(ctrl, basis)
    if view.cameras is not None:
        points_KNT3 = torch.einsum("tij,kntj->knti", view.cameras[..., :3], points_KNT3)
        points_KNT3 = points_KNT3 + view.cameras[..., 3]
    depth_KNT1 = points_KNT3[..., 2:]
    pixels_KNT2 = points_KNT3[..., :2] / depth_KNT1 * view.intrinsics[:2] + view.intrinsics[2:]
    error_KNT = (pixels_KNT2 - view.tracks).norm(dim=-1)
    return error_KNT.masked_fill(depth_KNT1[..., 0] <= 0, torch.inf)


def median_reprojection(
    ctrl: Float[Tensor, "K N M 3"], basis: Float[Tensor, "T M"], view: View
) -> Float[Tensor, "K"]:
    """Median px of each hypothesis over what was seen, the lower one of an even number; NaN if nothing was."""
    error_KS = reprojection(ctrl, basis, view)[:, view.seen]
    if error_KS.shape[1] == 0:
        return torch.full_like(error_KS.sum(1), torch.nan)
    return error_KS.median(dim=1).values


def ranked_reprojection(
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    ranks: Int64[Tensor, "R"],
) -> Float[Tensor, "R"]:
    """The errors of all hypotheses over what was seen at these ranks, 0 the smallest, K·S − 1 the largest."""
    return reprojection(ctrl, basis, view)[:, view.seen].flatten().sort().values[ranks]
