r"""How much signal and how much noise: x_t = α_t x_0 + σ_t ε, from t = 1 (noise) to t = 0 (data).

                 α_t            σ_t
    cosine       cos(π t / 2)   sin(π t / 2)   α² + σ² = 1, Salimans & Ho 2022
    rectified    1 − t          t              straight lines, Liu et al. 2023; Lipman et al. 2023
    discrete     √ᾱ             √(1 − ᾱ)       Ho et al. 2020, eq. 4; the ᾱ_i of diffusers

log-SNR is log(α_t² / σ_t²) (Kingma et al. 2021), twice the λ of DPM-Solver; it is +∞ at t = 0.
Every method keeps the shape, dtype and device of its argument; step tables ask in float64.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """What grids, tables and predictions need to know. Shapes: `[*batch]` in, `[*batch]` out."""

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the signal, 1 at t = 0."""
        ...

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the noise, 0 at t = 0."""
        ...

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """log(α² / σ²), strictly falling in t."""
        ...

    def t_of_log_snr(self, log_snr: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The inverse of `log_snr`; ±∞ are allowed."""
        ...


@dataclass(frozen=True)
class CosineSchedule:
    """α = cos(π t / 2), σ = sin(π t / 2): variance-preserving, ends exactly at pure noise."""

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        # The sine of the complement is exactly 0 at t = 1, where cos(π / 2) rounds to 6e-17.
        return torch.sin((1 - t) * (math.pi / 2))

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return torch.sin(t * (math.pi / 2))

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def t_of_log_snr(self, log_snr: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return torch.atan(torch.exp(-log_snr / 2)) * (2 / math.pi)


@dataclass(frozen=True)
class RectifiedSchedule:
    """α = 1 − t, σ = t: the path of rectified flow and flow matching."""

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return 1 - t

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return t.clone()

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return 2 * (torch.log1p(-t) - t.log())

    def t_of_log_snr(self, log_snr: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A variance-preserving schedule known at n training steps, as diffusers keeps it.

    Step i of n sits at t = (i + 1) / n, and clean data (ᾱ = 1) at t = 0; in between ᾱ is linear in
    t, so a step table at the nodes is exactly diffusers' own. Unlike its siblings it may keep some
    signal at t = 1.

    alphas_cumprod: `[n]`, ᾱ_0 … ᾱ_{n−1}, strictly falling within (0, 1), the last may be 0. Kept in
    float64. Raises ValueError otherwise.
    """

    alphas_cumprod: Float[Tensor, "n"]

    def __post_init__(self) -> None:
        alphas = self.alphas_cumprod.detach().double()
        if alphas.numel() == 0:
            raise ValueError("need at least one value in alphas_cumprod, got none")
        # Negated, so that NaN is refused as well.
        if not (alphas[0] < 1 and alphas[-1] >= 0 and bool((alphas.diff() < 0).all())):
            raise ValueError(
                "need alphas_cumprod strictly falling, below 1 and not below 0, "
                f"got {len(alphas)} values from {alphas[0].item()} to {alphas[-1].item()}"
            )
        object.__setattr__(self, "alphas_cumprod", alphas)

    @classmethod
    def from_betas(cls, betas: Float[Tensor, "n"]) -> "DiscreteSchedule":
        """ᾱ_i = Π_{j ≤ i} (1 − β_j), the product taken in float64 (Ho et al. 2020, eq. 4)."""
        return cls(torch.cumprod(1 - betas.double(), 0))

    @property
    def num_train_steps(self) -> int:
        return len(self.alphas_cumprod)

    def time_of_index(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """t (float64) of training step `index` in 0 … n − 1; index −1 is clean data at t = 0."""
        return (index.double() + 1) / self.num_train_steps

    def index_of_time(self, t: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """The nearest training step, which a network trained on integer steps wants as its time."""
        return torch.round(t.double() * self.num_train_steps).long() - 1

    def _nodes(self, device: torch.device) -> Float[Tensor, "nodes"]:
        """ᾱ at t = 0, 1/n, …, 1."""
        alphas = self.alphas_cumprod.to(device)
        return torch.cat([alphas.new_ones(1), alphas])

    def _alpha_squared(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        nodes = self._nodes(t.device)
        position = t.double() * self.num_train_steps
        left = position.floor().clamp(0, self.num_train_steps - 1).long()
        return torch.lerp(nodes[left], nodes[left + 1], position - left)

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self._alpha_squared(t).sqrt().to(t.dtype)

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return (1 - self._alpha_squared(t)).sqrt().to(t.dtype)

    def log_snr(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return torch.logit(self._alpha_squared(t)).to(t.dtype)

    def t_of_log_snr(self, log_snr: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The inverse of `log_snr`; below the log-SNR of t = 1 it answers 1."""
        # σ² rises with t, as searchsorted wants.
        nodes = 1 - self._nodes(log_snr.device)
        noise = torch.sigmoid(-log_snr.double()).clamp(nodes[0], nodes[-1])
        right = torch.searchsorted(nodes, noise).clamp(1, self.num_train_steps)
        fraction = (noise - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
        return ((right - 1 + fraction) / self.num_train_steps).to(log_snr.dtype)
