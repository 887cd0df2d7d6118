"""What a step costs beside the network, how time and memory grow with K, N and T, and whether the plan holds.

Larger clips are made of a small one, its points or frames repeated: cost does not depend on what they do. In the
curve over N "nodes fixed", as many points as in the small clip are sampled, and N trajectories are snapped and decoded.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from contenders import Bench, noise_for, ours
from gate import Metric
from ladder import bench_of, fastest, make_bench, steps_of
from timing import exponent, peak_growth, seconds, side_by_side
from torch import Tensor

from diffusion4d import denoiser, sampling
from diffusion4d.evaluation.cases import Case
from diffusion4d.loops import ready
from diffusion4d.memory import CHUNK_ROWS
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.pool import HELD_OUT
from diffusion4d.scenes.video import write_video
from samplers.predictions import from_prediction
from samplers.solve import solve

SMALL_POINTS, SMALL_FRAMES = 64, 48


def costs_of_parts(bench: Bench, rounds: int) -> tuple[list[Metric], dict]:
    """Seconds of a chunk of hypotheses: the loop, the loop around a network that answers at once, and what follows.

    "Beside the network" is all that the loop does but the network: drawing noise, giving it its covariance, turning a
    velocity into x_0, clipping, the table's update. Decoding to control points, snapping and trajectories come after
    the loop, once a hypothesis; preparing once a clip.
    """
    chunk = max(1, CHUNK_ROWS // bench.evidence.ctrl.shape[1])
    seeds = sampling.seeds_from(2, chunk)
    with torch.no_grad():
        clip = ready(bench.prepared(), fastest(bench), bench.table.times)
        without = dataclasses.replace(clip, fused=at_once)

        def loop(which: denoiser.ClipDenoiser) -> Tensor:
            noise = noise_for(which, seeds)

            def velocity(x_t: Tensor, t: Tensor) -> Tensor:
                return which.velocity(x_t[None], t).squeeze(0)

            denoise = from_prediction(*denoiser.path_of(bench.network), denoiser.LIMIT)(velocity)
            return solve(bench.table, denoise, noise.initial(), noise, backend="blocked")

        residual = loop(clip)
        taken = side_by_side(
            {
                "loop": lambda: loop(clip),
                "beside": lambda: loop(without),
                "after": lambda: bench.finish(clip.decode(residual[None]).squeeze(0), seeds),
                "prepare": lambda: ready(bench.prepared(), fastest(bench), bench.table.times),
            },
            2 * rounds + 1,
        )
    run = taken["loop"] + taken["after"]
    metrics = [
        Metric(
            "beside_network", taken["beside"] / taken["loop"], "of the loop", "lower", 0.1, 0.03
        ),
        Metric("hypotheses_per_cpu_minute", 60 * chunk / run, "/ CPU min", "higher", None, 2200),
        Metric("after_loop", taken["after"] / run, "of a hypothesis", "lower", 0.1, 0.03),
    ]
    table = {name: 1000 * spent / chunk for name, spent in taken.items() if name != "prepare"}
    return metrics, {
        "milliseconds_a_hypothesis": table,
        "milliseconds_to_prepare_a_clip": 1000 * taken["prepare"],
        "steps": steps_of(bench),
        "hypotheses": chunk,
    }


def at_once(x_t: Tensor, t: Tensor) -> Tensor:
    """A network that answers 0 and takes no time."""
    return torch.zeros_like(x_t)


def curves(pipe: Diffusion4DPipeline, largest: tuple[int, int, int]) -> tuple[list[Metric], dict]:
    """Seconds and peak bytes against K, N and T, and the exponents of time."""
    small = make_bench(pipe, SMALL_POINTS, SMALL_FRAMES)
    most_k, most_n, most_t = largest
    runs: dict[str, tuple[list[int], Callable[[int], Callable[[], object]]]] = {
        "K": (sizes(1, most_k), lambda k: run_of(small, k)),
        "N": (sizes(64, most_n), lambda n: run_of(of_size(pipe, small, points=n), 2)),
        "N, nodes fixed": (sizes(64, most_n), lambda n: on_nodes(small, of_size(pipe, small, points=n), 8)),
        "T": (sizes(16, most_t), lambda t: run_of(of_size(pipe, small, frames=t), 8)),
    }  # fmt: skip
    metrics, table = [], {}
    for name, (places, make) in runs.items():
        table[name] = {"size": places, "seconds": [], "bytes": []}
        make(places[0])()
        for place in places:
            work = make(place)
            spent: list[float] = []
            table[name]["bytes"].append(peak_growth(lambda w=work, s=spent: s.append(seconds(w))))
            # Small runs are short enough to be repeated.
            spent += [seconds(work) for _ in range(2 if spent[0] < 1 else 0)]
            table[name]["seconds"].append(min(spent))
        power = exponent(places, table[name]["seconds"])
        key = "exponent_" + name.replace(", ", "_").replace(" ", "_")
        metrics.append(Metric(key, power, "", "lower", 0.1, 1.05))
    return metrics, table


def sizes(first: int, last: int) -> list[int]:
    """Powers of 4, and the last."""
    held = []
    while first < last:
        held.append(first)
        first *= 4
    return [*held, last]


def run_of(bench: Bench, hypotheses: int) -> Callable[[], object]:
    """Ours, from evidence to trajectories."""
    seeds = sampling.seeds_from(3, hypotheses)
    return lambda: ours(bench, seeds, loop=fastest(bench))


def on_nodes(nodes: Bench, all_points: Bench, hypotheses: int) -> Callable[[], object]:
    """A few points sampled, many trajectories snapped and decoded."""
    seeds = sampling.seeds_from(3, hypotheses)
    copies = all_points.evidence.ctrl.shape[1] // nodes.evidence.ctrl.shape[1]

    def finish(ctrl: Tensor, chosen: Sequence[int]) -> Tensor:
        return all_points.finish(ctrl.repeat(1, copies, 1, 1), chosen)

    def work() -> Tensor:
        return sampling.sample(
            nodes.prepared(), seeds, nodes.table, loop=fastest(nodes), chunk=1, finish=finish
        )

    return work


def of_size(
    pipe: Diffusion4DPipeline, bench: Bench, *, points: int | None = None, frames: int | None = None
) -> Bench:
    """The clip with its points repeated, or its frames."""
    clip = bench.case.clip
    N, T, _ = clip.points.shape
    at = torch.arange(points or N) % N
    when = torch.linspace(0, T - 1, frames or T).round().long()
    larger = dataclasses.replace(
        clip,
        points=clip.points[at][:, when],
        visible=clip.visible[at][:, when],
        moving=clip.moving[at],
        u=torch.linspace(0, 1, len(when)),
        tracks=clip.tracks[at][:, when],
        visibility=clip.visibility[at][:, when],
    )
    return bench_of(pipe, Case.of(larger), tokens=True)


def memory_of_many(
    model: str, hypotheses: int, points: int, frames: int
) -> tuple[list[Metric], dict]:
    """What the pipeline adds to resident memory for K hypotheses of a video, against what it printed (peak.py).

    In a process of its own: one that has sampled before holds memory that would hide what this takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "clip.mp4"
        write_video(video, HELD_OUT, frames=frames)
        command = [sys.executable, str(Path(__file__).with_name("peak.py")), str(video)]
        command += ["--model", model, "--hypotheses", str(hypotheses), "--points", str(points)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(told.splitlines()[-1])
    share = found["sampled"] / found["planned"]
    metric = Metric(
        "memory_of_planned", share, "of what was printed", "lower", 0.25, 1.0, everywhere=True
    )
    return [metric], {"hypotheses": hypotheses, **found}
