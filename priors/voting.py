r"""Hough voting: points that are near each other tend to move alike, so they vote for each other's displacement.

Point n's belief P[n, d] says how much it thinks that it moved by x_d - q_n. Displacements are put
into bins b, and the votes of a point's neighbours (not its own) make a histogram:

    V[n, b] = sum_{m != n} k(q_n, q_m) (G * votes[m])[b],        k(q, q') = exp(-|q - q'|^2 / 2 rho^2)

with G a Gaussian blur over bins. The belief is weighed by it:  P'[n, d] ∝ P[n, d] (V[n, b(n, d)] + epsilon).
This is probabilistic Hough matching (Cho et al. 2015, arXiv:1501.06170, eqs. 3-6) with the vote made local,
since parts of a deforming thing move differently. epsilon is a uniform vote: a point alone keeps its belief.

Shape letters:  N points   D cells   b bins of displacement, y down and x across
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from priors.matches import Cells

UNIFORM = 0.05
"""epsilon, as a share of a whole neighbourhood's votes spread evenly over the bins."""


def vote(
    belief: Float[Tensor, "N D"],
    queries: Float[Tensor, "N 2"],
    cells: Cells,
    *,
    radius: float,
) -> Float[Tensor, "N D"]:
    """The belief, weighed by the neighbours' votes; each row keeps its sum.

    Args:
        queries: [N, 2] px in the anchor frame, whose tokens are as large as this frame's.
        radius: rho, px.

    Raises:
        ValueError: `radius` <= 0.
    """
    if radius <= 0:
        raise ValueError(f"need radius > 0 px, got {radius}")
    # Bins are half a token wide: finer ones would part votes that agree.
    half_token = cells.token / 2
    (height, width), num_points = cells.size, len(queries)
    shape = (2 * round(height / half_token) + 3, 2 * round(width / half_token) + 3)
    displacement_ND2 = cells.centres(belief) - queries[:, None]
    column, row = (
        (displacement_ND2[..., axis] / half_token).round().long() + shape[1 - axis] // 2
        for axis in (0, 1)
    )
    bin_ND = row.clamp(0, shape[0] - 1) * shape[1] + column.clamp(0, shape[1] - 1)
    votes_Nb = belief.new_zeros(num_points, shape[0] * shape[1]).scatter_add_(1, bin_ND, belief)
    kernel = belief.new_tensor([1.0, 2.0, 1.0]) / 4
    votes_N1yx = votes_Nb.unflatten(1, shape)[:, None]
    votes_N1yx = conv2d(votes_N1yx, kernel[None, None, :, None], padding=(1, 0))
    votes_N1yx = conv2d(votes_N1yx, kernel[None, None, None], padding=(0, 1))
    near_NN = torch.exp(-torch.cdist(queries, queries).square() / (2 * radius**2)).to(belief)
    near_NN.fill_diagonal_(0)
    heard_Nb = near_NN @ votes_N1yx.flatten(1)
    floor = UNIFORM * near_NN.sum(1, keepdim=True).clamp_min(1.0) / votes_Nb.shape[1]
    weighed_ND = belief * (heard_Nb.gather(1, bin_ND) + floor)
    total_N1 = weighed_ND.sum(-1, keepdim=True).clamp_min(torch.finfo(belief.dtype).tiny)
    return weighed_ND * (belief.sum(-1, keepdim=True) / total_N1)
