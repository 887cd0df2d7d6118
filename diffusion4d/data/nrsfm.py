r"""Benchmarks of non-rigid structure from motion, in the layouts of three sources (MATLAB files).

    akhter     <name>.mat: S [3T, N] rows x, y, z of frame 0, then of frame 1 …, world; Rs [2T, 3] rows x, y of every
               frame's camera; W [2T, N], W_t = Rs_t S_t (orthographic). Shat [3T, N]: the PTA reconstruction of its
               authors in the world frame, in units of σ; scale = 1 / σ.
    torresani  <name>.mat: P3_gt [3T, N], ALL x rows, then y, then z, in the camera's frame; the input is the first two.
    totem      data_<name>.mat: p, one [3, N] of homogeneous px a frame; Pgth, one P [3, N] a frame, mm, camera frame.
               <name>_Initialisation.mat: K and, of two published methods, a depth for every point and frame.

Images of the first two are y up. Everything here is in OpenCV axes (x right, y down, z forward): for them that is
half a turn about x, which leaves right-handed frames right-handed. Orthographic tracks are in the unit of the truth.

Sources: Akhter, Sheikh, Khan, Kanade 2008 (trajectory space); Torresani, Hertzmann, Bregler 2008; Sengupta and Bartoli,
"ToTem NRSfM", 2023.  Shape letters:  T frames   N points.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from diffusion4d.errors import UserError

HALF_TURN = np.diag([1.0, -1.0, -1.0])
"""y up and z towards the viewer, to y down and z away."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
    """Tracks of one deforming object, all points seen in all frames, with truth.

    tracks: [T, N, 2]: px where there are intrinsics; else orthographic, in the unit of `truth`.
    truth: [T, N, 3] in each frame's camera.
    intrinsics: (fx, fy, cx, cy) px; None for an orthographic camera.
    rotations: [T, 3, 3] world to camera, where the source gives them.
    published: reconstructions by others, [T, N, 3] in each frame's camera.
    """

    name: str
    tracks: Float32[np.ndarray, "T N 2"]
    truth: Float32[np.ndarray, "T N 3"]
    intrinsics: tuple[float, float, float, float] | None = None
    rotations: Float64[np.ndarray, "T 3 3"] | None = None
    published: Mapping[str, Float32[np.ndarray, "T N 3"]] = dataclasses.field(default_factory=dict)

    @property
    def orthographic(self) -> bool:
        return self.intrinsics is None


def read_sequence(path: str | Path) -> Sequence:
    """Read one sequence, whichever of the three layouts its file has.

    Raises:
        UserError: no such file, no MATLAB file, none of the layouts, or its arrays do not fit together.
    """
    path = Path(path)
    arrays = _load(path)
    if {"W", "S", "Rs"} <= arrays.keys():
        return _akhter(path, arrays)
    if "P3_gt" in arrays:
        return _torresani(path, arrays)
    if {"p", "Pgth"} <= arrays.keys():
        return _totem(path, arrays)
    raise UserError(
        f"need W, S, Rs or P3_gt or p, Pgth in {path}, got {', '.join(sorted(arrays)) or 'nothing'}"
    )


def find_sequences(folder: str | Path) -> dict[str, Path]:
    """Names to files of all sequences below a folder. Published initialisations are no sequences of their own.

    Raises:
        UserError: none is there.
    """
    found = {
        path.stem.removeprefix("data_"): path
        for path in sorted(Path(folder).rglob("*.mat"))
        if not path.stem.endswith("_Initialisation")
    }
    if not found:
        raise UserError(f"need .mat files of sequences below {folder}, found none")
    return found


def _akhter(path: Path, arrays: dict[str, Any]) -> Sequence:
    rows, N = arrays["W"].shape
    T = rows // 2
    shapes = {"W": (2 * T, N), "S": (3 * T, N), "Rs": (2 * T, 3)}
    _require_shapes(path, arrays, shapes)
    x_axis, y_axis = arrays["Rs"].reshape(T, 2, 3).transpose(1, 0, 2)
    rotations = HALF_TURN @ np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], 1)
    world = arrays["S"].reshape(T, 3, N).swapaxes(1, 2)
    tracks = arrays["W"].reshape(T, 2, N).swapaxes(1, 2) * [1, -1]
    published = {}
    if "Shat" in arrays:
        _require_shapes(path, arrays, {"Shat": (3 * T, N), "scale": (1, 1)})
        shapes_T3N = arrays["Shat"].reshape(T, 3, N) / arrays["scale"].item()
        published["PTA"] = _float32(shapes_T3N.swapaxes(1, 2) @ rotations.swapaxes(1, 2))
    return Sequence(
        name=path.stem,
        tracks=_float32(tracks),
        truth=_float32(world @ rotations.swapaxes(1, 2)),
        rotations=rotations,
        published=published,
    )


def _torresani(path: Path, arrays: dict[str, Any]) -> Sequence:
    rows, N = arrays["P3_gt"].shape
    _require_shapes(path, arrays, {"P3_gt": (rows // 3 * 3, N)})
    truth = arrays["P3_gt"].reshape(3, rows // 3, N).transpose(1, 2, 0) @ HALF_TURN
    return Sequence(name=path.stem, tracks=_float32(truth[..., :2]), truth=_float32(truth))


def _totem(path: Path, arrays: dict[str, Any]) -> Sequence:
    name = path.stem.removeprefix("data_")
    # MATLAB structures come as arrays of records of arrays.
    pixels = _stacked(path, [frame["p"] for frame in arrays["p"].ravel()])
    truth = _stacked(path, [frame["P"] for frame in arrays["Pgth"].ravel()])
    if pixels.shape != truth.shape:
        raise UserError(
            f"need as many points seen as true in {path}, got {pixels.shape} and {truth.shape}"
        )
    beside = path.with_name(f"{name}_Initialisation.mat")
    methods = _load(beside).get("initialisations")
    if methods is None or not methods.dtype.names:
        raise UserError(f"need the intrinsics of {path.name} in {beside.name}, found none")
    methods = methods.flat[0]
    published = {}
    K = np.eye(3)
    for method in methods.dtype.names:
        record = methods[method].flat[0]
        K = np.asarray(record["K"], np.float64)
        depth = np.stack([np.ravel(d) for d in np.ravel(record["initialDepth"])])
        rays = np.linalg.solve(K, pixels)
        if depth.shape != (len(pixels), pixels.shape[2]):
            raise UserError(f"need a depth for every point of {beside}, got {depth.shape}")
        published[method.split("_")[0]] = _float32((rays * depth[:, None]).swapaxes(1, 2))
    return Sequence(
        name=name,
        tracks=_float32((pixels[:, :2] / pixels[:, 2:]).swapaxes(1, 2)),
        truth=_float32(truth.swapaxes(1, 2)),
        intrinsics=(K[0, 0], K[1, 1], K[0, 2], K[1, 2]),
        published=published,
    )


def _load(path: Path) -> dict[str, Any]:
    # scipy.io is slow to import, and only these files need it.
    import scipy.io

    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        loaded = scipy.io.loadmat(path)
    except (ValueError, OSError, NotImplementedError, TypeError) as error:
        raise UserError(f"{path} is not a readable MATLAB file: {error}") from error
    return {name: value for name, value in loaded.items() if not name.startswith("__")}


def _require_shapes(path: Path, arrays: dict[str, Any], shapes: dict[str, tuple[int, int]]) -> None:
    for name, shape in shapes.items():
        arrived = np.shape(arrays[name]) if name in arrays else "none"
        if arrived != shape:
            raise UserError(f"need {name} of shape {shape} in {path}, got {arrived}")


def _stacked(path: Path, frames: list[np.ndarray]) -> Float64[np.ndarray, "T 3 N"]:
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) != 1 or (shape := shapes.pop())[:1] != (3,) or len(shape) != 2:
        raise UserError(f"need [3, N] in every frame of {path}, got {sorted(shapes) or shape}")
    return np.stack(frames).astype(np.float64)


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
