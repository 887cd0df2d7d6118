"""From a folder of hypotheses and a mesh to a mesh that moves: what `diffusion4d animate` does.

A mesh lies in the first frame's shape, in the axes of hypotheses.glb. Every vertex hangs on the nodes nearest to it
along the surface; what nodes do under a hypothesis, the surface does. The shape that it lies in is one for all
hypotheses, the mean of theirs (`fields.motion.reference`, of all of them, whichever are chosen): each first carries the
mesh to its own anchor shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.spatial import KDTree
from torch import Tensor

from diffusion4d.clip import read_clip
from diffusion4d.config import Animate
from diffusion4d.errors import UserError
from diffusion4d.export import staged
from diffusion4d.export.choice import read_choice
from diffusion4d.export.gltf_mesh import MeshDocument, document_of, read_document
from diffusion4d.export.ply import write_ply_sequence
from diffusion4d.export.recorded import length, start_of, stride_of
from diffusion4d.export.skinned_glb import JOINTS, skinned_glb
from diffusion4d.fields.graph import surface_distances
from diffusion4d.fields.motion import Rest, motion_of, reference
from diffusion4d.fields.skinning import Skinning, skin
from diffusion4d.fields.stream import stream
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.pictures import in_proportion
from diffusion4d.surfaces.delaunay import anchor_surface
from diffusion4d.surfaces.depths import read_depths
from diffusion4d.surfaces.fusion import fused_surface
from diffusion4d.surfaces.mesh import AXES, Mesh, read_mesh
from diffusion4d.surfaces.texture import encoded, first_picture, textured

FILE_NAME = "animated.glb"
FOLDER = "animated"
FAR = 0.25
"""Diagonals of the nodes' box that half of a mesh's vertices may be away from the nearest node."""


@dataclass(frozen=True, eq=False)
class Animated:
    """A mesh at rest, what carries it, and the hypotheses that do."""

    document: MeshDocument
    mesh: Mesh
    """The document's triangles."""
    skinning: Skinning
    rest: Rest
    """Of all the hypotheses in the folder."""
    hypotheses: Hypotheses
    """Those that drive it."""
    numbers: list[int]
    """Of these in the folder they came from."""


def run(config: Animate, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write animated.glb, and the PLY files if they are asked for; returns what was written.

    Raises:
        UserError: hypotheses, mesh or video cannot be used; the message says which and why. Nothing new is left.
    """
    if config.blend != "linear" and not config.ply:
        raise UserError(f"need --ply for --blend {config.blend}: a skin of glTF blends linearly")
    animated = prepare(config)
    beside = config.source if config.source.is_dir() else config.source.parent
    out = config.out or beside
    hyp, rest = animated.hypotheses, animated.rest
    names = [f"hypothesis_{k:02d}" for k in animated.numbers]
    seconds = config.seconds
    if seconds is None:
        seconds = length(hyp, source=config.source)

    def rotations(k: int, u: Float64[Tensor, "U"]) -> Tensor:
        return motion_of(hyp.select(torch.tensor([k])), rest, u).rotations[0]

    content = skinned_glb(
        animated.document,
        animated.skinning,
        rest.places,
        rotations,
        hyp,
        seconds=seconds,
        names=names,
    )
    written = [out / FILE_NAME]
    with staged(out, [FILE_NAME]) as stage:
        (stage / FILE_NAME).write_bytes(content)
        # Before animated.glb takes its name: where PLY files cannot be written, nothing is.
        if config.ply:
            points = torch.from_numpy(animated.mesh.vertices)
            moved = stream(points, animated.skinning, hyp, rest, config.blend)
            frames = (
                (names[k], span.start + i, animated.mesh.moved(vertices.numpy()))
                for k, span, part in moved
                for i, vertices in enumerate(part)
            )
            total = len(names) * hyp.num_frames
            written.append(write_ply_sequence(frames, out / FOLDER, total=total, progress=progress))
    return written


def prepare(config: Animate) -> Animated:
    """The mesh, skinned to the nodes of the hypotheses that were asked for.

    Raises:
        UserError: as `run`.
    """
    if config.mesh is not None and config.depth is not None:
        raise UserError(
            f"need a mesh or depth maps to fuse one from, got {config.mesh} and {config.depth}"
        )
    every = Hypotheses.load(config.source)
    numbers = chosen(config.hypotheses, every, config.source)
    if config.mesh is None:
        document = document_of(own_surface(config, every))
    elif config.mesh.suffix.lower() == ".glb":
        document = read_document(config.mesh)
    else:
        document = document_of(read_mesh(config.mesh))
    mesh, rest = document.mesh, reference(every)
    require_near(mesh, rest.places.numpy())
    distances = surface_distances(mesh.vertices, mesh.faces, rest.places.numpy())
    # As many nodes as a file holds, so that weights are continuous there too, and PLY files show the same.
    skinning = skin(torch.from_numpy(distances), JOINTS)
    return Animated(document, mesh, skinning, rest, every.select(torch.tensor(numbers)), numbers)


def own_surface(config: Animate, hypotheses: Hypotheses) -> Mesh:
    """The surface of the points themselves, with the looks of the video's frame if there is a video.

    Raises:
        UserError: no surface, or a video that cannot be used.
    """
    if config.depth is not None:
        depths = read_depths(config.depth, hypotheses.num_frames)
        return fused_surface(
            hypotheses,
            int(hypotheses.rank()[0]),
            depths,
            _pictures(config, hypotheses, depths.shape),
        )
    if config.video is None:
        return anchor_surface(hypotheses)
    start = start_of(config.start, config.source)
    image = first_picture(config.video, hypotheses, start)
    surface = anchor_surface(hypotheses, _shrunk(image, hypotheses.size))
    return textured(surface, hypotheses, encoded(image))


def _pictures(
    config: Animate, hypotheses: Hypotheses, shape: tuple[int, ...]
) -> Float32[np.ndarray, "T 3 H W"] | None:
    """The frames of the clip, as large as its depth maps; None without a video."""
    if config.video is None:
        return None
    wanted, stride = shape[0], stride_of(config.source)
    start = start_of(config.start, config.source)
    clip = read_clip(config.video, start=start, stride=stride, max_frames=wanted)
    if wanted != clip.T:
        raise UserError(
            f"need a video of {wanted} frames from {start} s on, one in {stride}, "
            f"got {clip.T} in {config.video}"
        )
    if not in_proportion(clip.size, hypotheses.size):
        (height, width), (rows, columns) = clip.size, hypotheses.size
        raise UserError(
            f"need the clip of the hypotheses, {columns} x {rows} px or in proportion, "
            f"got one of {width} x {height}"
        )
    frames = (picture.permute(1, 2, 0).float().numpy() / 255 for picture in clip.frames)
    return np.stack([_shrunk(frame, shape[1:]).transpose(2, 0, 1) for frame in frames])


def first_frame(
    video: Path | None, hypotheses: Hypotheses, start: float
) -> Float32[np.ndarray, "H W 3"] | None:
    """The anchor frame at the size of the hypotheses, sRGB in [0, 1]; None without a video.

    Args:
        start: s into the video, as the clip was read.

    Raises:
        UserError: the video cannot be read, or has another shape.
    """
    if video is None:
        return None
    return _shrunk(first_picture(video, hypotheses, start), hypotheses.size)


def chosen(which: str, hypotheses: Hypotheses, source: Path) -> list[int]:
    """Numbers of hypotheses out of "all", "best", "kept" or "0,3,7".

    Args:
        source: folder of the hypotheses, or its hypotheses.npz: choice.json beside it says what is kept.

    Raises:
        UserError: anything else, a number that there is not, or no choice of these hypotheses.
    """
    K = hypotheses.num_hypotheses
    if which == "kept":
        return read_choice(source, hypotheses)
    if which == "all":
        return list(range(K))
    if which == "best":
        return [int(hypotheses.rank()[0])]
    try:
        numbers = [int(part) for part in which.split(",")]
    except ValueError:
        raise UserError(f"need all, best, kept or numbers such as 0,3,7, got {which!r}") from None
    if not all(0 <= k < K for k in numbers) or len(set(numbers)) != len(numbers):
        raise UserError(f"need different hypotheses out of 0 … {K - 1}, got {which!r}")
    return numbers


def require_near(mesh: Mesh, rest: Float32[np.ndarray, "N 3"]) -> None:
    """Raises UserError if the mesh lies elsewhere than the nodes."""
    extent = float(np.linalg.norm(np.ptp(rest, axis=0)))
    away = float(np.median(KDTree(rest).query(mesh.vertices)[0]))
    if away > FAR * max(extent, 1e-12):
        nodes, given = (_box(points * AXES) for points in (rest, mesh.vertices))
        raise UserError(
            f"need a mesh among the points of the first frame, which fill {nodes} in the axes of hypotheses.glb "
            f"(x right, y up, z back), got one that fills {given}: half of it is {away:.3g} or more away from them, "
            f"and {FAR * extent:.3g} is allowed"
        )


def _box(points: Float32[np.ndarray, "V 3"]) -> str:
    low, high = points.min(0), points.max(0)
    return " x ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True))


def _shrunk(
    image: Float32[np.ndarray, "rows columns 3"], size: tuple[int, ...]
) -> Float32[np.ndarray, "H W 3"]:
    """The picture at (H, W) px."""
    import cv2

    shrunk = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.float32)
