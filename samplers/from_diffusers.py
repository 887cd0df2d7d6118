r"""Any linear scheduler of diffusers as a table, read off the scheduler itself.

A linear scheduler cannot tell numbers from unknowns. So it is walked once with unknowns: x is a row of weights of
(x_1, the answers, the noises), answer i is a unit vector, and `scheduler.step` then returns the weights of the next x.
From two neighbours x_i and x_{i+1} follows the row

    x_{i+1} = a x_i + b x̂_i + Σ_j d_j x̂_{i−j} + e ε_i

a from everything older than the answers a row may use, the rest by subtraction. Whatever is left over is something
that the scheduler remembers and a row does not have, and the scheduler is refused: the noise of an earlier step, or
past answers of an ε-network, which are made of past x as well. Noise is told apart by two draws of known numbers.

diffusers' own x is σ-scaled in some classes; here x_t = α x_0 + σ ε is what the network sees, always. Noise levels are
diffusers' own, which it keeps in float32; all that follows from them is worked out in float64, also in classes that
round x to float32. In float32 three digits of Heun's a would be left where a step keeps a thousandth of x_t. So tables
agree with diffusers' loops to the rounding of these.
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.overrides import TorchFunctionMode

from samplers.predictions import Kind, Predict, Prediction, target
from samplers.tables import Table


@dataclass(frozen=True)
class _Class:
    """How a class keeps its x (`exploding`: divided by α), its noise levels, and what it can be asked.

    lags: how many earlier answers it uses, on top of its `solver_order` where `by_order`.
    """

    levels: Literal["cumulative", "sigma", "flow"]
    probe: Kind
    exploding: bool = False
    lags: int = 0
    by_order: bool = False


_CLASSES: Final = {
    "DDIMScheduler": _Class("cumulative", "sample"),
    "DDPMScheduler": _Class("cumulative", "sample"),
    "EulerDiscreteScheduler": _Class("sigma", "sample", exploding=True),
    "EulerAncestralDiscreteScheduler": _Class("sigma", "v_prediction", exploding=True),
    "HeunDiscreteScheduler": _Class("sigma", "v_prediction", exploding=True, lags=1),
    "DPMSolverMultistepScheduler": _Class("sigma", "sample", lags=-1, by_order=True),
    "DPMSolverSinglestepScheduler": _Class("sigma", "sample", lags=-1, by_order=True),
    "UniPCMultistepScheduler": _Class("sigma", "sample", by_order=True),
    "FlowMatchEulerDiscreteScheduler": _Class("flow", "flow_prediction"),
    "FlowMatchHeunDiscreteScheduler": _Class("flow", "flow_prediction", lags=1),
}

# What makes a step depend on more than weighted sums, and the values that do not.
_LINEAR: Final[dict[str, tuple[Any, ...]]] = {
    "thresholding": (False,),
    "clip_sample": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "solver_p": (None,),
    "invert_sigmas": (False,),
}

_TOLERANCE: Final = 1e-6
"""Of the weights left over. Rounding leaves 1e-14, what a row lacks leaves hundredths."""


@dataclass(frozen=True, eq=False)
class Levels:
    """α and σ at a table's times, as a prediction needs them; any other t gets those of the nearest one."""

    times: Float64[Tensor, "times"]
    alphas: Float64[Tensor, "times"]
    sigmas: Float64[Tensor, "times"]

    def _at(self, t: Tensor, values: Tensor) -> Tensor:
        nearest = (self.times.to(t) - t[..., None]).abs().argmin(-1)
        return values.to(t)[nearest]

    def alpha(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the signal."""
        return self._at(t, self.alphas)

    def sigma(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Scale of the noise."""
        return self._at(t, self.sigmas)


@dataclass(frozen=True, eq=False)
class Converted:
    """A table, and how the network that the scheduler was made for says x_0.

    table: its times are σ / (α + σ), which orders the steps of any schedule.
    kind: what the network predicts. timesteps: `[S]`, what it is told as its time, one a row.
    alpha, sigma: `[S+1]`, of the x_t that it sees, and of the result; classes that keep x / α return x_0's estimate
        divided by the last α, which is 1 unless `final_sigmas_type` is "sigma_min".
    initial_scale: standard normal noise times this is what diffusers' pipelines start from.
    """

    table: Table
    kind: Kind
    timesteps: Tensor
    alpha: Float64[Tensor, "times"]
    sigma: Float64[Tensor, "times"]
    initial_scale: float

    def denoiser(self, predict: Predict) -> Prediction:
        """A network that takes (x_t, diffusers' time step) as a denoiser for this table's times."""

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            row = (self.table.times[:-1].to(t) - t).abs().argmin()
            return predict(x_t, self.timesteps.to(x_t.device)[row])

        return Prediction(Levels(self.table.times, self.alpha, self.sigma), self.kind, (network,))


def convert(
    scheduler: Any, num_steps: int | None = None, *, eta: float | None = None, **grid: Any
) -> Converted:
    """The table of a diffusers scheduler, or of its configuration, for `num_steps` steps.

    scheduler: an instance, which is left as it was, or the mapping that its `save_pretrained` writes.
    eta: of a DDIM scheduler, where it is an argument of the step. grid: passed on to `set_timesteps`, such as mu=…, or
    sigmas=… and no num_steps.
    Raises ValueError for a class that is not known here to be linear, or a setting that makes it nonlinear
    (thresholding, clipping, a predicted variance) or makes it remember what a row does not have.
    """
    scheduler, known = _checked(scheduler)
    kind = "flow_prediction" if known.levels == "flow" else scheduler.config.prediction_type
    if kind not in get_args(Kind):
        raise ValueError(f"need a prediction_type out of {', '.join(get_args(Kind))}, got {kind!r}")
    if known.levels != "flow":
        scheduler.register_to_config(prediction_type=known.probe)
    if num_steps is not None:
        grid = {"num_inference_steps": num_steps, **grid}
    scheduler.set_timesteps(**grid)
    alpha, sigma = _levels(scheduler, known)
    lags = known.lags + (scheduler.config.solver_order if known.by_order else 0)
    options = {} if eta is None else {"eta": eta}
    if eta is not None and "eta" not in inspect.signature(scheduler.step).parameters:
        raise ValueError(f"need a scheduler whose step takes eta, got {type(scheduler).__name__}")
    own_scale = alpha if known.exploding else torch.ones_like(alpha)
    noise_scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    timesteps = scheduler.timesteps.clone()
    _in_double(scheduler)
    states = _walk(scheduler, known.probe, alpha, sigma, own_scale, options)
    a, b, d, e = _rows(states, min(lags, len(states) - 2), type(scheduler).__name__)
    return Converted(
        Table(sigma / (alpha + sigma), a, b, d, e),
        kind,
        timesteps,
        alpha,
        sigma,
        own_scale[0].item() * noise_scale,
    )


def _checked(scheduler: Any) -> tuple[Any, _Class]:
    """A copy of the scheduler, or one made from a configuration, and what is known of its class."""
    from_config = isinstance(scheduler, Mapping)
    name = str(scheduler.get("_class_name")) if from_config else type(scheduler).__name__
    if name not in _CLASSES:
        raise ValueError(f"need a scheduler out of {', '.join(_CLASSES)}, got {name}")
    if from_config:
        import diffusers

        scheduler = getattr(diffusers, name).from_config(dict(scheduler))
    scheduler = copy.deepcopy(scheduler)
    for setting, linear in _LINEAR.items():
        value = scheduler.config.get(setting, linear[0])
        if value not in linear:
            raise ValueError(
                f"a table is linear: need {setting} out of {linear}, got {setting}={value!r} of {name}. "
                "What is done to x_0 alone can be done by guidance.corrected"
            )
    return scheduler, _CLASSES[name]


def _levels(
    scheduler: Any, known: _Class
) -> tuple[Float64[Tensor, "times"], Float64[Tensor, "times"]]:
    """α and σ at every evaluation, and where the last row arrives."""
    if known.levels == "cumulative":
        cumulative = scheduler.alphas_cumprod.double()
        steps, last = scheduler.timesteps.long(), torch.ones((), dtype=torch.float64)
        if hasattr(scheduler, "final_alpha_cumprod"):
            # DDIM takes the step before to be a fixed number of training steps earlier, where DDPM goes to the data.
            end = steps[-1] - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
            last = cumulative[end] if end >= 0 else scheduler.final_alpha_cumprod.double()
        squared = torch.cat([cumulative[steps], last[None]])
        return squared.sqrt(), (1 - squared).sqrt()
    sigma = scheduler.sigmas.double()
    if known.levels == "flow" or scheduler.config.get("use_flow_sigmas", False):
        return 1 - sigma, sigma
    alpha = (1 + sigma.square()).rsqrt()
    return alpha, sigma * alpha


def _walk(
    scheduler: Any,
    probe: Kind,
    alpha: Float64[Tensor, "times"],
    sigma: Float64[Tensor, "times"],
    own_scale: Float64[Tensor, "times"],
    options: dict[str, Any],
) -> Float64[Tensor, "times weights"]:
    """Every x as weights of x_1, the S answers and the S noises."""
    S = len(alpha) - 1
    unit = torch.eye(1 + 2 * S, dtype=torch.float64)
    states = [unit[0]]
    for i, timestep in enumerate(scheduler.timesteps):
        x, answer = states[-1], unit[1 + i]
        prediction = target(probe, answer, (x - alpha[i] * answer) / sigma[i], alpha[i], sigma[i])
        own = (x / own_scale[i])[None]
        if hasattr(scheduler, "scale_model_input"):
            # Some classes find out here where in the grid they are.
            scheduler.scale_model_input(own, timestep)
        x_s, e = _step(scheduler, prediction[None], timestep, own, options)
        if not bool(x_s.isfinite().all()):
            raise ValueError(
                f"need finite steps, but step {i} of {type(scheduler).__name__} is not finite"
            )
        states.append(own_scale[i + 1] * (x_s + e * unit[1 + S + i]))
    return torch.stack(states)


def _in_double(scheduler: Any) -> None:
    """Noise levels and what comes with them at float64, with the values that they had."""
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32 and name != "timesteps":
            setattr(scheduler, name, value.double())


class _InDouble(TorchFunctionMode):
    """Whoever asks torch for float32 gets float64: some classes round x, or draw their noise, in float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        named = {
            key: torch.float64 if value is torch.float32 else value
            for key, value in (kwargs or {}).items()
        }
        return func(*args, **named)


def _step(
    scheduler: Any,
    prediction: Float64[Tensor, "1 weights"],
    timestep: Tensor,
    own: Float64[Tensor, "1 weights"],
    options: dict[str, Any],
) -> tuple[Float64[Tensor, "weights"], float]:
    """The scheduler's step without its noise, and how much of it there was."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        with _InDouble():
            return scheduler.step(prediction, timestep, own, **options).prev_sample[0], 0.0
    draws, steps = [], []
    # The first draw is made by a copy, because a step changes its scheduler.
    for seed, walker in ((1, copy.deepcopy(scheduler)), (2, scheduler)):
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.randn(own.shape, generator=generator.clone_state(), dtype=own.dtype)[0])
        with _InDouble():
            out = walker.step(prediction, timestep, own, generator=generator, **options)
        steps.append(out.prev_sample[0])
    difference = draws[1] - draws[0]
    e = ((steps[1] - steps[0]) @ difference / (difference @ difference)).item()
    return steps[1] - e * draws[1], e


def _rows(
    states: Float64[Tensor, "times weights"], lags: int, name: str
) -> tuple[
    Float64[Tensor, "rows"],
    Float64[Tensor, "rows"],
    Float64[Tensor, "rows {lags}"],
    Float64[Tensor, "rows"],
]:
    """Columns a, b, d, e of the rows that lead from each x to the next."""
    S = len(states) - 1
    a, b, e = torch.zeros(3, S, dtype=torch.float64)
    d = torch.zeros(S, lags, dtype=torch.float64)
    for i in range(S):
        x, x_s = states[i], states[i + 1]
        answers = torch.arange(max(0, i - lags), i + 1) + 1
        noise = 1 + S + i
        older = torch.ones(len(x), dtype=torch.bool)
        older[answers], older[noise] = False, False
        a[i] = x_s[older] @ x[older] / (x[older] @ x[older])
        rest = x_s - a[i] * x
        left_over = rest[older].abs().max().item()
        if left_over > _TOLERANCE:
            raise ValueError(
                "need a scheduler that remembers the denoiser's answers and nothing else, got "
                f"{name}, whose step {i} also depends on earlier x or noise (by {left_over:.2g})"
            )
        b[i], e[i] = rest[1 + i], rest[noise]
        d[i, : len(answers) - 1] = rest[answers[:-1]].flip(0)
    return a, b, d, e
