r"""A surface as Gaussians, one a vertex, and how a deformation carries them.

At rest a Gaussian is a flat disc on the surface: with n the normal and s the mean distance to the `NEIGHBOURS` nearest,

    Σ = (s / 2)² (I − n nᵀ + `THIN`² n nᵀ)

so that discs overlap and leave no holes. A map with the Jacobian J carries it as it carries every small ellipsoid,

    μ' = φ(μ),   Σ' = J Σ Jᵀ                                    (the push-forward of a Gaussian, to first order)

J is told by the triangles about a vertex, since nodes' rotations cannot stretch: with e their edges in the tangent
plane at rest, e' the same edges in that of the moved surface (`surface_jacobians`),

    J = argmin_A Σ ‖e' − A e‖²  in the plane,   J n = n'        thickness stays as it is

A splat is stored as axes and deviations, R diag(s²) Rᵀ = Σ'.

Shape letters:  V Gaussians   B hypotheses and instants (any leading axes)
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.spatial import KDTree
from torch import Tensor

from diffusion4d.fields.frames import vertex_normals
from diffusion4d.fields.measures import edges_of
from diffusion4d.surfaces.mesh import Mesh

NEIGHBOURS = 6
THIN = 0.1
"""Deviation across the surface, in those along it."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Means and covariances, with colours and opacities that motion does not change."""

    means: Float[Tensor, "*B V 3"]
    covariances: Float[Tensor, "*B V 3 3"]
    colours: Float[Tensor, "V 3"]
    """sRGB in [0, 1]."""
    opacities: Float[Tensor, "V"]

    def axes(self) -> tuple[Float[Tensor, "*B V 3 3"], Float[Tensor, "*B V 3"]]:
        """Proper rotations R, whose columns are the axes, and deviations s, the least first."""
        variances, turned = torch.linalg.eigh(self.covariances)
        sign = torch.linalg.det(turned).sign()
        turned = torch.cat([turned[..., :2], turned[..., 2:] * sign[..., None, None]], -1)
        return turned, variances.clamp_min(0).sqrt()


def gaussians_of(mesh: Mesh, opacity: float = 0.95) -> Gaussians:
    """A disc for every vertex; grey where the mesh has no colours.

    Raises:
        ValueError: an opacity outside (0, 1).
    """
    if not 0 < opacity < 1:
        raise ValueError(f"need an opacity between 0 and 1, got {opacity}")
    count = min(NEIGHBOURS + 1, len(mesh.vertices))
    away = KDTree(mesh.vertices).query(mesh.vertices, count)[0].reshape(len(mesh.vertices), -1)
    spacing = torch.from_numpy(away[:, 1:].mean(1).astype(np.float32)) / 2
    normal = torch.from_numpy(mesh.normals)
    across = normal[:, :, None] * normal[:, None]
    flat = torch.eye(3) - across
    covariances = spacing.square()[:, None, None] * (flat + THIN**2 * across)
    colours = np.full_like(mesh.vertices, 0.7) if mesh.colours is None else mesh.colours
    means = torch.from_numpy(mesh.vertices)
    return Gaussians(
        means, covariances, torch.from_numpy(colours), torch.full((len(means),), opacity)
    )


def carried(
    rest: Gaussians, means: Float[Tensor, "*B V 3"], jacobians: Float[Tensor, "*B V 3 3"]
) -> Gaussians:
    """The Gaussians where the surface has gone, Σ' = J Σ Jᵀ."""
    covariances = jacobians @ rest.covariances.to(jacobians) @ jacobians.mT
    return Gaussians(means, covariances, rest.colours, rest.opacities)


def surface_jacobians(
    rest: Float[Tensor, "V 3"], moved: Float[Tensor, "*B V 3"], faces: Int64[Tensor, "F 3"]
) -> Float[Tensor, "*B V 3 3"]:
    """∂x'/∂x at every vertex of a moved surface, by least squares over its edges; thickness stays as it is.

    A vertex that no edge says anything of has the identity.
    """
    edges = edges_of(faces)
    both = torch.cat([edges, edges.flip(1)])

    def within(places: Tensor) -> tuple[Tensor, Tensor]:
        normal = vertex_normals(places, faces)
        edge = places[..., both[:, 1], :] - places[..., both[:, 0], :]
        about = normal[..., both[:, 0], :]
        return normal, edge - (edge * about).sum(-1, keepdim=True) * about

    def summed(edge: Tensor) -> Tensor:
        products = edge[..., :, None] * before[:, None]
        total = products.new_zeros(*edge.shape[:-2], len(rest), 3, 3)
        return total.index_add_(-3, both[:, 0], products)

    normal, before = within(rest)
    turned, after = within(moved)
    held, brought = summed(before), summed(after)
    size = held.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    # A little of the identity decides what edges on a line, or none, leave open.
    unit = torch.where(size > 0, size, 1.0)
    little = 1e-6 * unit * torch.eye(3, dtype=rest.dtype)
    across = size * normal[:, None]
    left = brought + turned[..., :, None] * across + little
    right = held + normal[:, :, None] * across + little
    return torch.linalg.solve(right / unit, left / unit, left=False)
