r"""USD: every hypothesis as time-sampled points with its paths as curves, and the camera (openusd.org; extra `usd`).

    /diffusion4d/hypothesis_00/points   UsdGeomPoints, a sample a frame
    /diffusion4d/hypothesis_00/paths    UsdGeomBasisCurves, linear through the frames, still
    /diffusion4d/camera                 UsdGeomCamera, a transform a frame where the points are in the world

Axes are glTF's (x right, y up, z back), which are USD's with up axis Y. Time codes are frames; a frame that does not
come at its turn of the mean rate lies between two codes. Apertures are in units of a tenth of the scene's, as USD has
them: with a focal length f of 1 its aperture is W / fx, and the principal point is an offset of it.

Shape letters:  K hypotheses   N points   T frames
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from diffusion4d.atomic import replace_when_done
from diffusion4d.errors import UserError
from diffusion4d.export.palette import colours
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.mesh import AXES


def write_usd(
    hypotheses: Hypotheses,
    path: str | os.PathLike[str],
    *,
    seconds: np.ndarray,
    names: Sequence[str] | None = None,
) -> Path:
    """Write a .usdc or .usda file, all of it or nothing.

    Args:
        seconds: of every frame [T].
        names: of the hypotheses' prims; `hypothesis_00` … by default.

    Raises:
        UserError: the extra `usd` is not installed.
        OSError: the file cannot be written.
    """
    try:
        usd, geometry = (import_module(f"pxr.{name}") for name in ("Usd", "UsdGeom"))
    except ImportError as error:
        raise UserError("need usd-core for USD files: pip install 'diffusion4d[usd]'") from error

    path = Path(path)
    hyp = hypotheses.to("cpu")
    length = float(seconds[-1] - seconds[0])
    rate = (hyp.num_frames - 1) / length if length > 0 else 1.0
    codes = [round((float(s) - float(seconds[0])) * rate, 6) for s in seconds]
    with replace_when_done(path) as temporary:
        stage = usd.Stage.CreateNew(str(temporary))
        geometry.SetStageUpAxis(stage, geometry.Tokens.y)
        geometry.SetStageMetersPerUnit(stage, 1.0)
        stage.SetTimeCodesPerSecond(rate)
        stage.SetFramesPerSecond(rate)
        stage.SetStartTimeCode(codes[0])
        stage.SetEndTimeCode(codes[-1])
        root = geometry.Xform.Define(stage, "/diffusion4d")
        stage.SetDefaultPrim(root.GetPrim())
        root.GetPrim().SetMetadata("comment", f"units: {hyp.units}; frame: {hyp.frame}")
        radius = 0.012 * float(hyp.camera_points()[..., 2].median().abs().clamp_min(1e-3))
        if names is None:
            names = [f"hypothesis_{k:02d}" for k in range(hyp.num_hypotheses)]
        for k, (name, colour) in enumerate(zip(names, colours(hyp), strict=True)):
            _hypothesis(stage, f"/diffusion4d/{name}", hyp, k, codes, colour, radius)
        _camera(stage, hyp, codes)
        stage.Save()
        del stage
    return path


def _hypothesis(
    stage: Any,
    name: str,
    hyp: Hypotheses,
    k: int,
    codes: list[float],
    colour: np.ndarray,
    radius: float,
) -> None:
    math3d, geometry, types = (import_module(f"pxr.{name}") for name in ("Gf", "UsdGeom", "Vt"))

    geometry.Xform.Define(stage, name)
    places_NT3 = (hyp.select(hyp.seeds.new_tensor([k])).evaluate()[0].numpy() * AXES).astype("f4")
    tint = types.Vec3fArray([math3d.Vec3f(*map(float, colour))])
    points = geometry.Points.Define(stage, f"{name}/points")
    points.CreateWidthsAttr(types.FloatArray.FromNumpy(np.full(hyp.num_points, radius, np.float32)))
    points.SetWidthsInterpolation(geometry.Tokens.vertex)
    points.CreateDisplayColorAttr(tint)
    attribute, box = points.CreatePointsAttr(), points.CreateExtentAttr()
    for t, code in enumerate(codes):
        here = np.ascontiguousarray(places_NT3[:, t])
        attribute.Set(types.Vec3fArray.FromNumpy(here), code)
        span = np.stack([here.min(0) - radius, here.max(0) + radius]).astype(np.float32)
        box.Set(types.Vec3fArray.FromNumpy(span), code)
    if hyp.num_frames < 2:
        return
    paths = geometry.BasisCurves.Define(stage, f"{name}/paths")
    paths.CreateTypeAttr(geometry.Tokens.linear)
    counts = np.full(hyp.num_points, hyp.num_frames, np.int32)
    paths.CreateCurveVertexCountsAttr(types.IntArray.FromNumpy(counts))
    every = np.ascontiguousarray(places_NT3.reshape(-1, 3))
    paths.CreatePointsAttr(types.Vec3fArray.FromNumpy(every))
    thin = radius / 4
    paths.CreateWidthsAttr(types.FloatArray([thin]))
    paths.SetWidthsInterpolation(geometry.Tokens.constant)
    paths.CreateDisplayColorAttr(tint)
    span = np.stack([every.min(0) - thin, every.max(0) + thin]).astype(np.float32)
    paths.CreateExtentAttr(types.Vec3fArray.FromNumpy(span))


def _camera(stage: Any, hyp: Hypotheses, codes: list[float]) -> None:
    """The cameras that all share, or those of the best-ranked hypothesis."""
    math3d, geometry = (import_module(f"pxr.{name}") for name in ("Gf", "UsdGeom"))

    camera = geometry.Camera.Define(stage, "/diffusion4d/camera")
    fx, fy, cx, cy = hyp.intrinsics.double().tolist()
    height, width = hyp.size
    camera.CreateFocalLengthAttr(10.0)
    camera.CreateHorizontalApertureAttr(10.0 * width / fx)
    camera.CreateVerticalApertureAttr(10.0 * height / fy)
    # The middle of the aperture lies right of and above the axis by these.
    camera.CreateHorizontalApertureOffsetAttr(10.0 * (width / 2 - cx) / fx)
    camera.CreateVerticalApertureOffsetAttr(10.0 * (cy - height / 2) / fy)
    camera.CreateClippingRangeAttr(math3d.Vec2f(0.01, 1000.0))
    if hyp.frame == "camera":
        return
    moves = camera.AddTransformOp()
    flip = np.diag([*AXES, 1.0])
    best = 0 if hyp.extrinsics.ndim == 3 else int(hyp.rank()[0])
    for code, extrinsics in zip(codes, hyp.cameras[best].double().numpy(), strict=True):
        pose = flip @ np.linalg.inv(extrinsics) @ flip
        # USD's vectors are rows.
        moves.Set(math3d.Matrix4d(*pose.T.ravel().tolist()), code)
