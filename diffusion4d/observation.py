r"""What a user gives, and what is seen in it: clip, tracks and camera.

    Given (a video, tracks, a camera) --observe--> Observation (clip, tracks and intrinsics in px of the clip)

Pixels that a user gives are pixels of the video as it is on disk; a clip is shrunk when it is read, and everything is
scaled with it.

Shape letters:  N points   T frames.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from diffusion4d import cameras
from diffusion4d.camera_paths import CameraPath, read_cameras
from diffusion4d.clip import Clip, read_clip
from diffusion4d.errors import UserError
from diffusion4d.stages import Stages
from diffusion4d.token_tracks import TRACKERS, Tracker, track
from diffusion4d.tracking import Tracks, query_points

Video = str | Path | np.ndarray | Tensor | Clip


@dataclasses.dataclass(frozen=True)
class Given:
    """Everything a user may say of a clip. All px are of the video as it is on disk, or of `size` without one.

    video: a path, [T, 3, H, W] or [T, H, W, 3] frames, or a Clip; None for tracks alone.
    tracks: [T, N, 2] px, a `Tracks`, or an npz file; without them points are chosen and tracked. Or the name of who
        tracks them: "lk" (the default), "dino", "sinkhorn", "fused" (`token_tracks`). A file of such a name is "./lk".
    track_encoder: whose tokens "dino", "sinkhorn" and "fused" match: a packaged encoder, a folder or a model id.
    visibility: [T, N] in [0, 1], for tracks given as an array; all seen by default.
    size: (H, W) px of the image that tracks alone belong to.
    intrinsics: (fx, fy, cx, cy) px. fov: degrees over the longer side of the image, in their place.
    queries: [N, 2] px in the anchor frame to be tracked. num_points: how many to choose without them.
    cameras: world to camera at every frame of the clip, or a file of them (`read_cameras`); its lens is used where none
    is given otherwise.

    Raises:
        UserError: neither a video nor tracks; a tracker without a video; both intrinsics and a field of view, or both
            tracks and queries; a visibility without tracks given as an array.
    """

    video: Video | None = None
    tracks: Tracks | np.ndarray | Tensor | str | Path | None = None
    visibility: np.ndarray | Tensor | None = None
    size: tuple[int, int] | None = None
    intrinsics: Sequence[float] | np.ndarray | Tensor | None = None
    fov: float | None = None
    queries: np.ndarray | Tensor | None = None
    num_points: int = 128
    track_encoder: str = "tiny"
    cameras: CameraPath | str | Path | None = None

    def __post_init__(self) -> None:
        if self.video is None and self.tracks is None:
            raise UserError("need a video or tracks, got neither")
        if self.video is None and self.tracker is not None:
            raise UserError(f"need a video for the tracker {self.tracks!r}, got none")
        if self.intrinsics is not None and self.fov is not None:
            raise UserError("need intrinsics or a field of view, got both")
        if self.tracker is None and self.queries is not None:
            raise UserError("need tracks or queries to be tracked, got both")
        if self.visibility is not None and (
            self.tracks is None or isinstance(self.tracks, Tracks | str | Path)
        ):
            raise UserError("visibility goes with tracks given as an array, and with nothing else")
        if self.num_points < 1:
            raise UserError(f"need at least 1 point, got {self.num_points}")

    @property
    def tracker(self) -> Tracker | None:
        """Who follows the points; None where their tracks are given."""
        if self.tracks is None:
            return "lk"
        named = self.tracks if isinstance(self.tracks, str) else None
        return next((tracker for tracker in TRACKERS if tracker == named), None)


@dataclasses.dataclass(frozen=True)
class Observation:
    """A clip as it was observed. Tracks and intrinsics are in px of `tracks.size`, the size of the clip.

    clip: None for tracks alone. tracked: by whom: "lucas-kanade", "given", or the name of a tracker and the encoder
    whose tokens it matched. camera: whether the intrinsics were given or assumed. path: where the camera was, if that
    was given.
    """

    clip: Clip | None
    tracks: Tracks
    intrinsics: Float32[Tensor, "4"]
    tracked: str
    camera: Literal["given", "assumed"]
    path: CameraPath | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px."""
        return self.tracks.size

    @property
    def u(self) -> Float[Tensor, "T"]:
        """Clip time of each frame, float64: the video's own clock, or even steps for tracks alone."""
        if self.clip is not None:
            return self.clip.u
        return torch.linspace(0, 1, len(self.tracks.tracks), dtype=torch.float64)

    @property
    def range(self) -> str:
        """Which part of the source this is, in words."""
        if self.clip is None:
            return f"{len(self.tracks.tracks)} frames of tracks"
        start, end = self.clip.seconds[0].item(), self.clip.seconds[-1].item()
        part = f"{self.clip.T} frames, {start:.2f} to {end:.2f} s"
        more = "; the video goes on (start, stride and max-frames choose another part)"
        return part + (more if self.clip.goes_on else "")

    @property
    def fov(self) -> float:
        """Field of view in degrees over the longer side."""
        focal = self.intrinsics[1 if self.size[0] >= self.size[1] else 0].item()
        return math.degrees(2 * math.atan(max(self.size) / 2 / focal))


def observe(given: Given, seed: int = 0, stages: Stages | None = None) -> Observation:
    """Read the video, follow points or take the given tracks, and settle the camera.

    Args:
        seed: of the choice of points.

    Raises:
        UserError: something given cannot be used; the message says what was required and what arrived.
    """
    stages = stages or Stages()
    with stages.stage("reading"):
        path = given.cameras
        # Refused before the video is read and tracked.
        path = path if isinstance(path, CameraPath) or path is None else read_cameras(path)
        video = given.video
        clip = video if isinstance(video, Clip) or video is None else read_clip(video)
    with stages.stage("tracking"):
        tracker = given.tracker
        if tracker is None:
            tracks, tracked = _given_tracks(given, clip), "given"
        else:
            assert clip is not None
            tracks = track(clip, _queries(given, clip, seed), tracker, given.track_encoder)
            tracked = "lucas-kanade" if tracker == "lk" else f"{tracker} ({given.track_encoder})"
    if not bool((tracks.visibility > 0).any()):
        raise UserError("need tracks that are seen somewhere, got visibility 0 throughout")
    if path is not None and len(path.extrinsics) != len(tracks.tracks):
        raise UserError(
            f"need a camera for each of the {len(tracks.tracks)} frames of the clip, got {len(path.extrinsics)}; "
            "choose the range of the video that they belong to (start, stride and max-frames)"
        )
    intrinsics, camera = _camera(given, clip, tracks, path)
    return Observation(clip, tracks, intrinsics, tracked, camera, path)


def _queries(given: Given, clip: Clip, seed: int) -> Float32[Tensor, "N 2"]:
    """The points to follow, px of the clip."""
    if given.queries is None:
        return query_points(clip, given.num_points, seed=seed)
    queries = torch.as_tensor(given.queries, dtype=torch.float32)
    if queries.ndim != 2 or queries.shape[-1] != 2:
        raise UserError(f"need queries of shape [N, 2], got {list(queries.shape)}")
    return queries * _shrunk(clip)


def _given_tracks(given: Given, clip: Clip | None) -> Tracks:
    tracks = given.tracks
    assert tracks is not None
    # Tracks that do not say which image they belong to are of the video as it is on disk.
    extent = given.size if clip is None else clip.source_size
    if isinstance(tracks, str) and not Path(tracks).suffix and not Path(tracks).exists():
        raise UserError(
            f"need tracks as a file or one of {', '.join(TRACKERS)}, found nothing at {tracks!r}"
        )
    if isinstance(tracks, str | Path):
        tracks = Tracks.load(tracks, size=extent)
    elif not isinstance(tracks, Tracks):
        if extent is None:
            raise UserError("tracks alone need the size (H, W) of the image they belong to")
        seen = np.ones(np.shape(tracks)[:-1]) if given.visibility is None else given.visibility
        tracks = Tracks.from_arrays(tracks, seen, size=extent)
    if clip is None:
        return tracks
    if len(tracks.tracks) != clip.T:
        raise UserError(
            f"need tracks over the {clip.T} frames of the clip, got {len(tracks.tracks)}; "
            "choose the range of the video that was tracked"
        )
    return tracks.resized(clip.size)


def _camera(
    given: Given, clip: Clip | None, tracks: Tracks, path: CameraPath | None
) -> tuple[Float32[Tensor, "4"], Literal["given", "assumed"]]:
    """The clip's intrinsics: the user's, the tracks' own, the camera path's, or a default field of view."""
    if given.fov is not None:
        return cameras.intrinsics_from_fov(tracks.size, given.fov), "given"
    if given.intrinsics is None:
        if tracks.intrinsics is not None:
            return tracks.intrinsics, "given"
        lens = None if path is None else path.intrinsics_at(tracks.size)
        if lens is not None:
            return lens, "given"
        return cameras.intrinsics_from_fov(tracks.size), "assumed"
    camera = torch.as_tensor(given.intrinsics, dtype=torch.float32)
    if (
        camera.shape != (4,)
        or not bool(camera.isfinite().all())
        or not bool((camera[:2] > 0).all())
    ):
        raise UserError(
            f"need intrinsics (fx, fy, cx, cy) in px with fx, fy > 0, got {given.intrinsics}"
        )
    return camera if clip is None else camera * _shrunk(clip).repeat(2), "given"


def _shrunk(clip: Clip) -> Float32[Tensor, "2"]:
    """Factors from px of the source to px of the clip, for x and y."""
    (height, width), (source_height, source_width) = clip.size, clip.source_size
    return torch.tensor([width / source_width, height / source_height])
