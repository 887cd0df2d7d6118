r"""One trajectory a point, in the npz layouts of other people's trackers and benchmarks.

    tapvid3d       google-deepmind/tapnet, tapvid3d: tracks_XYZ [T, N, 3] in each frame's own camera, visibility [T, N]
                   bool, fx_fy_cx_cy [4], queries_xyt [N, 3], extrinsics_w2c [T, 4, 4]. A prediction needs two of them.
    tapip3d        TAPIP3D's inference.py: coords [T, N, 3] in the world, visibs [T, N] bool, intrinsics [T, 3, 3],
                   extrinsics [T, 4, 4] world to camera, query_points [N, 4] = (t, x, y, z) in the world. Its video
                   and depths are left out.
    trackcraft3r   the sparse answer of TrackCraft3R's predictor: tracks [T, N, 3] in the camera of frame 0; beside it,
                   named as its arguments, query_uv [N, 2], intrinsics [4], extrinsics_w2c [T, 4, 4]; and visibility
                   [T, N]. Its own viewer wants dense maps, which there are none of here, and does not open this.

TAPIP3D and TrackCraft3R count pixels from the middle of the first one, where we count from its corner: 0.5 is taken
off. What TAPVid-3D does was not confirmed; its file is written as our own reader of it (`evaluation.clips`) takes it,
from the corner, with `size` (H, W) beside it. Axes are OpenCV's in all of them. Where hypotheses are in each
instant's camera frame, the world is taken to be the camera.

Shape letters:  N points   T frames
"""

from collections.abc import Callable

import numpy as np

from diffusion4d.cameras import transform
from diffusion4d.conventions import centred_at_integers
from diffusion4d.hypotheses import Hypotheses

Arrays = dict[str, np.ndarray]


def tapvid3d(hypothesis: Hypotheses) -> Arrays:
    """TAPVid-3D's arrays, of the first hypothesis."""
    points_NT3 = hypothesis.camera_points()[0]
    anchor = np.zeros((hypothesis.num_points, 1), np.float32)
    queries = hypothesis.query_points.float().numpy()
    return {
        "tracks_XYZ": points_NT3.transpose(0, 1).float().numpy(),
        "visibility": hypothesis.seen.numpy(),
        "fx_fy_cx_cy": hypothesis.intrinsics.float().numpy(),
        "size": np.array(hypothesis.size),
        "queries_xyt": np.concatenate([queries, anchor], 1),
        "extrinsics_w2c": _cameras(hypothesis),
    }


def tapip3d(hypothesis: Hypotheses) -> Arrays:
    """TAPIP3D's arrays, of the first hypothesis."""
    points_TN3 = hypothesis.evaluate()[0].transpose(0, 1).float().numpy()
    fx, fy, cx, cy = _lens(hypothesis)
    lens = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)
    T = hypothesis.num_frames
    anchor = np.zeros((hypothesis.num_points, 1), np.float32)
    return {
        "coords": points_TN3,
        "visibs": hypothesis.seen.numpy(),
        "intrinsics": np.tile(lens, (T, 1, 1)),
        "extrinsics": _cameras(hypothesis),
        "query_points": np.concatenate([anchor, points_TN3[0]], 1),
    }


def trackcraft3r(hypothesis: Hypotheses) -> Arrays:
    """TrackCraft3R's arrays, of the first hypothesis."""
    points_TN3 = hypothesis.evaluate()[:1].transpose(1, 2)
    if hypothesis.frame == "world":
        start = hypothesis.cameras[:1, :1].expand(1, hypothesis.num_frames, -1, -1)
        points_TN3 = transform(start, points_TN3)
    return {
        "tracks": points_TN3[0].float().numpy(),
        "visibility": hypothesis.seen.numpy(),
        "query_uv": (hypothesis.query_points.numpy() - 0.5).astype(np.float32),
        "intrinsics": _lens(hypothesis),
        "extrinsics_w2c": _cameras(hypothesis),
    }


LAYOUTS: dict[str, Callable[[Hypotheses], Arrays]] = {
    "tapvid3d": tapvid3d,
    "tapip3d": tapip3d,
    "trackcraft3r": trackcraft3r,
}


def _lens(hypothesis: Hypotheses) -> np.ndarray:
    return centred_at_integers(hypothesis.intrinsics.double().numpy()).astype(np.float32)


def _cameras(hypothesis: Hypotheses) -> np.ndarray:
    """World to camera; where points are given in each instant's camera, that is where it stays."""
    if hypothesis.frame == "camera":
        return np.tile(np.eye(4, dtype=np.float32), (hypothesis.num_frames, 1, 1))
    return hypothesis.cameras[0].float().numpy()
