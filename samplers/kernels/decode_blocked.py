r"""Decoding in blocks that fit the cache; nothing of size [K, N, T, D] is made unless it is the answer.

**Strips.** A row of a spline's basis has few numbers that are not 0, and rows that follow one another share
them. So the frames are cut into strips of a few rows, and a strip is a product with the columns that it needs:
[16, ~5] x [~5, ...] where the whole basis is [1024, 64]. Nothing but zeros is left out; nothing else is known of
splines.

**Moments in closed form.** With centred control points ĉ^k the variance over K of a coordinate is quadratic in
the basis,

    var_t = Σ_{m,m'} N_m(u_t) N_{m'}(u_t) G_{m,m'},     G_{m,m'} = Σ_k ĉ^k_m ĉ^k_{m'} / (K − 1),

and only |m − m'| < W is ever asked for. So no hypothesis is decoded: the cost grows as K M + T, not as K T. The
sum may cancel, therefore it runs in float64.

**Quantiles.** A block is decoded with K innermost, and sorted in place by numpy, whose sort of float32 uses vector
registers; torch's does not.

**Errors.** With (u, v) the track and a = cx − u, b = cy − v, the error ‖(fx x / z + a, fy y / z + b)‖ is
‖(fx x + a z, fy y + b z)‖ / z: one division, in place, while the block is in the cache. What was not seen gets an
offset of infinity, hence an infinite error, which no rank among the seen reaches.

Shape letters:  K hypotheses   N points   M control points   T frames   D axes   L levels   W width of the basis
n, t, k number the members of a block.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from samplers.kernels.view import View

STRIP = 16
"""Frames of a strip: measured level with 8 and better than 32, 64 and 128, on one CPU core."""
CACHE = 1 << 20
"""Bytes of a block: of the order of one core's own cache."""
ERRORS = 1 << 25
"""Bytes of errors held at once by what ranks them, or one hypothesis' if those are more."""


@dataclass(frozen=True)
class Strip:
    """Frames that follow one another, and the control points that any of them depends on."""

    frames: slice
    ctrl: slice

    @property
    def num_frames(self) -> int:
        return self.frames.stop - self.frames.start


def strips(basis: Float[Tensor, "T M"], length: int = STRIP) -> list[Strip]:
    """The frames in order, in strips of `length`, the last one shorter."""
    if len(basis) <= length:
        # The search for zeros would cost more than they do.
        return [Strip(slice(0, len(basis)), slice(0, basis.shape[1]))]
    first, last = (ends.tolist() for ends in _support(basis))
    cuts = [*range(0, len(basis), length), len(basis)]
    return [
        Strip(slice(start, stop), slice(min(first[start:stop]), max(last[start:stop]) + 1))
        for start, stop in itertools.pairwise(cuts)
    ]


def _support(basis: Float[Tensor, "T M"]) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "T"]]:
    """The first and the last column of each row that is not 0; both 0 in a row of zeros."""
    used_TM = basis != 0
    column_M = torch.arange(basis.shape[1], device=basis.device)
    last_T = torch.where(used_TM, column_M, 0).amax(1)
    first_T = torch.where(used_TM, column_M, basis.shape[1]).amin(1)
    return torch.minimum(first_T, last_T), last_T


def _parts(total: int, bytes_each: int, limit: int = CACHE) -> Iterator[slice]:
    """0 … total in slices of about `limit` bytes, at least one each."""
    size = max(1, limit // max(1, bytes_each))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def positions(
    ctrl: Float[Tensor, "*batch M D"], basis: Float[Tensor, "T M"]
) -> Float[Tensor, "*batch T D"]:
    """X at every frame, a view of frames-first memory; nothing else of its size is made."""
    (T, M), D = basis.shape, ctrl.shape[-1]
    ctrl_BMD = ctrl.reshape(math.prod(ctrl.shape[:-2]), M, D)
    points_TBD = ctrl.new_empty(T, len(ctrl_BMD), D)
    cut = strips(basis)
    for part in _parts(len(ctrl_BMD), (M + STRIP) * D * ctrl.element_size(), 4 * CACHE):
        block_MX = ctrl_BMD[part].transpose(0, 1).reshape(M, -1)
        for strip in cut:
            points_tX = points_TBD[strip.frames, part].flatten(1)
            torch.mm(basis[strip.frames, strip.ctrl], block_MX[strip.ctrl], out=points_tX)
    return points_TBD.transpose(0, 1).reshape(*ctrl.shape[:-2], T, D)


def moments(
    ctrl: Float[Tensor, "K N M D"], basis: Float[Tensor, "T M"]
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
    """Mean and standard deviation over K of every coordinate; the unbiased one (K − 1), 0 for K = 1."""
    _, N, _, D = ctrl.shape
    mean_NTD = ctrl.new_empty(N, len(basis), D)
    spread_NTD = torch.empty_like(mean_NTD)
    for part, mean_DTn, (variance_DTn,) in _second_moments(ctrl, basis, lags=1):
        mean_NTD[part] = mean_DTn.permute(2, 1, 0).to(ctrl.dtype)
        spread_NTD[part] = variance_DTn.clamp_min_(0).sqrt_().permute(2, 1, 0).to(ctrl.dtype)
    return mean_NTD, spread_NTD


def covariance(
    ctrl: Float[Tensor, "K N M D"], basis: Float[Tensor, "T M"]
) -> tuple[Float64[Tensor, "N T D"], Float64[Tensor, "N T D D"]]:
    """Mean and covariance over K (over K − 1; 0 for K = 1) of every position, in float64."""
    _, N, _, D = ctrl.shape
    mean_NTD = ctrl.new_empty(N, len(basis), D, dtype=torch.float64)
    square_NTDD = mean_NTD.new_empty(N, len(basis), D, D)
    for part, mean_DTn, squares in _second_moments(ctrl, basis, lags=D):
        mean_NTD[part] = mean_DTn.permute(2, 1, 0)
        for lag, squares_dTn in enumerate(squares):
            for d, square_Tn in enumerate(squares_dTn):
                square_NTDD[part, :, d, d + lag] = square_Tn.T
                square_NTDD[part, :, d + lag, d] = square_Tn.T
    return mean_NTD, square_NTDD


def _second_moments(
    ctrl: Float[Tensor, "K N M D"], basis: Float[Tensor, "T M"], *, lags: int
) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
    """Of a block of points at a time: which, the mean [D, T, n], and for each lag the [D − lag, T, n]
    covariances of axes d and d + lag. All float64."""
    K, N, M, D = ctrl.shape
    basis = basis.double()
    first_T, last_T = _support(basis)
    W = int((last_T - first_T).max()) + 1
    pairs_TMW = basis.new_zeros(len(basis), M, W)
    for w in range(W):
        pairs_TMW[:, : M - w, w] = basis[:, : M - w] * basis[:, w:]
    cut = strips(basis, 4 * STRIP)
    for part in _parts(N, 2 * K * M * D * 8, 4 * CACHE):
        # Points innermost: every product below runs along memory, whatever M and D.
        centred_KDMn = ctrl[:, part].permute(0, 3, 2, 1).to(torch.float64, copy=True).contiguous()
        mean_DMn = centred_KDMn.mean(0)
        centred_KDMn -= mean_DMn
        n = part.stop - part.start
        mean_DTn = mean_DMn.new_empty(D, len(basis), n)
        squares = [mean_DMn.new_empty(D - lag, len(basis), n) for lag in range(lags)]
        grams = [_banded_gram(centred_KDMn, lag, W) for lag in range(lags)]
        for strip in cut:
            mean_DTn[:, strip.frames] = basis[strip.frames, strip.ctrl] @ mean_DMn[:, strip.ctrl]
            pairs_tX = pairs_TMW[strip.frames, strip.ctrl].flatten(1)
            for gram_dMWn, square_dTn in zip(grams, squares, strict=True):
                square_dTn[:, strip.frames] = pairs_tX @ gram_dMWn[:, strip.ctrl].flatten(1, 2)
        yield part, mean_DTn, [square.div_(max(1, K - 1)) for square in squares]


def _banded_gram(
    centred_KDMn: Float64[Tensor, "K D M n"], lag: int, width: int
) -> Float64[Tensor, "d M W n"]:
    """Σ_k ĉ_{d,m} ĉ_{d+lag,m+w} + ĉ_{d,m+w} ĉ_{d+lag,m} for w > 0; for w = 0 the one term; 0 past the end."""
    _, D, M, n = centred_KDMn.shape
    near, far = centred_KDMn[:, : D - lag], centred_KDMn[:, lag:]
    gram_dMWn = near.new_zeros(D - lag, M, width, n)
    for w in range(width):
        total = (near[:, :, : M - w] * far[:, :, w:]).sum(0)
        if w > 0:
            same = lag == 0
            total = 2 * total if same else total + (near[:, :, w:] * far[:, :, : M - w]).sum(0)
        gram_dMWn[:, : M - w, w] = total
    return gram_dMWn


def quantiles(
    ctrl: Float[Tensor, "K N M D"],
    basis: Float[Tensor, "T M"],
    levels: Float64[Tensor, "L"],
) -> Float[Tensor, "L N T D"]:
    """Quantiles over K of every coordinate, linear between order statistics, as `torch.quantile`."""
    K, N, M, D = ctrl.shape
    places = (levels * (K - 1)).tolist()
    answer_LNTD = ctrl.new_empty(len(levels), N, len(basis), D)
    cut = strips(basis)
    for part in _parts(N, (M + STRIP) * K * D * ctrl.element_size()):
        block_MX = ctrl[:, part].permute(2, 1, 3, 0).reshape(M, -1)
        for strip in cut:
            block_tX = basis[strip.frames, strip.ctrl] @ block_MX[strip.ctrl]
            sorted_tnDK = _sorted(block_tX.view(strip.num_frames, -1, D, K))
            for place, answer_NTD in zip(places, answer_LNTD, strict=True):
                low = int(place)
                value_tnD = torch.lerp(
                    sorted_tnDK[..., low], sorted_tnDK[..., min(low + 1, K - 1)], place - low
                )
                answer_NTD[part, strip.frames] = value_tnD.transpose(0, 1)
    return answer_LNTD


def _sorted(values: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows K"]:
    """Ascending along the last axis; on a CPU in place."""
    if values.device.type != "cpu":
        return values.sort(-1).values
    values.numpy().sort(axis=-1)
    return values


def reprojection(
    ctrl: Float[Tensor, "K N M 3"], basis: Float[Tensor, "T M"], view: View
) -> Float[Tensor, "K N T"]:
    """px between every position's image and its track; infinite at or behind the camera plane.

    NaN where the track is NaN and the position before the camera. A view of frames-second memory.
    """
    error_KTN = ctrl.new_empty(len(ctrl), len(basis), ctrl.shape[1])
    _write_errors(error_KTN, ctrl, basis, view, _offsets(view, hide=False))
    return error_KTN.transpose(1, 2)


def median_reprojection(
    ctrl: Float[Tensor, "K N M 3"], basis: Float[Tensor, "T M"], view: View
) -> Float[Tensor, "K"]:
    """Median px of each hypothesis over what was seen, the lower one of an even number; NaN if nothing was."""
    median_K = ctrl.new_full((len(ctrl),), torch.nan)
    seen = int(view.seen.sum())
    if seen > 0:
        for part, error_kX in _seen_errors(ctrl, basis, view):
            median_K[part] = _smallest(error_kX, (seen - 1) // 2)
    return median_K


def _smallest(values: Float[Tensor, "k X"], rank: int) -> Float[Tensor, "k"]:
    """The value of every row at this rank, 0 the smallest; on a CPU the rows are disordered in place."""
    if values.device.type != "cpu":
        return values.kthvalue(rank + 1, dim=1).values
    values.numpy().partition(rank, axis=1)
    return values[:, rank]


def ranked_reprojection(
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    ranks: Int64[Tensor, "R"],
) -> Float[Tensor, "R"]:
    """The errors of all hypotheses over what was seen at these ranks, 0 the smallest, K·S − 1 the largest.

    Exact, in two passes and the memory of two histograms: as integers, the bits of numbers that are not
    negative are in the numbers' order. The first pass counts their upper halves, the second the lower halves of
    those that share the upper half looked for. So float32 is computed with, whatever the dtype.
    """
    ctrl, basis, view = ctrl.float(), basis.float(), view.to(torch.float32)
    ((upper_R, rest_R),) = _find(_histograms(ctrl, basis, view, None), ranks[None])
    found = _find(_histograms(ctrl, basis, view, upper_R.tolist()), rest_R[:, None])
    lower_R = torch.cat([lower for lower, _ in found])
    return ((upper_R << 16) + lower_R).to(torch.int32).view(torch.float32)


def _histograms(
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    uppers: list[int] | None,
) -> Int64[Tensor, "R halves"]:
    """How often each upper half of the errors' bits occurs, or each lower half beside each of these upper ones."""
    rows = 1 if uppers is None else len(uppers)
    count = torch.zeros(rows, 1 << 16, dtype=torch.int64, device=ctrl.device)
    for _, error_kX in _seen_errors(ctrl, basis, view):
        bits = error_kX.view(torch.int32).flatten()
        high = bits >> 16
        if uppers is None:
            count += torch.bincount(high, minlength=1 << 16)
        else:
            for upper, row in zip(uppers, count, strict=True):
                row += torch.bincount(bits[high == upper] & 0xFFFF, minlength=1 << 16)
    return count


def _find(
    counts: Int64[Tensor, "R halves"], ranks: Int64[Tensor, "R ranks"]
) -> list[tuple[Tensor, Tensor]]:
    """Of each histogram: the bins that hold its ranks, and the ranks within them."""
    found = []
    for count, wanted in zip(counts, ranks.to(counts.device), strict=True):
        total = count.cumsum(0)
        bins = torch.searchsorted(total, wanted, right=True)
        found.append((bins, wanted - (total - count)[bins]))
    return found


def _seen_errors(
    ctrl: Float[Tensor, "K N M 3"], basis: Float[Tensor, "T M"], view: View
) -> Iterator[tuple[slice, Tensor]]:
    """Of some hypotheses at a time: which, and their errors [k, T · N], infinite where nothing was seen."""
    K, N, _, _ = ctrl.shape
    offset_NT2 = _offsets(view, hide=True)
    for part in _parts(K, N * len(basis) * ctrl.element_size(), ERRORS):
        error_kTN = ctrl.new_empty(part.stop - part.start, len(basis), N)
        _write_errors(error_kTN, ctrl[part], basis, view, offset_NT2)
        yield part, error_kTN.flatten(1)


def _offsets(view: View, *, hide: bool) -> Float[Tensor, "T 2 N"]:
    """(cx − u, cy − v); infinite where nothing was seen if that is to be hidden."""
    offset_T2N = (view.intrinsics[2:] - view.tracks).permute(1, 2, 0)
    if hide:
        offset_T2N = offset_T2N.masked_fill(~view.seen.T[:, None], torch.inf)
    return offset_T2N.contiguous()


def _write_errors(
    error_KTN: Float[Tensor, "K T N"],
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    offset_T2N: Float[Tensor, "T 2 N"],
) -> None:
    K, N, M, _ = ctrl.shape
    focal = torch.cat([view.intrinsics[:2], view.intrinsics.new_ones(1)])
    cut = strips(basis)
    # Long runs of points: the offsets have no axis of hypotheses, so vectors run along points.
    for points in _parts(N, (M + STRIP) * 3 * ctrl.element_size(), CACHE):
        each = (points.stop - points.start) * (M + STRIP) * 3 * ctrl.element_size()
        for some in _parts(K, each):
            block = ctrl[some, points]
            if view.cameras is None:
                block = block * focal
            block_MX = block.permute(2, 3, 0, 1).reshape(M, -1)
            shape = (3, some.stop - some.start, points.stop - points.start)
            for strip in cut:
                block_tX = basis[strip.frames, strip.ctrl] @ block_MX[strip.ctrl]
                x, y, z = block_tX.view(-1, *shape).unbind(1)
                if view.cameras is not None:
                    x, y, z = _through(view.cameras[strip.frames], focal, x, y, z)
                offset = offset_T2N[strip.frames, :, None, points]
                x.addcmul_(offset[:, 0], z)
                y.addcmul_(offset[:, 1], z)
                x.square_().addcmul_(y, y).sqrt_().div_(z)
                x.masked_fill_(z <= 0, torch.inf)
                error_KTN[some, strip.frames, points] = x.transpose(0, 1)


def _through(
    cameras_t34: Float[Tensor, "t 3 4"], focal: Float[Tensor, "3"], x: Tensor, y: Tensor, z: Tensor
) -> tuple[Tensor, ...]:
    """Rows f (R X + t) of each frame's camera; x, y, z are [t, k, n]."""
    rows_34t = (cameras_t34 * focal[:, None]).permute(1, 2, 0)[..., None, None]
    return tuple(
        (row[0] * x).addcmul_(row[1], y).addcmul_(row[2], z).add_(row[3]) for row in rows_34t
    )
