r"""Lucas-Kanade alone and with tokens, on rendered worlds of every frame, where the truth is known.

Shape letters:  T frames   N points.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from diffusion4d.clip import Clip, read_clip
from diffusion4d.config import RenderedSpec
from diffusion4d.scenes.pool import Cast
from diffusion4d.scenes.render import render
from diffusion4d.scenes.rendered import image_size
from diffusion4d.scenes.world import compose, generate
from diffusion4d.token_tracks import TRACKERS, track

SIDE = 256
FRAMES = 32


@dataclasses.dataclass(frozen=True)
class Filmed:
    """A world as a clip, with its points in px of the clip."""

    clip: Clip
    pixels: np.ndarray
    visible: np.ndarray


def film(seed: int, pack: Path) -> Filmed:
    """Every frame of a world with a held-out actor; points [T, N, 2], visible [T, N]."""
    spec = RenderedSpec(pack=pack, splits=("held-out",), actors_only=True)
    cast = Cast.of(spec)
    world = generate(seed, num_points=128, num_frames=FRAMES, family=cast.family, pack=cast.pack)
    scene = compose(world.scene_seed, num_frames=FRAMES, family=world.family, pack=cast.pack)
    height, width = image_size(world.size, SIDE)
    images = render(scene, range(FRAMES), (height, width), samples=1)
    fx, fy, cx, cy = world.intrinsics.astype(np.float64)
    x, y, z = np.moveaxis(world.points.astype(np.float64), -1, 0)
    pixels = np.stack([fx * x / z + cx, fy * y / z + cy], -1)
    pixels *= np.array([width / world.size[1], height / world.size[0]])
    clip = read_clip(np.round(255 * images).astype(np.uint8))
    return Filmed(clip, pixels.swapaxes(0, 1), world.visible.T)


def scored(films: list[Filmed]) -> dict[str, object]:
    """For each tracker: how much of what is visible it sees, and how far off it is where it claims to see.

    "brought back": frames of points that "fused" sees and "lk" does not.
    """
    errors: dict[str, list[np.ndarray]] = {name: [] for name in TRACKERS}
    claims: dict[str, list[np.ndarray]] = {name: [] for name in TRACKERS}
    visible = []
    for filmed in films:
        start = filmed.visible[0]
        queries = torch.from_numpy(filmed.pixels[0, start].astype(np.float32))
        visible.append(filmed.visible[1:, start].ravel())
        for name in TRACKERS:
            found = track(filmed.clip, queries, name)
            off = np.linalg.norm(found.tracks.numpy() - filmed.pixels[:, start], axis=-1)
            errors[name].append(off[1:].ravel())
            claims[name].append((found.visibility[1:] > 0).numpy().ravel())
    seen = np.concatenate(visible)
    out: dict[str, object] = {"worlds": len(films), "visible": int(seen.sum())}
    all_claims = {name: np.concatenate(parts) for name, parts in claims.items()}
    all_errors = {name: np.concatenate(parts) for name, parts in errors.items()}
    for name in TRACKERS:
        out[name] = quality(all_claims[name], all_errors[name], seen)
    more = all_claims["fused"] & ~all_claims["lk"]
    out["brought back"] = quality(more, all_errors["fused"], seen)
    return out


def quality(claimed: np.ndarray, error: np.ndarray, seen: np.ndarray) -> dict[str, float | int]:
    """Of what is visible, the share that is claimed and within 4 px; of what is claimed, shares visible and right."""
    right = claimed & seen & (error <= 4)
    count = max(int(claimed.sum()), 1)
    return {
        "claimed": int(claimed.sum()),
        "found of visible": round(float(right.sum() / max(seen.sum(), 1)), 3),
        "right of claimed": round(float(right.sum() / count), 3),
        "hidden of claimed": round(float((claimed & ~seen).sum() / count), 3),
        "median px of claimed": round(float(np.median(error[claimed])), 2) if claimed.any() else -1,
    }
