r"""What does not move lies on epipolar lines: a filter on belief before it is read out.

Where the camera moves, a still point q of the anchor frame is seen in frame t on the line F q, with F
the fundamental matrix between the frames. F is fitted to mutual nearest neighbours of the two token
grids by MAGSAC++ (Barath et al. 2020, arXiv:1912.05909; OpenCV's USAC_MAGSAC). With s the distance
of a cell from the line,

    P'[n, d] ∝ P[n, d] ((1 - pi) exp(-s^2 / 2 sigma^2) + pi):

pi is the belief that the point moves on its own, and keeps it from being forced onto the line.

Under a still camera there is no F, and under a small motion matches that are good to a quarter of a
token cannot tell it: the filter then says so and does nothing.

Shape letters:  N points   D cells   R matches that F is fitted to
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from priors.matches import Cells

MOVES = 0.1
"""pi."""
SUPPORT = 0.4
"""Share of the matches that F has to explain."""
FEWEST = 16


def fundamental(
    source: Float[Tensor, "R 2"], target: Float[Tensor, "R 2"], token: float
) -> Float[Tensor, "3 3"] | None:
    """F with  target^T F source = 0  for what does not move; None where these matches do not tell it.

    Args:
        source, target: px of the two frames.
        token: the side of a token, px; matches are taken to be good to a quarter of it.
    """
    import cv2

    still = float((target - source).norm(dim=-1).median()) if len(source) else 0.0
    if len(source) < FEWEST or still < token / 2:
        return None
    matrix, inliers = cv2.findFundamentalMat(
        source.double().cpu().numpy(),
        target.double().cpu().numpy(),
        cv2.USAC_MAGSAC,
        ransacReprojThreshold=token / 4,
        confidence=0.999,
        maxIters=2000,
    )
    if matrix is None or matrix.shape != (3, 3) or inliers.mean() < SUPPORT:
        return None
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(source)


def along_lines(
    belief: Float[Tensor, "N D"],
    queries: Float[Tensor, "N 2"],
    cells: Cells,
    matrix: Float[Tensor, "3 3"],
) -> Float[Tensor, "N D"]:
    """The belief, weighed by the distance from each point's epipolar line; each row keeps its sum.

    Queries and matrix may be of another precision than the belief; lines are told in the queries', distances in its.
    """
    ones = torch.ones_like(queries[:, :1])
    line_N3 = (torch.cat([queries, ones], -1) @ matrix.to(queries).T).to(belief)
    centres_D2 = cells.centres(belief)
    normal_N1 = line_N3[:, :2].norm(dim=-1, keepdim=True).clamp_min(1e-12)
    distance_ND = (line_N3[:, :2] @ centres_D2.T + line_N3[:, 2:]) / normal_N1
    sigma = cells.token / 4
    weight_ND = (1 - MOVES) * torch.exp(-distance_ND.square() / (2 * sigma**2)) + MOVES
    weighed_ND = belief * weight_ND
    total_N1 = weighed_ND.sum(-1, keepdim=True).clamp_min(torch.finfo(belief.dtype).tiny)
    return weighed_ND * (belief.sum(-1, keepdim=True) / total_N1)
