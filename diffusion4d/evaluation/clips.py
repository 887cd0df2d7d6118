r"""A clip with truth, and a folder of them: one npz file a clip.

The layout is TAPVid-3D's (google-deepmind/tapnet), so its files can be read as they are; everything after the second
line is optional, and all from `size` on is ours:

    tracks_XYZ [T, N, 3]    camera frame of each instant, any unit; NaN where the truth is not known
    visibility [T, N]       true visibility;          fx_fy_cx_cy [4]  px
    images_jpeg_bytes [F]   dtype S or V (bytes), or images [F, h, w, 3] uint8; over the whole view
    extrinsics_w2c [T, 4, 4]                          queries_xyt [N, 3] is not read: points are asked for in frame 0
    size [2]                (H, W) of the view in px, else that of the images, else twice the principal point
    u [T]                   clip time, else even steps
    image_frames [F]        places of the images in the T frames, else every frame has one
    moving [N]              moves in the world, else worked out from the extrinsics
    observed_tracks [T, N, 2] px, observed_visibility [T, N]   what a tracker saw, else a simulated one (`seed`)
    focal_known             0 withholds the intrinsics from every method

Numbers are finite but those of an unknown truth; u and image_frames rise, observed_visibility is in [0, 1] (`arrays`).

Nothing is ever unpickled: an array of objects is refused with a message.

Shape letters:  N points   T frames   F pictured frames   h, w image.
"""

import dataclasses
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from diffusion4d import cameras
from diffusion4d.atomic import replace_when_done
from diffusion4d.errors import UserError
from diffusion4d.evaluation.arrays import Arrays, load
from diffusion4d.scenes.corruption import observe_through_tracker

MOVED = 0.01
"""A point moves when it gets farther than this share of the median anchor depth from where it was (world)."""

NEAREST = 0.05
"""Depths below this share of the median one are moved out to it before they are projected."""

JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class TrueClip:
    """What a tracker saw of a clip, and the truth.

    points: camera frame of each instant, any unit, NaN where not known. intrinsics: the true ones, px of `size` (H, W).
    tracks, visibility: as observed. images: over the whole view, at `frames`; None without pictures.
    """

    name: str
    points: Float[Tensor, "N T 3"]
    visible: Bool[Tensor, "N T"]
    moving: Bool[Tensor, "N"]
    intrinsics: Float[Tensor, "4"]
    size: tuple[int, int]
    u: Float[Tensor, "T"]
    tracks: Float[Tensor, "N T 2"]
    visibility: Float[Tensor, "N T"]
    focal_known: bool = True
    images: UInt8[Tensor, "F 3 h w"] | None = None
    frames: Int64[Tensor, "F"] | None = None


def clip_files(folder: Path) -> list[Path]:
    """The clips of a folder and of the folders in it, in order.

    Raises:
        UserError: there are none.
    """
    files = sorted(folder.rglob("*.npz"))
    if not files:
        raise UserError(f"need a folder of clips with truth (npz), found none in {folder}")
    return files


def write_clip(path: Path, clip: TrueClip) -> None:
    """Write one clip in the layout above, images as JPEG."""
    arrays: dict[str, Any] = {
        "tracks_XYZ": clip.points.transpose(0, 1).numpy(),
        "visibility": clip.visible.T.numpy(),
        "fx_fy_cx_cy": clip.intrinsics.numpy(),
        "size": np.array(clip.size),
        "u": clip.u.numpy(),
        "moving": clip.moving.numpy(),
        "observed_tracks": clip.tracks.transpose(0, 1).numpy(),
        "observed_visibility": clip.visibility.T.numpy(),
        "focal_known": np.array(clip.focal_known),
    }
    if clip.images is not None and clip.frames is not None:
        # A JPEG ends with FF D9, so numpy's fixed-width bytes, which drop zeros at the end, keep it whole.
        arrays["images_jpeg_bytes"] = np.array([_jpeg(image) for image in clip.images])
        arrays["image_frames"] = clip.frames.numpy()
    with replace_when_done(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_clip(
    path: Path, *, num_points: int, max_frames: int, with_images: bool = True
) -> TrueClip:
    """Read a clip: its first `max_frames` frames, and up to `num_points` of the points seen in the first.

    The choice of points and the simulated tracker draw from the file's `seed`, or from a hash of its name.

    Raises:
        UserError: the file is no clip with truth, or holds no point that is seen in frame 0.
    """
    arrays = load(path, with_images=with_images)
    seed = int(arrays["seed"]) if "seed" in arrays else zlib.crc32(path.stem.encode())
    generator = torch.Generator().manual_seed(seed)

    def tensor(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(arrays[name])).to(dtype)

    points = tensor("tracks_XYZ")[:max_frames].transpose(0, 1)
    N, T, _ = points.shape
    visible = tensor("visibility", torch.bool)[:max_frames].T
    intrinsics = tensor("fx_fy_cx_cy")
    images, frames = _images(path, arrays, T) if with_images else (None, None)
    size = _size(arrays, intrinsics)
    if min(size) < 1:
        raise UserError(
            f"{path}: need a principal point inside the view, or size, got {intrinsics.tolist()}"
        )
    moving = tensor("moving", torch.bool) if "moving" in arrays else _moving(points, arrays, T)
    known = points.isfinite().all(-1) & (points[..., 2] > 0)
    usable = visible[:, 0] & known[:, 0]
    chosen = usable.nonzero()[:, 0]
    if len(chosen) < 2:
        raise UserError(
            f"{path}: need two points that are seen in frame 0, got {len(chosen)} of {N}"
        )
    order = torch.randperm(len(chosen), generator=generator)[:num_points]
    chosen = chosen[order].sort().values
    points, visible, known = points[chosen], visible[chosen], known[chosen]
    if "observed_tracks" in arrays:
        tracks = tensor("observed_tracks")[:max_frames].transpose(0, 1)[chosen]
        visibility = tensor("observed_visibility")[:max_frames].T[chosen]
    else:
        tracks, visibility = simulated(points, visible & known, intrinsics, size, generator)
    u = tensor("u", torch.float64)[:T] if "u" in arrays else torch.linspace(0, 1, T).double()
    return TrueClip(
        name=path.stem,
        points=points,
        visible=visible & known,
        moving=moving[chosen],
        intrinsics=intrinsics,
        size=size,
        # A cut clip has a clock of its own.
        u=((u - u[0]) / (u[-1] - u[0])).float(),
        tracks=tracks,
        visibility=visibility,
        focal_known=bool(arrays.get("focal_known", True)),
        images=images,
        frames=frames,
    )


def read_clips(
    files: list[Path], *, num_points: int, max_frames: int, with_images: bool = True
) -> Iterator[TrueClip]:
    """The clips, one at a time."""
    for path in files:
        yield read_clip(path, num_points=num_points, max_frames=max_frames, with_images=with_images)


def write_clips(
    clips: Iterator[TrueClip], folder: Path, report: Callable[[int], None] | None = None
) -> list[Path]:
    """Write clips under their names; `report` is called with 1 after each."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for clip in clips:
        files.append(folder / f"{clip.name}.npz")
        write_clip(files[-1], clip)
        if report is not None:
            report(1)
    return files


def simulated(
    points: Float[Tensor, "N T 3"],
    visible: Bool[Tensor, "N T"],
    intrinsics: Float[Tensor, "4"],
    size: tuple[int, int],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "N T 2"], Float[Tensor, "N T"]]:
    """What the generator's tracker would report of true trajectories."""
    depth = points[..., 2:]
    nearest = NEAREST * depth[:, 0].nanmedian()
    ahead = torch.cat([points[..., :2], depth.clamp_min(nearest)], -1)
    pixels = cameras.project(ahead, intrinsics)
    limit = 4 * max(size)
    # Where the truth is not known the point is not seen, and its place does not matter.
    pixels = pixels.nan_to_num(0.0).clamp(-limit, limit)
    extent = torch.tensor([size], dtype=torch.float32)
    tracks, visibility = observe_through_tracker(pixels[None], visible[None], extent, generator)
    return tracks[0], visibility[0]


def _images(path: Path, arrays: Arrays, T: int) -> tuple[Tensor | None, Tensor | None]:
    if "images" in arrays:
        images = torch.from_numpy(arrays["images"])
        if (
            images.ndim != 4
            or images.shape[-1] != 3
            or images.dtype != torch.uint8
            or not images.numel()
        ):
            raise UserError(
                f"{path}: need images [F, h, w, 3] uint8, got {list(images.shape)} {images.dtype}"
            )
        images = images.permute(0, 3, 1, 2).contiguous()
    elif "images_jpeg_bytes" in arrays:
        data = arrays["images_jpeg_bytes"]
        if data.ndim != 1 or not len(data) or data.dtype.kind not in "SV":
            raise UserError(
                f"{path}: need images_jpeg_bytes [F] of bytes, got {list(data.shape)} {data.dtype}"
            )
        decoded = [_decoded(path, bytes(image)) for image in data]
        sizes = sorted({tuple(image.shape[1:]) for image in decoded})
        if len(sizes) > 1:
            raise UserError(f"{path}: need images of one size (h, w), got {sizes}")
        images = torch.stack(decoded)
    else:
        return None, None
    frames = torch.arange(len(arrays["tracks_XYZ"]))
    if "image_frames" in arrays:
        frames = torch.from_numpy(arrays["image_frames"])
    if len(frames) != len(images):
        raise UserError(f"{path}: need a frame for each image, got {len(frames)} for {len(images)}")
    within = frames < T
    # All pictures may lie behind the cut.
    return (images[within], frames[within]) if within.any() else (None, None)


def _jpeg(image: UInt8[Tensor, "3 h w"]) -> bytes:
    import PIL.Image

    data = io.BytesIO()
    PIL.Image.fromarray(image.permute(1, 2, 0).numpy()).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


def _decoded(path: Path, data: bytes) -> UInt8[Tensor, "3 h w"]:
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{path}: an image cannot be decoded: {error}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _size(arrays: Arrays, intrinsics: Tensor) -> tuple[int, int]:
    if "size" in arrays:
        height, width = arrays["size"].tolist()
        return int(height), int(width)
    if "images" in arrays:
        return int(arrays["images"].shape[1]), int(arrays["images"].shape[2])
    if "images_jpeg_bytes" in arrays:
        import PIL.Image

        with PIL.Image.open(io.BytesIO(bytes(arrays["images_jpeg_bytes"][0]))) as image:
            return image.height, image.width
    return round(2 * intrinsics[3].item()), round(2 * intrinsics[2].item())


def _moving(points: Tensor, arrays: Arrays, T: int) -> Bool[Tensor, "N"]:
    if "extrinsics_w2c" in arrays:
        world_from_camera = torch.from_numpy(np.linalg.inv(arrays["extrinsics_w2c"][:T]))
        moved = cameras.transform(world_from_camera.float(), points.transpose(0, 1))
        points = moved.transpose(0, 1)
    scale = points[:, 0, 2].nanmedian()
    distance = (points - points[:, :1]).norm(dim=-1).nan_to_num(0.0).amax(-1)
    return distance > MOVED * scale
