"""The command line: a function for each command. Options are read off settings.

Nothing heavy is imported before a command is chosen, so that help answers at once.
"""

import contextlib
import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from diffusion4d.config import SamplerOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

    from diffusion4d.clip import Clip
    from diffusion4d.config import (
        Animate,
        BuildPack,
        Evaluate,
        Export,
        FindModes,
        Train,
        TrainEncoder,
        View,
    )
    from diffusion4d.pipeline import Diffusion4DPipeline

BAD_INPUT = 2
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Range:
    """Which frames of the video, and how large."""

    start: float = 0.0
    """Seconds into the video."""
    end: float | None = None
    """Seconds into the video; its end by default."""
    stride: int = 1
    """Keep one frame in so many."""
    max_frames: int = 48
    """Frames kept at most. Twelve control points describe about 48 frames of ordinary motion."""
    max_size: int = 256
    """Shorter side in px that frames are shrunk to; smaller ones stay as they are."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sample K hypotheses of the 3D motion in a video, and write them as files."""

    video: Annotated[Path | None, tyro.conf.Positional] = None
    """Video file or folder of images. Leave it out to sample from --tracks alone."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out")
    """Folder for hypotheses.npz, hypotheses.glb, overlay.mp4, summary.png and summary.json."""
    num_hypotheses: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """K; 16 by default, 1 for a model that gives one answer."""
    model: str = "tiny"
    """Packaged model (tiny, tiny-l2) or a folder."""
    encoder: str | None = None
    """Encoder of image tokens: the one the model was trained with (a name or folder), or none."""
    tracks: str | None = None
    """Who follows the points: lk (the default), dino, sinkhorn, fused (lk, and dino where it loses a point). Or a
    tracks npz: tracks [T, N, 2] px and visibility [T, N]; without a video also intrinsics [4], size [2]."""
    track_encoder: str = "tiny"
    """Encoder whose tokens dino, sinkhorn and fused match: a packaged one, a folder or a model id."""
    num_points: int = 128
    """Points to choose and follow."""
    steps: int | None = None
    """Denoiser evaluations a hypothesis; those the model was made for by default."""
    sampler: SamplerOption = None
    """How the steps are taken; the model's own way by default. heun and dpmpp_2s take at most --steps evaluations."""
    seed: int = 0
    """The same seed gives the same hypotheses."""
    fov: float | None = None
    """Field of view in degrees over the longer side of the image."""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in px of the source video, or of the tracks' size without one."""
    loop: Literal["auto", "plain", "fused", "compiled"] = "auto"
    """How the network is run; auto: fused on a CPU. compiled takes a minute before the first step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the network's products; auto: bf16 where the loop is fused and the processor multiplies it natively."""
    memory: float = 1.0
    """GiB that sampling may take beside what is loaded: how many hypotheses go through at once."""
    cameras: Path | None = None
    """Where the camera was at every frame: npz (extrinsics [T, 4, 4]), nerfstudio's transforms.json, or a folder with
    COLMAP's text model. Estimated without."""
    frame: Literal["world", "camera"] = "world"
    """world: still things stand still, where a rigid background is found; camera: each instant's own frame."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes CUDA if there is any and says so. CUDA was never run by its authors."""
    range: Annotated[Range, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Range)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say what is installed, which device and backends there are, and whether the main job can run."""


def main() -> None:
    """Entry point: exit code 0 for done, 2 for bad input, 130 for an interruption."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code. Messages for the user go to standard error."""
    from diffusion4d.config import (
        Animate,
        BuildPack,
        Evaluate,
        Export,
        FindModes,
        Train,
        TrainEncoder,
        View,
    )

    command = tyro.cli(
        Annotated[Sample, tyro.conf.subcommand("sample")]
        | Annotated[FindModes, tyro.conf.subcommand("modes")]
        | Annotated[View, tyro.conf.subcommand("view")]
        | Annotated[Animate, tyro.conf.subcommand("animate")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[TrainEncoder, tyro.conf.subcommand("train-encoder")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[BuildPack, tyro.conf.subcommand("pack")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")],
        prog="diffusion4d",
        description="Sample several plausible 3D motions from one video.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    leave_a_core()
    try:
        match command:
            case Sample():
                return sample(command)
            case FindModes():
                return find_modes(command)
            case View():
                return view(command)
            case Animate():
                return animate(command)
            case Export():
                return export(command)
            case Train():
                return train(command)
            case TrainEncoder():
                return train_encoder(command)
            case Evaluate():
                return evaluate(command)
            case BuildPack():
                return build_pack(command)
            case Doctor():
                return doctor()
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        return refuse(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return refuse(f"the disk is full; nothing half-written is left ({error})")
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOENT,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
        ):
            return refuse(str(error))
        raise
    except Exception as error:
        from safetensors import SafetensorError

        # Its errors of the disk are no OSErrors.
        if not isinstance(error, SafetensorError):
            raise
        if any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return refuse(f"the disk is full; nothing half-written is left ({error})")
        return refuse(f"a file of tensors could not be read or written: {error}")


def leave_a_core() -> None:
    """Let torch use all cores but one, unless OMP_NUM_THREADS says otherwise; it must not be imported yet.

    OpenMP's threads wait for one another in every layer, so a single core that is shared with other work
    slows all of them: on two cores with one of them busy, two threads took seven times as long as one.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (usable or 1) - 1)))


def refuse(message: str) -> int:
    """Say what was wrong with the input."""
    print(f"diffusion4d: {message}", file=sys.stderr)
    return BAD_INPUT


def sample(options: Sample) -> int:
    """The main job: a video or tracks to files."""
    from diffusion4d.export import require_writable, write_all

    require_writable(options.out)
    silence_libraries()
    from diffusion4d.observation import Given, observe
    from diffusion4d.pipeline import Settings
    from diffusion4d.stages import Stages
    from priors.cache import FeatureCache

    settings = Settings(
        options.num_hypotheses,
        options.steps,
        options.sampler,
        options.seed,
        use_tokens=options.encoder != "none",
        loop=options.loop,
        precision=options.precision,
        memory=options.memory,
        frame=options.frame,
    )
    given = Given(
        video=options.video,
        tracks=options.tracks,
        intrinsics=options.intrinsics,
        fov=options.fov,
        num_points=options.num_points,
        track_encoder=options.track_encoder,
        cameras=options.cameras,
    )
    with staged_progress() as report:
        stages = Stages(report, lambda line: print(f"  {line}", flush=True))
        with stages.stage("reading"):
            given = dataclasses.replace(given, video=read(options))
        with stages.stage("loading"):
            pipe = load_pipeline(options)
        observation = observe(given, options.seed, stages)
        result = pipe.sample(observation, settings, stages, FeatureCache.default())
        with stages.stage("writing") as progress:
            files = write_all(
                result.hypotheses,
                options.out,
                clip=result.clip,
                assumptions={**result.assumptions, **source(options)},
                timings=result.timings,
                progress=progress,
            )
    for name, value in result.assumptions.items():
        # Said before sampling, when it could still be stopped.
        if name != "memory":
            print(f"  {name}: {in_short(value)}")
    for file in files.values():
        print(f"  {file}")
    return 0


def in_short(value: object) -> object:
    """Numbers to two decimals; files keep all."""
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, list):
        return ", ".join(str(in_short(part)) for part in value)
    return value


def find_modes(options: "FindModes") -> int:
    """Modes and clusters of hypotheses, to files beside them."""
    from diffusion4d import deformation
    from diffusion4d.export.modes import write_modes
    from diffusion4d.export.recorded import length
    from diffusion4d.hypotheses import Hypotheses

    beside = options.folder if options.folder.is_dir() else options.folder.parent
    hypotheses = Hypotheses.load(options.folder)
    seconds = options.seconds
    if seconds is None:
        seconds = length(hypotheses, source=options.folder)
    found = deformation.modes(
        hypotheses,
        noise=options.noise,
        level=options.level,
        most_clusters=options.most_clusters,
        seed=options.seed,
    )
    files = write_modes(found, options.out or beside, seconds=seconds)
    print(f"  modes: {found.verdict}")
    print(f"  clusters: {found.clusters.count}")
    for file in files.values():
        print(f"  {file}")
    return 0


def view(config: "View") -> int:
    """The page that shows hypotheses, as a file or served."""
    silence_libraries()
    from diffusion4d.viewer import command

    command.run(config, lambda line: print(f"  {line}", flush=True))
    return 0


def animate(config: "Animate") -> int:
    """A dense surface under the hypotheses, to files."""
    silence_libraries()
    from diffusion4d import animate as animation

    with staged_progress() as report:
        for file in animation.run(config, lambda done, total: report("ply", done, total)):
            print(f"  {file}")
    return 0


def export(config: "Export") -> int:
    """Hypotheses in the formats of other tools."""
    silence_libraries()
    from diffusion4d.export import command

    with staged_progress() as report:
        for file in command.run(config, report):
            print(f"  {file}")
    return 0


def silence_libraries() -> None:
    """Keep the libraries' bars and advice to themselves: a user of this command can't act on them.

    Before they are imported: most of it is read off the environment then.
    """
    import warnings

    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def staged_progress() -> "Iterator[Callable[[str, int, int], None]]":
    """A bar for each stage, by its name, on standard error; where that is no terminal, nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("  {task.description:<9}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        known: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage)
            bars.update(known[stage], completed=done, total=total)

        yield report


def read(options: Sample) -> "Clip | None":
    """The range of the video that was asked for; None for tracks alone."""
    from diffusion4d.clip import read_clip

    if options.video is None:
        return None
    return read_clip(options.video, **dataclasses.asdict(options.range))


def source(options: Sample) -> "dict[str, dict]":
    """How the clip was read, so that others find its frames again; nothing for tracks alone."""
    if options.video is None:
        return {}
    video = str(options.video.resolve())
    return {"source": {"video": video, **dataclasses.asdict(options.range)}}


def load_pipeline(options: Sample) -> "Diffusion4DPipeline":
    """The model on its device, with the encoder that was asked for."""
    import torch

    from diffusion4d.errors import UserError
    from diffusion4d.pipeline import Diffusion4DPipeline

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(f"  device: {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("need CUDA for --device cuda, and torch finds none")
    pipe = Diffusion4DPipeline.from_pretrained(options.model).to(device)
    # The bars of this command take its place.
    pipe.set_progress_bar_config(disable=True)
    if options.encoder not in (None, "none"):
        pipe.use_encoder(options.encoder)
    return pipe


def train(config: "Train") -> int:
    """Train a network; a run that was interrupted goes on from its last checkpoint."""
    from diffusion4d import train as training

    print(f"wrote {training.run(config)}")
    return 0


def train_encoder(config: "TrainEncoder") -> int:
    """Train the small encoder; a run that was interrupted goes on from its last checkpoint."""
    from diffusion4d import train_encoder as training

    print(f"wrote {training.run(config)}")
    return 0


def evaluate(config: "Evaluate") -> int:
    """Score models on held-out clips with truth."""
    from diffusion4d import evaluation

    print(evaluation.markdown(evaluation.run(config)))
    print(f"wrote {config.out}")
    return 0


def build_pack(config: "BuildPack") -> int:
    """Build a pack of actors; prints each as it is written."""
    from diffusion4d.data import build

    written = build.run(config, lambda name: print(f"  {name}"))
    print(f"wrote {len(written)} actors into {config.out}")
    return 0


def doctor() -> int:
    """0 when the main job can run."""
    from diffusion4d import doctor as examination

    return examination.main()
