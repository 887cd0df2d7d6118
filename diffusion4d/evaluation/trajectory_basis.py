r"""A trajectory-basis lifter for one clip from an unknown camera, after Akhter et al. 2008 and Park et al. 2010.

Every point moves along a few low-frequency cosines in the world, and the camera is found by rigid factorisation. What
is solved, by linear least squares but for a 3 x 3 eigenvalue problem, on tracks in normalised image coordinates:

1. affine cameras   y_nt ~ o_t + A_t s_n, rank 3, by singular values (Tomasi & Kanade 1992); hidden entries are filled
                    in with the fit itself, and points that do not fit a rigid scene lose weight, round by round
2. metric upgrade   A_t Q has two orthogonal rows of one length 1 / Zbar_t: Q Q^T by least squares, then R_t and Zbar_t;
                    the camera is then at (o_t, 1) Zbar_t from the scene's centre
3. trajectories     X_n(t) = sum_k cos(pi k (t + 1/2) / T) a_nk, k < COSINES, under the true perspective of that camera
                    (Park et al., eq. 9): with x = R_t X_n(t) + (o_t, 1) Zbar_t,
                    min_a sum_t v_nt |x_xy - y_nt x_z|^2 + LAMBDA sum_{k > 0} k^2 |a_nk|^2 + HELD |a_n|^2
4. mirror           of the two mirror images that 1 and 2 allow, the one whose rigid scene (k = 0 alone) fits 3 better
5. relief           log depth is multiplied by RELIEF: factorising a scene that is not rigid exaggerates depth

A camera that does not move tells no depths: parallax is then noise, and the answer is the flat lift where it falls
below FAINTEST. Even with known cameras a point is found only as far as it moves unlike the camera (Park et al.). The
constants were chosen on worlds that are never scored, for the least error, so that the lifter is as strong as it can
be.

Shape letters:  N points   T frames   M control points   D cosines.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion4d import splines
from diffusion4d.evaluation.cases import Case
from priors.cosines import cosine_basis

COSINES = 5
LAMBDA = 0.3
HELD = 0.03
ROUNDS = 12
RELIEF = 0.25
FAINTEST = 0.02
"""Third singular value over the first, below which there is no parallax to speak of."""

NEAREST = 0.2
FARTHEST = 8.0
"""Depths are held between these (scene units)."""


def trajectory_basis(case: Case, num_ctrl: int, relief: float = RELIEF) -> Float[Tensor, "1 N M 3"]:
    """Control points of the lifted clip; the flat lift where the camera tells no depth."""
    evidence = case.evidence(num_ctrl)
    u = case.clip.u
    basis_TM = splines.basis_matrix(u, num_ctrl)
    held_NT2 = (basis_TM @ evidence.ctrl[0]).double()
    seen_NT = case.clip.visibility.double()
    # Where a point is not seen, start from what the evidence spline makes of it.
    rays_NT2 = torch.where(seen_NT[..., None] > 0, case.rays.double(), held_NT2)
    depth_NT, rays_NT2 = lift(rays_NT2, seen_NT)
    depth_NT = depth_NT**relief
    points_NT3 = torch.cat([rays_NT2 * depth_NT[..., None], depth_NT[..., None]], -1)
    ctrl = splines.fit(points_NT3, u, num_ctrl, ridge=1e-3, penalty_order=1)
    return ctrl[None].float()


def lift(
    rays: Float64[Tensor, "N T 2"], seen: Float64[Tensor, "N T"]
) -> tuple[Float64[Tensor, "N T"], Float64[Tensor, "N T 2"]]:
    """Depths with median 1 in the anchor frame, and the rays with what was hidden filled in."""
    N, T, _ = rays.shape
    if N < 3:
        # Rank 3 is not to be had from two points.
        return rays.new_ones(N, T), rays
    centre_T2, cameras_T23, strength = affine_cameras(rays, seen)
    upgrade = None if strength < FAINTEST else metric_upgrade(cameras_T23)
    if upgrade is None:
        return rays.new_ones(N, T), rays
    rotation_T33, scale_T = euclidean(cameras_T23 @ upgrade)
    places_T3 = torch.cat([centre_T2, torch.ones_like(centre_T2[:, :1])], -1) / scale_T[:, None]
    candidates = []
    for mirror in (1.0, -1.0):
        flip = torch.tensor([1.0, 1.0, mirror], dtype=torch.float64)
        turned_T33 = flip[:, None] * rotation_T33 * flip
        rigid_NT3 = cosine_trajectories(rays, seen, turned_T33, places_T3, cosines=1)
        misfit = (rigid_NT3[..., :2] - rays * rigid_NT3[..., 2:]).norm(dim=-1)
        candidates.append(((seen * misfit).sum().item(), turned_T33))
    _, turned_T33 = min(candidates, key=lambda candidate: candidate[0])
    points_NT3 = cosine_trajectories(rays, seen, turned_T33, places_T3)
    depth_NT = points_NT3[..., 2].clamp(NEAREST, FARTHEST)
    filled_NT2 = torch.lerp(points_NT3[..., :2] / depth_NT[..., None], rays, seen[..., None])
    return depth_NT / depth_NT[:, 0].median(), filled_NT2


def affine_cameras(
    rays: Float64[Tensor, "N T 2"], seen: Float64[Tensor, "N T"]
) -> tuple[Float64[Tensor, "T 2"], Float64[Tensor, "T 2 3"], float]:
    """Centres o_t, cameras A_t, and the third singular value over the first."""
    N, T, _ = rays.shape
    weight_N = rays.new_ones(N)
    filled = rays
    cameras, strength = rays.new_zeros(T, 2, 3), 0.0
    centre = rays.mean(0)
    for _ in range(ROUNDS):
        share = weight_N / weight_N.sum()
        centre = (share[:, None, None] * filled).sum(0)
        flat_TN = (filled - centre).permute(1, 2, 0).flatten(0, 1)
        left, values, _ = torch.linalg.svd(flat_TN * weight_N, full_matrices=False)
        strength = (values[2] / values[0].clamp_min(1e-12)).item()
        # The shape is fitted to every point, whatever its weight in the cameras.
        cameras = left[:, :3]
        shape_3N = cameras.mT @ flat_TN
        rigid = (cameras @ shape_3N).unflatten(0, (T, 2)).permute(2, 0, 1) + centre
        filled = rays + (1 - seen[..., None]) * (rigid - rays)
        off_N = ((filled - rigid).square().sum(-1).mean(-1)).sqrt()
        weight_N = 1 / (1 + (off_N / off_N.median().clamp_min(1e-6)).square())
    return centre, cameras.unflatten(0, (T, 2)), strength


def metric_upgrade(cameras: Float64[Tensor, "T 2 3"]) -> Float64[Tensor, "3 3"] | None:
    """Q such that the rows of A_t Q are orthogonal and of one length; None where no such Q is near."""
    first, second = cameras[:, 0], cameras[:, 1]
    size = cameras.norm(dim=(-2, -1)).mean()
    equations = torch.cat(
        [
            _quadratic(first, first) - _quadratic(second, second),
            _quadratic(first, second),
            # The length itself is free: it is 1 on average.
            (_quadratic(first, first) + _quadratic(second, second)).mean(0, keepdim=True),
        ]
    )
    wanted = torch.zeros(len(equations), dtype=torch.float64)
    wanted[-1] = size**2
    xx, xy, xz, yy, yz, zz = torch.linalg.lstsq(equations, wanted[:, None]).solution[:, 0]
    gram = torch.stack([torch.stack(r) for r in ([xx, xy, xz], [xy, yy, yz], [xz, yz, zz])])
    values, vectors = torch.linalg.eigh(gram)
    if values[1] <= 0:
        return None
    return vectors * values.clamp_min(1e-3 * values[-1].item()).sqrt()


def _quadratic(a: Float64[Tensor, "T 3"], b: Float64[Tensor, "T 3"]) -> Float64[Tensor, "T 6"]:
    """Coefficients of a^T L b in the six entries of a symmetric L."""
    product = a[:, :, None] * b[:, None]
    return torch.stack(
        [
            product[:, 0, 0],
            product[:, 0, 1] + product[:, 1, 0],
            product[:, 0, 2] + product[:, 2, 0],
            product[:, 1, 1],
            product[:, 1, 2] + product[:, 2, 1],
            product[:, 2, 2],
        ],
        -1,
    )


def euclidean(
    cameras: Float64[Tensor, "T 2 3"],
) -> tuple[Float64[Tensor, "T 3 3"], Float64[Tensor, "T"]]:
    """Rotations with R_0 = 1, and scales 1 / Zbar_t with scale 1 at the anchor, of nearly orthogonal cameras."""
    left, values, right = torch.linalg.svd(cameras, full_matrices=False)
    rows_T23 = left @ right
    third_T3 = torch.linalg.cross(rows_T23[:, 0], rows_T23[:, 1])
    rotation_T33 = torch.cat([rows_T23, third_T3[:, None]], 1)
    scale_T = values.mean(-1)
    return rotation_T33 @ rotation_T33[0].mT, (scale_T / scale_T[0]).clamp(0.2, 5.0)


def cosine_trajectories(
    rays: Float64[Tensor, "N T 2"],
    seen: Float64[Tensor, "N T"],
    rotation: Float64[Tensor, "T 3 3"],
    places: Float64[Tensor, "T 3"],
    cosines: int = COSINES,
) -> Float64[Tensor, "N T 3"]:
    """Step 3: camera-frame points of cameras at these rotations and places of the scene's centre."""
    T = len(rotation)
    order_D = torch.arange(min(cosines, T), dtype=torch.float64)
    cosines_TD = cosine_basis(T, len(order_D))
    # x as a linear map of the coefficients, [T, 3, 3 D]: which axis of X, then which cosine.
    along_T3P = torch.einsum("tij,td->tijd", rotation, cosines_TD).flatten(-2)
    design_NT2P = along_T3P[:, :2] - rays[..., None] * along_T3P[:, 2:]
    wanted_NT2 = rays * places[:, 2:] - places[:, :2]
    penalty = torch.diag(torch.cat([order_D.square()] * 3) * LAMBDA + HELD)
    weighted_NT2P = seen[..., None, None] * design_NT2P
    gram_NPP = weighted_NT2P.flatten(1, 2).mT @ design_NT2P.flatten(1, 2) + penalty
    moment_NP1 = weighted_NT2P.flatten(1, 2).mT @ wanted_NT2.flatten(1)[..., None]
    solution_NP = torch.linalg.solve(gram_NPP, moment_NP1)[..., 0]
    return torch.einsum("tip,np->nti", along_T3P, solution_NP) + places
