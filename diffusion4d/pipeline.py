r"""From a video, or from tracks alone, to K hypotheses.

    pipe = Diffusion4DPipeline.from_pretrained("tiny")
    hypotheses = pipe("cat.mp4", num_hypotheses=16, seed=0)

Data flows one way: video -> Clip -> Tracks, key-frame tokens -> Evidence -> samples -> snap -> Hypotheses.

Shape letters:  K hypotheses   N points   M control points   T frames   F key frames.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from diffusion4d import cameras, denoiser, sampling, splines
from diffusion4d.clip import Clip, read_clip
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.evidence import Evidence, Tokens, observe_tracks
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.models import find_model
from diffusion4d.sampling import SamplerName
from diffusion4d.snap import snap
from diffusion4d.tracking import Tracks, query_points, track_lk
from priors.cache import FeatureCache
from priors.dinov3 import Encoder, load_encoder

Video = str | Path | np.ndarray | Tensor | Clip

NUM_KEY_FRAMES = 6
NUM_HYPOTHESES = 16
NUM_STEPS = 8


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
    """

    _optional_components = ["regressor"]  # noqa: RUF012 — diffusers declares it so.
    model_cpu_offload_seq = "regressor->transformer"

    def __init__(
        self,
        transformer: TrajectoryDiT,
        regressor: TrajectoryDiT | None = None,
        encoder: str | None = None,
        encoder_fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, regressor=regressor)
        self.register_to_config(encoder=encoder, encoder_fingerprint=encoder_fingerprint)
        self._encoder: Encoder | None = None
        self._source = "model in memory"

    @classmethod
    def from_pretrained(cls, model: str | Path = "tiny", **kwargs: Any) -> Self:
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
        self._encoder = encoder.to(self.device)

    def __call__(self, video: Video | None = None, **options: Any) -> Hypotheses:
        """Sample hypotheses; see `run` for the options, which also returns what was assumed."""
        return self.run(video, **options).hypotheses

    @torch.no_grad()
    def run(
        self,
        video: Video | None = None,
        *,
        tracks: Tracks | np.ndarray | Tensor | str | Path | None = None,
        visibility: np.ndarray | Tensor | None = None,
        intrinsics: Sequence[float] | Tensor | None = None,
        size: tuple[int, int] | None = None,
        fov: float | None = None,
        queries: np.ndarray | Tensor | None = None,
        num_points: int = 128,
        num_hypotheses: int | None = None,
        num_inference_steps: int = NUM_STEPS,
        sampler: SamplerName = "ancestral",
        seed: int = 0,
        use_tokens: bool = True,
        cache: FeatureCache | None = None,
    ) -> Result:
        """Sample K hypotheses of a clip.

        Args:
            video: a path, [T, 3, H, W] or [T, H, W, 3] frames, or a Clip; None for tracks alone.
            tracks: [T, N, 2] px, a `Tracks`, or an npz file; without them points are chosen and tracked.
            visibility: [T, N] in [0, 1], for tracks given as an array; all seen by default.
            intrinsics: (fx, fy, cx, cy) px of the clip; size: (H, W) px that tracks alone belong to.
            fov: degrees over the longer side of the image, in place of intrinsics.
            queries: [N, 2] px in the anchor frame; num_points: how many to choose otherwise.
            num_hypotheses: K, 16 by default; a deterministic model gives 1.
            num_inference_steps: denoiser evaluations (NFE) a hypothesis.
            seed: hypothesis k has a seed of its own, derived from this one.
            use_tokens: False ignores the images beyond their tracks.

        Raises:
            UserError: an argument that cannot be used; the message says what was required and what arrived.
        """
        stages = _Stages()
        K = self._num_hypotheses(num_hypotheses)
        table = sampling.table_for(sampler, num_inference_steps)
        seeds = sampling.seeds_from(seed, K)
        clip = video if isinstance(video, Clip) or video is None else read_clip(video)
        stages.done("read")
        observed = self._tracks(clip, tracks, visibility, size, queries, num_points, seed)
        stages.done("track")
        camera, how = _intrinsics(observed, intrinsics, fov)
        u = (
            clip.u
            if clip is not None
            else torch.linspace(0, 1, len(observed.tracks), dtype=torch.float64)
        )
        evidence = self._evidence(observed, camera, u, known=how == "given")
        if clip is not None and use_tokens and self.config["encoder"] is not None:
            evidence = self._with_tokens(evidence, clip, observed, camera, cache)
        stages.done("encode")
        prepared = denoiser.prepare(self.transformer, evidence, self.regressor)
        ctrl = self._sample(prepared, seeds, table)
        stages.done("sample")
        rays = cameras.normalise(observed.tracks, camera).transpose(0, 1).to(ctrl)
        seen = observed.visibility.transpose(0, 1).to(ctrl)
        ctrl = snap(ctrl, rays, seen, u.to(ctrl))
        ctrl = ctrl / _anchor_depth(ctrl)
        stages.done("snap")
        hypotheses = Hypotheses(
            control_points=ctrl.float().cpu(),
            knots=splines.knot_vector(ctrl.shape[-2]),
            degree=3,
            times=u,
            query_points=observed.tracks[0],
            tracks=observed.tracks,
            visibility=observed.visibility,
            intrinsics=camera,
            size=observed.size,
            extrinsics=torch.eye(4).expand(len(u), 4, 4).clone(),
            seeds=torch.tensor(seeds),
        )
        assumptions = {
            "model": self._source,
            "sampler": "none (deterministic)" if self.deterministic else sampler,
            "steps": 1 if self.deterministic else table.num_steps,
            "intrinsics": how,
            "fov_degrees": round(_fov(camera, observed.size), 2),
            "tracks": "lucas-kanade" if tracks is None else "given",
            "encoder": self.config["encoder"] if evidence.tokens is not None else None,
            "camera": "still: trajectories are in each instant's own camera frame",
        }
        return Result(hypotheses, clip, assumptions, stages.seconds)

    def _num_hypotheses(self, wanted: int | None) -> int:
        if wanted is not None and wanted < 1:
            raise UserError(f"need at least 1 hypothesis, got {wanted}")
        if not self.deterministic:
            return NUM_HYPOTHESES if wanted is None else wanted
        if wanted not in (None, 1):
            raise UserError(f"the model {self._source} gives one answer, got a wish for {wanted}")
        return 1

    def _tracks(
        self,
        clip: Clip | None,
        tracks: Tracks | np.ndarray | Tensor | str | Path | None,
        visibility: np.ndarray | Tensor | None,
        size: tuple[int, int] | None,
        queries: np.ndarray | Tensor | None,
        num_points: int,
        seed: int,
    ) -> Tracks:
        if tracks is None:
            if clip is None:
                raise UserError("need a video or tracks, got neither")
            if queries is None:
                return track_lk(clip, query_points(clip, num_points, seed=seed))
            return track_lk(clip, torch.as_tensor(queries, dtype=torch.float32))
        # Tracks that do not say which image they belong to are of the video as it is on disk.
        extent = size if clip is None else clip.source_size
        if isinstance(tracks, str | Path):
            tracks = Tracks.load(tracks, size=extent)
        elif not isinstance(tracks, Tracks):
            if extent is None:
                raise UserError("tracks alone need the size (H, W) of the image they belong to")
            seen = np.ones(np.shape(tracks)[:-1]) if visibility is None else visibility
            tracks = Tracks.from_arrays(tracks, seen, size=extent)
        if clip is None:
            return tracks
        if len(tracks.tracks) != clip.T:
            raise UserError(
                f"need tracks over the {clip.T} frames of the clip, got {len(tracks.tracks)}; "
                "choose the range of the video that was tracked"
            )
        return tracks.resized(clip.size)

    def _evidence(
        self,
        observed: Tracks,
        intrinsics: Float[Tensor, "4"],
        u: Float[Tensor, "T"],
        *,
        known: bool,
    ) -> Evidence:
        evidence = observe_tracks(
            observed.tracks.transpose(0, 1)[None],
            observed.visibility.transpose(0, 1)[None],
            intrinsics[None],
            torch.tensor([observed.size], dtype=torch.float32),
            u.float(),
            self.transformer.config["num_ctrl"],
            focal_known=torch.tensor([float(known)]),
        )
        return evidence.to(self.device)

    def _with_tokens(
        self,
        evidence: Evidence,
        clip: Clip,
        observed: Tracks,
        intrinsics: Float[Tensor, "4"],
        cache: FeatureCache | None,
    ) -> Evidence:
        if self._encoder is None:
            self.use_encoder(self.config["encoder"])
        assert self._encoder is not None
        frames = key_frames(clip.u, NUM_KEY_FRAMES)
        grid = self._encoder.encode(clip.frames[frames], clip.u[frames].float(), cache)
        tokens = Tokens.of_clip(
            grid.to("cpu"),
            observed.tracks[frames].transpose(0, 1),
            observed.visibility[frames].transpose(0, 1),
            intrinsics,
        )
        return dataclasses.replace(evidence, tokens=tokens).to(self.device)

    def _sample(
        self, prepared: denoiser.ClipDenoiser, seeds: Sequence[int], table: Any
    ) -> Float[Tensor, "K N M 3"]:
        if self.deterministic:
            return sampling.answer(prepared)
        with self.progress_bar(total=100) as bar:
            return sampling.sample(
                prepared, seeds, table, lambda done, total: bar.update(100 * done // total - bar.n)
            )


class _Stages:
    """Seconds a stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._since, 3)
        self._since = now


def key_frames(u: Float[Tensor, "T"], count: int) -> Tensor:
    """Indices of the frames nearest to the Greville abscissae of a cubic with `count` control points."""
    wanted = splines.greville(min(count, len(u)) if len(u) > 3 else 4)
    return (u[None].double() - wanted[:, None].double()).abs().argmin(1).unique()


def _intrinsics(
    observed: Tracks, intrinsics: Sequence[float] | Tensor | None, fov: float | None
) -> tuple[Float[Tensor, "4"], Literal["given", "assumed"]]:
    """The clip's intrinsics: the user's, the tracks' own, or a default field of view."""
    if intrinsics is not None and fov is not None:
        raise UserError("need intrinsics or a field of view, got both")
    if fov is not None:
        return cameras.intrinsics_from_fov(observed.size, fov), "given"
    given = intrinsics if intrinsics is not None else observed.intrinsics
    if given is None:
        return cameras.intrinsics_from_fov(observed.size), "assumed"
    camera = torch.as_tensor(given, dtype=torch.float32)
    if (
        camera.shape != (4,)
        or not bool(camera.isfinite().all())
        or not bool((camera[:2] > 0).all())
    ):
        raise UserError(f"need intrinsics (fx, fy, cx, cy) in px with fx, fy > 0, got {given}")
    return camera, "given"


def _fov(intrinsics: Float[Tensor, "4"], size: tuple[int, int]) -> float:
    focal = intrinsics[1 if size[0] >= size[1] else 0].item()
    return math.degrees(2 * math.atan(max(size) / 2 / focal))


def _anchor_depth(ctrl: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K 1 1 1"]:
    """Median depth of the anchor frame's points: clamped splines start at their first control point."""
    return ctrl[:, :, 0, 2].median(-1).values[:, None, None, None]
