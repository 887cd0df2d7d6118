r"""What does a hypothesis cost, and where did the gains come from?

    python experiments/bench/run.py                 results.json and the README's tables and picture; exit code 0
    python experiments/bench/run.py --quick         fewer repetitions, sizes and worlds; nothing in the README changes
    python experiments/bench/run.py --gate          exit code 1 where a ratio falls short of baseline.json
    python experiments/bench/run.py --accept        write baseline.json
    python experiments/bench/run.py --parts quality budgets      these alone, in the old ones' place in results.json

Everything is generated, and measured in one process but for the peak of memory: ratios are of alternatives that ran in
turn. Parts are those of `record.PARTS`. quality, memory and budgets do not depend on what else the machine does.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from costs import costs_of_parts, curves, memory_of_many
from gate import Metric, missed, recorded, shortfalls, write_baseline
from ladder import compiling, ladder, make_bench, throughput
from page import fill_readme
from passes import decoding, updating
from processors import processor
from record import PARTS, fingerprints, merged
from scores import budgets, quality, rates

from diffusion4d import loops
from diffusion4d.atomic import replace_when_done
from diffusion4d.models import find_model
from diffusion4d.pipeline import Diffusion4DPipeline

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a run; the defaults are the full one."""

    model: str = "tiny"
    """Packaged model or folder."""
    parts: tuple[str, ...] = PARTS
    """What to measure; what else the file of results holds stays as it was measured."""
    out: Path = HERE / "results.json"
    """File for the results; a quick run writes quick.json beside it instead."""
    baseline: Path = HERE / "baseline.json"
    """File that --gate holds the results to."""
    quick: bool = False
    """Fewer repetitions, sizes and worlds; a threshold is compared with the same baseline."""
    gate: bool = False
    """Exit with 1 where a gated ratio falls short of the baseline."""
    compiled: bool = False
    """Also time torch.compile, which takes a minute and a C++ compiler."""
    accept: bool = False
    """Write the baseline from this run."""
    points: int = 128
    frames: int = 48
    hypotheses: int = 8
    """Of a timed run of a loop."""
    rounds: int = 3
    """Repetitions that a median is taken over."""
    worlds: int = 16
    """Held-out worlds that are scored."""
    budget_worlds: int = 4
    """Of these, scored at a budget of seconds."""
    draws: int = 8192
    """Samples at most at a budget; a loop that could draw more is scored on these."""
    largest: tuple[int, int, int] = (1024, 4096, 1024)
    """K, N and T that the curves end at."""
    many: int = 1024
    """Hypotheses whose memory is measured."""

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"need parts out of {', '.join(PARTS)}, got {unknown or 'none'}")

    def effective(self) -> "Settings":
        """With what `quick` changes."""
        if not self.quick:
            return self
        out = self.out.with_name("quick.json") if self.out == HERE / "results.json" else self.out
        return dataclasses.replace(
            self,
            out=out,
            rounds=1,
            worlds=4,
            budget_worlds=1,
            draws=64,
            largest=(64, 512, 256),
            many=128,
        )


def measure(settings: Settings, held: dict) -> tuple[list[Metric], dict]:
    """The parts that were asked for, on one thread but for the throughput.

    held: earlier results, whose rates say how many samples a budget affords where these are not measured anew.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe = Diffusion4DPipeline.from_pretrained(settings.model)
    bench = make_bench(pipe, settings.points, settings.frames)
    metrics: list[Metric] = []
    tables: dict = {}
    seconds: dict[str, float] = {}

    def bought() -> dict:
        rate = tables.get("rates") or held.get("rates")
        if not rate:
            raise ValueError("need rates for budgets: measure the part rates on a quiet machine")
        return budgets(pipe, rate, settings.budget_worlds, settings.draws)

    every: dict[str, Callable[[], tuple[list[Metric], dict | list[dict]]]] = {
        "ladder": lambda: ladder(bench, settings.hypotheses, settings.rounds),
        "costs": lambda: costs_of_parts(bench, settings.rounds),
        "decoding": lambda: decoding(settings.rounds, settings.largest[2]),
        "updating": lambda: updating(settings.rounds),
        "curves": lambda: curves(pipe, settings.largest),
        "memory": lambda: memory_of_many(
            settings.model, settings.many, settings.points, settings.frames
        ),
        "quality": lambda: quality(pipe, settings.worlds),
        "throughput": lambda: throughput(bench, settings.rounds),
        "rates": lambda: ([], rates(pipe)),
        "budgets": lambda: ([], bought()),
    }
    chosen = {name: part for name, part in every.items() if name in settings.parts}
    if settings.compiled:
        chosen["compiling"] = lambda: compiling(bench, settings.rounds)
    for name, part in chosen.items():
        since = time.perf_counter()
        found, table = part()
        metrics += found
        tables[name] = table
        seconds[name] = round(time.perf_counter() - since, 1)
        print(f"{name}: {seconds[name]} s", *(f"  {m}" for m in found), sep="\n", flush=True)
    torch.set_num_threads(threads)
    tables["seconds"] = seconds
    return metrics, tables


def main(settings: Settings) -> int:
    """Measure, write, and compare; returns the exit code."""
    chosen = settings.effective()
    some = set(chosen.parts) != set(PARTS)
    if some and not chosen.out.is_file():
        raise ValueError(f"need results at {chosen.out} to put {', '.join(chosen.parts)} into")
    held = json.loads(chosen.out.read_text()) if some else {}
    metrics, tables = measure(chosen, held)
    # Without the paths, which are the machine's.
    told = dataclasses.asdict(chosen)
    told = {k: v for k, v in told.items() if k != "parts" and not isinstance(v, Path)}
    run = {
        "parts": [part for part in PARTS if part in chosen.parts],
        "settings": told,
        "machine": {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "native_bf16": loops.multiplies_bf16(),
            "system": platform.system(),
            "torch": torch.__version__,
        },
        "model": fingerprints(find_model(chosen.model)),
    }
    results = {"runs": [run], "metrics": recorded(metrics), **tables}
    results = merged(held, results) if some else results
    with replace_when_done(chosen.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    if chosen.out == HERE / "results.json":
        fill_readme(results, HERE)
    if settings.accept:
        write_baseline(metrics, settings.baseline, processor())
    for line in missed(metrics):
        print(f"goal missed: {line}")
    if not settings.gate:
        return 0
    short = shortfalls(metrics, settings.baseline, processor(), some=some)
    for line in short:
        print(f"falls short: {line}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
