r"""From a video, or from tracks alone, to K hypotheses.

    pipe = Diffusion4DPipeline.from_pretrained("tiny")
    hypotheses = pipe("cat.mp4", num_hypotheses=16, seed=0)

Data flows one way, and each arrow may be called alone:

    Given --observe--> Observation --encode--> Evidence --sample, snap--> Hypotheses

Shape letters:  K hypotheses   N points   M control points   T frames   F key frames.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusion4d import cameras, denoiser, sampling, splines
from diffusion4d.clip import Clip, key_frames
from diffusion4d.config import SamplerName
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.evidence import Evidence, Tokens, observe_tracks
from diffusion4d.hypotheses import REFERENCE_SIDE, Frame, Hypotheses
from diffusion4d.loops import Loop, LoopName, PrecisionName, choose
from diffusion4d.memory import Plan, Shapes, plan
from diffusion4d.models import find_model
from diffusion4d.observation import Given, Observation, Video, observe
from diffusion4d.sampling import Guide
from diffusion4d.snap import doubted, misfit, snap
from diffusion4d.splines import BSpline
from diffusion4d.stages import Progress, Stages
from diffusion4d.world import Placed, place
from priors.cache import FeatureCache
from priors.dinov3 import Encoder, load_encoder
from samplers.tables import Table

NUM_KEY_FRAMES = 6
TOO_FAST = 1.0
"""Tracks that the nearest splines miss by more px (median, at 256 px shorter side) get splines of twice the spans."""

NUM_HYPOTHESES = 16
MEMORY = 1.0
"""GiB that sampling may take beside what is loaded."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample; None stands for what is usual of the model. steps: denoiser evaluations (NFE) a hypothesis.

    loop, precision: how the network is run (`loops`). memory: GiB that sampling may take beside what is loaded.
    frame: "world" where it can be had (`diffusion4d.world`), or "camera": each instant's own, as sampled.

    Raises:
        UserError: fewer than one hypothesis or step, a negative seed, an unknown sampler or frame, no memory.
    """

    num_hypotheses: int | None = None
    steps: int | None = None
    sampler: SamplerName | None = None
    seed: int = 0
    use_tokens: bool = True
    loop: LoopName = "auto"
    precision: PrecisionName = "auto"
    memory: float = MEMORY
    frame: Frame = "world"

    def __post_init__(self) -> None:
        if self.num_hypotheses is not None and self.num_hypotheses < 1:
            raise UserError(f"need at least 1 hypothesis, got {self.num_hypotheses}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"need at least 1 inference step, got {self.steps}")
        if self.sampler is not None:
            sampling.check_sampler(self.sampler)
        if self.seed < 0:
            raise UserError(f"need a seed of at least 0, got {self.seed}")
        if not 0 < self.memory < math.inf:
            raise UserError(f"need a positive number of GiB of memory, got {self.memory}")
        if self.frame not in get_args(Frame):
            raise UserError(f"need a frame out of {', '.join(get_args(Frame))}, got {self.frame!r}")


@dataclasses.dataclass(frozen=True)
class Result:
    """A run: hypotheses, the clip (None for tracks alone), what was assumed, seconds a stage."""

    hypotheses: Hypotheses
    clip: Clip | None
    assumptions: dict[str, Any]
    timings: dict[str, float]


class Diffusion4DPipeline(DiffusionPipeline):
    """A sampler, or a regressor that gives one answer, with everything around it.

    Args:
        transformer: a "velocity" network (a sampler) or a "mean" network (one deterministic answer).
        regressor: the "gaussian" network an anchored sampler stands on.
        encoder: name of the encoder whose tokens the transformer was trained with; None for tracks only.
        encoder_fingerprint: content hash of that encoder; another encoder is refused.
        encoder_preprocessing: the size and fit its frames were brought to (`preprocessing_of`); others are refused.
            None where that is not known.

    Raises:
        ValueError: a "gaussian" transformer, or one whose regressor is missing or not wanted.
    """

    _optional_components = ["regressor"]  # noqa: RUF012 — diffusers declares it so.
    model_cpu_offload_seq = "regressor->transformer"

    def __init__(
        self,
        transformer: TrajectoryDiT,
        regressor: TrajectoryDiT | None = None,
        encoder: str | None = None,
        encoder_fingerprint: str | None = None,
        encoder_preprocessing: str | None = None,
    ) -> None:
        super().__init__()
        if transformer.config["output"] not in ("velocity", "mean"):
            output = transformer.config["output"]
            raise ValueError(f'need a "velocity" or a "mean" transformer, got a {output!r} network')
        if transformer.config["anchored"] != (regressor is not None):
            raise ValueError(
                f"the transformer stands on a regressor: {transformer.config['anchored']}, "
                f"got a regressor: {regressor is not None}"
            )
        self.register_modules(transformer=transformer, regressor=regressor)
        self.register_to_config(
            encoder=encoder,
            encoder_fingerprint=encoder_fingerprint,
            encoder_preprocessing=encoder_preprocessing,
        )
        self._encoder: Encoder | None = None
        self._source = "model in memory"

    @classmethod
    def from_pretrained(cls, model: str | Path = "tiny", **kwargs: Any) -> "Diffusion4DPipeline":
        """Load a packaged model by name ("tiny", "tiny-l2"), or one from a folder. Never fetches anything.

        Raises:
            UserError: no such model, or its files are missing, damaged or do not belong together.
        """
        folder = find_model(model)
        try:
            pipe = super().from_pretrained(
                str(folder),
                local_files_only=True,
                dtype=torch.float32,
                use_safetensors=True,
                **kwargs,
            )
            for name in ("transformer", "regressor"):
                _require_sound_weights(folder / name, getattr(pipe, name))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"cannot load the model in {folder}, its files are damaged: {error}"
            ) from error
        pipe._source = str(model)
        for network in (pipe.transformer, pipe.regressor):
            if network is not None:
                network.eval().requires_grad_(False)
        return pipe

    @property
    def deterministic(self) -> bool:
        """Whether the model gives one answer rather than samples."""
        return self.transformer.config["output"] == "mean"

    def use_encoder(self, name_or_folder: str | Path) -> None:
        """Take patch tokens from this encoder.

        Raises:
            UserError: it cannot be loaded, or it is not the one the model was trained with.
        """
        wanted = self.config["encoder"]
        if wanted is None:
            raise UserError(
                f"the model {self._source} was trained without an encoder and takes none"
            )
        try:
            encoder = load_encoder(name_or_folder)
        except ValueError as error:
            raise UserError(str(error)) from error
        if encoder.fingerprint != self.config["encoder_fingerprint"]:
            raise UserError(
                f"the model {self._source} was trained with the encoder {wanted!r} "
                f"({self.config['encoder_fingerprint'][:8]}…), got {str(name_or_folder)!r} "
                f"({encoder.fingerprint[:8]}…): their tokens mean different things"
            )
        trained, arrived = self.config["encoder_preprocessing"], preprocessing_of(encoder)
        if trained not in (None, arrived):
            raise UserError(
                f"the model {self._source} was trained with frames brought to {trained}, "
                f"got an encoder that brings them to {arrived}"
            )
        self._encoder = encoder.to(self.device)

    def __call__(
        self,
        video: Video | None = None,
        *,
        num_hypotheses: int | None = None,
        num_inference_steps: int | None = None,
        sampler: SamplerName | None = None,
        seed: int = 0,
        use_tokens: bool = True,
        loop: LoopName = "auto",
        precision: PrecisionName = "auto",
        memory: float = MEMORY,
        frame: Frame = "world",
        **given: Any,
    ) -> Hypotheses:
        """Sample K hypotheses of a clip.

        Args:
            video: a path, [T, 3, H, W] or [T, H, W, 3] frames, or a Clip; None for tracks alone.
            num_hypotheses: K, 16 by default; a deterministic model gives 1.
            num_inference_steps: denoiser evaluations (NFE) a hypothesis, for "heun" and "dpmpp_2s" at most; what the
                model was made for by default.
            sampler: how the steps are taken: one of `config.SamplerName`; the model's own by default.
            seed: hypothesis k has a seed of its own, derived from this one.
            use_tokens: False ignores the images beyond their tracks.
            loop, precision: how the network is run (`loops`); "auto" takes the fastest that keeps the scores.
            memory: GiB that sampling may take beside what is loaded: how many hypotheses go through at once.
            frame: "world" where it can be had, or "camera": each instant's own.
            given: `tracks`, `visibility`, `size`, `intrinsics`, `fov`, `queries`, `num_points`, `cameras`: see `Given`.

        Raises:
            UserError: an argument that cannot be used; the message says what was required and what arrived.
        """
        settings = Settings(
            num_hypotheses,
            num_inference_steps,
            sampler,
            seed,
            use_tokens,
            loop,
            precision,
            memory,
            frame,
        )
        # Refused before the video is read and tracked.
        self._num_hypotheses(settings)
        stages = Stages()
        observation = observe(Given(video, **given), seed, stages)
        return self.sample(observation, settings, stages).hypotheses

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        settings: Settings | None = None,
        stages: Stages | None = None,
        cache: FeatureCache | None = None,
        guide: Callable[[denoiser.ClipDenoiser], Guide] | None = None,
    ) -> Result:
        """Sample hypotheses of an observed clip, and say what was assumed.

        Args:
            stages: told of progress, beside diffusers' own bar (`set_progress_bar_config` turns that off).
            cache: where tokens of key frames are kept; none by default.
            guide: posterior guidance of the prepared clip (`consistency.guide`); none by default.

        Raises:
            UserError: a wish that this model cannot fulfil, or its encoder cannot be loaded.
        """
        settings = settings or Settings()
        if (
            self.transformer.config["multiplicity"] != 1
            or self.transformer.config["path"] != "cosine"
        ):
            raise UserError(
                f"the model {self._source} is a baseline with settings of its own (repeated knots, the "
                "rectified path): it can be evaluated (--peer), not used"
            )
        stages = stages or Stages()
        K = self._num_hypotheses(settings)
        sampler, steps = sampling.usual(self.transformer)
        sampler, steps = settings.sampler or sampler, settings.steps or steps
        table = sampling.table_for(sampler, steps)
        steps = table.num_steps
        seeds = sampling.seeds_from(settings.seed, K)
        if self.deterministic and (settings.loop, settings.precision) != ("auto", "auto"):
            raise UserError(f"the model {self._source} gives one answer and has no loop to choose")
        if self.deterministic and guide is not None:
            raise UserError(f"the model {self._source} gives one answer and has nothing to guide")
        loop = choose(self.transformer, settings.loop, settings.precision)
        with stages.stage("encoding"):
            evidence = self.encode(observation, use_tokens=settings.use_tokens, cache=cache)
            prepared = denoiser.prepare(self.transformer, evidence, self.regressor)
        shapes = Shapes(K, len(evidence.ctrl[0]), len(observation.u), evidence.num_tokens)
        planned = plan(self.transformer, loop, shapes, int(settings.memory * 2**30))
        stages.say(f"memory: {planned}")
        with stages.stage("sampling") as progress:
            guided = None if guide is None else guide(prepared)
            ctrl = self._sample(
                prepared, seeds, table, loop, planned, observation, progress, guided
            )
        hypotheses = Hypotheses(
            control_points=ctrl.float().cpu(),
            knots=splines.knot_vector(ctrl.shape[-2]),
            degree=3,
            times=observation.u,
            query_points=observation.tracks.tracks[0],
            tracks=observation.tracks.tracks,
            visibility=observation.tracks.visibility,
            intrinsics=observation.intrinsics,
            size=observation.size,
            extrinsics=torch.eye(4).expand(len(observation.u), 4, 4).clone(),
            seeds=torch.tensor(seeds),
        )
        with stages.stage("placing"):
            placed = Placed(hypotheses, "not estimated: each instant has its own frame")
            if settings.frame == "world":
                placed = place(hypotheses, observation.path)
        hypotheses = placed.hypotheses
        assumptions = {
            "model": self._source,
            "sampler": "none (deterministic)" if self.deterministic else sampler,
            "steps": 1 if self.deterministic else steps,
            "loop": "plain, fp32 (one answer)" if self.deterministic else str(loop),
            "memory": str(planned),
            "intrinsics": observation.camera,
            "fov_degrees": round(observation.fov, 2),
            "frames": observation.range,
            "tracks": observation.tracked,
            "control_points": hypotheses.num_ctrl,
            "encoder": self.config["encoder"] if evidence.tokens is not None else None,
            "camera": placed.camera,
            "frame": hypotheses.frame,
            "refit_px": list(placed.refit),
        }
        return Result(hypotheses, observation.clip, assumptions, dict(stages.seconds))

    @torch.no_grad()
    def encode(
        self,
        observation: Observation,
        *,
        use_tokens: bool = True,
        cache: FeatureCache | None = None,
    ) -> Evidence:
        """What the network is told of a clip: tracks in the spline basis and, from a video, patch tokens.

        Raises:
            UserError: the model's encoder cannot be loaded.
        """
        tracks = observation.tracks
        evidence = observe_tracks(
            tracks.tracks.transpose(0, 1)[None],
            tracks.visibility.transpose(0, 1)[None],
            observation.intrinsics[None],
            torch.tensor([observation.size], dtype=torch.float32),
            observation.u.float(),
            self.transformer.config["num_ctrl"],
            focal_known=torch.tensor([float(observation.camera == "given")]),
        )
        clip = observation.clip
        if clip is None or not use_tokens or self.config["encoder"] is None:
            return evidence.to(self.device)
        if self._encoder is None:
            self.use_encoder(self.config["encoder"])
        assert self._encoder is not None
        encoder = self._encoder.to(self.device)
        frames = key_frames(clip.u, NUM_KEY_FRAMES)
        grid = encoder.encode(clip.frames[frames], clip.u[frames].float(), cache)
        tokens = Tokens.of_clip(
            grid.to("cpu"),
            tracks.tracks[frames].transpose(0, 1),
            tracks.visibility[frames].transpose(0, 1),
            observation.intrinsics,
        )
        return dataclasses.replace(evidence, tokens=tokens).to(self.device)

    def _num_hypotheses(self, settings: Settings) -> int:
        wanted = settings.num_hypotheses
        if not self.deterministic:
            return NUM_HYPOTHESES if wanted is None else wanted
        if wanted not in (None, 1):
            raise UserError(f"the model {self._source} gives one answer, got a wish for {wanted}")
        return 1

    def _sample(
        self,
        prepared: denoiser.ClipDenoiser,
        seeds: list[int],
        table: Table,
        loop: Loop,
        planned: Plan,
        observation: Observation,
        progress: Progress,
        guide: Guide | None,
    ) -> Float[Tensor, "K N _ 3"]:
        """Sample and snap under diffusers' own progress bar, which counts percents: hypotheses share their steps."""
        on_tracks = OnTracks.of(observation, prepared.evidence)
        if self.deterministic:
            return on_tracks(sampling.answer(prepared), None)
        # diffusers' decorator hides the signature from type checkers.
        with self.progress_bar(total=100) as bar:  # pyright: ignore[reportCallIssue]

            def report(done: int, total: int) -> None:
                bar.update(100 * done // total - bar.n)
                progress(done, total)

            return sampling.sample(
                prepared,
                seeds,
                table,
                report,
                loop=loop,
                chunk=planned.chunk,
                finish=on_tracks,
                guide=guide,
            )


def _require_sound_weights(folder: Path, network: TrajectoryDiT | None) -> None:
    """diffusers fills in random numbers where a file lacks weights, and merely warns."""
    if network is None:
        return
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        missing = sorted(set(network.state_dict()) - set(file.keys()))
    broken = [k for k, v in network.state_dict().items() if not bool(v.isfinite().all())]
    if broken:
        raise ValueError(
            f"need finite weights, got NaN or infinity in {broken[0]} of {folder.name}"
        )
    if missing:
        raise ValueError(f"need {missing[0]} in {folder.name}, and {len(missing)} are missing")


def preprocessing_of(encoder: Encoder) -> str:
    """Size and fit of an encoder's preprocessing: what its fingerprint leaves out, since any grid of tokens goes."""
    size = encoder.preprocessing.size
    return f"{'own size' if size is None else f'{size[0]}x{size[1]}'}, {encoder.preprocessing.fit}"


@dataclasses.dataclass(frozen=True)
class OnTracks:
    """Snaps hypotheses to the tracks of a clip, and scales them so that the median depth of the anchor frame is 1.

    pixel: normalised image coordinates of a pixel at a shorter side of 256 px. too_fast: the tracks are faster than
    the sampled splines can follow, so every span is halved first: the same curves, with more room for the snap.
    """

    rays: Float[Tensor, "N T 2"]
    seen: Float[Tensor, "N T"]
    u: Float[Tensor, "T"]
    pixel: float
    too_fast: bool

    @classmethod
    def of(cls, observation: Observation, evidence: Evidence) -> "OnTracks":
        """What is the same for all hypotheses."""
        tracks, like = observation.tracks, evidence.ctrl
        u = observation.u.to(like)
        rays = cameras.normalise(tracks.tracks, observation.intrinsics).transpose(0, 1).to(like)
        seen = tracks.visibility.transpose(0, 1).to(like)
        scale = REFERENCE_SIDE / min(tracks.size)
        pixels = tracks.tracks.transpose(0, 1).to(like) * scale
        too_fast = misfit(pixels, seen, u, like.shape[-2]) > TOO_FAST
        return cls(rays, seen, u, 1 / scale / observation.intrinsics[:2].mean().item(), too_fast)

    def __call__(
        self, ctrl: Float[Tensor, "K N M 3"], seeds: Sequence[int] | None
    ) -> Float[Tensor, "K N _ 3"]:
        """Each hypothesis with its own doubts about the tracks; without seeds, none."""
        if self.too_fast:
            fine = BSpline.clamped(ctrl).halved().ctrl
            ctrl = fine if fine.shape[-2] < len(self.u) else ctrl
        rays = self.rays if seeds is None else doubted(self.rays, self.pixel, seeds)
        ctrl = snap(ctrl, rays, self.seen, self.u)
        # Clamped splines start at their first control point.
        return ctrl / ctrl[:, :, 0, 2].median(-1).values[:, None, None, None]
