"""Four ways from control points to what is asked of them, on the same work, for benchmarks.

    ours         decode in strips and blocks (samplers.kernels.decode)
    gemm         one product with the basis, then torch's own reductions (the plain twin)
    scipy        scipy.interpolate.BSpline in float64, as it computes, then numpy's reductions
    per frame    a loop over frames, each a product with one row of the basis, then reduced

`DECODERS[what][who]` takes a `Work` and answers; what is "positions", "moments" (mean and spread), "quantiles"
(five levels) or "errors" (median reprojection of each hypothesis). A test holds that all agree.

Shape letters:  K hypotheses   N points   M control points   T frames
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from diffusion4d.splines import basis_matrix, knot_vector
from samplers.kernels import decode, decode_reference
from samplers.kernels.view import View

LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
DEGREE = 3


@dataclass(frozen=True, eq=False)
class Work:
    """A fan of hypotheses before a camera, float32, and when and how it is looked at."""

    ctrl: Tensor
    """[K, N, M, 3]"""
    u: Tensor
    """[T], float64"""
    view: View

    @property
    def basis(self) -> Tensor:
        """[T, M], worked out anew: everyone pays for their own."""
        return basis_matrix(self.u, self.ctrl.shape[2]).to(self.ctrl)


def work(K: int, N: int, M: int, T: int, seed: int = 0) -> Work:
    """Control points that wander a little about places of their own, at depths near 3."""
    rng = torch.Generator().manual_seed(seed)
    ctrl = 0.1 * torch.randn(K, N, M, 3, generator=rng)
    ctrl += 0.2 * torch.randn(N, M, 3, generator=rng) + torch.tensor([0.0, 0.0, 3.0])
    view = View(
        tracks=256 * torch.rand(N, T, 2, generator=rng),
        seen=torch.rand(N, T, generator=rng) > 0.3,
        intrinsics=torch.tensor([250.0, 250.0, 128.0, 128.0]),
    )
    return Work(ctrl, torch.linspace(0, 1, T, dtype=torch.float64), view)


def scipy_positions(w: Work) -> np.ndarray:
    """[K, N, T, 3] in float64."""
    knots = knot_vector(w.ctrl.shape[2]).numpy()
    return BSpline(knots, w.ctrl.numpy(), DEGREE, axis=2)(w.u.numpy())


def _scipy_errors(w: Work) -> np.ndarray:
    points = scipy_positions(w)
    intrinsics = w.view.intrinsics.numpy()
    pixels = points[..., :2] / points[..., 2:] * intrinsics[:2] + intrinsics[2:]
    error = np.linalg.norm(pixels - w.view.tracks.numpy(), axis=-1)
    error[points[..., 2] <= 0] = np.inf
    seen = error[:, w.view.seen.numpy()]
    return np.partition(seen, (seen.shape[1] - 1) // 2, axis=1)[:, (seen.shape[1] - 1) // 2]


def _scipy_moments(w: Work) -> tuple[np.ndarray, np.ndarray]:
    points = scipy_positions(w)
    return points.mean(0), points.std(0, ddof=1)


def _frames(w: Work) -> list[Tensor]:
    """[K, N, 3] of every frame."""
    K, N, M, _ = w.ctrl.shape
    ctrl_MX = w.ctrl.permute(2, 0, 1, 3).reshape(M, -1)
    return [(row @ ctrl_MX).view(K, N, 3) for row in w.basis]


def _frame_moments(w: Work) -> tuple[Tensor, Tensor]:
    found = [(points.mean(0), points.std(0)) for points in _frames(w)]
    mean, spread = (torch.stack(part, 1) for part in zip(*found, strict=True))
    return mean, spread


def _frame_errors(w: Work) -> Tensor:
    errors = []
    for t, points in enumerate(_frames(w)):
        pixels = points[..., :2] / points[..., 2:] * w.view.intrinsics[:2] + w.view.intrinsics[2:]
        error = (pixels - w.view.tracks[:, t]).norm(dim=-1)
        errors.append(error.masked_fill(points[..., 2] <= 0, torch.inf)[:, w.view.seen[:, t]])
    return torch.cat(errors, 1).median(1).values


Decoder = Callable[[Work], Any]

DECODERS: dict[str, dict[str, Decoder]] = {
    "positions": {
        "ours": lambda w: decode.positions(w.ctrl, w.basis),
        "gemm": lambda w: decode_reference.positions(w.ctrl, w.basis),
        "scipy": scipy_positions,
        "per frame": lambda w: torch.stack(_frames(w), 2),
    },
    "moments": {
        "ours": lambda w: decode.moments(w.ctrl, w.basis),
        "gemm": lambda w: decode_reference.moments(w.ctrl, w.basis),
        "scipy": _scipy_moments,
        "per frame": _frame_moments,
    },
    "quantiles": {
        "ours": lambda w: decode.quantiles(w.ctrl, w.basis, LEVELS),
        "gemm": lambda w: decode_reference.quantiles(w.ctrl, w.basis, LEVELS),
        "scipy": lambda w: np.quantile(scipy_positions(w), LEVELS.numpy(), axis=0),
        "per frame": lambda w: torch.stack(
            [torch.quantile(points, LEVELS.float(), dim=0) for points in _frames(w)], 2
        ),
    },
    "errors": {
        "ours": lambda w: decode.median_reprojection(w.ctrl, w.basis, w.view),
        "gemm": lambda w: decode_reference.median_reprojection(w.ctrl, w.basis, w.view),
        "scipy": _scipy_errors,
        "per frame": _frame_errors,
    },
}
