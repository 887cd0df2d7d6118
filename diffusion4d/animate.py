"""From a folder of hypotheses and a mesh to a mesh that moves: what `diffusion4d animate` does.

A mesh lies in the first frame's shape, in the axes of hypotheses.glb. Every vertex hangs on the nodes nearest to it
along the surface; what nodes do under a hypothesis, the surface does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from scipy.spatial import KDTree

from diffusion4d.config import Animate
from diffusion4d.errors import UserError
from diffusion4d.export import ASSUMED_RATE, clock, staged
from diffusion4d.export.ply import write_ply_sequence
from diffusion4d.export.skinned_glb import skinned_glb
from diffusion4d.fields.graph import surface_distances
from diffusion4d.fields.motion import Rest, motion_of, reference
from diffusion4d.fields.skinning import Skinning, skin
from diffusion4d.fields.stream import stream
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.delaunay import anchor_surface
from diffusion4d.surfaces.mesh import Mesh, read_mesh

FILE_NAME = "animated.glb"
FOLDER = "animated"
FAR = 1.0
"""Extents of the nodes that half of a mesh's vertices may be away from the nearest node."""


@dataclass(frozen=True, eq=False)
class Animated:
    """A mesh at rest, what carries it, and the hypotheses that do."""

    mesh: Mesh
    skinning: Skinning
    rest: Rest
    """Of all the hypotheses in the folder."""
    hypotheses: Hypotheses
    numbers: list[int]
    """Of the hypotheses in the folder they came from."""


def run(config: Animate, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write animated.glb, and the PLY files if they are asked for; returns what was written.

    Raises:
        UserError: hypotheses, mesh or video cannot be used; the message says which and why. Nothing new is left.
    """
    animated = prepare(config)
    hyp = animated.hypotheses
    seconds = config.seconds
    if seconds is None:
        seconds = float(np.ptp(clock(hyp, None))) or 1 / ASSUMED_RATE
    beside = config.source if config.source.is_dir() else config.source.parent
    out = config.out or beside
    names = [f"hypothesis_{k:02d}" for k in animated.numbers]
    motion = motion_of(hyp, animated.rest)
    content = skinned_glb(
        animated.mesh, animated.skinning, motion, hyp, seconds=seconds, names=names
    )
    with staged(out, [FILE_NAME]) as stage:
        (stage / FILE_NAME).write_bytes(content)
    written = [out / FILE_NAME]
    if config.ply:
        points = torch.from_numpy(animated.mesh.vertices)
        frames = (
            (names[k], span.start + i, animated.mesh.moved(vertices.numpy()))
            for k, span, part in stream(points, animated.skinning, hyp, animated.rest, config.blend)
            for i, vertices in enumerate(part)
        )
        total = hyp.num_hypotheses * hyp.num_frames
        written.append(write_ply_sequence(frames, out / FOLDER, total=total, progress=progress))
    return written


def prepare(config: Animate) -> Animated:
    """The mesh, skinned to the nodes of the hypotheses that were asked for.

    Raises:
        UserError: as `run`.
    """
    every = Hypotheses.load(config.source)
    numbers = chosen(config.hypotheses, every)
    given = config.mesh
    mesh = (
        anchor_surface(every, first_frame(config.video, every))
        if given is None
        else read_mesh(given)
    )
    rest = reference(every)
    require_near(mesh, rest.places.numpy())
    distances = surface_distances(mesh.vertices, mesh.faces, rest.places.numpy())
    skinning = skin(torch.from_numpy(distances))
    return Animated(mesh, skinning, rest, every.select(torch.tensor(numbers)), numbers)


def chosen(which: str, hypotheses: Hypotheses) -> list[int]:
    """Numbers of hypotheses out of "all", "best" or "0,3,7".

    Raises:
        UserError: anything else, or a number that there is not.
    """
    K = hypotheses.num_hypotheses
    if which == "all":
        return list(range(K))
    if which == "best":
        return [int(hypotheses.rank()[0])]
    try:
        numbers = [int(part) for part in which.split(",")]
    except ValueError:
        raise UserError(f"need all, best or numbers such as 0,3,7, got {which!r}") from None
    if not all(0 <= k < K for k in numbers) or len(set(numbers)) != len(numbers):
        raise UserError(f"need different hypotheses out of 0 … {K - 1}, got {which!r}")
    return numbers


def first_frame(video: Path | None, hypotheses: Hypotheses) -> Float32[np.ndarray, "H W 3"] | None:
    """The video's first frame at the size of the hypotheses; None without a video.

    Raises:
        UserError: the video cannot be read, or has another shape.
    """
    from diffusion4d.clip import read_clip

    if video is None:
        return None
    clip = read_clip(video, max_frames=2, max_size=min(hypotheses.size))
    frame = clip.frames[0].permute(1, 2, 0).float().numpy()
    if frame.shape[:2] != hypotheses.size:
        got = f"{frame.shape[1]} x {frame.shape[0]}"
        H, W = hypotheses.size
        raise UserError(f"need the clip of the hypotheses, {W} x {H} px, got one of {got}")
    return (frame / 255 if frame.max() > 1 else frame).astype(np.float32)


def require_near(mesh: Mesh, rest: Float32[np.ndarray, "N 3"]) -> None:
    """Raises UserError if the mesh lies elsewhere than the nodes."""
    extent = float(np.linalg.norm(np.ptp(rest, axis=0)))
    away = KDTree(rest).query(mesh.vertices)[0]
    if np.median(away) > FAR * max(extent, 1e-12):
        axes = np.array([1, -1, -1])
        boxes = [
            np.round([(p * axes).min(0), (p * axes).max(0)], 3).tolist()
            for p in (rest, mesh.vertices)
        ]
        raise UserError(
            f"need a mesh among the points of the first frame, which span {boxes[0]} in the axes of "
            f"hypotheses.glb, got one that spans {boxes[1]}"
        )
