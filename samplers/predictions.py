r"""What a network predicts, and how it says x_0. Names as in diffusers' `prediction_type`.

    kind               target                source
    sample             x_0
    epsilon            ε                     Ho et al. 2020, eq. 14
    v_prediction       α ε − σ x_0           Salimans & Ho 2022, appendix D
    flow_prediction    ε − x_0               Liu et al. 2023: the velocity of the straight path

All are linear in (x_t, x_0) for given α, σ, so the conversion is exact. Only ε has a pole: where
α = 0 it says nothing about x_0.
"""

from collections.abc import Callable
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from samplers.schedules import Schedule
from samplers.solve import Denoise

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


def from_prediction(schedule: Schedule, kind: Kind) -> Callable[[Predict], Denoise]:
    """Turn a network into a denoiser: `from_prediction(schedule, "v_prediction")(network)`.

    t may be a scalar or `[K]`, one time for each item. Raises ValueError for an unknown kind, here
    and not at the first step.
    """
    if kind not in get_args(Kind):
        raise ValueError(_unknown(kind))

    def to_denoiser(predict: Predict) -> Denoise:
        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            # α and σ are worked out in float64: near t = 1 a float32 1 − ᾱ keeps few digits.
            t_64 = t.double().reshape(t.shape + (1,) * (x_t.dim() - t.dim() if t.dim() else 0))
            alpha, sigma = schedule.alpha(t_64).to(x_t.dtype), schedule.sigma(t_64).to(x_t.dtype)
            return to_x_0(kind, predict(x_t, t), x_t, alpha, sigma)

        return denoise

    return to_denoiser


def _unknown(kind: str) -> str:
    return f"need a kind of prediction out of {', '.join(get_args(Kind))}, got {kind!r}"
