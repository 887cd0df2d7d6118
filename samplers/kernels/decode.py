r"""Control points to what is asked of the trajectories: positions, mean, spread, quantiles, reprojection.

    X^k_n(u_t) = Σ_m N_m(u_t) c^k_{n,m},     k = 1 … K hypotheses,  basis[t, m] = N_m(u_t)

Any linear basis will do; that of splines has few entries in a row that are not 0, and the cost is that of those
alone. Three backends compute the same:

    "reference"   plain, in memory for [K, N, T, D]; the specification
    "blocked"     in blocks that fit the cache, in memory for the answer; the default
    "triton"      `moments` and `reprojection` on CUDA, one pass; never timed on a GPU, so it has to be asked for

An argument that a backend cannot take is refused before anything runs; none stands in for another.

Shape letters:  K hypotheses   N points   M control points   T frames   D axes   L levels   R ranks
"""

import importlib.util
from types import ModuleType
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from samplers.kernels import decode_blocked, decode_reference
from samplers.kernels.view import View

Backend = Literal["reference", "blocked", "triton"]


def positions(
    ctrl: Float[Tensor, "*batch M D"],
    basis: Float[Tensor, "T M"],
    *,
    backend: Backend = "blocked",
) -> Float[Tensor, "*batch T D"]:
    """X at every frame; its memory may be frames first.

    Raises:
        ValueError: shapes, types or devices that do not fit together or that the backend does not take, or
            control points that want gradients.
    """
    return _chosen(backend, "positions", ctrl, basis).positions(ctrl, basis)


def moments(
    ctrl: Float[Tensor, "K N M D"],
    basis: Float[Tensor, "T M"],
    *,
    backend: Backend = "blocked",
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
    """Mean and standard deviation over K of every coordinate; the unbiased one (K − 1), 0 for K = 1.

    Raises:
        ValueError: as `positions`.
    """
    return _chosen(backend, "moments", ctrl, basis).moments(ctrl, basis)


def covariance(
    ctrl: Float[Tensor, "K N M D"],
    basis: Float[Tensor, "T M"],
    *,
    backend: Backend = "blocked",
) -> tuple[Float64[Tensor, "N T D"], Float64[Tensor, "N T D D"]]:
    """Mean and covariance over K (over K − 1; 0 for K = 1) of every position, in float64.

    Raises:
        ValueError: as `positions`.
    """
    return _chosen(backend, "covariance", ctrl, basis).covariance(ctrl, basis)


def quantiles(
    ctrl: Float[Tensor, "K N M D"],
    basis: Float[Tensor, "T M"],
    levels: Float64[Tensor, "L"],
    *,
    backend: Backend = "blocked",
) -> Float[Tensor, "L N T D"]:
    """Quantiles over K of every coordinate, linear between order statistics, as `torch.quantile`.

    Raises:
        ValueError: a level outside [0, 1]; or as `positions`.
    """
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"need levels within [0, 1], got {levels.tolist()}")
    return _chosen(backend, "quantiles", ctrl, basis).quantiles(ctrl, basis, levels)


def reprojection(
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    *,
    backend: Backend = "blocked",
) -> Float[Tensor, "K N T"]:
    """px between every position's image and its track; infinite at or behind the camera plane.

    NaN where the track is NaN and the position before the camera.

    Raises:
        ValueError: as `positions`.
    """
    return _chosen(backend, "reprojection", ctrl, basis, view).reprojection(ctrl, basis, view)


def median_reprojection(
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    *,
    backend: Backend = "blocked",
) -> Float[Tensor, "K"]:
    """Median px of each hypothesis over what was seen, the lower one of an even number; NaN if nothing was.

    Raises:
        ValueError: as `positions`.
    """
    module = _chosen(backend, "median_reprojection", ctrl, basis, view)
    return module.median_reprojection(ctrl, basis, view)


def ranked_reprojection(
    ctrl: Float[Tensor, "K N M 3"],
    basis: Float[Tensor, "T M"],
    view: View,
    ranks: Int64[Tensor, "R"],
    *,
    backend: Backend = "blocked",
) -> Float[Tensor, "R"]:
    """The errors of all hypotheses over what was seen at these ranks, 0 the smallest, K·S − 1 the largest.

    Raises:
        ValueError: a rank outside 0 … K·S − 1; or as `positions`.
    """
    count = len(ctrl) * int(view.seen.sum())
    if not bool(((ranks >= 0) & (ranks < count)).all()):
        raise ValueError(f"need ranks within 0 … {count - 1}, got {ranks.tolist()}")
    module = _chosen(backend, "ranked_reprojection", ctrl, basis, view)
    return module.ranked_reprojection(ctrl, basis, view, ranks)


def _chosen(
    backend: str, name: str, ctrl: Tensor, basis: Tensor, view: View | None = None
) -> ModuleType:
    """The module that will compute it, once the arguments are known to fit: type, shape, dtype, device, gradient."""
    if backend not in get_args(Backend):
        raise ValueError(f"need a backend of {get_args(Backend)}, got {backend!r}")
    if ctrl.shape[-2] != basis.shape[1]:
        raise ValueError(
            f"need as many columns of the basis as control points, got a basis of {list(basis.shape)} and control "
            f"points {list(ctrl.shape)}"
        )
    if view is not None and view.seen.shape != (ctrl.shape[1], len(basis)):
        raise ValueError(
            f"need a view of [N, T] = {[ctrl.shape[1], len(basis)]}, got {list(view.seen.shape)}"
        )
    if ctrl.dtype != basis.dtype or ctrl.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"need control points and basis both in float32 or float64, got {ctrl.dtype} and {basis.dtype}"
        )
    if view is not None and view.tracks.dtype != ctrl.dtype:
        raise ValueError(f"need the view in {ctrl.dtype}, got {view.tracks.dtype}")
    devices = {ctrl.device, basis.device} | (set() if view is None else {view.tracks.device})
    if len(devices) > 1:
        raise ValueError(f"need everything on one device, got {sorted(map(str, devices))}")
    if torch.is_grad_enabled() and (ctrl.requires_grad or basis.requires_grad):
        raise ValueError(
            "need control points without gradients: kernels have none. Use torch.no_grad, or multiply by the basis"
        )
    if backend == "triton":
        return _triton(name, ctrl)
    return decode_blocked if backend == "blocked" else decode_reference


def _triton(name: str, ctrl: Tensor) -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            "the triton backend needs triton, which is not installed: pip install 'diffusion4d[triton]'"
        )
    from samplers.kernels import decode_triton

    decode_triton.require(name, ctrl)
    return decode_triton
