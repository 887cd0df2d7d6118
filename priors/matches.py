r"""What every matcher answers: where points of the anchor frame are, how surely, and whether they are seen.

A matcher gives each point n and each cell d of a frame (the token grid, refined) a share P[n, d] of
belief; rows may sum to less than 1, and what is missing believes that the point is not there. With
x_d the centre of cell d and d* the best cell, the answer is a soft argmax in a window (Zhang et al.
2024, arXiv:2311.17034, section 3.3): far rivals must not draw the mean into no man's land,

    mu    = sum_{d near d*} P_d x_d / sum_{d near d*} P_d                        near: within a token
    Sigma = sum_d P_d (x_d - mu)(x_d - mu)^T / sum_d P_d  +  cell^2 / 12         all d: rivals count
    E     = exp(-sum_d p_d log p_d) / (cells of a token),   p = P / sum P        tokens that share the belief

E is 1 or less where one token has it all and L, the number of tokens, where nothing is known. A
point that cannot be told from others in its own frame cannot be found in another, so E_0, the
same number in the anchor frame, is part of the visibility:

    v = sum_d P_d · (1 - log E_0 / log L) · (1 - log (E / E_0) / log (L / E_0)),     E, E_0 cut to [1, L].

In a constant frame E = L and v = 0.

Shape letters:  T frames   N points   D cells   L tokens
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """Where N points of the anchor frame are in T frames.

    Attributes:
        tracks: [T, N, 2] px (x, y), pixel centres at +0.5; finite, also where nothing is seen.
        covariance: [T, N, 2, 2] px² of the position, symmetric, not negative.
        visibility: [T, N] in [0, 1].

    Raises:
        ValueError: numbers that are not finite, or a visibility outside [0, 1].
    """

    tracks: Float[Tensor, "T N 2"]
    covariance: Float[Tensor, "T N 2 2"]
    visibility: Float[Tensor, "T N"]

    def __post_init__(self) -> None:
        if not bool(self.tracks.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("need finite tracks and covariance, got NaN or infinity")
        # Written so that NaN fails too.
        if not bool(((self.visibility >= 0) & (self.visibility <= 1)).all()):
            raise ValueError(
                f"need visibility in [0, 1], got {self.visibility.min()} to {self.visibility.max()}"
            )

    @classmethod
    def stacked(cls, frames: "list[Found]") -> "Matches":
        """One frame after the other, the anchor frame first."""
        return cls(
            torch.stack([frame.position for frame in frames]),
            torch.stack([frame.covariance for frame in frames]),
            torch.stack([frame.visibility for frame in frames]),
        )


@dataclass(frozen=True)
class Found:
    """Points found in one frame; as in `Matches`, for a single frame."""

    position: Float[Tensor, "N 2"]
    covariance: Float[Tensor, "N 2 2"]
    visibility: Float[Tensor, "N"]


@dataclass(frozen=True)
class Cells:
    """The cells of a frame that belief is spread over: a token grid, refined evenly.

    Attributes:
        grid: (h, w) tokens.
        size: (H, W) px of the frame.
        upsample: cells along each side of a token.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    upsample: int

    @property
    def fine(self) -> tuple[int, int]:
        """Cells down and across."""
        return self.grid[0] * self.upsample, self.grid[1] * self.upsample

    @property
    def pitch(self) -> tuple[float, float]:
        """Width and height of a cell, px."""
        return self.size[1] / self.fine[1], self.size[0] / self.fine[0]

    @property
    def token(self) -> float:
        """The longer side of a token, px."""
        return max(self.pitch) * self.upsample

    def centres(self, like: Tensor) -> Float[Tensor, "D 2"]:
        """(x, y) px of each cell's centre, row by row, of `like`'s type and device."""
        rows, columns = torch.meshgrid(
            torch.arange(self.fine[0]).to(like) + 0.5,
            torch.arange(self.fine[1]).to(like) + 0.5,
            indexing="ij",
        )
        return torch.stack([columns, rows], -1).flatten(0, 1) * like.new_tensor(self.pitch)


def spread_of_belief(belief: Float[Tensor, "N D"], cells: Cells) -> Float[Tensor, "N"]:
    """E: how many tokens share the belief, in [1, L]; L for a row without any."""
    share = belief / belief.sum(-1, keepdim=True).clamp_min(torch.finfo(belief.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    tokens = entropy.exp() / cells.upsample**2
    limit = float(cells.grid[0] * cells.grid[1])
    return torch.where(belief.sum(-1) > 0, tokens, limit).clamp(1.0, limit)


def found(
    belief: Float[Tensor, "N D"], cells: Cells, own_spread: Float[Tensor, "N"] | None = None
) -> Found:
    """Position, covariance and visibility out of the belief, as the module says.

    Args:
        belief: not negative; a row may be all 0.
        own_spread: E_0; without it, this is the anchor frame and the belief is about it.
    """
    centres_D2 = cells.centres(belief)
    tiny = torch.finfo(belief.dtype).tiny
    best_N2 = centres_D2[belief.argmax(-1)]
    # Half a cell more than a token, so that rounding does not decide who is in the window.
    reach = cells.token + 0.5 * max(cells.pitch)
    near_ND = torch.cdist(best_N2, centres_D2) <= reach
    local_ND = belief * near_ND
    total_N1 = local_ND.sum(-1, keepdim=True)
    position_N2 = torch.where(
        total_N1 > tiny, local_ND @ centres_D2 / total_N1.clamp_min(tiny), best_N2
    )
    mass_N1 = belief.sum(-1, keepdim=True)
    # A row without belief knows nothing: the spread of the whole frame.
    share_ND = torch.where(mass_N1 > tiny, belief / mass_N1.clamp_min(tiny), 1 / belief.shape[-1])
    # Offsets are taken before they are squared: E[x^2] - E[x]^2 would lose all digits in large frames.
    share_Nhw = share_ND.unflatten(1, cells.fine)
    grid_hw2 = centres_D2.unflatten(0, cells.fine)
    across_Nw = grid_hw2[0, :, 0] - position_N2[:, :1]
    down_Nh = grid_hw2[:, 0, 1] - position_N2[:, 1:]
    moved_Nh = (share_Nhw * across_Nw[:, None]).sum(2)
    xx_N = (share_Nhw.sum(1) * across_Nw.square()).sum(1)
    yy_N = (share_Nhw.sum(2) * down_Nh.square()).sum(1)
    xy_N = (moved_Nh * down_Nh).sum(1)
    about_N22 = torch.stack([xx_N, xy_N, xy_N, yy_N], -1).unflatten(1, (2, 2))
    covariance_N22 = about_N22 + torch.diag(belief.new_tensor(cells.pitch).square() / 12)
    spread_N = spread_of_belief(belief, cells)
    own_N = spread_N if own_spread is None else own_spread
    return Found(
        position_N2,
        covariance_N22,
        mass_N1[:, 0].clamp(0, 1) * visibility(spread_N, own_N, cells.grid[0] * cells.grid[1]),
    )


def visibility(
    spread: Float[Tensor, "N"], own_spread: Float[Tensor, "N"], num_tokens: int
) -> Float[Tensor, "N"]:
    """The product of the module's two factors of E_0 and E; 0 on a grid of a single token, which tells nothing."""
    if num_tokens == 1:
        return torch.zeros_like(spread)
    own = own_spread.log() / math.log(num_tokens)
    # Relative to what is left above E_0; nothing is left where the point is like everything else.
    above = (spread.log() / math.log(num_tokens) - own) / (1 - own).clamp_min(1e-6)
    return ((1 - own) * (1 - above)).clamp(0, 1) * (own < 1)
