r"""What the network is trained to say, one function an objective: example in, loss out.

velocity   ||v - (alpha_t eps - sigma_t r)||^2 with correlated eps   (Salimans & Ho 2022, appendix D)
mean       ||mu - x||^2                                               the L2 twin
gaussian   s^(2 beta) [(x - mu)^2 / 2 s^2 + log s], beta = 1/2        (beta-NLL, Seitzer et al. 2022, eq. 5)

x are control points in the coordinates of `coordinates.py`, r the residual a regressor leaves (`denoiser.py`).
Plain likelihood (beta = 0) spends little on the mean where the deviation is large; beta = 1/2 does not.

Shape letters:  B clips   N points   M control points.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import denoiser
from diffusion4d.denoiser import SCHEDULE, Anchor
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evidence import Evidence


def mean_loss(
    network: TrajectoryDiT, evidence: Evidence, x: Float[Tensor, "B N M 3"]
) -> Float[Tensor, ""]:
    """Squared error of the conditional mean."""
    return (denoiser.regress(network, evidence).mean - x).square().mean()


def gaussian_loss(
    network: TrajectoryDiT, evidence: Evidence, x: Float[Tensor, "B N M 3"]
) -> Float[Tensor, ""]:
    """beta-NLL with beta = 1/2."""
    answer = denoiser.regress(network, evidence)
    scaled = (x - answer.mean) / answer.log_std.exp()
    return (answer.log_std.detach().exp() * (scaled.square() / 2 + answer.log_std)).mean()


def velocity_loss(
    network: TrajectoryDiT,
    evidence: Evidence,
    x: Float[Tensor, "B N M 3"],
    generator: torch.Generator,
    *,
    anchor: Anchor | None,
    noisy_power: float,
) -> Float[Tensor, ""]:
    """v-prediction at t = uniform ** noisy_power."""
    r = (x if anchor is None else anchor.encode(x))[:, None]
    white = torch.randn(r.shape, generator=generator)
    noise = denoiser.noise_of(network).factors(evidence).correlate(white)
    t = torch.rand((len(x), 1), generator=generator) ** noisy_power
    alpha, sigma = (f(t)[..., None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    stacked = None if anchor is None else anchor.stacked()
    conditioning = network.condition(evidence, stacked)
    velocity = network(alpha * r + sigma * noise, t, conditioning)
    return (velocity.float() - (alpha * noise - sigma * r)).square().mean()
