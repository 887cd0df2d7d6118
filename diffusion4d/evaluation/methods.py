r"""Every method's answer to a case: K samples of the trajectories, or one.

All of them see the same evidence, are snapped to the same tracks and scaled the same way. Names in the table:

    samples, samples@S      the sampler at its usual number of steps, and at S of them
    l2 twin, l1 twin        regressors of one answer; dressed l2 twin, ...: the same with noise on top (`baselines`)
    regressor               the mean of the network the sampler stands on
    gaussian head           that network's own mean and covariance of every point, trained by likelihood: deviations as
                            predicted times a fitted temperature (`fits`), correlated over time as its residuals are
    gaussian head, joint    the same with the residuals' correlation between points as well
    trajectory basis        rigid cameras and a DCT of every point's way (`trajectory_basis`)
    flat lift               depth 1
    peer setting            another sampler, with the settings its own configuration names

Shape letters:  K samples   N points   M control points   T frames.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import baselines, denoiser, sampling
from diffusion4d.baselines import Dressing
from diffusion4d.clip import key_frames
from diffusion4d.config import Evaluate, SamplerName
from diffusion4d.denoiser import Anchor, ClipDenoiser
from diffusion4d.errors import UserError
from diffusion4d.evaluation.cases import Case
from diffusion4d.evaluation.trajectory_basis import trajectory_basis
from diffusion4d.evidence import Evidence, Tokens
from diffusion4d.fused import Precision
from diffusion4d.loops import choose
from diffusion4d.metrics import CALIBRATION_DRAWS
from diffusion4d.noise import Factors
from diffusion4d.pipeline import NUM_KEY_FRAMES, Diffusion4DPipeline
from priors.dinov3 import Encoder, load_encoder
from priors.tokens import TokenGrid

NUM_SCORED = 16
"""Samples that energy scores are taken over, and K of best-of-K."""

HEADS = ("gaussian head", "gaussian head, joint")

Answers = dict[str, Float[Tensor, "_ N T 3"]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A pipeline and the encoder its tokens come from; None where it takes none or is to do without."""

    pipe: Diffusion4DPipeline
    encoder: Encoder | None

    @classmethod
    def load(cls, name_or_folder: str | Path, *, with_tokens: bool) -> "Model":
        """A packaged model or a folder.

        Raises:
            UserError: no such model, or its encoder cannot be had.
        """
        pipe = Diffusion4DPipeline.from_pretrained(name_or_folder)
        name = pipe.config["encoder"]
        if name is None or not with_tokens:
            return cls(pipe, None)
        # Refuses an encoder other than the one the model was trained with.
        pipe.use_encoder(name)
        return cls(pipe, load_encoder(name))

    @property
    def multiplicity(self) -> int:
        """Of the interior knots of its splines."""
        return self.pipe.transformer.config["multiplicity"]

    def evidence(self, case: Case, grid: TokenGrid | None) -> Evidence:
        """The case as this model's networks take it."""
        evidence = case.evidence(self.pipe.transformer.config["num_ctrl"], self.multiplicity)
        if self.encoder is None or grid is None:
            return evidence
        frames = pictured(case)
        tokens = Tokens.of_clip(
            grid,
            case.clip.tracks[:, frames],
            case.clip.visibility[:, frames],
            case.intrinsics,
        )
        return dataclasses.replace(evidence, tokens=tokens)

    def prepared(self, case: Case, grid: TokenGrid | None) -> ClipDenoiser:
        """The clip, encoded once."""
        return denoiser.prepare(
            self.pipe.transformer, self.evidence(case, grid), self.pipe.regressor
        )


def pictured(case: Case) -> Tensor:
    """Places of the pictures that are encoded: all there are, or key frames of a clip that has one for every frame."""
    frames = case.clip.frames
    assert frames is not None
    if len(frames) <= NUM_KEY_FRAMES:
        return frames
    return frames[key_frames(case.clip.u[frames].double(), NUM_KEY_FRAMES)]


def encode(case: Case, encoder: Encoder | None) -> TokenGrid | None:
    """Patch tokens of a clip with pictures; they span the view whatever the pictures' resolution."""
    if encoder is None or case.clip.images is None or case.clip.frames is None:
        return None
    frames = pictured(case)
    chosen = torch.isin(case.clip.frames, frames)
    grid = encoder.encode(case.clip.images[chosen].float() / 255, case.clip.u[frames])
    return dataclasses.replace(grid, size=case.clip.size)


@dataclasses.dataclass(frozen=True)
class Models:
    """Everything that is scored. steps and name: how the sampler is run; sweep: further numbers of steps."""

    sampler: Model
    twins: dict[str, Model]
    peer: Model | None
    steps: int
    sweep: tuple[int, ...]
    name: SamplerName
    precision: Precision

    @classmethod
    def load(cls, config: Evaluate) -> "Models":
        """The models a configuration names.

        Raises:
            UserError: one of them does not exist, or is not what it is given as.
        """
        tokens = config.tokens == "auto"
        if config.sampler is not None:
            sampling.check_sampler(config.sampler)
        sampler = Model.load(config.model, with_tokens=tokens)
        named = {"l2 twin": config.twin, "l1 twin": config.l1_twin}
        twins = {n: Model.load(x, with_tokens=tokens) for n, x in named.items() if x is not None}
        peer = None if config.peer is None else Model.load(config.peer, with_tokens=tokens)
        for name, model, wanted in [
            ("model", sampler, False),
            *((n, m, True) for n, m in twins.items()),
            *([("peer", peer, False)] if peer else []),
        ]:
            if model.pipe.deterministic != wanted:
                kind = "one answer" if model.pipe.deterministic else "samples"
                raise UserError(
                    f"need a model that gives {'one answer' if wanted else 'samples'} as {name}, "
                    f"got one that gives {kind}"
                )
        name, steps = sampling.usual(sampler.pipe.transformer)
        return cls(
            sampler,
            twins,
            peer,
            steps if config.steps is None else config.steps,
            config.sweep,
            config.sampler or name,
            config.sampling_precision,
        )

    def grids(self, case: Case) -> dict[str, TokenGrid | None]:
        """Tokens of a case, by the fingerprint of each encoder there is among the models."""
        models = [self.sampler, *self.twins.values(), *([self.peer] if self.peer else [])]
        encoders = {m.encoder.fingerprint: m.encoder for m in models if m.encoder is not None}
        return {name: encode(case, encoder) for name, encoder in encoders.items()}

    @torch.no_grad()
    def answers(self, case: Case, grids: dict[str, TokenGrid | None]) -> Answers:
        """Deterministic answers, K = 1."""
        found: Answers = {}
        for name, twin in self.twins.items():
            ctrl = sampling.answer(twin.prepared(case, _grid(twin, grids)))
            found[name] = case.trajectories(ctrl, twin.multiplicity)
        model = self.sampler
        evidence = model.evidence(case, _grid(model, grids))
        if model.pipe.regressor is not None:
            anchor = denoiser.regress(model.pipe.regressor, evidence)
            coordinates = denoiser.coordinates_of(model.pipe.regressor)
            ctrl = coordinates.decode(anchor.mean[:, None], evidence).squeeze(0)
            found["regressor"] = case.trajectories(ctrl, model.multiplicity)
        # These need no network, so they need none of its settings but the number of control points.
        num_ctrl = evidence.ctrl.shape[-2]
        found["trajectory basis"] = case.trajectories(trajectory_basis(case, num_ctrl))
        flat = baselines.flat_lift(evidence)
        found["flat lift"] = case.trajectories(flat, model.multiplicity)
        return found

    @torch.no_grad()
    def samples(self, case: Case, grids: dict[str, TokenGrid | None], *, swept: bool) -> Answers:
        """Samples of the sampler at its usual number of steps and of the peer; and, where `swept`, of the sampler at
        other numbers of steps."""
        clip = self.sampler.prepared(case, _grid(self.sampler, grids))
        found = {"samples": self._sampled(clip, case, self.name, self.steps, CALIBRATION_DRAWS)}
        if self.peer is not None:
            prepared = self.peer.prepared(case, _grid(self.peer, grids))
            name, steps = sampling.usual(self.peer.pipe.transformer)
            found["peer setting"] = self._sampled(prepared, case, name, steps, CALIBRATION_DRAWS)
        for steps in self.sweep if swept else ():
            if steps != self.steps:
                found[f"samples@{steps}"] = self._sampled(clip, case, self.name, steps, NUM_SCORED)
        return found

    @torch.no_grad()
    def heads(
        self, case: Case, grids: dict[str, TokenGrid | None], temperatures: Mapping[str, float]
    ) -> Answers:
        """Draws of the Gaussian heads, each at its temperature; none where the sampler stands on no regressor."""
        clip = self.sampler.prepared(case, _grid(self.sampler, grids))
        if clip.anchor is None:
            return {}
        covariances = (_without_neighbours(clip.factors), clip.factors)
        found = {}
        for name, factors in zip(HEADS, covariances, strict=True):
            ctrl = head_samples(clip, clip.anchor, factors, case.seed, temperatures[name])
            found[name] = case.trajectories(ctrl, self.sampler.multiplicity)
        return found

    def _sampled(
        self, clip: ClipDenoiser, case: Case, name: SamplerName, steps: int, count: int
    ) -> Tensor:
        """The one place where a sampler is run."""
        schedule, _ = denoiser.path_of(clip.network)
        table = sampling.table_for(name, steps, schedule)
        loop = choose(clip.network, "auto", self.precision)
        ctrl = sampling.sample(clip, sampling.seeds_from(case.seed, count), table, loop=loop)
        return case.trajectories(ctrl, clip.network.config["multiplicity"])


def head_samples(
    clip: ClipDenoiser, anchor: Anchor, factors: Factors, seed: int, temperature: float = 1.0
) -> Float[Tensor, "K N M 3"]:
    """Draws from the regressor's own Gaussian, with residuals of this covariance times the temperature squared."""
    shape = (1, CALIBRATION_DRAWS, *anchor.mean.shape[1:])
    white = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return clip.decode(factors.correlate(temperature * white)).squeeze(0)


def dressed(
    answers: Answers, dressings: dict[str, Dressing], names: Sequence[str], seed: int
) -> Answers:
    """These deterministic answers with noise on top."""
    return {
        f"dressed {name}": dressings[name].samples(answers[name][0], CALIBRATION_DRAWS, seed)
        for name in names
    }


def _grid(model: Model, grids: dict[str, TokenGrid | None]) -> TokenGrid | None:
    return None if model.encoder is None else grids[model.encoder.fingerprint]


def _without_neighbours(factors: Factors) -> Factors:
    """Points independent of one another, each correlated over time as before."""
    eye = torch.eye(factors.points.shape[-1]).to(factors.points)
    return Factors(eye.expand_as(factors.points), factors.over_time)
