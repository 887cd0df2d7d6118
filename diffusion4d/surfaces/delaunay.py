r"""A surface through the points of the anchor frame: triangles of the image plane, cut where depth jumps.

The points' pixels are triangulated (Delaunay 1934, by scipy). A triangle goes if it spans a depth edge or does not hold
together:

    max log z − min log z > max(`JUMP`, `TIMES` · median over the triangles)
    an edge's length changes by more than `STRETCH` over the motion, beyond what the median edge does: in the median of
    the hypotheses, so that parts which go opposite ways in two of them, and stay together on average, are parted

What is left is subdivided, so that a few hundred points carry a surface of thousands of vertices. Between the points
1/z is linear in the pixel, as it is on a plane; so planes stay planes.

Each point's territory is the part of the image that is nearer to it than to any other: its Voronoi cell, the dual of
the triangulation. Here it is drawn as labels of the pixels.

Shape letters:  N points   V vertices   F faces
"""

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.spatial import Delaunay, KDTree, QhullError

from diffusion4d.errors import UserError
from diffusion4d.fields.motion import reference
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.mesh import Mesh

JUMP = 0.25
"""Log depth that any triangle may span."""
TIMES = 4.0
STRETCH = 0.6
LEVELS = 3
"""Subdivisions: a triangle becomes 4 ** LEVELS."""


def anchor_surface(
    hypotheses: Hypotheses,
    image: Float32[np.ndarray, "H W 3"] | None = None,
    *,
    levels: int = LEVELS,
) -> Mesh:
    """The surface of the reference shape (`fields.motion.reference`), in the frame of the hypotheses.

    Args:
        image: sRGB in [0, 1], the first frame at the hypotheses' size, for the colours.

    Raises:
        UserError: fewer than 3 points, points on a line, or no triangle that holds.
    """
    rest = reference(hypotheses).places.double().cpu().numpy()
    pose = hypotheses.extrinsics.reshape(-1, hypotheses.num_frames, 4, 4)[0, 0].double().numpy()
    if hypotheses.frame == "camera":
        pose = np.eye(4)
    seen = rest @ pose[:3, :3].T + pose[:3, 3]
    if (seen[:, 2] <= 0).any():
        raise UserError(
            "need points in front of the camera in the first frame, got some that are not"
        )
    fx, fy, cx, cy = hypotheses.intrinsics.double().tolist()
    pixels = seen[:, :2] / seen[:, 2:] * [fx, fy] + [cx, cy]
    motion = hypotheses.evaluate().transpose(1, 2).double().numpy()
    faces = cut(triangulate(pixels), np.log(seen[:, 2]), motion)
    places, faces = subdivided(np.column_stack([pixels, 1 / seen[:, 2]]), faces, levels)
    depth = 1 / places[:, 2]
    ahead = np.column_stack([(places[:, :2] - [cx, cy]) / [fx, fy] * depth[:, None], depth])
    vertices = (ahead - pose[:3, 3]) @ pose[:3, :3]
    colours = None if image is None else sampled(image, places[:, :2])
    # Counter-clockwise as the camera sees it is outwards, and pixels count y down.
    return Mesh(vertices.astype(np.float32), faces[:, ::-1].copy(), colours)


def triangulate(pixels: Float[np.ndarray, "N 2"]) -> Int64[np.ndarray, "F 3"]:
    """Delaunay triangles, of one turning sense.

    Raises:
        UserError: fewer than 3 points, or all on a line.
    """
    if len(pixels) < 3:
        raise UserError(f"need at least 3 points for a surface, got {len(pixels)}")
    try:
        faces = Delaunay(pixels).simplices.astype(np.int64)
    except QhullError as error:
        raise UserError(
            f"need points that are not all on a line for a surface, got {len(pixels)} that are"
        ) from error
    a, b, c = (pixels[faces[:, i]] for i in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    faces[area < 0] = faces[area < 0][:, [0, 2, 1]]
    return faces


def cut(
    faces: Int64[np.ndarray, "F 3"],
    log_depth: Float[np.ndarray, "N"],
    motion: Float[np.ndarray, "K T N 3"] | None = None,
) -> Int64[np.ndarray, "kept 3"]:
    """The triangles that span no depth edge and hold together over the motion of most hypotheses.

    Raises:
        UserError: none does.
    """
    span = np.ptp(log_depth[faces], axis=1)
    held = span <= max(JUMP, TIMES * float(np.median(span)))
    if motion is not None:
        change = np.median([_change(one, faces) for one in motion], axis=0)
        held &= change <= np.median(change) + STRETCH
    if not held.any():
        raise UserError(
            f"need a triangle within one surface, got {len(faces)} that span depth edges or part"
        )
    return faces[held]


def _change(
    motion: Float[np.ndarray, "T N 3"], faces: Int64[np.ndarray, "F 3"]
) -> Float[np.ndarray, "F"]:
    """By how much of its first length an edge of each triangle changes at most."""
    corner = motion[:, faces]
    length = np.linalg.norm(corner - np.roll(corner, -1, axis=2), axis=-1)
    return np.abs(length / np.maximum(length[:1], 1e-12) - 1).max(axis=(0, 2))


def subdivided(
    places: Float[np.ndarray, "N C"], faces: Int64[np.ndarray, "F 3"], levels: int
) -> tuple[Float[np.ndarray, "V C"], Int64[np.ndarray, "G 3"]]:
    """Every triangle as four, `levels` times; what belongs to no triangle is left out."""
    from trimesh.remesh import subdivide

    used, corner = np.unique(faces, return_inverse=True)
    places, faces = places[used], corner.reshape(-1, 3)
    for _ in range(levels):
        places, faces = subdivide(places, faces)[:2]
    return places, faces.astype(np.int64)


def territories(
    pixels: Float[np.ndarray, "N 2"], size: tuple[int, int]
) -> Int64[np.ndarray, "H W"]:
    """The point that each pixel's middle is nearest to."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    _, nearest = KDTree(pixels).query(np.stack([x, y], -1))
    return np.asarray(nearest, np.int64)


def sampled(
    image: Float32[np.ndarray, "H W 3"], pixels: Float[np.ndarray, "V 2"]
) -> Float32[np.ndarray, "V 3"]:
    """Colours at pixels, linear between the middles."""
    from scipy.ndimage import map_coordinates

    at = pixels.T[::-1] - 0.5
    channels = [map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, -1).astype(np.float32).clip(0, 1)
