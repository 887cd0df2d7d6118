"""The command line: sample, train, evaluate, doctor. Options are read off the signatures and settings below.

Nothing heavy is imported before a command is chosen, so that help answers at once.
"""

import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from diffusion4d.clip import Clip
    from diffusion4d.config import Evaluate, Train
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
    tracks: Path | None = None
    """Tracks npz: tracks [T, N, 2] px and visibility [T, N]; without a video also intrinsics [4], size [2]."""
    num_points: int = 128
    """Points to choose and follow."""
    steps: int = 8
    """Denoiser evaluations a hypothesis."""
    sampler: Literal["ancestral", "ddim", "dpmpp_2m"] = "ancestral"
    """How the steps are taken."""
    seed: int = 0
    """The same seed gives the same hypotheses."""
    fov: float | None = None
    """Field of view in degrees over the longer side of the image."""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in px of the source video, or of the tracks' size without one."""
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
    from diffusion4d.config import Evaluate, Train

    command = tyro.cli(
        Annotated[Sample, tyro.conf.subcommand("sample")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")],
        prog="diffusion4d",
        description="Sample several plausible 3D motions from one video.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    try:
        match command:
            case Sample():
                return sample(command)
            case Train():
                return train(command)
            case Evaluate():
                return evaluate(command)
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
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            return refuse(str(error))
        raise


def refuse(message: str) -> int:
    """Say what was wrong with the input."""
    print(f"diffusion4d: {message}", file=sys.stderr)
    return BAD_INPUT


def sample(options: Sample) -> int:
    """The main job: a video or tracks to files."""
    from diffusion4d.export import require_writable, write_all

    require_writable(options.out)
    check_numbers(options)
    # The libraries' own advice on settings is not what a user of this command can act on.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusion4d.clip import read_clip

    clip = None
    if options.video is not None:
        clip = read_clip(options.video, **dataclasses.asdict(options.range))
    pipe = load_pipeline(options)
    result = pipe.run(
        clip,
        tracks=options.tracks,
        intrinsics=intrinsics_of_clip(options.intrinsics, clip),
        fov=options.fov,
        num_points=options.num_points,
        num_hypotheses=options.num_hypotheses,
        num_inference_steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        use_tokens=options.encoder != "none",
    )
    for name, value in result.assumptions.items():
        print(f"  {name}: {value}")
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        bar = bars.add_task("writing")
        files = write_all(
            result.hypotheses,
            options.out,
            clip=result.clip,
            assumptions=result.assumptions,
            timings=result.timings,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    for file in files.values():
        print(f"  {file}")
    return 0


def check_numbers(options: Sample) -> None:
    """Refuse, before anything is read, what no video could make right.

    Raises:
        UserError: neither a video nor tracks; no hypotheses, points or steps; a negative seed.
    """
    from diffusion4d.errors import UserError

    if options.video is None and options.tracks is None:
        raise UserError("need a video, or --tracks FILE.npz, got neither")
    counts = {
        "--num-hypotheses (-k)": options.num_hypotheses,
        "--num-points": options.num_points,
        "--steps": options.steps,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"need {name} of at least 1, got {count}")
    if options.seed < 0:
        raise UserError(f"need a --seed of at least 0, got {options.seed}")


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
    if options.encoder not in (None, "none"):
        pipe.use_encoder(options.encoder)
    return pipe


def intrinsics_of_clip(
    given: tuple[float, float, float, float] | None, clip: "Clip | None"
) -> tuple[float, ...] | None:
    """The user's intrinsics are of the source video; the clip was shrunk."""
    if given is None or clip is None:
        return given
    down = [small / large for small, large in zip(clip.size, clip.source_size, strict=True)]
    scale = (down[1], down[0], down[1], down[0])
    return tuple(value * factor for value, factor in zip(given, scale, strict=True))


def train(config: "Train") -> int:
    """Train a network; a run that was interrupted goes on from its last checkpoint."""
    from diffusion4d import train as training

    print(f"wrote {training.run(config)}")
    return 0


def evaluate(config: "Evaluate") -> int:
    """Score models on held-out generated worlds."""
    from diffusion4d import evaluate as evaluation

    print(evaluation.markdown(evaluation.run(config)))
    return 0


def doctor() -> int:
    """0 when the main job can run."""
    from diffusion4d import doctor as examination

    return examination.main()
