r"""Decoding on CUDA in Triton: a program a point and a tile of frames, the hypotheses in a loop.

Positions live in registers, tile by tile, and never reach memory. Moments centre the control points first and
decode what is left, so the squares do not cancel; products are in full float32 (no TF32), as the plain twin's.

Tested in Triton's interpreter and compiled ahead of time for sm_80 and sm_90. It was never run on a GPU, nor timed
on one.

Shape letters:  K hypotheses   N points   M control points   T frames   D axes
A capital letter after B is the length of a tile.
"""

import os
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float
from torch import Tensor

from samplers.kernels.view import View

TILE = 16
"""Hypotheses, and frames, of a tile: the least that a tensor core takes."""
MOST_CTRL = 128
"""A tile holds all control points of a trajectory."""


def require(name: str, ctrl: Tensor) -> None:
    """Raise a ValueError unless there is such a kernel and it takes these control points."""
    if name not in ("moments", "reprojection"):
        raise ValueError(f"the triton backend has moments and reprojection, got {name}")
    if ctrl.shape[2] > MOST_CTRL:
        raise ValueError(
            f"the triton backend takes at most {MOST_CTRL} control points, got {ctrl.shape[2]}"
        )
    if ctrl.dtype != torch.float32:
        raise ValueError(f"the triton backend takes float32, got {ctrl.dtype}")
    if ctrl.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the triton backend takes tensors on cuda, or TRITON_INTERPRET=1, got {ctrl.device}"
        )


def moments(
    ctrl: Float[Tensor, "K N M D"], basis: Float[Tensor, "T M"]
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"]]:
    """Mean and standard deviation over K of every coordinate; the unbiased one (K − 1), 0 for K = 1."""
    K, N, M, D = ctrl.shape
    T = len(basis)
    mean_NTD = ctrl.new_empty(N, T, D)
    spread_NTD = torch.empty_like(mean_NTD)
    moments_kernel[(N, triton.cdiv(T, TILE), D)](  # pyright: ignore[reportIndexIssue]
        *(ctrl.contiguous(), basis.contiguous(), mean_NTD, spread_NTD),
        *(K, N, M, T, D),
        **_blocks(M),
    )
    return mean_NTD, spread_NTD


def reprojection(
    ctrl: Float[Tensor, "K N M 3"], basis: Float[Tensor, "T M"], view: View
) -> Float[Tensor, "K N T"]:
    """px between every position's image and its track; infinite at or behind the camera plane.

    NaN where the track is NaN and the position before the camera.
    """
    K, N, M, _ = ctrl.shape
    T = len(basis)
    error_KNT = ctrl.new_empty(K, N, T)
    cameras = basis if view.cameras is None else view.cameras.contiguous()
    reprojection_kernel[(N, triton.cdiv(T, TILE))](  # pyright: ignore[reportIndexIssue]
        *(ctrl.contiguous(), basis.contiguous(), view.tracks.contiguous()),
        *(view.intrinsics.contiguous(), cameras, error_KNT),
        *(K, N, M, T),
        **{**_blocks(M), "WORLD": view.cameras is not None},
    )
    return error_KNT


def _blocks(num_ctrl: int) -> dict[str, Any]:
    """Lengths of the tiles; triton takes plain numbers for its compile-time constants."""
    return {"BK": TILE, "BM": max(TILE, triton.next_power_of_2(num_ctrl)), "BT": TILE}


@triton.jit
def _basis_tile(basis, t, m, T, M):
    """[BT, BM]; zeros beyond the ends, so that padding adds nothing."""
    inside = (t[:, None] < T) & (m[None, :] < M)
    return tl.load(basis + t[:, None] * M + m[None, :], mask=inside, other=0.0)


@triton.jit
def _ctrl_tile(ctrl, k, n, m, d, K, N, M, D):
    """[BK, BM] of one point and axis; zeros beyond the ends."""
    inside = (k[:, None] < K) & (m[None, :] < M)
    # K N M D may pass 2^31.
    row = (k[:, None].to(tl.int64) * N + n) * M + m[None, :]
    return tl.load(ctrl + row * D + d, mask=inside, other=0.0)


@triton.jit
def moments_kernel(
    ctrl, basis, mean, spread, K, N, M, T, D, BK: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr
):
    n = tl.program_id(0)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    d = tl.program_id(2)
    m = tl.arange(0, BM)
    basis_tm = _basis_tile(basis, t, m, T, M)
    total_m = tl.zeros((BM,), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        total_m += tl.sum(_ctrl_tile(ctrl, k, n, m, d, K, N, M, D), 0)
    mean_m = total_m / K
    squares_t = tl.zeros((BT,), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        centred_km = _ctrl_tile(ctrl, k, n, m, d, K, N, M, D) - mean_m[None, :]
        # Padding rows hold zeros, and would be − mean once centred.
        centred_km = tl.where(k[:, None] < K, centred_km, 0.0)
        offset_tk = tl.dot(basis_tm, tl.trans(centred_km), input_precision="ieee")
        squares_t += tl.sum(offset_tk * offset_tk, 1)
    place = (n.to(tl.int64) * T + t) * D + d
    tl.store(mean + place, tl.sum(basis_tm * mean_m[None, :], 1), mask=t < T)
    tl.store(spread + place, tl.sqrt(squares_t / tl.maximum(K - 1, 1)), mask=t < T)


@triton.jit
def reprojection_kernel(
    ctrl, basis, tracks, intrinsics, cameras, error,
    K, N, M, T,
    WORLD: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    m = tl.arange(0, BM)
    basis_mt = tl.trans(_basis_tile(basis, t, m, T, M))
    track = tracks + (n.to(tl.int64) * T + t) * 2
    fx, fy = tl.load(intrinsics), tl.load(intrinsics + 1)
    # (cx − u, cy − v): see decode_blocked for why the division comes last.
    right_t = tl.load(intrinsics + 2) - tl.load(track, mask=t < T, other=0.0)
    down_t = tl.load(intrinsics + 3) - tl.load(track + 1, mask=t < T, other=0.0)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.dot(_ctrl_tile(ctrl, k, n, m, 0, K, N, M, 3), basis_mt, input_precision="ieee")
        y = tl.dot(_ctrl_tile(ctrl, k, n, m, 1, K, N, M, 3), basis_mt, input_precision="ieee")
        z = tl.dot(_ctrl_tile(ctrl, k, n, m, 2, K, N, M, 3), basis_mt, input_precision="ieee")
        if WORLD:
            row = cameras + t * 12
            across = _camera_row(row, t < T, x, y, z)
            below = _camera_row(row + 4, t < T, x, y, z)
            z = _camera_row(row + 8, t < T, x, y, z)
            x, y = across, below
        x = fx * x + right_t[None, :] * z
        y = fy * y + down_t[None, :] * z
        miss = tl.sqrt(x * x + y * y) / tl.where(z > 0, z, 1.0)
        miss = tl.where(z > 0, miss, float("inf"))
        place = (k[:, None].to(tl.int64) * N + n) * T + t[None, :]
        tl.store(error + place, miss, mask=(k[:, None] < K) & (t[None, :] < T))


@triton.jit
def _camera_row(row, inside, x, y, z):
    """R_i X + t_i of each frame's camera."""
    a = tl.load(row, mask=inside, other=0.0)[None, :]
    b = tl.load(row + 1, mask=inside, other=0.0)[None, :]
    c = tl.load(row + 2, mask=inside, other=0.0)[None, :]
    shift = tl.load(row + 3, mask=inside, other=0.0)[None, :]
    return a * x + b * y + c * z + shift
