"""Whether what is fast is as good: energy scores of the loops, and the best answer that some seconds buy.

Worlds are held out and generated; every loop sees the same tracks, without patch tokens, and the same noise. What
diffusers' loop would draw is drawn by our own DDIM of as many steps, which is the same sampler and takes less time to
wait for; what it can afford at a budget is counted at its own rate.

Shape letters:  K samples   N points   T frames.
"""

from collections.abc import Callable

from contenders import Bench, diffusers_loop, ours
from gate import Metric
from jaxtyping import Float
from ladder import STEPS, bench_of, fastest, worlds
from timing import seconds
from torch import Tensor

from diffusion4d import metrics, sampling
from diffusion4d.evaluation.cases import Case, world_clips
from diffusion4d.loops import choose
from diffusion4d.pipeline import Diffusion4DPipeline

POINTS, FRAMES = 64, 32
SAMPLES = 16
BUDGETS = (1, 5, 30)
SCORED = 64
"""Samples that an energy score at a budget is taken over at most; the fair score does not depend on how many."""


def benches(pipe: Diffusion4DPipeline, count: int) -> list[Bench]:
    """Held-out worlds as their tracker saw them."""
    clips = world_clips(worlds(count, POINTS, FRAMES), POINTS)
    return [bench_of(pipe, Case.of(clip), tokens=False) for clip in clips]


def draw_ddim(bench: Bench, seeds: list[int]) -> Float[Tensor, "K N T 3"]:
    """As diffusers' loop would."""
    return ours(
        bench,
        seeds,
        loop=choose(bench.network, "auto", "fp32"),
        table=sampling.table_for("ddim", STEPS),
    )


def energy(samples: Float[Tensor, "K N T 3"], bench: Bench) -> float:
    """Fair energy score of the whole scene."""
    return metrics.energy_score(samples, bench.case.truth, bench.case.masks)[0].item()


def quality(pipe: Diffusion4DPipeline, count: int) -> tuple[list[Metric], dict]:
    """Mean energy scores over worlds, and their ratios."""
    draws: dict[str, Callable[[Bench, list[int]], Tensor]] = {
        "ours": lambda b, s: ours(b, s, loop=fastest(b)),
        "ours, fp32": lambda b, s: ours(b, s, loop=choose(b.network, "auto", "fp32")),
        f"DDIM, {STEPS} steps": draw_ddim,
    }
    held = {name: [] for name in draws}
    for bench in benches(pipe, count):
        seeds = sampling.seeds_from(bench.case.seed, SAMPLES)
        for name, draw in draws.items():
            held[name].append(energy(draw(bench, seeds), bench))
    mean = {name: sum(values) / len(values) for name, values in held.items()}
    rival = mean[f"DDIM, {STEPS} steps"]
    found = [
        Metric(
            "energy_of_ddim", mean["ours"] / rival, f"of {STEPS} DDIM steps", "lower", 0.1, 1.02
        ),
        Metric("energy_bf16_of_fp32", mean["ours"] / mean["ours, fp32"], "", "lower", 0.005, 1.005),
    ]
    return found, {"worlds": count, "samples": SAMPLES, "mean": mean, "each": held}


def budgets(pipe: Diffusion4DPipeline, count: int, most: int) -> dict:
    """minADE and energy score of what a second, five and thirty of sampling buy, ours and diffusers' loop.

    `most` samples at most are drawn: a loop that could draw more is scored on these, and could only find a better best.
    """
    held = benches(pipe, count)
    some = sampling.seeds_from(0, 32)
    rates = {
        "ours": 32 / seconds(lambda: ours(held[0], some, loop=fastest(held[0]))),
        "diffusers": 2 / seconds(lambda: diffusers_loop(held[0], some[:2], STEPS)),
    }
    rows = []
    for budget in BUDGETS:
        for name, rate in rates.items():
            affordable = int(rate * budget)
            drawn = min(affordable, most)
            row = {"seconds": budget, "loop": name, "affordable": affordable, "drawn": drawn}
            if drawn:
                row |= at_budget(held, name, drawn)
            rows.append(row)
    return {"rates": rates, "worlds": count, "rows": rows}


def at_budget(held: list[Bench], name: str, drawn: int) -> dict[str, float]:
    """Mean minADE (joint) and, where there are two samples, energy score."""
    best, scores = [], []
    for bench in held:
        seeds = sampling.seeds_from(bench.case.seed, drawn)
        samples = (
            ours(bench, seeds, loop=fastest(bench)) if name == "ours" else draw_ddim(bench, seeds)
        )
        case = bench.case
        best.append(metrics.min_ade_joint(samples, case.truth, case.masks)[0].item())
        if drawn > 1:
            scores.append(energy(samples[:SCORED], bench))
    found = {"min_ade": sum(best) / len(best)}
    return found | ({"energy": sum(scores) / len(scores)} if scores else {})
