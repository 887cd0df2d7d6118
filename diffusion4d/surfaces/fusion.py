r"""A surface fused out of many frames' depth maps: a truncated signed distance over the space at rest.

A voxel x at rest is at φ_t(x) in frame t, z_t deep in its camera, behind the pixel π_t. What is seen there is D_t(π_t)
deep, so

    s_t(x) = D_t(π_t) − z_t,       F(x) = Σ_t min(s_t / τ, 1) / #{t},      over the frames with s_t ≥ −τ

is the mean signed distance along the rays (Curless & Levoy 1996); more than τ behind what is seen, nothing is known.
The surface is where F = 0 between voxels that are known, by marching cubes (scikit-image, extra `surfaces`). φ is the
identity for what stands still, and the nodes' field for what moves (Newcombe et al. 2015, DynamicFusion): a frame then
adds what it sees to the one shape at rest, also what the first frame does not show.

Shape letters:  T frames   V voxels   H, W rows and columns of a depth map
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from diffusion4d.cameras import transform
from diffusion4d.errors import UserError
from diffusion4d.fields.blend import Carrier
from diffusion4d.fields.motion import NodeMotion, motion_of, reference
from diffusion4d.fields.skinning import Skinning, skin_by_graph
from diffusion4d.hypotheses import SEEN, Hypotheses
from diffusion4d.pictures import in_proportion
from diffusion4d.surfaces.mesh import Mesh

TRUNCATION = 3.0
"""τ by default, in voxels."""
LARGEST = 4_000_000
"""Voxels."""
RESOLUTION = 96
"""Voxels along the longest side of the nodes' box."""
MARGIN = 0.1
"""Of that side, beyond the box and about every node."""
GREY = np.float32(0.7)
"""Of what no frame shows."""
_CHUNK = 200_000


Warp = Callable[[Float32[Tensor, "V 3"]], Callable[[int], Float32[Tensor, "V 3"]]]


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in a box.

    Raises:
        UserError: a box without extent, or more than 4 million voxels.
    """

    low: Float32[np.ndarray, "3"]
    high: Float32[np.ndarray, "3"]
    voxel: float
    """Their spacing."""

    def __post_init__(self) -> None:
        if not (self.voxel > 0 and (self.low < self.high).all()):
            raise UserError(
                f"need a box and a spacing above 0, got {self.low} to {self.high} and {self.voxel}"
            )
        if np.prod(self.steps, dtype=float) > LARGEST:
            size = " x ".join(map(str, self.steps))
            raise UserError(f"need at most {LARGEST:,} voxels, got {size}: take a larger spacing")

    @property
    def steps(self) -> tuple[int, ...]:
        """Voxels along x, y and z."""
        return tuple((np.ceil((self.high - self.low) / self.voxel).astype(int) + 1).tolist())

    def places(self) -> Float32[Tensor, "V 3"]:
        """Where the voxels are at rest."""
        along = [torch.arange(n) for n in self.steps]
        grid = torch.stack(torch.meshgrid(*along, indexing="ij"), -1).reshape(-1, 3)
        return torch.from_numpy(self.low) + self.voxel * grid


def fused(
    depths: Float32[np.ndarray, "T H W"],
    intrinsics: Float[Tensor, "4"],
    extrinsics: Float[Tensor, "T 4 4"],
    volume: Volume,
    *,
    truncation: float | None = None,
    warp: Warp | None = None,
    images: Float32[np.ndarray, "T 3 H W"] | None = None,
    votes: int = 1,
) -> Mesh:
    """The surface in a volume, its normals outwards.

    Args:
        depths: z along the optical axis at the middles of the pixels; NaN where it is not known.
        intrinsics: (fx, fy, cx, cy) px of the depth maps. extrinsics: world to camera.
        truncation: τ above 0, 3 voxels by default.
        warp: places at rest to where they are in frame t, NaN for those it does not carry; the identity by default.
        images: sRGB in [0, 1], as large as the depth maps, for the colours: the mean of the frames that show a vertex.
        votes: frames that a voxel has to be known in, at least 1.

    Raises:
        UserError: scikit-image is missing, or no surface in the volume.
        ValueError: a truncation that is not above 0, fewer votes than 1, extrinsics of another number of frames than
            the depth maps, or images of another number or size.
    """
    tau = TRUNCATION * volume.voxel if truncation is None else truncation
    if not 0 < tau < np.inf:
        raise ValueError(f"need a truncation above 0, got {tau}")
    if votes < 1:
        raise ValueError(f"need votes of 1 or more, got {votes}")
    if len(extrinsics) != len(depths):
        raise ValueError(f"need extrinsics of {len(depths)} depth maps, got {len(extrinsics)}")
    if images is not None and images.shape != (len(depths), 3, *depths.shape[1:]):
        wanted = [len(depths), 3, *depths.shape[1:]]
        raise ValueError(f"need images of shape {wanted}, got {list(images.shape)}")
    measure = _marching_cubes()
    places = volume.places()
    total, count = np.zeros(len(places), np.float32), np.zeros(len(places), np.int32)
    at = _places_in(warp, places)
    for t, depth in enumerate(depths):
        signed = _along_rays(depth, intrinsics, transform(extrinsics[t], at(t)))[0]
        known = signed >= -tau
        total[known] += np.minimum(signed[known] / tau, 1)
        count[known] += 1
    known = (count >= votes).reshape(volume.steps)
    # What is not known counts as free, and the faces this makes are taken away below.
    field = np.where(known, (total / np.maximum(count, 1)).reshape(volume.steps), 1)
    if not (known & (field < 0)).any():
        raise UserError(
            f"need depth maps that show a surface in {volume.low} to {volume.high}, got none there"
        )
    vertices, faces = measure(field, 0.0)[:2]
    faces = faces[_between_known(vertices, known)[faces].all(1)]
    used, corners = np.unique(faces, return_inverse=True)
    if len(faces) == 0:
        raise UserError(f"need {votes} frames or more that show a surface in the box, got fewer")
    vertices = (volume.low + volume.voxel * vertices[used]).astype(np.float32)
    mesh = Mesh(vertices, np.asarray(corners).reshape(-1, 3).astype(np.int64))
    if images is None:
        return mesh
    colours, count = np.zeros_like(vertices), np.zeros((len(vertices), 1), np.float32)
    at = _places_in(warp, torch.from_numpy(vertices))
    for t, depth in enumerate(depths):
        signed, pixel = _along_rays(depth, intrinsics, transform(extrinsics[t], at(t)))
        shown = np.abs(signed) <= tau
        colours[shown] += images[t].reshape(3, -1).T[pixel[shown]]
        count[shown] += 1
    return replace(mesh, colours=np.where(count > 0, colours / np.maximum(count, 1), GREY))


def fused_surface(
    hypotheses: Hypotheses,
    number: int,
    depths: Float32[np.ndarray, "T H W"],
    images: Float32[np.ndarray, "T 3 H W"] | None = None,
    *,
    resolution: int = RESOLUTION,
    votes: int = 1,
) -> Mesh:
    """Depth maps of the clip's frames, fused in the reference shape (`fields.motion.reference`) through one hypothesis.

    Only what is near a node is fused: the nodes' field says nothing of the rest.

    Args:
        number: of the hypothesis whose motion and cameras are taken.
        depths: of all frames, each known up to a factor: it is brought to the nodes that are seen in it.
        resolution: voxels along the longest side of the nodes' box.

    Raises:
        UserError: as `fused`; or depth maps of another number of frames, or out of proportion with the clip.
        ValueError: as `fused`.
    """
    T = hypotheses.num_frames
    if len(depths) != T:
        raise UserError(f"need a depth map for each of {T} frames, got {len(depths)}")
    if not in_proportion(depths.shape[1:], hypotheses.size):
        (height, width), (rows, columns) = depths.shape[1:], hypotheses.size
        raise UserError(
            f"need depth maps of the whole frames, {columns} x {rows} px or in proportion, "
            f"got {width} x {height}"
        )
    one = hypotheses.select(torch.tensor([number]))
    rest = reference(hypotheses)
    motion = motion_of(one, rest)
    extrinsics = torch.eye(4).expand(T, 4, 4)
    if one.frame == "world":
        extrinsics = one.cameras[0]
    seen = transform(extrinsics, motion.positions[0])
    rows, columns = depths.shape[1:]
    shrunk = torch.tensor([columns, rows]) / torch.tensor([one.size[1], one.size[0]])
    intrinsics = one.intrinsics * shrunk.repeat(2)
    scaled = to_nodes(depths, intrinsics, seen, one.visibility >= SEEN)
    low, high = rest.places.numpy().min(0), rest.places.numpy().max(0)
    side = float((high - low).max())
    reach = MARGIN * side
    volume = Volume(low - reach, high + reach, side / resolution)
    warp = _field(rest.places, rest.along, motion, reach)
    return fused(scaled, intrinsics, extrinsics, volume, warp=warp, images=images, votes=votes)


def to_nodes(
    depths: Float32[np.ndarray, "T H W"],
    intrinsics: Float[Tensor, "4"],
    nodes: Float[Tensor, "T N 3"],
    seen: Bool[Tensor, "T N"],
) -> Float32[np.ndarray, "T H W"]:
    """Every depth map times the median ratio of the nodes' depth to its own; NaN where no node is seen.

    Args:
        nodes: in each frame's camera axes.
    """
    scaled = np.full_like(depths, np.nan)
    for t, depth in enumerate(depths):
        pixel = _pixels(depth.shape, intrinsics, nodes[t])
        found = np.where((pixel >= 0) & seen[t].numpy(), depth.ravel()[pixel], np.nan)
        usable = np.isfinite(found) & (found > 0)
        if usable.any():
            ratio = nodes[t, :, 2].numpy()[usable] / found[usable]
            scaled[t] = depth * np.float32(np.median(ratio))
    return scaled


def _field(
    nodes: Float32[Tensor, "N 3"], along: Float[Tensor, "N N"], motion: NodeMotion, reach: float
) -> Warp:
    """How nodes carry what is at most `reach` away from one."""

    def warp(places: Float32[Tensor, "V 3"]) -> Callable[[int], Float32[Tensor, "V 3"]]:
        parts = places.split(_CHUNK)
        near = torch.cat([torch.cdist(part, nodes).amin(1) <= reach for part in parts])
        held = [skin_by_graph(part, nodes, along) for part in places[near].split(_CHUNK)]
        skinning = Skinning(
            torch.cat([part.indices for part in held]), torch.cat([part.weights for part in held])
        )
        carrier = Carrier(places[near], skinning, len(nodes))

        def at(t: int) -> Float32[Tensor, "V 3"]:
            moved = torch.full_like(places, torch.nan)
            moved[near] = carrier(NodeMotion(nodes, motion.positions[0, t], motion.rotations[0, t]))
            return moved

        return at

    return warp


def _places_in(warp: Warp | None, places: Float32[Tensor, "V 3"]) -> Callable[[int], Tensor]:
    """Where places at rest are in frame t."""
    return (lambda t: places) if warp is None else warp(places)


def _along_rays(
    depth: Float32[np.ndarray, "H W"], intrinsics: Float[Tensor, "4"], at: Float[Tensor, "V 3"]
) -> tuple[Float32[np.ndarray, "V"], Int64[np.ndarray, "V"]]:
    """How far what is seen there is behind the places, −∞ where nothing is known; and at which pixel."""
    pixel = _pixels(depth.shape, intrinsics, at)
    found = np.where(pixel >= 0, depth.ravel()[pixel], np.nan)
    return np.where(np.isfinite(found), found - at[:, 2].numpy(), -np.inf), pixel


def _pixels(
    size: tuple[int, ...], intrinsics: Float[Tensor, "4"], at: Float[Tensor, "V 3"]
) -> Int64[np.ndarray, "V"]:
    """Number of the pixel, row by row, that each place is in; −1 outside the picture."""
    H, W = size
    fx, fy, cx, cy = intrinsics.tolist()
    ahead = at[:, 2] > 1e-9
    z = torch.where(ahead, at[:, 2], 1.0)
    column = (at[:, 0] / z * fx + cx).floor()
    row = (at[:, 1] / z * fy + cy).floor()
    inside = ahead & (column >= 0) & (column < W) & (row >= 0) & (row < H)
    return torch.where(inside, row * W + column, -1).long().numpy()


def _between_known(
    vertices: Float[np.ndarray, "n 3"], known: Bool[np.ndarray, "X Y Z"]
) -> Bool[np.ndarray, "n"]:
    """Whether both ends of the edge of the grid that a vertex lies on are known."""
    below, above = np.floor(vertices).astype(int), np.ceil(vertices).astype(int)
    return known[tuple(below.T)] & known[tuple(above.T)]


def _marching_cubes() -> Any:
    try:
        return import_module("skimage.measure").marching_cubes
    except ImportError as error:
        raise UserError(
            "need scikit-image for this surface: pip install 'diffusion4d[surfaces]'"
        ) from error
