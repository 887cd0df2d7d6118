r"""From cosines to belief: soft attention, and optimal transport with a dustbin.

Scores S[n, d] are cosines of a point's feature with every cell of a frame.

    soft attention   P[n] = softmax(S[n] / tau): every point on its own
    Sinkhorn         points compete for cells, and may go nowhere. Scores get a row and a column
                     with the same score z (SuperGlue, Sarlin et al. 2020, arXiv:1911.11763,
                     section 3.2), and P is the transport plan of maximal  <P, S> + tau H(P)  with

        P 1 = (1, ..., 1, D),    P^T 1 = (1, ..., 1, N):

        a cell takes one point, or part of several; the dustbin has room for all.  In the log domain
        (Cuturi 2013, arXiv:1306.0895; Peyre & Cuturi 2019, section 4.4), starting from v = 0,

        u = log a - logsumexp_d(S / tau + v),    v = log b - logsumexp_n(S / tau + u).

The last update is u's, so that every point's shares, dustbin included, sum to 1 exactly.

POT's `ot.batch` solves the same problem and gives the same numbers (to the last bit, at as many
iterations). It is not used: it took 1.6 times as long on [2, 129, 4097] float32 on one core, and
would add 33 MB to an installation for two lines.

Shape letters:  N points   D cells
"""

import torch
from jaxtyping import Float
from torch import Tensor


def soft_attention(scores: Float[Tensor, "N D"], temperature: float) -> Float[Tensor, "N D"]:
    """softmax over the cells.

    Raises:
        ValueError: `temperature` <= 0.
    """
    _require_positive(temperature)
    return (scores / temperature).softmax(-1)


def sinkhorn(
    scores: Float[Tensor, "N D"], temperature: float, dustbin: float, iterations: int
) -> Float[Tensor, "N D"]:
    """The transport plan without its dustbin: rows sum to the belief that the point is anywhere.

    Args:
        temperature: tau.
        dustbin: z, on the scale of the scores.
        iterations: of both updates.

    Raises:
        ValueError: `temperature` <= 0, or `iterations` < 1.
    """
    _require_positive(temperature)
    if iterations < 1:
        raise ValueError(f"need at least 1 iteration, got {iterations}")
    num_points, num_cells = scores.shape
    padded = scores.new_full((num_points + 1, num_cells + 1), dustbin / temperature)
    padded[:-1, :-1] = scores / temperature
    log_a = torch.zeros_like(padded[:, 0])
    log_b = torch.zeros_like(padded[0])
    log_a[-1] = torch.tensor(float(num_cells)).log()
    log_b[-1] = torch.tensor(float(num_points)).log()
    v = torch.zeros_like(log_b)
    u = log_a - (padded + v).logsumexp(1)
    for _ in range(iterations):
        v = log_b - (padded + u[:, None]).logsumexp(0)
        u = log_a - (padded + v).logsumexp(1)
    return (padded + u[:, None] + v)[:-1, :-1].exp()


def _require_positive(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"need temperature > 0, got {temperature}")
