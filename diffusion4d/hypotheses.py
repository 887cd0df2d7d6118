r"""The answer: K explanations of how the N points of a clip moved, as spline control points.

    X^k_n(u) = Σ_m N_{m,P}(u) c^k_{n,m},   u in [0, 1] the clip's own time,   k = 1 … K

The control points live in each instant's own camera frame (`frame = "camera"`) or in the world,
which is the camera of the anchor frame unless cameras were given (`"world"`). Cameras that were estimated differ
between hypotheses, as their shapes do: then `extrinsics` is [K, T, 4, 4], a path each; else [T, 4, 4] is all of them's.
Either broadcasts to [K, T, 4, 4]. A hypothesis is never judged by the truth: its reprojection error on visible frames
says whether it fits, in px of an image whose shorter side is 256, so that clips of any size compare; where all fit, the
one nearest to the mean of all ranks first.

What is asked over all K hypotheses (mean, spread, quantiles, scores) never makes [K, N, T, 3]; what has one number
for each of K, N and T needs little more than itself (`samplers.kernels.decode`).

On disk a `Hypotheses` is one `hypotheses.npz` that numpy alone opens, without pickles.

Shape letters:  K hypotheses   N points   M control points   T frames   knots = M + degree + 1
"""

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from diffusion4d.atomic import replace_when_done
from diffusion4d.cameras import project, transform
from diffusion4d.errors import UserError, reason
from diffusion4d.splines import BSpline
from diffusion4d.splines.basis import basis_functions
from samplers.kernels import decode
from samplers.kernels.view import View

FILE_NAME = "hypotheses.npz"
REFERENCE_SIDE = 256
"""Shorter side in px of the image that errors are compared at."""
SEEN = 0.5
"""A soft visibility from here up counts as seen."""

Units = Literal["scene", "m"]
Frame = Literal["camera", "world"]

_POINTS = 64
"""Points that are decoded together where distances are needed, not moments: memory then does not grow with N."""

OPTIONAL = {"static"}
"""Arrays that a file may lack."""

_FLOATS = {
    "control_points": ("K", "N", "M", 3),
    "knots": ("knots",),
    "times": ("T",),
    "query_points": ("N", 2),
    "tracks": ("T", "N", 2),
    "visibility": ("T", "N"),
    "intrinsics": (4,),
    "extrinsics": ("T", 4, 4),
}


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """K sampled motions of N points, with the evidence they explain.

    Raises:
        UserError: a shape, a value or a name does not fit; the message says which.
    """

    control_points: Float32[Tensor, "K N M 3"]
    """Scene units or metres (`units`), in the camera or the world frame (`frame`)."""
    knots: Float64[Tensor, "knots"]
    """M + degree + 1 non-decreasing knots from 0 to 1."""
    degree: int
    times: Float64[Tensor, "T"]
    """u of every frame, increasing within [0, 1]."""
    query_points: Float32[Tensor, "N 2"]
    """px in the anchor frame."""
    tracks: Float32[Tensor, "T N 2"]
    """Observed px; NaN is allowed where a point was not seen."""
    visibility: Float32[Tensor, "T N"]
    """1 = seen, 0 = not."""
    intrinsics: Float32[Tensor, "4"]
    """(fx, fy, cx, cy) px."""
    size: tuple[int, int]
    """(H, W) px of the image that tracks and intrinsics belong to."""
    extrinsics: Float32[Tensor, "T 4 4"] | Float32[Tensor, "K T 4 4"]
    """World to camera: one path for all, or one for each."""
    seeds: Int64[Tensor, "K"]
    """The seed of each hypothesis' noise, derived from the one that was asked for."""
    units: Units = "scene"
    frame: Frame = "camera"
    static: Bool[Tensor, "K N"] | None = None
    """What each hypothesis takes to stand still in the world; None where nothing tells."""

    def __post_init__(self) -> None:
        _check({f.name: getattr(self, f.name) for f in fields(self)})

    @property
    def num_hypotheses(self) -> int:
        return self.control_points.shape[0]

    @property
    def num_points(self) -> int:
        return self.control_points.shape[1]

    @property
    def num_ctrl(self) -> int:
        return self.control_points.shape[2]

    @property
    def num_frames(self) -> int:
        return self.times.shape[0]

    @property
    def seen(self) -> Tensor:
        """bool [T, N]: where the soft visibility counts as seen."""
        return self.visibility >= SEEN

    @property
    def spline(self) -> BSpline:
        """The K x N curves, for derivatives, subdivision and Bézier segments."""
        return BSpline(self.control_points, self.knots, self.degree)

    def evaluate(
        self,
        u: Float[Tensor, "instants"]
        | Float[np.ndarray, "instants"]
        | Sequence[float]
        | None = None,
    ) -> Float[Tensor, "K N instants 3"]:
        """Positions at clip times u in [0, 1]; at the clip's own T frames if u is None.

        Raises:
            ValueError: some u lies outside the knots.
        """
        instants = self.times if u is None else torch.as_tensor(u, dtype=torch.float64)
        return self.spline.evaluate(instants.to(self.control_points.device))

    @cached_property
    def basis(self) -> Float32[Tensor, "T M"]:
        """N_m at the clip's frames."""
        basis = basis_functions(self.times.cpu(), self.knots.cpu(), self.degree)
        return basis.to(self.control_points)

    @property
    def mean(self) -> Float[Tensor, "N T 3"]:
        """Mean over the hypotheses at the clip's frames."""
        return decode.moments(self.control_points, self.basis)[0]

    @property
    def spread(self) -> Float[Tensor, "N T 3"]:
        """Standard deviation over the hypotheses per axis, the unbiased one (K − 1); 0 for K = 1."""
        return decode.moments(self.control_points, self.basis)[1]

    def quantiles(self, levels: Sequence[float]) -> Float[Tensor, "levels N T 3"]:
        """Quantiles over the hypotheses per axis at the clip's frames, linear between them.

        Raises:
            ValueError: a level is outside [0, 1].
        """
        wanted = torch.as_tensor(levels, dtype=torch.float64)
        return decode.quantiles(self.control_points, self.basis, wanted)

    def camera_covariance(
        self, points: slice = slice(None)
    ) -> tuple[Float64[Tensor, "chosen T 3"], Float64[Tensor, "chosen T 3 3"]]:
        """Mean and covariance over the hypotheses of some points, in each frame's own camera.

        The covariance is over K − 1; 0 for K = 1. In float64: a spread along a ray and across it are differences of
        these numbers.
        """
        if self._own_cameras:
            moved_KTN3 = self.camera_points(points).transpose(1, 2).double()
            apart = moved_KTN3 - moved_KTN3.mean(0)
            square_TN33 = torch.einsum("ktni,ktnj->tnij", apart, apart)
            square_TN33 = square_TN33 / max(1, self.num_hypotheses - 1)
            return moved_KTN3.mean(0).transpose(0, 1), square_TN33.transpose(0, 1)
        mean_NT3, square_NT33 = decode.covariance(self.control_points[:, points], self.basis)
        if self.frame == "camera":
            return mean_NT3, square_NT33
        extrinsics_T44 = self.extrinsics.double()
        rotation_T33 = extrinsics_T44[:, :3, :3]
        mean_TN3 = transform(extrinsics_T44, mean_NT3.transpose(0, 1))
        return mean_TN3.transpose(0, 1), rotation_T33 @ square_NT33 @ rotation_T33.mT

    @property
    def _own_cameras(self) -> bool:
        """Whether each hypothesis is seen from cameras of its own: then nothing of decoding is shared."""
        return self.frame == "world" and self.extrinsics.ndim == 4

    def camera_points(self, points: slice = slice(None)) -> Float[Tensor, "K chosen T 3"]:
        """Positions of some points at the clip's frames in each frame's own camera, whichever `frame` is."""
        chosen = BSpline(self.control_points[:, points], self.knots, self.degree)
        points_KNT3 = chosen.evaluate(self.times.to(self.control_points.device))
        if self.frame == "camera":
            return points_KNT3
        return transform(self.cameras, points_KNT3.transpose(1, 2)).transpose(1, 2)

    @property
    def cameras(self) -> Float32[Tensor, "K T 4 4"]:
        """World to camera of every hypothesis."""
        return self.extrinsics.expand(self.num_hypotheses, -1, -1, -1)

    def project(self) -> Float[Tensor, "K N T 2"]:
        """Image positions in px. A point at or behind the camera plane has none: NaN."""
        points_KNT3 = self.camera_points()
        pixels_KNT2 = project(points_KNT3, self.intrinsics)
        return torch.where(points_KNT3[..., 2:] > 0, pixels_KNT2, torch.nan)

    @property
    def _view(self) -> View:
        """What reprojection is measured against."""
        cameras = None if self.frame == "camera" else self.extrinsics[:, :3]
        return View(
            self.tracks.transpose(0, 1), self.seen.transpose(0, 1), self.intrinsics, cameras
        )

    def reprojection(self) -> Float[Tensor, "K N T"]:
        """Distance to the observed tracks in px of the clip's size, hidden frames included.

        Infinite where a hypothesis is at or behind the camera plane, NaN where the track is NaN.
        """
        if self._own_cameras:
            points_KNT3 = self.camera_points()
            miss_KNT2 = project(points_KNT3, self.intrinsics) - self.tracks.transpose(0, 1)
            return miss_KNT2.norm(dim=-1).masked_fill(points_KNT3[..., 2] <= 0, torch.inf)
        return decode.reprojection(self.control_points, self.basis, self._view)

    def scores(self) -> Float[Tensor, "K"]:
        """Median reprojection error of each hypothesis over seen (frame, point) pairs.

        In px of an image whose shorter side is 256. NaN if nothing was seen.
        """
        if self._own_cameras:
            error_KS = self.reprojection()[:, self.seen.transpose(0, 1)]
            if error_KS.shape[1] == 0:
                return torch.full((self.num_hypotheses,), torch.nan)
            median_K = error_KS.median(dim=1).values
        else:
            median_K = decode.median_reprojection(self.control_points, self.basis, self._view)
        return median_K * (REFERENCE_SIDE / min(self.size))

    def errors_at(self, ranks: Sequence[int]) -> Float[Tensor, "ranks"]:
        """Of all K · S reprojection errors over the S seen (frame, point) pairs, those at these ranks, 0 the least.

        In px of an image whose shorter side is 256. The errors are never held together.

        Raises:
            ValueError: a rank is outside 0 … K · S − 1.
        """
        wanted = torch.as_tensor(ranks, dtype=torch.int64)
        if self._own_cameras:
            error_S = self.reprojection()[:, self.seen.transpose(0, 1)].flatten()
            if bool(((wanted < 0) | (wanted >= len(error_S))).any()):
                raise ValueError(f"need ranks in 0 … {len(error_S) - 1}, got {list(ranks)}")
            error_R = error_S.sort().values[wanted]
        else:
            error_R = decode.ranked_reprojection(
                self.control_points, self.basis, self._view, wanted
            )
        return error_R * (REFERENCE_SIDE / min(self.size))

    def rank(self, scores: Float[Tensor, "K"] | None = None) -> Int64[Tensor, "K"]:
        """Indices of the hypotheses, best first, by these scores (lower is better), or by `off_centre`.

        Ties keep their order. What was seen does not tell hypotheses apart, since all of them are snapped to it: on
        held-out worlds the first by `scores` errs as much as any, the first by `off_centre` three quarters of that
        (experiments/consistency). `diffusion4d.consistency.scores` judges by the pictures.
        """
        if scores is None:
            # One that has no image at all cannot be right, wherever it lies.
            scores = self.off_centre().masked_fill(self.scores().isinf(), torch.inf)
        return scores.nan_to_num(torch.inf, posinf=torch.inf).argsort(stable=True)

    def off_centre(self) -> Float[Tensor, "K"]:
        """Mean distance of each hypothesis to the mean of all, seen in each frame's own camera: what `rank` goes by.

        The mean of samples is nearer to the truth than a sample, so the sample nearest to it is one to show alone.
        """
        total_K = self.control_points.new_zeros(self.num_hypotheses)
        for start in range(0, self.num_points, _POINTS):
            points_KCT3 = self.camera_points(slice(start, start + _POINTS))
            total_K = total_K + (points_KCT3 - points_KCT3.mean(0)).norm(dim=-1).sum((1, 2))
        return total_K / (self.num_points * self.num_frames)

    @property
    def best(self) -> "Hypotheses":
        """The best-ranked hypothesis alone (K = 1)."""
        return self.select(self.rank()[:1])

    def select(self, indices: Int64[Tensor, "chosen"]) -> "Hypotheses":
        """These hypotheses, in this order: `hyp.select(hyp.rank())` is sorted best first."""
        own = self.extrinsics.ndim == 4
        return replace(
            self,
            control_points=self.control_points[indices],
            seeds=self.seeds[indices],
            extrinsics=self.extrinsics[indices] if own else self.extrinsics,
            static=None if self.static is None else self.static[indices],
        )

    def to(self, device: torch.device | str) -> "Hypotheses":
        """The same value with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `hypotheses.npz` into `folder`, made if missing, all of it or nothing.

        Returns:
            The path of the file.

        Raises:
            OSError: the folder cannot be made or written; an older file is left as it was.
        """
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_done(path) as temporary:
            np.savez(temporary, allow_pickle=False, **self._arrays())
        return path

    def _arrays(self) -> dict[str, np.ndarray]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {k: v.cpu().numpy() for k, v in values.items() if isinstance(v, Tensor)}
        known = {k: v for k, v in values.items() if v is not None and k not in arrays}
        arrays |= {k: np.asarray(v) for k, v in known.items()}
        return {f.name: arrays[f.name] for f in fields(self) if f.name in arrays}

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> "Hypotheses":
        """Read `hypotheses.npz` from a folder, or the file itself.

        Raises:
            UserError: no such file, or it is damaged, holds pickles, lacks a key, or its arrays do
                not fit together.
        """
        path = Path(source)
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no hypotheses at {path}")
        try:
            with path.open("rb") as file:
                archive = np.load(file, allow_pickle=False)
                # numpy reads a bare .npy through the same door, and then it is no archive.
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise UserError(f"{path} is not an npz archive")
                # A member that is no array comes back as bytes.
                arrays = {name: np.asarray(archive[name]) for name in archive.files}
        except UserError:
            raise
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is not a readable hypotheses file: {reason(error)}") from error
        try:
            values = _values_of(arrays, {f.name for f in fields(cls)})
            _check(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return cls(**values)


def _values_of(arrays: dict[str, np.ndarray], wanted: set[str]) -> dict[str, Any]:
    missing = sorted(wanted - arrays.keys() - OPTIONAL)
    if missing:
        raise UserError(f"need the arrays {sorted(wanted)}, missing {missing}")
    values: dict[str, Any] = {}
    for name in wanted & arrays.keys():
        array = arrays[name]
        if name in _FLOATS:
            if array.dtype.kind not in "fiu":
                raise UserError(f"need numbers in {name}, got {array.dtype}")
            exact = name in ("knots", "times")
            values[name] = torch.from_numpy(array.astype(np.float64 if exact else np.float32))
        elif name == "static":
            if array.dtype != np.bool_:
                raise UserError(f"need booleans in static, got {array.dtype}")
            values[name] = torch.from_numpy(array)
        elif name == "seeds":
            values[name] = torch.from_numpy(_integers(name, array).astype(np.int64))
        elif name == "size":
            if array.shape != (2,):
                raise UserError(f"need size [2] = (H, W), got shape {list(array.shape)}")
            values[name] = tuple(int(v) for v in _integers(name, array))
        elif name == "degree":
            if array.shape != ():
                raise UserError(f"need one integer degree, got shape {list(array.shape)}")
            values[name] = int(_integers(name, array))
        else:
            if array.shape != () or array.dtype.kind != "U":
                raise UserError(f"need one string {name}, got {array.dtype} {list(array.shape)}")
            values[name] = str(array)
    return values


def _integers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise UserError(f"need integers in {name}, got {array.dtype}")
    return array


def _check(values: dict[str, Any]) -> None:
    """Raises UserError unless the fields of a `Hypotheses` fit together."""
    _check_shapes(values)
    for name in _FLOATS:
        array = values[name]
        # A track that was lost is NaN in some files; it may be, but only where it is not seen.
        finite = torch.isfinite(array[values["visibility"] >= SEEN] if name == "tracks" else array)
        if not finite.all():
            raise UserError(f"need finite {name}, got {int((~finite).sum())} values that are not")
    try:
        BSpline(values["control_points"], values["knots"], values["degree"])
    except ValueError as error:
        raise UserError(str(error)) from error
    times, visibility = values["times"], values["visibility"]
    if (times.diff() <= 0).any() or times[0] < 0 or times[-1] > 1:
        raise UserError(f"need times increasing within [0, 1], got {times.tolist()}")
    if visibility.min() < 0 or visibility.max() > 1:
        got = f"[{visibility.min():g}, {visibility.max():g}]"
        raise UserError(f"need visibility within [0, 1], got {got}")
    if (values["intrinsics"][:2] <= 0).any():
        raise UserError(f"need positive focal lengths, got {values['intrinsics'][:2].tolist()}")
    if min(values["size"]) < 1:
        raise UserError(f"need a size (H, W) of at least 1 px, got {values['size']}")
    for name, allowed in (("units", get_args(Units)), ("frame", get_args(Frame))):
        if values[name] not in allowed:
            raise UserError(f"need {name} to be one of {allowed}, got {values[name]!r}")


def _check_shapes(values: dict[str, Any]) -> None:
    lengths: dict[str, int] = {}
    for name, axes in _FLOATS.items():
        shape = list(values[name].shape)
        if name == "extrinsics" and len(shape) == 4:
            axes = ("K", *axes)
        told = "[" + ", ".join(str(axis) for axis in axes) + "]"
        if len(shape) != len(axes):
            raise UserError(f"need {name} {told}, got shape {shape}")
        for axis, length in zip(axes, shape, strict=True):
            expected = axis if isinstance(axis, int) else lengths.setdefault(axis, length)
            if length == 0:
                raise UserError(f"need {name} {told} with at least 1 of each, got shape {shape}")
            if length != expected:
                raise UserError(f"need {name} {told} with {axis} = {expected}, got shape {shape}")
    if values["seeds"].shape != (lengths["K"],):
        raise UserError(f"need {lengths['K']} seeds, got shape {list(values['seeds'].shape)}")
    static = values.get("static")
    if static is not None and static.shape != (lengths["K"], lengths["N"]):
        raise UserError(
            f"need static [K, N] = [{lengths['K']}, {lengths['N']}], got {list(static.shape)}"
        )
    if values["degree"] < 1:
        raise UserError(f"need degree >= 1, got {values['degree']}")
