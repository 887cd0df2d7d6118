r"""Bézier segments: one polynomial piece in its own control points.

    p(s) = Σ_i binom(P, i) sⁱ (1 − s)^{P−i} b_i,   s ∈ [0, 1]

De Casteljau's scheme (Farin 2002, *Curves and Surfaces for CAGD*, ch. 4) evaluates it by repeated
interpolation between neighbours. All of its numbers stay in the convex hull of the b_i, so it does
not lose digits where powers of s would.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def de_casteljau(
    bezier: Float[Tensor, "*curves order dim"], s: Float[Tensor, "*params"]
) -> Float[Tensor, "*values dim"]:
    """The point at `s` on each curve; `s` broadcasts against the batch shape of the curves."""
    s = s[..., None, None]
    while bezier.shape[-2] > 1:
        bezier = torch.lerp(bezier[..., :-1, :], bezier[..., 1:, :], s)
    # A curve of degree 0 is constant, but still has a value at each s.
    return bezier.expand(*torch.broadcast_shapes(bezier.shape[:-2], s.shape[:-2]), 1, -1)[..., 0, :]
