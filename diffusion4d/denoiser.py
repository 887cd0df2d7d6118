r"""From network and evidence to the denoiser E[x_0 | x_t, evidence] that samplers take.

What is diffused is what is left to know once a regressor has answered. The regressor gives, for every control point,
a mean mu and a standard deviation s in the coordinates of `coordinates.py`, and

    r = (x - mu) / s

is diffused, with noise that has the covariance of r (`noise.py`). A network that has learnt nothing yet (v = 0) then
samples the regressor's own Gaussian, in the limit of many steps; training adds what a Gaussian can't say. A few steps
give a narrower one: DDIM multiplies the deviation by cos(pi / 2S)^S, .86 at S = 8. Without a regressor mu = 0, s = 1.

Shape letters:  B clips   K hypotheses   N points   M control points.
"""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.coordinates import Coordinates
from diffusion4d.dit import Conditioning, TrajectoryDiT
from diffusion4d.evidence import Evidence
from diffusion4d.noise import Factors, PointNoise
from samplers.predictions import Kind, from_prediction
from samplers.schedules import CosineSchedule, RectifiedSchedule, Schedule

LIMIT = 6.0
"""Residuals are clipped to this many standard deviations of the regressor."""

SCHEDULE = CosineSchedule()


def coordinates_of(network: TrajectoryDiT) -> Coordinates:
    """The coordinates a checkpoint speaks in.

    Raises:
        ValueError: its configuration has none: the network was never trained.
    """
    config = network.config["coordinates"]
    if config is None:
        raise ValueError("need a trained network, got one without coordinates in its configuration")
    return Coordinates(**{**config, "lateral": tuple(config["lateral"])})


def noise_of(network: TrajectoryDiT) -> PointNoise:
    """The noise a velocity network was trained with."""
    config = network.config["noise"]
    if config is None:
        return PointNoise.white(network.config["num_ctrl"])
    return PointNoise.from_config(config)


def path_of(network: TrajectoryDiT) -> tuple[Schedule, Kind]:
    """The path between noise and data that a velocity network was trained on, and which velocity it says."""
    if network.config["path"] == "rectified":
        return RectifiedSchedule(), "flow_prediction"
    return SCHEDULE, "v_prediction"


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A regressor's answer in diffusion coordinates: mean and log standard deviation, [B, N, M, 3] each."""

    mean: Float[Tensor, "B N M 3"]
    log_std: Float[Tensor, "B N M 3"]

    def encode(self, x: Float[Tensor, "*K B N M 3"]) -> Float[Tensor, "*K B N M 3"]:
        """Coordinates to residuals."""
        return ((x - self.mean) / self.log_std.exp()).clamp(-LIMIT, LIMIT)

    def decode(self, r: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """Residuals to coordinates."""
        return self.mean[:, None] + self.log_std.exp()[:, None] * r

    def stacked(self) -> Float[Tensor, "B N M 6"]:
        """As the network takes it."""
        return torch.cat([self.mean, self.log_std], -1)


def regress(network: TrajectoryDiT, evidence: Evidence) -> Anchor:
    """The answer of a "mean" or "gaussian" network; a "mean" network claims unit deviation."""
    out = network(None, None, network.condition(evidence)).float().squeeze(1)
    if network.config["output"] == "mean":
        return Anchor(out, torch.zeros_like(out))
    return Anchor(out[..., :3], bounded_log_std(out[..., 3:]))


def bounded_log_std(raw: Tensor) -> Tensor:
    """Within [e^-4, e^2]; smoothly, so that gradients never vanish altogether."""
    return 3 * torch.tanh((raw + 1) / 3) - 1


@dataclasses.dataclass(frozen=True)
class ClipDenoiser:
    """Everything that depends on the clip alone, computed once: conditioning, anchor, noise factors.

    fused: the velocity of [K, N, M, 3] at one time, packed for this clip and a table's times (`fused.FusedNetwork`);
    None to run the network as it is written.
    """

    network: TrajectoryDiT
    conditioning: Conditioning
    evidence: Evidence
    coordinates: Coordinates
    anchor: Anchor | None
    factors: Factors
    fused: Callable[[Tensor, Tensor], Tensor] | None = None

    def velocity(self, x_t: Float[Tensor, "B K N M 3"], t: Tensor) -> Float[Tensor, "B K N M 3"]:
        """What the network says at x_t, on the cosine path v = alpha_t eps - sigma_t x_0."""
        if self.fused is not None:
            return self.fused(x_t.squeeze(0), t)[None]
        times = t.to(x_t).expand(x_t.shape[:2])
        return self.network(x_t, times, self.conditioning).to(x_t)

    def denoise(self, x_t: Float[Tensor, "B K N M 3"], t: Tensor) -> Float[Tensor, "B K N M 3"]:
        """E[x_0 | x_t, evidence], on the cosine path alpha_t x_t - sigma_t v."""
        schedule, kind = path_of(self.network)
        return from_prediction(schedule, kind)(self.velocity)(x_t, t).clamp(-LIMIT, LIMIT)

    def decode(self, r: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """What was diffused to control points in the camera frame, scene units."""
        x = r if self.anchor is None else self.anchor.decode(r)
        return self.coordinates.decode(x, self.evidence)

    def without_tokens(self) -> "ClipDenoiser":
        """The same clip, its patch tokens withheld from the network: what classifier-free guidance leads away from.

        What is diffused stays the same, since it is measured from the same anchor.
        """
        evidence = dataclasses.replace(self.evidence, tokens=None)
        stacked = None if self.anchor is None else self.anchor.stacked()
        conditioning = self.network.condition(evidence, stacked)
        return dataclasses.replace(self, conditioning=conditioning, evidence=evidence, fused=None)

    def encode(self, ctrl: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """Control points to what is diffused: the inverse of `decode`, within the limits of both."""
        x = self.coordinates.encode(ctrl.transpose(0, 1), self.evidence)
        return (x if self.anchor is None else self.anchor.encode(x)).transpose(0, 1)


def prepare(
    network: TrajectoryDiT, evidence: Evidence, regressor: TrajectoryDiT | None = None
) -> ClipDenoiser:
    """Encode a clip once for all hypotheses and all steps."""
    anchor = None if regressor is None else regress(regressor, evidence)
    conditioning = network.condition(evidence, None if anchor is None else anchor.stacked())
    return ClipDenoiser(
        network,
        conditioning,
        evidence,
        coordinates_of(network),
        anchor,
        noise_of(network).factors(evidence),
    )
