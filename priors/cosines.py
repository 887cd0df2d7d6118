r"""The trajectory basis: every point moves along a few low-frequency cosines (Akhter et al. 2008).

    X_n(t) = Σ_{d<D} θ_d(t) a_{n,d},    θ_d(t) = cos(π d (t + ½) / T),   t = 0 … T − 1                  (1)

the discrete cosine transform's first D functions, which are orthogonal over the T frames. Nature is lazy: real
motion has nearly all of its energy in few of them. What is left over is the energy of the prior.

Shape letters:  K hypotheses (any batch)   N points   T frames   D cosines
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def cosine_basis(num_frames: int, num_cosines: int) -> Float64[Tensor, "T D"]:
    """θ of (1), not normalised: the first column is 1.

    Raises:
        ValueError: not 1 <= `num_cosines` <= `num_frames`.
    """
    if not 1 <= num_cosines <= num_frames:
        raise ValueError(
            f"need 1 <= num_cosines <= num_frames, got {num_cosines} for {num_frames} frames"
        )
    time = (torch.arange(num_frames, dtype=torch.float64) + 0.5) / num_frames
    return torch.cos(math.pi * torch.arange(num_cosines, dtype=torch.float64) * time[:, None])


def low_frequency(points: Float[Tensor, "*K N T 3"], num_cosines: int) -> Float[Tensor, "*K N T 3"]:
    """The nearest motion in the first D cosines.

    Raises:
        ValueError: as `cosine_basis`.
    """
    basis = cosine_basis(points.shape[-2], num_cosines).to(points)
    unit = basis / basis.norm(dim=0)
    return unit @ (unit.mT @ points)


def high_frequency_energy(
    points: Float[Tensor, "*K N T 3"], num_cosines: int
) -> Float[Tensor, "*K"]:
    """Mean squared distance from that motion.

    Raises:
        ValueError: as `cosine_basis`.
    """
    rest = points - low_frequency(points, num_cosines)
    return rest.square().sum(-1).mean((-2, -1))
