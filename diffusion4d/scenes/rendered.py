"""A pool of rendered worlds on disk: the truth of their tracks, images of their key frames, and how deep each pixel is.

The key frames are those nearest to the Greville abscissae of a cubic with F control points, so each control point
has a picture of about its own time. An image spans the same view as the world's `size`: its pixel (x, y) is
(x W / w, y H / h) there. The picture is of the very scene that was observed.
A depth map has half the image's resolution and spans the same view; its unit is the world's (median anchor depth 1).
As in `pool.py`, shards are written whole or not at all, and world i has seed `first_seed + i` whatever the number of
processes. A shard holds a stack of worlds for each image shape, since lenses differ in aspect.
Shape letters:  B worlds   T frames   F key frames   h, w image   y, x depth map.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from safetensors.torch import save_file
from torch import Tensor

from diffusion4d.atomic import replace_when_done
from diffusion4d.clip import key_frames
from diffusion4d.config import RenderedSpec
from diffusion4d.errors import UserError
from diffusion4d.scenes.observe import World
from diffusion4d.scenes.pool import Cast, Worlds, read_shard, stacked, write_missing
from diffusion4d.scenes.render import depth_at, depth_maps, render
from diffusion4d.scenes.scene import Scene
from diffusion4d.scenes.world import compose, generate

SHARD = 32

FIELDS = {"images", "depth", "frames"} | {f.name for f in dataclasses.fields(Worlds)}


@dataclasses.dataclass(frozen=True)
class RenderedWorlds:
    """A stack of worlds whose images have one shape.

    worlds: the truth at all T frames. images: [B, F, 3, h, w] sRGB, over the whole view. frames: [F] their places in T.
    depth: [B, F, y, x] of the first surface behind the middles of the map's pixels; NaN where there is none.
    """

    worlds: Worlds
    images: UInt8[Tensor, "B F 3 h w"]
    frames: Int64[Tensor, "F"]
    depth: Float16[Tensor, "B F y x"]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> "RenderedWorlds":
        """The worlds at these places, in this order."""
        return RenderedWorlds(
            self.worlds.take(index), self.images[index], self.frames, self.depth[index]
        )


def pictured(spec: RenderedSpec) -> Int64[Tensor, "F"]:
    """Places of the key frames in the T frames of a world.

    Raises:
        ValueError: fewer frames than key frames.
    """
    if spec.frames < spec.key_frames:
        raise ValueError(
            f"need at least {spec.key_frames} frames for {spec.key_frames} key frames, got {spec.frames}"
        )
    return key_frames(torch.linspace(0, 1, spec.frames, dtype=torch.float64), spec.key_frames)


def image_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(h, w) with the aspect of `size` and `side` as the shorter one."""
    height, width = size
    scale = side / min(size)
    return round(height * scale), round(width * scale)


def draw_world(
    seed: int, spec: RenderedSpec, cast: Cast | None = None
) -> tuple[World, UInt8[np.ndarray, "F 3 h w"], Float16[np.ndarray, "F y x"]]:
    """A world, the images of its key frames and their depth maps; a pure function of its arguments.

    `cast` is what `Cast.of(spec)` gives, for those who draw many.
    """
    cast = cast or Cast.of(spec)
    world = generate(
        seed,
        num_points=spec.points,
        num_frames=spec.frames,
        family=cast.family,
        pack=cast.pack,
    )
    scene = compose(world.scene_seed, num_frames=spec.frames, family=world.family, pack=cast.pack)
    frames = pictured(spec).tolist()
    height, width = image_size(world.size, spec.side)
    images = render(scene, frames, (height, width), samples=spec.samples)
    depth = depth_maps(scene, frames, (math.ceil(height / 2), math.ceil(width / 2)))
    with np.errstate(over="ignore"):
        # What is beyond the range of half precision is as good as sky.
        depth = (depth / _unit(scene, world)).astype(np.float16)
    depth[np.isinf(depth)] = np.nan
    return world, np.ascontiguousarray(np.round(255 * images).astype(np.uint8)), depth


def _unit(scene: Scene, world: World) -> float:
    """Scene units a unit of the world, from the points: those of frame 0 are all first hits."""
    fx, fy, cx, cy = world.intrinsics.astype(np.float64)
    x, y, z = world.points[:, 0].astype(np.float64).T
    pixels_N2 = np.stack([fx * x / z + cx, fy * y / z + cy], -1)
    return float(np.nanmedian(depth_at(scene, 0, pixels_N2) / z))


def draw_shard(spec: RenderedSpec, first_seed: int, count: int) -> dict[str, Tensor]:
    """Render `count` worlds with consecutive seeds; the names of tensors are "image shape/field"."""
    groups: dict[str, list[tuple[World, np.ndarray, np.ndarray]]] = {}
    cast = Cast.of(spec)
    for seed in range(first_seed, first_seed + count):
        world, images, depth = draw_world(seed, spec, cast)
        height, width = images.shape[-2:]
        groups.setdefault(f"{height}x{width}", []).append((world, images, depth))
    shard = {}
    for shape, group in groups.items():
        worlds = [world for world, _, _ in group]
        fields = {
            **stacked(worlds),
            "images": torch.from_numpy(np.stack([images for _, images, _ in group])),
            "depth": torch.from_numpy(np.stack([depth for _, _, depth in group])),
            # A clone each, since safetensors refuses names that share memory.
            "frames": pictured(spec).clone(),
        }
        shard |= {f"{shape}/{name}": tensor for name, tensor in fields.items()}
    return shard


def _write_shard(job: tuple[RenderedSpec, int, int, Path]) -> None:
    spec, first_seed, count, path = job
    torch.set_num_threads(1)
    with replace_when_done(path) as temporary:
        save_file(draw_shard(spec, first_seed, count), temporary)


def draw_rendered(
    folder: Path,
    spec: RenderedSpec,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Render the shards that are missing; returns the paths of all of them, in order.

    Args:
        progress: called with (shards done, shards in all).
    """
    # All that decides a shard's content is in its name, so that pools of several kinds may share a folder.
    size = f"{spec.points}x{spec.frames}-{spec.key_frames}x{spec.side}-{spec.samples}"
    kind = f"{size}-depth-{Cast.of(spec).label}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for start in range(0, spec.worlds, SHARD):
        first_seed = spec.first_seed + start
        count = min(SHARD, spec.worlds - start)
        path = folder / f"{first_seed}-{count}-{kind}.safetensors"
        jobs.append((spec, first_seed, count, path))
    write_missing(jobs, _write_shard, processes, progress)
    return [job[-1] for job in jobs]


def load_rendered(paths: list[Path]) -> list[RenderedWorlds]:
    """Read shards into memory, as one stack for each image shape; shapes and the worlds of each in a fixed order.

    Raises:
        UserError: a shard is damaged or of something else, or shards differ in points, frames or key frames.
    """
    groups: dict[str, list[dict[str, Tensor]]] = {}
    for path in paths:
        shard = read_shard(path)
        for shape in {name.partition("/")[0] for name in shard}:
            fields = {
                name.partition("/")[2]: tensor
                for name, tensor in shard.items()
                if name.partition("/")[0] == shape
            }
            if missing := sorted(FIELDS - set(fields)):
                raise UserError(
                    f"{path} is no shard of rendered worlds: need {shape}/{missing[0]}, got {sorted(shard)[:3]}…"
                )
            groups.setdefault(shape, []).append(fields)
    stacks = []
    for _, group in sorted(groups.items()):
        frames = group[0]["frames"]
        if any(not torch.equal(fields["frames"], frames) for fields in group):
            raise UserError("need shards with the same key frames, got several kinds")
        # Images of one shape have depth maps of one shape, so the rest is numbers of points and frames.
        shapes = sorted({tuple(fields["points"].shape[1:3]) for fields in group})
        if len(shapes) > 1:
            raise UserError(f"need shards with the same points and frames [N, T], got {shapes}")
        worlds = Worlds(
            *(torch.cat([fields[f.name] for fields in group]) for f in dataclasses.fields(Worlds))
        )
        images, depth = (torch.cat([f[name] for f in group]) for name in ("images", "depth"))
        stacks.append(RenderedWorlds(worlds, images, frames, depth))
    return stacks
