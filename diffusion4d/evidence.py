r"""What was observed, in the spline basis of the unknown.

The 2D track of a point is projected onto the basis its 3D trajectory is expressed in,

    e_n = argmin_e  sum_t v_{n,t} |sum_m N_m(u_t) e_m - y_{n,t}|^2 + ridge |D e|^2,

with y the track in normalised image coordinates, v its visibility and D the first difference: where
nothing was seen the evidence holds its last value, or goes straight from one to the next. Beside it stands
how much of each control point's support was seen,

    w_{n,m} = sum_t v_{n,t} N_m(u_t) / sum_t N_m(u_t)   in [0, 1].

Every kind of evidence can be absent. Without tracks, only the anchor frame is seen and w says so;
without tokens, `tokens` is None; without intrinsics, a default field of view stands in and
`focal_known` is 0.

Shape letters:  B clips   N points   M control points   T frames   F key frames   L patches   C channels.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import cameras, splines
from priors.tokens import TokenGrid

RIDGE = 3e-3
QUERY_WEIGHT = 0.01


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Patch tokens of the key frames, and what they say at the points.

    values: [B, F, L, C]; positions: [B, F, L, 3] normalised image coordinates of the patch centres and clip time u;
    at_points: [B, N, C], the tokens along each track, averaged over the key frames that see it.
    """

    values: Float[Tensor, "B F L C"]
    positions: Float[Tensor, "B F L 3"]
    at_points: Float[Tensor, "B N C"]

    @classmethod
    def of_clip(
        cls,
        grid: TokenGrid,
        tracks: Float[Tensor, "N F 2"],
        visibility: Float[Tensor, "N F"],
        intrinsics: Float[Tensor, "4"],
    ) -> "Tokens":
        """Tokens of one clip (B = 1), with tracks (px of the grid's frames) and visibility at its key frames."""
        weight = visibility / visibility.sum(-1, keepdim=True).clamp_min(1e-6)
        at_points = torch.einsum("nf,nfc->nc", weight, grid.sample(tracks))
        (h, w), (H, W) = grid.grid, grid.size
        rows, columns = torch.meshgrid(
            (torch.arange(h) + 0.5) * H / h, (torch.arange(w) + 0.5) * W / w, indexing="ij"
        )
        centres = cameras.normalise(torch.stack([columns, rows], -1).flatten(0, 1), intrinsics)
        F, L = grid.values.shape[:2]
        u = grid.u.to(centres)[:, None, None].expand(F, L, 1)
        positions = torch.cat([centres[None].expand(F, L, 2), u], -1)
        return cls(grid.values[None], positions[None], at_points[None])


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Observations of a batch of clips.

    ctrl: [B, N, M, 2] evidence control points, normalised image coordinates.
    weight: [B, N, M] share of each control point's support that was seen.
    log_focal: [B] log of the focal length over the longer side of the image.
    focal_known: [B] 1 where the intrinsics were given, 0 where they are a default.
    """

    ctrl: Float[Tensor, "B N M 2"]
    weight: Float[Tensor, "B N M"]
    log_focal: Float[Tensor, "B"]
    focal_known: Float[Tensor, "B"]
    tokens: Tokens | None = None

    @property
    def num_tokens(self) -> int:
        """Patch tokens of a clip, over all its key frames; 0 without images."""
        return (
            0 if self.tokens is None else self.tokens.values.shape[1] * self.tokens.values.shape[2]
        )

    def in_view(self) -> Float[Tensor, "B N M 2"]:
        """Control points as shares of the longer side of the image, from its centre: the same through any lens."""
        return self.ctrl * self.log_focal.to(self.ctrl).exp()[:, None, None, None]

    def to(self, device: torch.device | str) -> "Evidence":
        """The same evidence on another device."""

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return dataclasses.replace(
                    value,
                    **{f.name: move(getattr(value, f.name)) for f in dataclasses.fields(value)},
                )
            return value

        return move(self)  # type: ignore[return-value]


def observe_tracks(
    tracks: Float[Tensor, "B N T 2"],
    visibility: Float[Tensor, "B N T"],
    intrinsics: Float[Tensor, "B 4"],
    size: Float[Tensor, "B 2"],
    u: Float[Tensor, "T"],
    num_ctrl: int,
    *,
    focal_known: Float[Tensor, "B"] | None = None,
    degree: int = 3,
    multiplicity: int = 1,
) -> Evidence:
    """Project 2D tracks onto the spline basis.

    Args:
        tracks: px. Where visibility is 0 the value does not matter, but for the anchor frame's: that is the query.
        visibility: in [0, 1].
        intrinsics: (fx, fy, cx, cy) px; size: (H, W) px.
        u: clip time of each frame.
        focal_known: 1 where the intrinsics are known (the default), 0 where they were assumed.
        multiplicity: of the spline's interior knots.
    """
    normalised = cameras.normalise(tracks, intrinsics[:, None, None])
    # The query itself is known, even of a point that no frame shows.
    anchor = visibility[..., :1].clamp_min(QUERY_WEIGHT)
    weights = torch.cat([anchor, visibility[..., 1:]], -1)
    ctrl = splines.fit(
        normalised,
        u,
        num_ctrl,
        weights=weights,
        degree=degree,
        multiplicity=multiplicity,
        ridge=RIDGE,
        penalty_order=1,
    )
    basis_TM = splines.basis_matrix(u, num_ctrl, degree, multiplicity)
    # A control point whose support holds no frame (T < M) was not seen: 0 / tiny is 0.
    weight = visibility @ basis_TM / basis_TM.sum(0).clamp_min(1e-6)
    log_focal = torch.log(intrinsics[:, :2].mean(-1) / size.amax(-1))
    known = torch.ones_like(log_focal) if focal_known is None else focal_known
    return Evidence(ctrl, weight.clamp(0, 1), log_focal, known)
