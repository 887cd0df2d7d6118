r"""What a trial diffuses: coordinates, what they are relative to, noise, and what the network predicts.

    projective    ((X, Y) / Z - e, log Z) / scale          the library's
    Cartesian     ((X, Y) - e, Z - 1) / scale              off the evidence e lifted at depth 1

Either may be anchored: r = (x - mu) / s with mean and deviation of a regressor. Scales depend on the share that was
seen and on the lens in the same way.

Shape letters:  B clips   K samples   N points   M control points.
"""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import denoiser
from diffusion4d.config import Train
from diffusion4d.coordinates import BINS, Coordinates
from diffusion4d.denoiser import LIMIT, Anchor, ClipDenoiser
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evidence import Evidence
from diffusion4d.noise import PointNoise
from diffusion4d.scenes.batches import Example
from samplers.predictions import Kind, from_prediction
from samplers.schedules import CosineSchedule, RectifiedSchedule

COSINE, STRAIGHT = CosineSchedule(), RectifiedSchedule()

Way = tuple[Literal["ancestral", "angular", "ddim", "dpmpp_2m", "renoised"], int]
"""A sampler and its number of steps. ddim is Euler's method on the straight path."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """How one sampler is trained, and the ways it is sampled; the first is the one that is compared."""

    ways: tuple[Way, ...] = (("ancestral", 8),)
    coordinates: Literal["projective", "cartesian"] = "projective"
    kind: Kind = "v_prediction"
    noise: Literal["correlated", "white"] = "correlated"
    energy_steps: int = 0
    """Steps that the energy score is trained through; 0 for the objective of `kind`."""
    start: Literal["nothing", "velocity"] = "nothing"
    """velocity: half of the compute of an energy-trained one goes to the velocity objective first."""
    anchor: Literal["given", "own", "none"] = "given"
    width: int = 192
    withheld: float | None = None
    """Share of the batches with images whose tokens are withheld; None for no images."""
    share: float = 1.0
    """Of the compute. 0 is the regressor's Gaussian."""
    rate: float = 1.0
    """Learning rate over that of the others."""
    seed: int = 0

    @property
    def schedule(self) -> CosineSchedule | RectifiedSchedule:
        return STRAIGHT if self.kind == "flow_prediction" else COSINE


@dataclasses.dataclass(frozen=True)
class Cartesian:
    """Offsets in scene units from the evidence at depth 1, whitened and clipped as `Coordinates` are."""

    whitening: Coordinates

    def encode(
        self, ctrl: Float[Tensor, "B N M 3"], evidence: Evidence
    ) -> Float[Tensor, "B N M 3"]:
        """Scene-space control points to diffusion coordinates."""
        limit = self.whitening.limit
        offset = (ctrl - lifted(evidence)) / self.whitening.scale(evidence)
        return offset.clamp(-limit, limit)

    def decode(
        self, x: Float[Tensor, "B K N M 3"], evidence: Evidence
    ) -> Float[Tensor, "B K N M 3"]:
        """Diffusion coordinates of K hypotheses to scene-space control points."""
        return lifted(evidence)[:, None] + x * self.whitening.scale(evidence)[:, None]

    @classmethod
    def fit(cls, ctrl: Float[Tensor, "B N M 3"], evidence: Evidence) -> "Cartesian":
        """Scales by share seen and lens, as `Coordinates.fit` finds them for the points whose offsets these are."""
        unit = Coordinates(lateral=(1.0,) * BINS, depth=1.0)
        offset = (ctrl - lifted(evidence)).double()
        return cls(Coordinates.fit(unit.decode(offset[:, None], evidence)[:, 0], evidence))


def lifted(evidence: Evidence) -> Float[Tensor, "B N M 3"]:
    """The evidence at depth 1."""
    return torch.nn.functional.pad(evidence.ctrl, (0, 1), value=1.0)


@dataclasses.dataclass(frozen=True)
class Space:
    """What is diffused: residuals of a regressor, or coordinates themselves, with their noise."""

    coordinates: Coordinates | Cartesian
    regressor: TrajectoryDiT | None
    noise: PointNoise

    @classmethod
    def fit(cls, trial: Trial, example: Example, regressor: TrajectoryDiT | None) -> "Space":
        """The trial's space, fitted to a large batch."""
        if regressor is not None:
            coordinates = denoiser.coordinates_of(regressor)
        elif trial.coordinates == "cartesian":
            coordinates = Cartesian.fit(example.ctrl, example.evidence)
        else:
            coordinates = Coordinates.fit(example.ctrl, example.evidence)
        white = PointNoise.white(example.ctrl.shape[-2])
        space = cls(coordinates, regressor, white)
        if trial.noise == "white":
            return space
        residual, _ = space.encode(example)
        return dataclasses.replace(space, noise=PointNoise.fit(residual, example.evidence))

    @torch.no_grad()
    def anchor(self, evidence: Evidence) -> Anchor | None:
        """The regressor's answer. It is asked without tokens: what these bring is the sampler's own."""
        if self.regressor is None:
            return None
        return denoiser.regress(self.regressor, dataclasses.replace(evidence, tokens=None))

    def encode(self, example: Example) -> tuple[Float[Tensor, "B N M 3"], Anchor | None]:
        """What is to be sampled, and the anchor it is relative to."""
        x = self.coordinates.encode(example.ctrl, example.evidence)
        anchor = self.anchor(example.evidence)
        return (x if anchor is None else anchor.encode(x)), anchor

    def network(self, trial: Trial, config: Train) -> TrajectoryDiT:
        """An untrained network for this space."""
        torch.manual_seed(config.seed)
        return TrajectoryDiT(
            **dataclasses.asdict(config.network),
            anchored=self.regressor is not None,
            trained_steps=trial.energy_steps or None,
            coordinates=None
            if isinstance(self.coordinates, Cartesian)
            else dataclasses.asdict(self.coordinates),
            noise=dataclasses.asdict(self.noise),
        )

    def prepare(self, network: TrajectoryDiT, evidence: Evidence, trial: Trial) -> "Clips":
        """All that depends on the clips alone."""
        anchor = self.anchor(evidence)
        conditioning = network.condition(evidence, None if anchor is None else anchor.stacked())
        unused = denoiser.coordinates_of(self.regressor) if self.regressor else Coordinates((), 1)
        factors = self.noise.factors(evidence)
        clip = ClipDenoiser(network, conditioning, evidence, unused, anchor, factors)
        return Clips(clip, self.coordinates, trial)


@dataclasses.dataclass(frozen=True)
class Clips:
    """A denoiser for any kind of prediction and any coordinates."""

    clip: ClipDenoiser
    coordinates: Coordinates | Cartesian
    trial: Trial

    def denoise(self, x_t: Float[Tensor, "B K N M 3"], t: Tensor) -> Float[Tensor, "B K N M 3"]:
        """E[x_0 | x_t, evidence]."""
        to_denoiser = from_prediction(self.trial.schedule, self.trial.kind)
        return to_denoiser(self.clip.velocity)(x_t, t).clamp(-LIMIT, LIMIT)

    def decode(self, r: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """What was diffused to control points in scene space."""
        anchor = self.clip.anchor
        x = r if anchor is None else anchor.decode(r)
        return self.coordinates.decode(x, self.clip.evidence)
