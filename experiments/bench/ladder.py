"""From the way diffusers samples to ours, one gain at a time; a loop of single samples; and hypotheses a minute."""

import time
from collections.abc import Callable

import torch
from contenders import Bench, Draw, diffusers_loop, ours, single_samples, table_loop, with_tokens
from gate import Metric
from timing import side_by_side

from diffusion4d import sampling
from diffusion4d.evaluation.cases import Case, world_clips
from diffusion4d.loops import Loop, choose
from diffusion4d.memory import CHUNK_ROWS
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.observe import World
from diffusion4d.scenes.pool import HELD_OUT, Worlds, stacked
from diffusion4d.scenes.world import generate

STEPS = 50
"""Of DDIM, as diffusers' pipelines take by default."""

LARGE_CHUNK = 4096
"""Rows at once of the loop as it was before it was fused."""


def worlds(count: int, points: int, frames: int) -> Worlds:
    """Held-out worlds of generated bodies."""
    drawn: list[World] = [
        generate(HELD_OUT + i, num_points=points, num_frames=frames) for i in range(count)
    ]
    return Worlds(**stacked(drawn))


def make_bench(pipe: Diffusion4DPipeline, points: int, frames: int) -> Bench:
    """A held-out world seen through a tracker, with patch tokens of the shape a video has."""
    case = Case.of(next(iter(world_clips(worlds(1, points, frames), points))))
    return bench_of(pipe, case, tokens=True)


def bench_of(pipe: Diffusion4DPipeline, case: Case, *, tokens: bool) -> Bench:
    """A case as the pipeline's networks take it, and the steps they usually take."""
    config = pipe.transformer.config
    evidence = case.evidence(config["num_ctrl"])
    channels = config["token_channels"]
    if tokens and channels:
        evidence = with_tokens(evidence, channels)
    name, steps = sampling.usual(pipe.transformer)
    table = sampling.table_for(name, steps)
    return Bench(pipe.transformer, pipe.regressor, evidence, case, table)


def steps_of(bench: Bench) -> int:
    """Evaluations a hypothesis of the usual sampler."""
    return bench.table.num_steps


def fastest(bench: Bench) -> Loop:
    """What "auto" takes."""
    return choose(bench.network)


def rungs(bench: Bench) -> dict[str, Draw]:
    """Each has one gain more than the one before."""
    fused = choose(bench.network, "auto", "fp32")
    large = max(1, LARGE_CHUNK // bench.evidence.ctrl.shape[1])
    few = steps_of(bench)
    return {
        f"diffusers' loop, {STEPS} DDIM steps": lambda s: diffusers_loop(bench, s, STEPS),
        f"few steps ({few})": lambda s: diffusers_loop(bench, s, few),
        "a table for the scheduler": lambda s: table_loop(bench, s),
        "the clip encoded once": lambda s: ours(bench, s, guidance=1.5, chunk=large),
        "no doubled batch": lambda s: ours(bench, s, chunk=large),
        "fused loop": lambda s: ours(bench, s, loop=fused),
        "bfloat16 where native": lambda s: ours(bench, s, loop=fastest(bench)),
    }


def ladder(bench: Bench, hypotheses: int, rounds: int) -> tuple[list[Metric], list[dict]]:
    """Samples a second of every rung and of the loop of single samples, from evidence to trajectories."""
    seeds = sampling.seeds_from(0, hypotheses)

    def of(draw: Draw) -> Callable[[], object]:
        return lambda: draw(seeds)

    work = {name: of(draw) for name, draw in rungs(bench).items()}
    names = list(work)
    work["single samples, 4 Euler steps"] = lambda: single_samples(bench, seeds)
    # The slowest has the least noise, and would take most of the time.
    slowest = names[0]
    taken = side_by_side({slowest: work.pop(slowest)}, 1, warm=False)
    taken |= side_by_side(work, rounds)
    rate = {name: hypotheses / spent for name, spent in taken.items()}
    table = [
        {
            "loop": name,
            "per_second": rate[name],
            "of_the_one_before": rate[name] / rate[names[i - 1]] if i else None,
            "of_the_first": rate[name] / rate[names[0]],
        }
        for i, name in enumerate(names)
    ]
    alone = "single samples, 4 Euler steps"
    table.append(
        {
            "loop": alone,
            "per_second": rate[alone],
            "of_the_one_before": None,
            "of_the_first": rate[alone] / rate[names[0]],
        }
    )
    best = rate[names[-1]]
    # A gain that is none is not one: 1 is a goal of each that was meant as one.
    metrics = [
        Metric(
            "all_gains",
            best / rate[names[0]],
            f"x diffusers' loop, {STEPS} steps",
            "higher",
            0.1,
            10,
        ),
        Metric(
            "all_gains_same_steps",
            best / rate[names[1]],
            "x diffusers' loop, as few steps",
            "higher",
            0.15,
            1,
        ),
        Metric("all_gains_single", best / rate[alone], "x single samples", "higher", 0.1, 1),
        Metric("table", rate[names[2]] / rate[names[1]], "x", "higher", 0.2),
        Metric("encoded_once", rate[names[3]] / rate[names[2]], "x", "higher", 0.1, 1),
        Metric("no_doubling", rate[names[4]] / rate[names[3]], "x", "higher", 0.1, 1),
        Metric("fused", rate[names[5]] / rate[names[4]], "x", "higher", 0.1, 1),
        Metric("bf16", rate[names[6]] / rate[names[5]], "x", "higher", 0.1, 1),
    ]
    return metrics, table


def compiling(bench: Bench, rounds: int) -> tuple[list[Metric], dict]:
    """What torch.compile gives a CPU, and what it takes before the first step; nothing here is gated."""
    seeds = sampling.seeds_from(5, 8)
    loops = {name: choose(bench.network, name, "fp32") for name in ("plain", "compiled", "fused")}
    since = time.perf_counter()
    ours(bench, seeds, loop=loops["compiled"])
    first = time.perf_counter() - since
    taken = side_by_side(
        {name: lambda loop=loop: ours(bench, seeds, loop=loop) for name, loop in loops.items()},
        rounds,
    )
    metrics = [
        Metric("compiled_of_plain", taken["plain"] / taken["compiled"], "x", "higher"),
        Metric("fused_of_compiled", taken["compiled"] / taken["fused"], "x", "higher"),
    ]
    return metrics, {"seconds_before_the_first_step": first, "seconds": taken}


def throughput(bench: Bench, rounds: int) -> tuple[list[Metric], dict]:
    """Hypotheses a minute by the wall clock, on one thread and on two; they depend on the machine."""
    chunk = max(1, CHUNK_ROWS // bench.evidence.ctrl.shape[1])
    seeds = sampling.seeds_from(1, 2 * chunk)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, loop in {
            "": fastest(bench),
            "_fp32": choose(bench.network, "auto", "fp32"),
        }.items():
            spent = wall(lambda loop=loop: ours(bench, seeds, loop=loop), rounds)
            key = f"hypotheses_per_minute_{threads}{name}"
            goal = 2200 if threads == 2 and not name else None
            found.append(Metric(key, 60 * len(seeds) / spent, "/ min", "higher", None, goal))
    torch.set_num_threads(before)
    return found, {m.key: m.value for m in found}


def wall(work: Callable[[], object], rounds: int) -> float:
    """Least wall seconds of a few runs."""
    work()
    least = float("inf")
    for _ in range(rounds):
        since = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - since)
    return least
