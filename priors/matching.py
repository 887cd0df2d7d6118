r"""Tokens to tracks: every frame against the anchor frame, or every frame against every other.

    match_to_anchor    F_0 against F_t for each t: O(T) pairs
    match_all_pairs    candidates for t by way of every other frame s, F_0 to F_s to F_t, of which the best
                       supported wins: O(T^2) pairs; what the anchor saves is measured against it

A pair is matched by one of the methods below, all of which give belief over the refined cells of the
second frame (`priors.assignment`, `priors.voting`, `priors.epipolar`), read out as `priors.matches` says:

    mutual     the best cell, hard
    soft       soft attention
    sinkhorn   optimal transport with a dustbin: points compete, and may be nowhere
    hough      soft attention, weighed by what the neighbours think that they moved
    epipolar   soft attention, weighed by the epipolar lines of what does not move

and each is then asked for the way back: the feature found in frame t has its best cell in the anchor
frame at a distance b from the query point, and visibility takes a factor exp(-b^2 / tau_b^2) with tau_b
half a token (Kalal et al. 2010, there and back). For "mutual" the covariance is b^2 / 2 besides the cell's own.

Memory: one frame's scores at a time, for at most `ENTRIES` / D points; with more points, those of one chunk
compete and vote among themselves.

Shape letters:  T frames   N points   C channels   L tokens   D cells   S candidates
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from priors.assignment import sinkhorn, soft_attention
from priors.correspondence import refined
from priors.epipolar import along_lines, fundamental
from priors.matches import Cells, Found, Matches, found, spread_of_belief, visibility
from priors.tokens import TokenGrid
from priors.voting import vote

Method = Literal["mutual", "soft", "sinkhorn", "hough", "epipolar"]
ENTRIES = 1 << 22
"""Scores held at once: 16 MB in float32."""


@dataclass(frozen=True)
class Matcher:
    """How a pair of frames is matched.

    Attributes:
        method: see the module.
        temperature: tau of cosines.
        upsample: cells along each side of a token.
        dustbin: the cosine below which "sinkhorn" rather finds a point nowhere.
        iterations: of Sinkhorn.
        neighbourhood: "hough": rho, in tokens.

    Raises:
        ValueError: an unknown method, a number that is not finite or (but for `dustbin`) not above 0, cells or
            iterations that are no whole number.
    """

    method: Method = "soft"
    temperature: float = 0.035
    upsample: int = 4
    dustbin: float = 0.5
    iterations: int = 10
    neighbourhood: float = 2.0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"need a method out of {', '.join(get_args(Method))}, got {self.method!r}"
            )
        for name in ("temperature", "upsample", "iterations", "neighbourhood"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"need {name} > 0, got {getattr(self, name)}")
        for name in ("upsample", "iterations"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"need {name} as a whole number, got {getattr(self, name)}")
        if not math.isfinite(self.dustbin):
            raise ValueError(f"need a finite dustbin, got {self.dustbin}")


@dataclass(frozen=True)
class Frame:
    """A frame as matching sees it: its tokens and, normalised, its cells."""

    tokens: Float[Tensor, "L C"]
    cells: Cells
    features: Float[Tensor, "D C"]

    @classmethod
    def of(cls, grid: TokenGrid, index: int, upsample: int) -> "Frame":
        """Frame `index` of the grid."""
        tokens = grid.values[index].float()
        fine = refined(tokens, grid.grid, upsample)
        return cls(tokens, Cells(grid.grid, grid.size, upsample), fine)

    def at(self, points: Float[Tensor, "N 2"]) -> Float[Tensor, "N C"]:
        """Normalised features at points of the frame, px."""
        one = TokenGrid(self.tokens[None], self.cells.grid, self.cells.size, points.new_zeros(1))
        return normalize(one.sample(points[:, None])[:, 0], dim=-1)


def match_to_anchor(
    grid: TokenGrid, queries: Float[Tensor, "N 2"], matcher: Matcher | None = None
) -> Matches:
    """Points of frame 0 in every frame, each against frame 0 alone.

    Args:
        grid: tokens of T frames.
        queries: px in frame 0, pixel centres at +0.5. They are the answer of frame 0 itself.
        matcher: how; soft attention by default.

    Raises:
        ValueError: points that are no [N, 2], N >= 1, of floats, or not finite; tokens that are not finite.
    """
    matcher = matcher or Matcher()
    _require_points(queries)
    _require_tokens(grid)
    anchor = Frame.of(grid, 0, matcher.upsample)
    own = _own_spread(anchor, queries, matcher)
    frames = [_anchored(anchor, queries, own)]
    for t in range(1, len(grid.values)):
        target = Frame.of(grid, t, matcher.upsample)
        frames.append(match_pair(anchor, queries, target, matcher, own))
    return Matches.stacked(frames)


def match_all_pairs(
    grid: TokenGrid, queries: Float[Tensor, "N 2"], matcher: Matcher | None = None
) -> Matches:
    """Points of frame 0 in every frame, by way of every other frame as well.

    Each frame s offers for frame t what it makes of the points where the anchor puts them in s. A candidate x_s has
    weight w_s = v_{0 s} v_{s t} (v_{0 t} for the direct one); the one with the largest support
    sum_r w_r exp(-|x_s - x_r|^2 / 2 sigma^2), sigma half a token, wins, and the answer is the mean of all, weighed by
    what they add to its support. Doubt is their own covariance and how far they are apart.

    Raises:
        ValueError: points that are no [N, 2], N >= 1, of floats, or not finite; tokens that are not finite.
    """
    matcher = matcher or Matcher()
    direct = match_to_anchor(grid, queries, matcher)
    num_frames = len(grid.values)
    frames = [Frame.of(grid, t, matcher.upsample) for t in range(num_frames)]
    own = [_own_spread(frame, direct.tracks[s], matcher) for s, frame in enumerate(frames)]
    answers = [_anchored(frames[0], queries, own[0])]
    for t in range(1, num_frames):
        offers = [Found(direct.tracks[t], direct.covariance[t], direct.visibility[t])]
        for s in range(1, num_frames):
            if s != t:
                offer = match_pair(frames[s], direct.tracks[s], frames[t], matcher, own[s])
                trusted = offer.visibility * direct.visibility[s]
                doubt = offer.covariance + direct.covariance[s]
                offers.append(Found(offer.position, doubt, trusted))
        answers.append(_best_supported(offers, frames[t].cells.token / 2))
    return Matches.stacked(answers)


def match_pair(
    source: Frame,
    points: Float[Tensor, "N 2"],
    target: Frame,
    matcher: Matcher,
    own_spread: Float[Tensor, "N"] | None = None,
) -> Found:
    """Points of one frame in another one.

    Args:
        points: px in `source`.
        own_spread: E_0 of the points in `source`, where it is known already.
    """
    own = _own_spread(source, points, matcher) if own_spread is None else own_spread
    matrix = _fundamental(source, target) if matcher.method == "epipolar" else None
    chunk = max(1, ENTRIES // len(target.features))
    parts = [
        _match(source, some, target, matcher, some_own, matrix)
        for some, some_own in zip(points.split(chunk), own.split(chunk), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    return Found(
        torch.cat([part.position for part in parts]),
        torch.cat([part.covariance for part in parts]),
        torch.cat([part.visibility for part in parts]),
    )


def _match(
    source: Frame,
    points: Tensor,
    target: Frame,
    matcher: Matcher,
    own: Tensor,
    matrix: Tensor | None,
) -> Found:
    scores_ND = source.at(points) @ target.features.T
    if matcher.method == "sinkhorn":
        belief_ND = sinkhorn(scores_ND, matcher.temperature, matcher.dustbin, matcher.iterations)
    else:
        belief_ND = soft_attention(scores_ND, matcher.temperature)
    if matcher.method == "hough":
        radius = matcher.neighbourhood * target.cells.token
        belief_ND = vote(belief_ND, points, target.cells, radius=radius)
    if matrix is not None:
        belief_ND = along_lines(belief_ND, points, target.cells, matrix)
    answer = found(belief_ND, target.cells, own)
    position, covariance = answer.position, answer.covariance
    if matcher.method == "mutual":
        position = target.cells.centres(points)[scores_ND.argmax(-1)]
    back_ND = target.at(position) @ source.features.T
    returned_N2 = source.cells.centres(points)[back_ND.argmax(-1)]
    square_N = (returned_N2 - points).square().sum(-1)
    if matcher.method == "mutual":
        cell = torch.diag(points.new_tensor(target.cells.pitch).square() / 12)
        covariance = cell + (square_N / 2)[:, None, None] * torch.eye(2).to(points)
    there_and_back_N = torch.exp(-square_N / (source.cells.token / 2) ** 2)
    return Found(position, covariance, answer.visibility * there_and_back_N)


def _own_spread(frame: Frame, points: Tensor, matcher: Matcher) -> Float[Tensor, "N"]:
    """E_0: how many tokens of its own frame a point could be taken for."""
    chunk = max(1, ENTRIES // len(frame.features))
    return torch.cat(
        [
            spread_of_belief(
                soft_attention(frame.at(some) @ frame.features.T, matcher.temperature), frame.cells
            )
            for some in points.split(chunk)
        ]
    )


def _anchored(anchor: Frame, queries: Tensor, own: Tensor) -> Found:
    """The query points themselves: exact, and as well seen as they can be told from others."""
    cells = anchor.cells
    seen = visibility(own, own, cells.grid[0] * cells.grid[1])
    return Found(queries, queries.new_zeros(len(queries), 2, 2), seen)


def _fundamental(source: Frame, target: Frame) -> Float[Tensor, "3 3"] | None:
    """The epipolar geometry of the mutual nearest neighbours among the tokens of two frames."""
    here = Cells(source.cells.grid, source.cells.size, 1).centres(source.tokens)
    first, second = normalize(source.tokens, dim=-1), normalize(target.tokens, dim=-1)
    forward = (first @ second.T).argmax(-1)
    backward = (second @ first.T).argmax(-1)
    mutual = (backward[forward] == torch.arange(len(first)).to(forward)).nonzero()[:, 0]
    # A partner's place is told to a cell of the refined grid.
    fine = (first[mutual] @ target.features.T).argmax(-1)
    return fundamental(here[mutual], target.cells.centres(here)[fine], target.cells.token)


def _best_supported(offers: list[Found], sigma: float) -> Found:
    place_SN2 = torch.stack([offer.position for offer in offers])
    weight_SN = torch.stack([offer.visibility for offer in offers])
    apart_SSN = (place_SN2[:, None] - place_SN2[None]).square().sum(-1)
    agree_SSN = torch.exp(-apart_SSN / (2 * sigma**2)) * weight_SN
    best_N = agree_SSN.sum(1).argmax(0)
    points = torch.arange(place_SN2.shape[1]).to(best_N)
    adds_SN = agree_SSN[best_N, :, points].T
    total_N = adds_SN.sum(0)
    # Where nobody saw the point, the direct match is as good as any.
    nobody = torch.zeros_like(adds_SN)
    nobody[0] = 1
    adds_SN = torch.where(total_N > 0, adds_SN / total_N.clamp_min(1e-30), nobody)
    position_N2 = (adds_SN[..., None] * place_SN2).sum(0)
    off_SN2 = place_SN2 - position_N2
    own_SN22 = torch.stack([offer.covariance for offer in offers])
    doubt_SN22 = own_SN22 + off_SN2[..., :, None] * off_SN2[..., None, :]
    return Found(
        position_N2,
        (adds_SN[..., None, None] * doubt_SN22).sum(0),
        (adds_SN * weight_SN).sum(0).clamp(0, 1),
    )


def _require_points(queries: Tensor) -> None:
    if queries.ndim != 2 or queries.shape[1] != 2 or not queries.is_floating_point():
        raise ValueError(
            f"need query points [N, 2] of floats, got {list(queries.shape)} of {queries.dtype}"
        )
    if len(queries) == 0 or not bool(queries.isfinite().all()):
        raise ValueError(
            f"need at least one query point and finite ones, got {len(queries)} points, "
            f"{int((~queries.isfinite()).sum())} coordinates that are not finite"
        )


def _require_tokens(grid: TokenGrid) -> None:
    if not bool(grid.values.isfinite().all()):
        frames = (~grid.values.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
        raise ValueError(f"need finite tokens, got some that are not in frames {frames}")
