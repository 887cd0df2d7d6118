r"""How well do tokens track, who matches them best, and what does the anchor frame save?

    rendered   points of held-out actors, visible in frame 0, looked for in the other key frames: PCK at 4 and 8 px
               (256 px shorter side) of every matcher on every encoder; all points, and wide-baseline: those that have
               moved by more than 32 px, two tokens
    pairs      every frame against the anchor frame, or all pairs: PCK on half of the worlds, and the exponent of CPU
               time in T
    real       clips nobody here made: token tracks against Lucas-Kanade where that holds a point end to end, and the
               points that "fused" has brought back, judged by following them back to frame 0
    full-rate  every frame of four rendered worlds: what each tracker finds of what is visible, and how much of what it
               claims is right; and the same of what "fused" brings back
    heads      log depth by a linear head, fitted by least squares to the frozen tokens of other worlds, and by the
               packaged DPT head: AbsRel and delta < 1.25 after the median's factor, parameters, cost
    precision  tokens in bf16 and int8 against float32: cosine, PCK of the tokens' matches, CPU time
    picture    a clip with its tracks

    .venv/bin/python experiments/matching/run.py rendered pairs --held-out FOLDER
    .venv/bin/python experiments/matching/run.py real --videos FOLDER

Results of a part replace those in results.json; other parts stay. Shape letters:  F key frames   N points   T frames.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from depth_heads import linear_against_dpt
from full_rate import film, scored
from matching_scores import Tally, encoders, some_worlds
from real_clips import on_real_clips
from torch.nn import functional

from diffusion4d.atomic import replace_when_done
from diffusion4d.token_tracks import SIDE
from priors.dinov3 import load_encoder
from priors.matching import Matcher, match_all_pairs, match_to_anchor
from priors.precision import in_precision
from priors.refinement import refine
from priors.tokens import TokenGrid

METHODS = ("mutual", "soft", "sinkhorn", "hough", "epipolar")
TEMPERATURES = {"tiny": 0.035, "random weights": 0.01, "raw pixels": 0.05}
"""tiny's was chosen on 9 other worlds, out of .02, .035, .05, .1; the others' were not."""
LENGTHS = (6, 12, 24, 48)

Part = Literal["rendered", "pairs", "real", "full-rate", "heads", "precision", "picture"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure matching."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional]
    held_out: Path = Path("runs/held-out-256")
    """Folder of rendered worlds, shorter side 256 px."""
    fitting: Path = Path("runs/choosing-256")
    """Folder of other rendered worlds, which the linear head is fitted to."""
    videos: Path = Path("videos")
    """Folder of real clips."""
    worlds: int = 32
    """Worlds that are scored: the first of each image shape in turn. A part takes fewer where it says so."""
    frames: int = 24
    """Frames of a real clip, every other one of its own."""
    pack: Path = Path("runs/pack")
    """Pack of actors, for the worlds that are rendered on the spot."""
    filmed_from: int = 2**31 + 100_000
    """Seed of the first of these worlds."""
    only: tuple[str, ...] = ()
    """Real clips by name; all by default."""
    out: Path = Path(__file__).parent / "results.json"
    draws: int = 1000
    """Of the bootstrap over worlds."""


def rendered(settings: Settings) -> dict[str, object]:
    """PCK of every matcher on every encoder, bare and refined."""
    tallies: dict[str, Tally] = {}
    known = encoders()
    for world in some_worlds(settings.held_out, settings.worlds):
        stay = world.queries.expand_as(world.truth)
        tallies.setdefault("same place", Tally()).add(world, stay)
        for name, encode in known.items():
            grid = encode(world.images, world.u)
            for method in METHODS:
                matcher = Matcher(method, temperature=TEMPERATURES[name])
                matches = match_to_anchor(grid, world.queries, matcher)
                key = f"{name}, {method}"
                tallies.setdefault(key, Tally()).add(world, matches.tracks, matches.visibility)
                if method in ("soft", "sinkhorn", "hough"):
                    fine = refine(world.images, matches)
                    tallies.setdefault(f"{key}, refined", Tally()).add(
                        world, fine.tracks, fine.visibility
                    )
    scores = {name: tally.score(settings.draws) for name, tally in tallies.items()}
    return {"worlds": settings.worlds, "scores": scores}


def pairs(settings: Settings) -> dict[str, object]:
    """The anchor-based pipeline against all pairs: accuracy on rendered worlds, CPU time against T."""
    encode = encoders()["tiny"]
    kinds = {"anchor": match_to_anchor, "all pairs": match_all_pairs}
    tallies = {name: Tally() for name in kinds}
    worlds = some_worlds(settings.held_out, max(1, settings.worlds // 2))
    for world in worlds:
        grid = encode(world.images, world.u)
        for name, match in kinds.items():
            matches = match(grid, world.queries, Matcher("hough"))
            tallies[name].add(world, matches.tracks, matches.visibility)
    world = worlds[0]
    one = encode(world.images, world.u)
    seconds: dict[str, dict[int, float]] = {name: {} for name in kinds}
    for length in LENGTHS:
        index = torch.arange(length) % len(one.u)
        grid = TokenGrid(one.values[index], one.grid, one.size, torch.linspace(0, 1, length))
        for name, match in kinds.items():
            # All pairs of 48 frames are 2209 matches: their number is exact without a clock.
            if name == "all pairs" and length > LENGTHS[-2]:
                continue
            start = time.process_time()
            match(grid, world.queries[:32], Matcher("soft"))
            seconds[name][length] = time.process_time() - start
    exponents = {
        name: float(np.polyfit(np.log([*t]), np.log([*t.values()]), 1)[0])
        for name, t in seconds.items()
    }
    return {
        "worlds": len(worlds),
        "scores": {name: tally.score(settings.draws) for name, tally in tallies.items()},
        "cpu_seconds": {n: {t: round(s, 4) for t, s in row.items()} for n, row in seconds.items()},
        "exponent": {name: round(value, 3) for name, value in exponents.items()},
    }


def precision(settings: Settings) -> dict[str, object]:
    """bf16 and int8 against float32: cosine of tokens, PCK at 8 px of soft matches, CPU time of encoding."""
    plain = load_encoder("tiny").at_size((SIDE, SIDE))
    kinds = {"fp32": plain} | {name: in_precision(plain, name) for name in ("bf16", "int8")}
    worlds = some_worlds(settings.held_out, 8)
    tallies = {name: Tally() for name in kinds}
    cosine: dict[str, list[float]] = {name: [] for name in kinds}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    # The first pass allocates and tunes.
    for encoder in kinds.values():
        encoder.encode(worlds[0].images, worlds[0].u)
    for world in worlds:
        whole = plain.encode(world.images, world.u).values
        for name, encoder in kinds.items():
            start = time.process_time()
            grid = encoder.encode(world.images, world.u)
            seconds[name].append((time.process_time() - start) / len(world.u))
            alike = functional.cosine_similarity(grid.values.float(), whole, dim=-1)
            cosine[name].append(float(alike.mean()))
            matches = match_to_anchor(grid, world.queries, Matcher("soft"))
            tallies[name].add(world, matches.tracks)
    base = np.median(seconds["fp32"])
    return {
        name: {
            "cosine": round(float(np.mean(cosine[name])), 5),
            "pck8": tallies[name].score(settings.draws)["all pck8"],
            "time over fp32": round(float(np.median(seconds[name]) / base), 3),
        }
        for name in kinds
    }


def picture(settings: Settings) -> dict[str, object]:
    """matching.png: points of the first frame of two worlds, and where each matcher puts them in a later one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    encode = encoders()["tiny"]
    worlds = some_worlds(settings.held_out, 3)
    figure, axes = plt.subplots(len(worlds), 3, figsize=(10, 3.3 * len(worlds)))
    for row, world in zip(axes, worlds, strict=True):
        grid = encode(world.images, world.u)
        bare = match_to_anchor(grid, world.queries, Matcher("hough"))
        fine = refine(world.images, bare)
        t = 2
        seen = world.seen[t]
        colour = world.queries[:, 0] + world.queries[:, 1]
        for axis, frame, title in zip(
            row, (0, t, t), ("frame 0, query points", "tokens", "refined"), strict=True
        ):
            axis.imshow(world.images[frame].permute(1, 2, 0))
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        row[0].scatter(*world.queries[seen].T, c=colour[seen], s=9, cmap="turbo")
        for axis, matches in ((row[1], bare), (row[2], fine)):
            here, truth = matches.tracks[t, seen], world.truth[t, seen]
            off = torch.stack([here, truth], 1)
            axis.plot(off[..., 0].T, off[..., 1].T, color="white", linewidth=0.6)
            axis.scatter(*here.T, c=colour[seen], s=9, cmap="turbo")
            within = ((here - truth).norm(dim=-1) <= 4).float().mean()
            axis.set_title(f"{axis.get_title()}: {within:.0%} within 4 px", fontsize=9)
            axis.set_xlim(0, world.images.shape[-1])
            axis.set_ylim(world.images.shape[-2], 0)
    figure.tight_layout()
    path = settings.out.parent / "matching.png"
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=70, format="png")
    plt.close(figure)
    return {"picture": path.name}


def real(settings: Settings) -> dict[str, object]:
    """See `real_clips`."""
    return on_real_clips(settings.videos, settings.frames, settings.only)


def full_rate(settings: Settings) -> dict[str, object]:
    """See `full_rate`."""
    return scored([film(settings.filmed_from + i, settings.pack) for i in range(4)])


def heads(settings: Settings) -> dict[str, object]:
    """See `depth_heads`."""
    return linear_against_dpt(settings.held_out, settings.fitting, settings.worlds, settings.draws)


PARTS: dict[Part, Callable[[Settings], dict[str, object]]] = {
    "rendered": rendered,
    "pairs": pairs,
    "real": real,
    "full-rate": full_rate,
    "heads": heads,
    "precision": precision,
    "picture": picture,
}


def main(settings: Settings) -> dict[str, object]:
    """Run the parts; write each as it is done, and return all results."""
    results: dict[str, object] = {}
    for part in settings.parts:
        with torch.no_grad():
            found = PARTS[part](settings)
        if settings.out.exists():
            results = json.loads(settings.out.read_text())
        results[part] = found
        with replace_when_done(settings.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
        print(part, json.dumps(found), flush=True)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Settings))
