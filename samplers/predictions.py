r"""What a network predicts, and how it says x_0. Names as in diffusers' `prediction_type`.

    kind               target                source
    sample             x_0
    epsilon            ε                     Ho et al. 2020, eq. 14
    v_prediction       α ε − σ x_0           Salimans & Ho 2022, appendix D
    flow_prediction    ε − x_0               Liu et al. 2023: the velocity of the straight path

All are linear in (x_t, x_0) for given α, σ, so the conversion is exact: x_0 = p x_t + q m for a prediction m. Only ε
has a pole: where α = 0 it says nothing about x_0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from samplers.kernels.update import Parts

Kind = Literal["sample", "epsilon", "v_prediction", "flow_prediction"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t `[K, ...]`, t) → the network's target `[K, ...]`."""


def target(
    kind: Kind,
    x_0: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    alpha: Float[Tensor, "..."],
    sigma: Float[Tensor, "..."],
) -> Float[Tensor, "*shape"]:
    """What a network of this kind is trained to answer at x_t = α x_0 + σ ε.

    alpha and sigma broadcast against x_0. Raises ValueError for an unknown kind.
    """
    match kind:
        case "sample":
            return x_0
        case "epsilon":
            return noise
        case "v_prediction":
            return alpha * noise - sigma * x_0
        case "flow_prediction":
            return noise - x_0
    raise ValueError(_unknown(kind))


def to_x_0(
    kind: Kind,
    prediction: Float[Tensor, "*shape"],
    x_t: Float[Tensor, "*shape"],
    alpha: Float[Tensor, "..."],
    sigma: Float[Tensor, "..."],
) -> Float[Tensor, "*shape"]:
    """The x_0 that a prediction at x_t stands for, the inverse of `target`.

    alpha and sigma broadcast against x_t. Raises ValueError for an unknown kind, or for epsilon
    where alpha is 0.
    """
    match kind:
        case "sample":
            return prediction
        case "epsilon":
            if bool((alpha == 0).any()):
                raise ValueError("epsilon does not determine x_0 where alpha is 0: need alpha > 0")
            return (x_t - sigma * prediction) / alpha
        case "v_prediction":
            # The denominator is 1 for variance-preserving schedules only.
            return (alpha * x_t - sigma * prediction) / (alpha**2 + sigma**2)
        case "flow_prediction":
            return (x_t - sigma * prediction) / (alpha + sigma)
    raise ValueError(_unknown(kind))


def weights(
    kind: Kind, alpha: Float[Tensor, "..."], sigma: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """p and q of x_0 = p x_t + q prediction: `to_x_0` with its numbers worked out.

    Raises ValueError for an unknown kind, or for epsilon where alpha is 0.
    """
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    return to_x_0(kind, zero, one, alpha, sigma), to_x_0(kind, one, zero, alpha, sigma)


@runtime_checkable
class Scales(Protocol):
    """The part of a `Schedule` that conversions need."""

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the signal."""
        ...

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the noise."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One or two networks as a denoiser, which `solve` can take apart and put together within its update.

        x̂_0 = clamp(p x_t + q Σ_i gains_i networks_i(x_t, t), ±limit)

    networks: of one kind on one schedule. gains: one each, 1 in sum. limit: of x̂_0, in the units of x; None leaves it
    free. Raises ValueError for an unknown kind, other gains, or a limit that is not positive.
    """

    schedule: Scales
    kind: Kind
    networks: tuple[Predict, ...]
    gains: tuple[float, ...] = (1.0,)
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(_unknown(self.kind))
        if len(self.networks) != len(self.gains) or not 1 <= len(self.gains) <= 2:
            raise ValueError(
                f"need one or two networks with a gain each, got {len(self.networks)} networks "
                f"and gains={self.gains}"
            )
        if not abs(sum(self.gains) - 1) < 1e-6:
            raise ValueError(f"need gains whose sum is 1, got gains={self.gains}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"need a limit above 0, got limit={self.limit}")

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0 at x_t; t may be a scalar or `[K]`, one time for each item."""
        # α and σ are worked out in float64: near t = 1 a float32 1 − ᾱ keeps few digits.
        t_64 = t.double().reshape(t.shape + (1,) * (x_t.dim() - t.dim() if t.dim() else 0))
        alpha, sigma = (
            scale(t_64).to(x_t.dtype) for scale in (self.schedule.alpha, self.schedule.sigma)
        )
        first, *others = self._answers(x_t, t)
        mixed = first if not others else self.gains[0] * first + self.gains[1] * others[0]
        x_0 = to_x_0(self.kind, mixed, x_t, alpha, sigma)
        return x_0 if self.limit is None else x_0.clamp(-self.limit, self.limit)

    def parts(self, x_t: Tensor, t: Tensor, time: float) -> Parts:
        """What the networks say at t, and how x̂_0 is made of it; `time` is t in double precision."""
        at = torch.tensor(time, dtype=torch.float64)
        p, q = weights(self.kind, self.schedule.alpha(at), self.schedule.sigma(at))
        predictions = self._answers(x_t, t)
        gains = tuple(q.item() * gain for gain in self.gains)
        return Parts(predictions, p.item(), gains, self.limit)

    def _answers(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        first = self.networks[0](x_t, t)
        if len(self.networks) == 1:
            return (first,)
        # A copy, since both may be one network that writes into the same memory.
        first = first.clone()
        return (first, self.networks[1](x_t, t))


def from_prediction(
    schedule: Scales, kind: Kind, limit: float | None = None
) -> Callable[[Predict], Prediction]:
    """Turn a network into a denoiser: `from_prediction(schedule, "v_prediction")(network)`.

    Raises ValueError for an unknown kind or a limit that is not positive, here and not at the first step.
    """
    if kind not in get_args(Kind):
        raise ValueError(_unknown(kind))
    if limit is not None and not limit > 0:
        raise ValueError(f"need a limit above 0, got limit={limit}")
    return lambda predict: Prediction(schedule, kind, (predict,), limit=limit)


def _unknown(kind: str) -> str:
    return f"need a kind of prediction out of {', '.join(get_args(Kind))}, got {kind!r}"
