"""Whether what is fast is as good: energy scores of the loops, and the best answer that some seconds buy.

Worlds are held out and generated; every loop sees the same tracks, without patch tokens, and the same noise. What
diffusers' loop would draw is drawn by our own DDIM of as many steps, which is the same sampler and takes less time to
wait for; what it can afford at a budget is counted at its own rate.

Shape letters:  K samples   N points   T frames.
"""

from collections.abc import Callable, Mapping

import torch
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
CHUNK = 512
"""Samples whose trajectories are held at once."""

Draw = Callable[[Bench, list[int]], Float[Tensor, "K N T 3"]]


def benches(pipe: Diffusion4DPipeline, count: int) -> list[Bench]:
    """Held-out worlds as their tracker saw them."""
    clips = world_clips(worlds(count, POINTS, FRAMES), POINTS)
    return [bench_of(pipe, Case.of(clip), tokens=False) for clip in clips]


def draw_ours(bench: Bench, seeds: list[int]) -> Float[Tensor, "K N T 3"]:
    """As "auto" would."""
    return ours(bench, seeds, loop=fastest(bench))


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
    draws: dict[str, Draw] = {
        "ours": draw_ours,
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
            "energy_of_ddim",
            mean["ours"] / rival,
            f"of {STEPS} DDIM steps",
            "lower",
            0.1,
            1.02,
            everywhere=True,
        ),
        Metric(
            "energy_bf16_of_fp32",
            mean["ours"] / mean["ours, fp32"],
            "",
            "lower",
            0.005,
            1.005,
            everywhere=True,
        ),
    ]
    return found, {"worlds": count, "samples": SAMPLES, "mean": mean, "each": held}


def rates(pipe: Diffusion4DPipeline) -> dict[str, float]:
    """Samples a CPU second of ours and of diffusers' loop; scores at a budget are of as many as these afford."""
    bench = benches(pipe, 1)[0]
    some = sampling.seeds_from(0, 32)
    return {
        "ours": 32 / seconds(lambda: ours(bench, some, loop=fastest(bench))),
        "diffusers": 2 / seconds(lambda: diffusers_loop(bench, some[:2], STEPS)),
    }


def budgets(pipe: Diffusion4DPipeline, rate: Mapping[str, float], count: int, most: int) -> dict:
    """minADE and energy score of what a second, five and thirty of sampling buy, ours and diffusers' loop.

    `most` samples at most are drawn: a loop that could draw more is scored on these, and could only find a better best.
    """
    each = [at_budgets(bench, rate, most) for bench in benches(pipe, count)]
    return {"worlds": count, "most": most, "rows": mean_rows(each)}


def at_budgets(bench: Bench, rate: Mapping[str, float], most: int) -> list[dict]:
    """Rows of one world. What a smaller budget buys are the first samples of what a larger one does."""
    rows = []
    for name, per_second in rate.items():
        affordable = {budget: int(per_second * budget) for budget in BUDGETS}
        draw = draw_ours if name == "ours" else draw_ddim
        errors, first = drawn_in_chunks(bench, draw, min(most, max(affordable.values())))
        for budget, count in affordable.items():
            row = {"seconds": budget, "loop": name, "affordable": count}
            row["drawn"] = drawn = min(count, most)
            if drawn:
                row["min_ade"] = min(errors[:drawn])
            if drawn > 1:
                row["energy"] = energy(first[:drawn], bench)
            rows.append(row)
    return sorted(rows, key=lambda row: row["seconds"])


def drawn_in_chunks(
    bench: Bench, draw: Draw, count: int
) -> tuple[list[float], Float[Tensor, "K N T 3"]]:
    """Mean distance of every sample to the truth, and the first samples; the rest are not kept."""
    case = bench.case
    seeds = sampling.seeds_from(case.seed, count)
    errors: list[float] = []
    first: list[Tensor] = []
    for start in range(0, count, CHUNK):
        samples = draw(bench, seeds[start : start + CHUNK])
        errors += [
            metrics.min_ade_joint(one[None], case.truth, case.masks[0]).item() for one in samples
        ]
        first.append(samples[: max(0, SCORED - start)])
    return errors, torch.cat(first)


def mean_rows(each: list[list[dict]]) -> list[dict]:
    """Rows of worlds, their scores averaged."""
    return [
        rows[0]
        | {
            name: sum(row[name] for row in rows) / len(rows)
            for name in ("min_ade", "energy")
            if name in rows[0]
        }
        for rows in zip(*each, strict=True)
    ]
