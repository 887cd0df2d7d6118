r"""Bundle adjustment with depths as a prior: cameras and points that explain a set that stands still.

Points have places X_{n,t} in each instant's own camera, as the image plane y = (x / z, y / z) and log depth. If they
stand still in the world, whose axes are those of the first camera, X_{n,t} = E_t A_n with E_0 = 1, A_n the place of
point n in the world and E_t world to camera. A 3D reconstruction from one view knows image positions well and depths
badly, so

    Σ_n w_n Σ_t v_{n,t} ρ(|y(E_t A_n) − y_{n,t}|² / σ_y² + (log z(E_t A_n) − log z_{n,t})² / σ_z²)             (1)

is minimised over E and A, with weights w_n and visibilities v_{n,t}: where the images have parallax they rule, and
depths settle the rest and the scale. It starts from rigid registrations (Kabsch 1976, Umeyama 1991) of every
instant to the first. Steps are Gauss-Newton's, damped (Levenberg-Marquardt), with the points eliminated (Schur
complement; Triggs et al. 2000). ρ is Cauchy's, by reweighting.

Shape letters:  K reconstructions   N points   T instants.
"""

from dataclasses import dataclass, replace
from typing import Any

import roma
import torch
from torch import Tensor

REFERENCE_SIDE = 256
"""Pixels are those of an image with this shorter side."""
SIGMA_IMAGE = 1.0
"""σ_y in pixels: what a tracker errs."""
SIGMA_DEPTH = 0.15
"""σ_z: what the log depth of a point errs."""
INLIER = 3.0
"""c at the end. A point whose error is below this many σ belongs to the set."""
UNKNOWN = 1.0
"""σ_z where there is no reconstruction."""
HIDDEN = 0.02
"""Visibility of an instant that was not seen: the reconstruction's own guess, worth little."""


@dataclass(frozen=True)
class Seen:
    """Image plane and log depth over their σ, [K, N, T, 3], and weights [N, T]."""

    target: Tensor
    weight: Tensor
    scale: Tensor

    @classmethod
    def of(
        cls, points: Tensor, visibility: Tensor, intrinsics: Tensor, size: tuple[int, int]
    ) -> "Seen":
        """Points [K, N, T, 3], visibility [N, T] in [0, 1] and intrinsics [4] px of an image of `size` (H, W).

        Raises:
            ValueError: shapes that do not fit, numbers that are not finite, a visibility outside [0, 1], a focal
                length that is not positive.
        """
        _require(points, visibility, intrinsics)
        pixel = min(size) / REFERENCE_SIDE / float(intrinsics[:2].mean())
        scale = torch.tensor([1 / (SIGMA_IMAGE * pixel)] * 2 + [1 / SIGMA_DEPTH]).double()
        points = points.double()
        # Half a percent of the median depth is as near as a point may come: its own reconstruction's, whose scale
        # no other shares.
        middle_K = points[..., 2].abs().flatten(1).median(1).values
        nearest = 0.005 * middle_K[:, None, None, None]
        weight = visibility.double().clamp_min(HIDDEN)
        return cls(_projective(points, nearest)[0] * scale, weight, scale)

    @classmethod
    def lifted(cls, plane: Tensor, like: "Seen") -> "Seen":
        """Image plane positions [N, T, 2] alone, at depth 1, of which next to nothing is known."""
        scale = like.scale * like.scale.new_tensor([1, 1, SIGMA_DEPTH / UNKNOWN])
        flat = torch.cat([plane, torch.zeros_like(plane[..., :1])], -1)
        return cls(flat[None] * scale, like.weight, scale)

    def at(self, instants: Tensor) -> "Seen":
        return replace(self, target=self.target[:, :, instants], weight=self.weight[:, instants])

    @property
    def ever(self) -> Tensor:
        """Which points were seen at all, [N]: nothing is known of the others."""
        return (self.weight > HIDDEN).any(-1)

    @property
    def points(self) -> Tensor:
        """Back in space, [K, N, T, 3]."""
        place = self.target / self.scale
        depth = place[..., 2:].exp()
        return torch.cat([place[..., :2] * depth, depth], -1)


def _require(points: Tensor, visibility: Tensor, intrinsics: Tensor) -> None:
    if points.ndim != 4 or points.shape[-1] != 3 or 0 in points.shape:
        raise ValueError(f"need points [K, N, T, 3], none of them 0, got {list(points.shape)}")
    _, N, T, _ = points.shape
    if visibility.shape != (N, T):
        raise ValueError(f"need visibility [{N}, {T}], got {list(visibility.shape)}")
    if intrinsics.shape != (4,):
        raise ValueError(f"need intrinsics [4], got {list(intrinsics.shape)}")
    if not bool(points.isfinite().all()):
        missing = int((~points.isfinite()).sum())
        raise ValueError(f"need finite points, got {missing} numbers that are not")
    # Written so that NaN fails too.
    if not bool(((visibility >= 0) & (visibility <= 1)).all()):
        raise ValueError(
            f"need visibility in [0, 1], got {float(visibility.min())} to {float(visibility.max())}"
        )
    if not bool((intrinsics[:2] > 0).all()):
        raise ValueError(f"need focal lengths above 0, got {intrinsics[:2].tolist()}")
    if not bool(intrinsics.isfinite().all()):
        raise ValueError(f"need finite intrinsics, got {intrinsics.tolist()}")


def _projective(points: Tensor, nearest: Tensor | float) -> tuple[Tensor, Tensor]:
    """(x / z, y / z, log z), and z."""
    depth = points[..., 2:].clamp_min(nearest)
    return torch.cat([points[..., :2] / depth, depth.log()], -1), depth


@dataclass(frozen=True)
class Fit:
    """Poses [K, T, 3, 3] and [K, T, 3], points in the world [K, N, 3], damping [K]."""

    rotation: Tensor
    shift: Tensor
    anchor: Tensor
    damping: Tensor

    @classmethod
    def starting(cls, seen: Seen, weight_KN: Tensor) -> "Fit":
        """Every instant registered to the first."""
        points = seen.points
        first = points[:, :, 0]
        weight_KTN = weight_KN[:, None] * (seen.weight * seen.weight[:, :1]).T
        # Far points would rule a plain registration by their depths alone.
        weight_KTN = weight_KTN / first[..., 2].square()[:, None]
        # Rotations and shifts; a scale only where it is asked for, which hides the types from checkers.
        registered: Any = roma.rigid_points_registration(
            first[:, None].expand(-1, points.shape[2], -1, -1), points.transpose(1, 2), weight_KTN
        )
        rotation, shift = registered
        rotation[:, 0] = torch.eye(3).to(rotation)
        shift[:, 0] = 0
        return cls(rotation, shift, first.clone(), torch.full_like(shift[:, 0, 0], 1e-3))

    @classmethod
    def posed(cls, seen: Seen, extrinsics: Tensor) -> "Fit":
        """Known cameras; points where they are on the average, as seen from the first."""
        weight = seen.weight / seen.weight.sum(-1, keepdim=True)
        rotation, shift = extrinsics[..., :3, :3], extrinsics[..., :3, 3]
        world = torch.einsum("ktji,kntj->knti", rotation, seen.points - shift[:, None])
        anchor = (weight[..., None] * world).sum(2)
        return cls(rotation, shift, anchor, anchor.new_full((len(anchor),), 1e-3))

    def _placed(self) -> Tensor:
        """Points in every camera, [K, N, T, 3]."""
        turned = torch.einsum("ktij,knj->knti", self.rotation, self.anchor)
        return turned + self.shift[:, None]

    def residual(self, seen: Seen) -> Tensor:
        return _projective(self._placed(), 1e-6)[0] * seen.scale - seen.target

    def error(self, seen: Seen) -> Tensor:
        """e_n [K, N]: the root mean square over what was seen; infinite for a point that never was."""
        squared = self.residual(seen).square().sum(-1)
        weight = (seen.weight - HIDDEN).clamp_min(1e-9)
        error = ((squared * weight).sum(-1) / weight.sum(-1)).sqrt()
        return torch.where(seen.ever, error, torch.inf)

    def cost(self, seen: Seen, weight_KN: Tensor, *, each: bool = False) -> Tensor:
        """(1) of each reconstruction, or of each point."""
        squared = self.residual(seen).square().sum(-1)
        robust = INLIER**2 * (squared / INLIER**2).log1p()
        points_KN = weight_KN * (seen.weight * robust).sum(-1)
        return points_KN if each else points_KN.sum(-1)

    def stepped(self, seen: Seen, weight_KN: Tensor) -> "Fit":
        """One damped Gauss-Newton step, where it lowers the cost; else more damping."""
        tried = self._step(seen, weight_KN)
        better = tried.cost(seen, weight_KN) < self.cost(seen, weight_KN)
        kept = better[:, None, None]
        return Fit(
            torch.where(kept[..., None], tried.rotation, self.rotation),
            torch.where(kept, tried.shift, self.shift),
            torch.where(kept, tried.anchor, self.anchor),
            torch.where(better, self.damping / 4, self.damping * 10).clamp(1e-9, 1e6),
        )

    def anchored(self, seen: Seen) -> "Fit":
        """One damped step of the points alone."""
        slopes = self._slopes(seen)
        anchor = self.anchor - torch.linalg.solve(slopes.V, slopes.b[..., None])[..., 0]
        tried = replace(self, anchor=self._before_camera(anchor))
        everyone = torch.ones_like(self.anchor[..., 0])
        # Points do not depend on each other here, so each is judged alone.
        better = tried.cost(seen, everyone, each=True) < self.cost(seen, everyone, each=True)
        return replace(self, anchor=torch.where(better[..., None], tried.anchor, self.anchor))

    def _before_camera(self, anchor: Tensor) -> Tensor:
        """A step is not to throw a point behind some camera, where its image says nothing."""
        tried = replace(self, anchor=anchor)._placed()[..., 2]
        kept = (tried > 0.1 * self._placed()[..., 2]).all(-1)
        return torch.where(kept[..., None], anchor, self.anchor)

    def _slopes(self, seen: Seen) -> "_Slopes":
        K, N, T, _ = seen.target.shape
        turned = torch.einsum("ktij,knj->knti", self.rotation, self.anchor)
        plane, depth = _projective(turned + self.shift[:, None], 1e-6)
        residual = plane * seen.scale - seen.target
        robust = seen.weight / (1 + residual.square().sum(-1) / INLIER**2)
        # d (x/z, y/z, log z) / d X = [[1, 0, −x/z], [0, 1, −y/z], [0, 0, 1]] / z.
        slope = torch.eye(3).to(depth).repeat(K, N, T, 1, 1)
        slope[..., :2, 2] = -plane[..., :2]
        slope = slope * (seen.scale[:, None] / depth[..., None])
        # X → exp(ω) (R A) + t + τ: d X = −[R A]× ω + τ.
        by_pose = torch.cat([-slope @ _cross(turned), slope], -1)[:, :, 1:]
        by_point = torch.einsum("kntij,ktjl->kntil", slope, self.rotation)
        pull = robust[..., None] * residual
        eye = torch.eye(3).to(residual)
        V = torch.einsum("knt,kntij,kntil->knjl", robust, by_point, by_point)
        # A point of no weight keeps a regular system of its own.
        V = V + 1e-9 * V.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * eye
        V = V * (1 + self.damping[:, None, None, None] * eye)
        b = torch.einsum("kntij,knti->knj", by_point, pull)
        return _Slopes(by_pose, by_point[:, :, 1:], robust[:, :, 1:], pull[:, :, 1:], V, b)

    def _step(self, seen: Seen, weight_KN: Tensor) -> "Fit":
        T = seen.target.shape[2]
        slopes = self._slopes(seen)
        by_pose, by_point, robust, V, b = (
            *(slopes.by_pose, slopes.by_point, slopes.robust, slopes.V, slopes.b),
        )
        weighted = weight_KN[..., None] * robust
        U = torch.einsum("knt,kntij,kntil->ktjl", weighted, by_pose, by_pose)
        U = U * (1 + self.damping[:, None, None, None] * torch.eye(6).to(U))
        g = torch.einsum("kn,kntij,knti->ktj", weight_KN, by_pose, slopes.pull)
        C = torch.einsum("knt,kntij,kntil->kntjl", robust, by_pose, by_point)
        inverse = torch.linalg.inv(V)
        # Rows are poses, columns the coordinates of all points: the Schur complement is one matrix product.
        rows = C.permute(0, 2, 3, 1, 4).flatten(1, 2)
        solved = (C @ inverse[:, :, None]).permute(0, 2, 3, 1, 4).flatten(1, 2)
        rows = (rows * weight_KN[:, None, :, None]).flatten(2)
        schur = -rows @ solved.flatten(2).mT
        index = torch.arange(T - 1)
        schur = schur.unflatten(1, (T - 1, 6)).unflatten(3, (T - 1, 6))
        schur[:, index, :, index] = schur[:, index, :, index] + U.transpose(0, 1)
        schur = schur.flatten(3).flatten(1, 2)
        # An instant in which nothing of the set was seen keeps its pose.
        schur = schur + 1e-9 * schur.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None] * torch.eye(
            schur.shape[-1]
        ).to(schur)
        right = -g.flatten(1) + (rows @ (inverse @ b[..., None]).flatten(1)[..., None])[..., 0]
        step, failed = torch.linalg.solve_ex(schur, right)
        step = torch.where((failed > 0)[:, None], 0.0, step).unflatten(1, (T - 1, 6))
        turn, move = step[..., :3], step[..., 3:]
        back = torch.einsum("kntjl,ktj->knl", C, step)
        anchor = self.anchor - (inverse @ (b + back)[..., None])[..., 0]
        rotation, shift = self.rotation.clone(), self.shift.clone()
        rotation[:, 1:] = roma.rotvec_to_rotmat(turn) @ rotation[:, 1:]
        shift[:, 1:] += move
        moved = replace(self, rotation=rotation, shift=shift)
        return replace(moved, anchor=moved._before_camera(anchor))


@dataclass(frozen=True)
class _Slopes:
    """Derivatives of the scaled residuals, by the poses from the second on and by the points; V and b of the points."""

    by_pose: Tensor
    by_point: Tensor
    robust: Tensor
    pull: Tensor
    V: Tensor
    b: Tensor


def _cross(v: Tensor) -> Tensor:
    """[v]×, so that [v]× w = v × w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, -1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.stack(rows, -2)
