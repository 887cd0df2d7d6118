r"""Non-rigid structure from motion, on sets that nobody here made: window-wise posterior, chained over time.

    python experiments/nrsfm/run.py FOLDER --model tiny --twin tiny-l2 [--only face walking]

Writes results.json and, with all sets, the table and the picture of the README.

FOLDER holds the .mat files of three sources (layouts: `diffusion4d.data.nrsfm`). Tracks are the only evidence.

Orthographic sets. A window's tracks are centred in every frame and put before a lens: in a square image of `SIDE` px
with a field of view `fov`, scaled so that the object fills `FILL` of it. A sampled depth Z then gives the relief

    z = (Z / mean_n Z − 1) f / c,      f focal length in px,   c px a unit of the truth,

in the unit of the truth; the scale is known, and x, y are the tracks themselves, for every method. Perspective sets
have known intrinsics: a point is its ray times Z. Windows are chained by `diffusion4d.windows`; the regressing twin
has one answer a window and goes through the same windows and fades; the flat lift is z = 0.

Shape letters:  K hypotheses   N points   T frames.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import report
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import cameras, nonrigid, windows
from diffusion4d.atomic import replace_when_done
from diffusion4d.data import nrsfm
from diffusion4d.pipeline import Diffusion4DPipeline

HERE = Path(__file__).parent
SIDE, FILL = 256, 0.6
LEAST_FRAMES = 25
"""Sequences of fewer frames are filled up along straight lines: twelve control points want frames to stand on."""
PUBLISHED = {"pickup": {"PTA": 0.2369, "BMM": 0.1731}, "yoga": {"PTA": 0.1625, "BMM": 0.1150}}
"""e_3D as published, of methods that see the whole sequence at once. PTA is recomputed from its authors' shapes too."""

LENGTHS = (16, 24, 32, 48)


@dataclasses.dataclass(frozen=True)
class Settings:
    """fov: of the lens before orthographic tracks, degrees. length: of a window, frames; windows overlap by half.

    travel: above 0, `length` is chosen for every set by its tracks alone: the least of `LENGTHS` in which they move
    this far, in radii of the object (`travelled`). k: hypotheses a window. steps: denoiser evaluations each.
    """

    fov: float = 15.0
    length: int = 32
    travel: float = 0.0
    k: int = 64
    steps: int = 1
    seed: int = 0


def relief(
    pipe: Diffusion4DPipeline, tracks: Float[Tensor, "T N 2"], options: Settings
) -> Float[Tensor, "K N T 1"]:
    """Depth about the mean of every frame, of one window of orthographic tracks, in their unit."""
    tracks = tracks - tracks.mean(1, keepdim=True)
    px = FILL * SIDE / (tracks.amax(1) - tracks.amin(1)).max()
    focal = SIDE / 2 / math.tan(math.radians(options.fov) / 2)
    hypotheses = pipe(
        tracks=px * tracks + SIDE / 2,
        size=(SIDE, SIDE),
        fov=options.fov,
        num_hypotheses=None if pipe.deterministic else options.k,
        num_inference_steps=options.steps,
        frame="camera",
        seed=options.seed,
    )
    depth_KNT = hypotheses.evaluate()[..., 2]
    return ((depth_KNT / depth_KNT.mean(1, keepdim=True) - 1) * focal / px)[..., None]


def travelled(tracks: Float[Tensor, "T N 2"], length: int) -> float:
    """How far tracks get from where a window of this length begins, in radii of the object: the median window.

    Root mean squares over the points, about the mean of every frame. In generated worlds of 32 frames the
    quartiles are 0.14, 0.25 and 0.44.
    """
    tracks = tracks - tracks.mean(1, keepdim=True)
    length = min(length, len(tracks))
    frames = tracks.unfold(0, length, max(1, length // 4))
    away = (frames - frames[..., :1]).square().sum(2).mean(1).sqrt().amax(-1)
    radius = frames.square().sum(2).mean(1).sqrt().mean(-1)
    return (away / radius).median().item()


def window_length(tracks: Float[Tensor, "T N 2"], options: Settings) -> int:
    if options.travel == 0:
        return options.length
    enough = (L for L in LENGTHS if travelled(tracks, L) >= options.travel)
    return next(enough, LENGTHS[-1])


def orthographic(
    pipe: Diffusion4DPipeline, tracks: Float[Tensor, "T N 2"], options: Settings
) -> tuple[Float[Tensor, "K T N 3"], Float[Tensor, "T N 3"]]:
    """K long samples, and the likeliest chain."""
    length = window_length(tracks, options)
    cuts = windows.cut(len(tracks), length, length // 2)
    parts = [relief(pipe, tracks[frames.start : frames.stop], options) for frames in cuts]
    seams = windows.seams_between(parts, cuts)
    K = len(parts[0])
    generator = torch.Generator().manual_seed(options.seed)
    paths = windows.draw(seams, K, K, generator)
    paths = torch.cat([paths, windows.likeliest(seams, K)[None]])
    long_KNT1 = windows.chain(parts, cuts, paths)
    lateral = (tracks - tracks.mean(1, keepdim=True)).expand(len(paths), -1, -1, -1)
    points = torch.cat([lateral, long_KNT1.transpose(1, 2)], -1)
    return points[:-1], points[-1]


def perspective(
    pipe: Diffusion4DPipeline, sequence: nrsfm.Sequence, options: Settings
) -> Float[Tensor, "K T N 3"]:
    """K samples of a short sequence, as one window; every frame's mean depth is 1."""
    assert sequence.intrinsics is not None
    _, _, cx, cy = sequence.intrinsics
    tracks = torch.from_numpy(sequence.tracks)
    T = len(tracks)
    fill = max(1, math.ceil((LEAST_FRAMES - 1) / (T - 1)))
    at = torch.arange(fill * (T - 1) + 1) / fill
    low = at.long().clamp(max=T - 2)
    hypotheses = pipe(
        tracks=torch.lerp(tracks[low], tracks[low + 1], (at - low)[:, None, None]),
        # The files do not tell the size of the image; its middle is near the principal point.
        size=(round(2 * cy), round(2 * cx)),
        intrinsics=sequence.intrinsics,
        num_hypotheses=None if pipe.deterministic else options.k,
        num_inference_steps=options.steps,
        frame="camera",
        seed=options.seed,
    )
    depth_KTN = hypotheses.evaluate()[:, :, ::fill, 2].transpose(1, 2)
    return rays(sequence) * (depth_KTN / depth_KTN.mean(-1, keepdim=True))[..., None]


def rays(sequence: nrsfm.Sequence) -> Float[Tensor, "T N 3"]:
    """What was seen of a perspective sequence, at depth 1."""
    plane = cameras.normalise(torch.from_numpy(sequence.tracks), torch.tensor(sequence.intrinsics))
    return torch.nn.functional.pad(plane, (0, 1), value=1.0)


def score(
    sequence: nrsfm.Sequence,
    model: Diffusion4DPipeline,
    twin: Diffusion4DPipeline,
    options: Settings,
) -> dict:
    """Errors of one sequence, every method under the same windows and the same metric."""
    truth = torch.from_numpy(sequence.truth)
    tracks = torch.from_numpy(sequence.tracks)
    published = {name: torch.from_numpy(points) for name, points in sequence.published.items()}
    if sequence.orthographic:
        samples, likeliest = orthographic(model, tracks, options)
        samples = nonrigid.upright(samples)
        flat = torch.nn.functional.pad(tracks, (0, 1))
        answers = {"twin": orthographic(twin, tracks, options)[1], "likeliest": likeliest}
        metric = nonrigid.e_3d
        if sequence.rotations is not None:
            # Stored shapes are compared in the world, as their authors did.
            world = torch.from_numpy(sequence.rotations).float()
            theirs = {k: metric(v @ world, truth @ world) for k, v in published.items()}
        else:
            theirs = {}
    else:
        samples = perspective(model, sequence, options)
        flat = rays(sequence)
        answers = {"twin": perspective(twin, sequence, options)[0]}
        metric = nonrigid.e_scale
        theirs = {name: metric(points, truth) for name, points in published.items()}
    answers |= {"flat lift": flat, "mean": samples.mean(0)}
    each = torch.tensor([metric(sample, truth) for sample in samples])
    errors = {name: metric(answer, truth) for name, answer in answers.items()}
    errors |= {"sample": each.mean().item(), "best of K": each.min().item()}
    row = {
        "frames": len(truth),
        "points": truth.shape[1],
        "metric": metric.__name__,
        "errors": errors,
        "recomputed": theirs,
        "published": PUBLISHED.get(sequence.name, {}),
        "relief_correlation": {n: correlation(sequence, answers[n]) for n in ("twin", "mean")},
        "relief_gain": {n: gain(sequence, answers[n]) for n in ("twin", "mean")},
    }
    if sequence.orthographic:
        both = answers | published
        row["window"] = window_length(tracks, options)
        row["e_f"] = {name: nonrigid.e_f(answer, truth) for name, answer in both.items()}
        row["e_3d_in_cameras"] = {name: metric(v, truth) for name, v in published.items()}
    return row


def reliefs(
    sequence: nrsfm.Sequence, answer: Float[Tensor, "T N 3"]
) -> tuple[Float[Tensor, "T N"], Float[Tensor, "T N"]]:
    """Depths about their mean in every frame, found and true; over that mean, where the scale of a frame is free."""
    found, true = answer[..., 2], torch.from_numpy(sequence.truth)[..., 2]
    if not sequence.orthographic:
        found, true = (z / z.mean(-1, keepdim=True) for z in (found, true))
    return found - found.mean(-1, keepdim=True), true - true.mean(-1, keepdim=True)


def correlation(sequence: nrsfm.Sequence, answer: Float[Tensor, "T N 3"]) -> float:
    """Of found and true relief over all frames and points; a reversal has the other sign."""
    found, true = reliefs(sequence, answer)
    return ((found * true).sum() / (found.norm() * true.norm())).item()


def gain(sequence: nrsfm.Sequence, answer: Float[Tensor, "T N 3"]) -> float:
    """The factor that would bring the relief nearest to the true one; below 1 the answer is too deep."""
    found, true = reliefs(sequence, answer)
    return ((found * true).sum() / found.square().sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--twin", default="tiny-l2")
    parser.add_argument("--only", nargs="+", help="names of sets; nothing is written then")
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    settings = Settings(
        **{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Settings)}
    )
    pipes = [
        Diffusion4DPipeline.from_pretrained(name) for name in (arguments.model, arguments.twin)
    ]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    rows = {}
    start = time.process_time()
    for name, path in nrsfm.find_sequences(arguments.folder).items():
        if arguments.only is None or name in arguments.only:
            rows[name] = score(nrsfm.read_sequence(path), pipes[0], pipes[1], settings)
            told = {key: round(value, 3) for key, value in rows[name]["errors"].items()}
            print(f"{name} ({rows[name]['metric']}): {told}", flush=True)
    results = {
        "model": Path(arguments.model).name,
        "twin": Path(arguments.twin).name,
        "settings": dataclasses.asdict(settings),
        "cpu_seconds": round(time.process_time() - start),
        "sets": rows,
    }
    print(f"{results['cpu_seconds']} CPU seconds")
    if arguments.only is None:
        with replace_when_done(HERE / "results.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
        report.main(HERE)


if __name__ == "__main__":
    main()
