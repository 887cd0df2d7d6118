r"""Detail: what is too fine for the nodes, stored beside the surface and carried by it.

A surface is a smooth base x plus offsets. In the local frames of the base (`fields.frames`) an offset is

    d = Fᵀ (x_full − x),        and under any deformation of the base        x'_full = x' + F' d,

so it neither slides nor shears, whatever moved the base. Copies of a vertex at a seam share a frame, and stay together.
The base of a given mesh is the mesh smoothed: the implicit Laplacian flow of Desbrun et al. 1999, (I + λ L) x = x_full,
with the uniform Laplacian over welded vertices, of which λ = `SMOOTH` takes away what is finer than a few edges. The
frame-less alternative keeps the offset in the world, and is there to be compared with.

Shape letters:  V vertices   F faces   B hypotheses and instants (any leading axes)
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import coo_matrix, diags, identity
from scipy.sparse.linalg import splu
from torch import Tensor

from diffusion4d.fields.frames import frames, guides
from diffusion4d.fields.measures import edges_of
from diffusion4d.fields.weld import weld

SMOOTH = 3.0
"""λ."""


@dataclass(frozen=True, eq=False)
class Detail:
    """Offsets of a surface in its own frames."""

    offsets: Float[Tensor, "V 3"]
    """Along tangent, bitangent and normal, in the units of the surface."""
    faces: Int64[Tensor, "F 3"]
    guide: Int64[Tensor, "V 2"]
    """Of `fields.frames.guides`: the copies that a seam has made of a vertex share its frame."""

    def on(self, base: Float[Tensor, "*B V 3"]) -> Float[Tensor, "*B V 3"]:
        """The full surface over a deformed base."""
        turned = frames(base, self.faces, self.guide)
        return base + (turned @ self.offsets.to(base)[..., None]).squeeze(-1)


def extract(
    base: Float[Tensor, "V 3"], full: Float[Tensor, "V 3"], faces: Int64[Tensor, "F 3"]
) -> Detail:
    """What the full surface has over the base.

    Raises:
        ValueError: a vertex of the base that has no frame (`fields.frames.guides`).
    """
    guide = guides(base, faces)
    turned = frames(base, faces, guide)
    return Detail((turned.mT @ (full - base)[..., None]).squeeze(-1), faces, guide)


def from_depth(
    base: Float[Tensor, "V 3"],
    faces: Int64[Tensor, "F 3"],
    depth: Float[Tensor, "H W"],
    intrinsics: Float[Tensor, "4"],
    limit: float,
) -> Detail:
    """Detail read from a depth map: each vertex goes along its viewing ray to the depth that is seen there.

    Args:
        base: in the camera's frame.
        depth: z; not finite where nothing is known. Its scale is the base's.
        intrinsics: (fx, fy, cx, cy) px of the map.
        limit: relative change of depth beyond which another surface is seen there, and the vertex stays.
    """
    from diffusion4d.cameras import project

    H, W = depth.shape
    pixels = project(base, intrinsics)
    column, row = (pixels[:, i].floor().long() for i in (0, 1))
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H) & (base[:, 2] > 0)
    seen = depth[row.clamp(0, H - 1), column.clamp(0, W - 1)].to(base)
    ratio = seen / base[:, 2]
    good = inside & ratio.isfinite() & ((ratio - 1).abs() <= limit)
    ratio = torch.where(good, ratio, 1.0)
    return extract(base, base * ratio[:, None], faces)


def smooth_base(
    full: Float[Tensor, "V 3"], faces: Int64[Tensor, "F 3"], smooth: float = SMOOTH
) -> Float[Tensor, "V 3"]:
    """The surface without its detail.

    Raises:
        ValueError: a negative λ.
    """
    if smooth < 0:
        raise ValueError(f"need smooth >= 0, got {smooth}")
    points = full.double().cpu().numpy()
    start, welded = weld(points)
    edges = edges_of(torch.from_numpy(welded)[faces]).numpy()
    edges = edges[edges[:, 0] != edges[:, 1]]
    both = np.concatenate([edges, edges[:, ::-1]])
    count = len(start)
    joined = coo_matrix((np.ones(len(both)), both.T), (count, count)).tocsr()
    degree = np.maximum(np.asarray(joined.sum(1)).ravel(), 1)
    laplacian = identity(count) - diags(1 / degree) @ joined
    solved = splu((identity(count) + smooth * laplacian).tocsc()).solve(start)
    return torch.from_numpy(solved[welded]).to(full)


def drift(
    offsets: Float[Tensor, "V 3"],
    base: Float[Tensor, "*B V 3"],
    full: Float[Tensor, "*B V 3"],
    faces: Int64[Tensor, "F 3"],
    guide: Int64[Tensor, "V 2"],
) -> Float[Tensor, "*B"]:
    """RMS change of the offset in the local frames of the deformed base, over the RMS offset; 0 is perfect."""
    turned = frames(base, faces, guide)
    local = (turned.mT @ (full - base)[..., None]).squeeze(-1)
    change = (local - offsets.to(local)).square().mean((-2, -1)).sqrt()
    return change / offsets.to(local).square().mean().sqrt().clamp_min(1e-30)
