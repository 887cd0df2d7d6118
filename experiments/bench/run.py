r"""What does a hypothesis cost, and where did the gains come from?

    python experiments/bench/run.py                 results.json and the README's tables and picture; exit code 0
    python experiments/bench/run.py --quick         fewer repetitions, sizes and worlds; nothing in the README changes
    python experiments/bench/run.py --gate          exit code 1 where a ratio falls short of baseline.json
    python experiments/bench/run.py --accept        write baseline.json

Everything is generated and measured in one process: ratios are of alternatives that ran in turn.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path

import torch
import tyro
from costs import costs_of_parts, curves, memory_of_many
from gate import Metric, processor, recorded, shortfalls, write_baseline
from ladder import compiling, ladder, make_bench, throughput
from page import fill_readme
from passes import decoding, updating
from scores import budgets, quality

from diffusion4d import loops
from diffusion4d.atomic import replace_when_done
from diffusion4d.pipeline import Diffusion4DPipeline

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a run; the defaults are the full one."""

    model: str = "tiny"
    """Packaged model or folder."""
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
    draws: int = 512
    """Samples at most at a budget; a loop that could draw more is scored on these."""
    largest: tuple[int, int, int] = (1024, 4096, 1024)
    """K, N and T that the curves end at."""

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
        )


def measure(settings: Settings) -> tuple[list[Metric], dict]:
    """Everything, on one thread but for the throughput."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe = Diffusion4DPipeline.from_pretrained(settings.model)
    bench = make_bench(pipe, settings.points, settings.frames)
    metrics: list[Metric] = []
    tables: dict = {}
    seconds: dict[str, float] = {}
    optional = {"compiling": lambda: compiling(bench, settings.rounds)} if settings.compiled else {}
    for name, part in {
        "ladder": lambda: ladder(bench, settings.hypotheses, settings.rounds),
        "parts": lambda: costs_of_parts(bench, settings.rounds),
        "decoding": lambda: decoding(settings.rounds, settings.largest[2]),
        "updating": lambda: updating(settings.rounds),
        "curves": lambda: curves(pipe, settings.largest),
        "memory": lambda: memory_of_many(bench, settings.largest[0]),
        "quality": lambda: quality(pipe, settings.worlds),
        "throughput": lambda: throughput(bench, settings.rounds),
        **optional,
    }.items():
        since = time.perf_counter()
        found, table = part()
        metrics += found
        tables[name] = table
        seconds[name] = round(time.perf_counter() - since, 1)
        lines = (f"  {m.key} = {m.value:.4g} {m.unit}" for m in found)
        print(f"{name}: {seconds[name]} s", *lines, sep="\n", flush=True)
    since = time.perf_counter()
    tables["budgets"] = budgets(pipe, settings.budget_worlds, settings.draws)
    seconds["budgets"] = round(time.perf_counter() - since, 1)
    torch.set_num_threads(threads)
    tables["seconds"] = seconds
    return metrics, tables


def main(settings: Settings) -> int:
    """Measure, write, and compare; returns the exit code."""
    chosen = settings.effective()
    metrics, tables = measure(chosen)
    results = {
        # Without the paths, which are the machine's.
        "settings": {
            name: value
            for name, value in dataclasses.asdict(chosen).items()
            if not isinstance(value, Path)
        },
        "machine": {
            "processor": torch.backends.cpu.get_cpu_capability(),
            "native_bf16": loops.multiplies_bf16(),
            "system": platform.system(),
            "torch": torch.__version__,
        },
        "metrics": recorded(metrics),
        **tables,
    }
    with replace_when_done(chosen.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    if chosen.out == HERE / "results.json":
        fill_readme(results, HERE)
    if settings.accept:
        write_baseline(metrics, settings.baseline, processor())
    if not settings.gate:
        return 0
    short = shortfalls(metrics, settings.baseline, processor())
    for line in short:
        print(f"falls short: {line}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
