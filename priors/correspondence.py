r"""Dense correspondence between token grids: a loss to train an encoder, a score to judge it by.

A surface point seen in two frames gives a pair of features (a_i, b_i), sampled from the two token
grids. The loss asks each feature to find its partner among all others (InfoNCE, van den Oord et al.
2018, arXiv:1807.03748, eq. 4, both ways round as in CLIP):

    L = -1/2 E_i [ log softmax_j(a_i . b_j / tau)_i + log softmax_j(b_i . a_j / tau)_i ]

with |a| = |b| = 1, where j runs over the other points of the same clip and of all other clips in
the batch. A point closer to i than `radius` pixels is no fair negative, since two points in one
patch share their token: it is left out.

The score is what a tracker would need: the feature of a point in one frame is compared with every
place of the other frame, on the token grid refined bilinearly; the best cosine gives a pixel, and
PCK counts how many of these are within some pixels of the truth.

Shape letters:  B clips   N points a clip   C channels   L = h w tokens   S thresholds
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, normalize


def info_nce(
    first: Float[Tensor, "B N C"],
    second: Float[Tensor, "B N C"],
    *,
    valid: Bool[Tensor, "B N"] | None = None,
    positions: Float[Tensor, "B N 2"] | None = None,
    radius: float = 0.0,
    temperature: float = 0.07,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over the pairs (first[b, n], second[b, n]); mean over valid pairs.

    Args:
        first, second: [B, N, C] features of the same surface points in two frames, of any length.
        valid: [B, N] pairs that count; an invalid one is neither a positive nor a negative.
        positions: [B, N, 2] px of the points in one of the frames; needed with `radius` > 0.
        radius: points of the same clip closer than this, in pixels, are no negatives of each other.
        temperature: tau.

    Returns:
        The loss, a scalar: 0 where nothing is valid, log(number of candidates) for equal features.

    Raises:
        ValueError: `temperature` <= 0, `radius` < 0, or a radius without positions.
    """
    if temperature <= 0:
        raise ValueError(f"need temperature > 0, got {temperature}")
    if radius < 0 or (radius > 0 and positions is None):
        raise ValueError(f"need radius >= 0, and positions where it is > 0, got radius={radius}")
    num_clips, num_points, _ = first.shape
    if valid is None:
        valid = torch.ones(num_clips, num_points, dtype=torch.bool, device=first.device)
    kept = valid.flatten()
    a_PC = normalize(first.flatten(0, 1)[kept], dim=-1)
    b_PC = normalize(second.flatten(0, 1)[kept], dim=-1)
    if len(a_PC) == 0:
        # Zero with a gradient: a batch without visible pairs must not stop a training run.
        return (first * 0).sum() + (second * 0).sum()
    logits_PP = a_PC @ b_PC.T / temperature
    if radius > 0 and positions is not None:
        clip = torch.arange(num_clips, device=first.device).repeat_interleave(num_points)[kept]
        where = positions.flatten(0, 1)[kept]
        near = (where[:, None] - where[None]).norm(dim=-1) < radius
        near &= clip[:, None] == clip[None]
        near.fill_diagonal_(False)
        logits_PP = logits_PP.masked_fill(near, -torch.inf)
    partner = torch.arange(len(a_PC), device=first.device)
    return (cross_entropy(logits_PP, partner) + cross_entropy(logits_PP.T, partner)) / 2


def refined(
    tokens: Float[Tensor, "L C"], grid: tuple[int, int], upsample: int
) -> Float[Tensor, "D C"]:
    """Normalised features of the cells of a token grid that is refined `upsample` times each way, bilinearly.

    Raises:
        ValueError: `grid` does not fit `tokens`, or `upsample` < 1.
    """
    if grid[0] * grid[1] != len(tokens):
        raise ValueError(f"need grid h * w = {len(tokens)} tokens, got grid={grid}")
    if upsample < 1:
        raise ValueError(f"need upsample >= 1, got {upsample}")
    fine = (grid[0] * upsample, grid[1] * upsample)
    maps_1Chw = tokens.T.unflatten(1, grid)[None]
    finer = interpolate(maps_1Chw, size=fine, mode="bilinear", align_corners=False)
    return normalize(finer[0].flatten(1).T, dim=-1)


def match_points(
    features: Float[Tensor, "N C"],
    tokens: Float[Tensor, "L C"],
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    upsample: int = 4,
) -> Float[Tensor, "N 2"]:
    """Where in a frame each feature has its best cosine match.

    The token grid is refined `upsample` times by bilinear interpolation (the same as
    `TokenGrid.sample` at the centres of the finer cells); the answer is the centre of the best
    cell, so it is exact to half a cell: size / grid / upsample / 2.

    Args:
        features: [N, C] of the points looked for, of any length.
        tokens: [L, C] of the frame that is searched, row by row.
        grid: (h, w) with h w = L.
        size: (H, W) of that frame, px.
        upsample: how many finer cells a token has each way.

    Returns:
        [N, 2] px (x, y) in that frame.

    Raises:
        ValueError: `grid` does not fit `tokens`, or `upsample` < 1.
    """
    best = (features @ refined(tokens, grid, upsample).T).argmax(dim=-1)
    fine = (grid[0] * upsample, grid[1] * upsample)
    row, column = best // fine[1], best % fine[1]
    centre = torch.stack([column, row], dim=-1) + 0.5
    cell = features.new_tensor([size[1] / fine[1], size[0] / fine[0]])
    return centre.to(features.dtype) * cell


def pixel_error(
    predicted: Float[Tensor, "*batch 2"], truth: Float[Tensor, "*batch 2"]
) -> Float[Tensor, "*batch"]:
    """Euclidean distance in pixels."""
    return (predicted - truth).norm(dim=-1)


def pck(
    error: Float[Tensor, "*batch"],
    thresholds: Float[Tensor, "S"],
    valid: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "S"]:
    """Percentage of correct keypoints, as a fraction: how many errors are below each threshold.

    Args:
        error: px, any shape.
        thresholds: [S] px; an error equal to its threshold counts as correct.
        valid: which errors count; all by default.

    Returns:
        [S] in [0, 1]; NaN where nothing is valid.
    """
    kept = error.flatten() if valid is None else error[valid]
    return (kept[None] <= thresholds[:, None]).to(thresholds.dtype).mean(dim=-1)


def chance_pck(
    thresholds: Float[Tensor, "S"], truth: Float[Tensor, "N 2"], size: tuple[int, int]
) -> Float[Tensor, "S"]:
    """PCK of guessing: the share of the frame's pixel centres within each threshold of the truth.

    A score means nothing without it: at 16 px in a 128 px frame, guessing is right 5 % of the time.
    """
    rows, columns = torch.meshgrid(
        torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij"
    )
    centres = torch.stack([columns, rows], dim=-1).flatten(0, 1).to(truth)
    distance_NP = torch.cdist(truth, centres)
    return torch.stack([(distance_NP <= limit).to(truth.dtype).mean() for limit in thresholds])
