"""A measurement that can fail a build: metrics, and what a committed baseline says of them."""

import dataclasses
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Better = Literal["higher", "lower"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number, which way is better, and by what share it may fall short of a baseline.

    rel_tol: None for what depends on the machine, which is recorded and never gated. goal: what was set out for.
    """

    key: str
    value: float
    unit: str
    better: Better
    rel_tol: float | None = None
    goal: float | None = None

    def falls_short(self, baseline: float) -> bool:
        """Whether it is worse than the baseline by more than the tolerance; what is no number always is."""
        if self.rel_tol is None:
            return False
        if self.better == "higher":
            return not self.value >= baseline * (1 - self.rel_tol)
        return not self.value <= baseline * (1 + self.rel_tol)

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal


def recorded(metrics: Iterable[Metric]) -> list[dict]:
    """As results.json keeps them."""
    return [dataclasses.asdict(m) | {"reached": m.reached} for m in metrics]


def processor() -> str:
    """What a ratio was measured on: some of them differ by three times from one processor to another."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def write_baseline(metrics: Iterable[Metric], path: Path, on: str) -> None:
    """Take what was measured for what later runs on this processor are held to; others' values stay."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    held[on] = {m.key: m.value for m in metrics if m.rel_tol is not None}
    path.write_text(json.dumps(held, indent=1) + "\n")


def shortfalls(metrics: Iterable[Metric], path: Path, on: str) -> list[str]:
    """What falls short of the baseline, in words; empty if nothing does.

    Held against what this processor gave; one that is not in the file, against the worst that any gave.

    Raises:
        ValueError: there is no baseline, or it holds something that was not measured, or lacks something that was.
    """
    if not path.is_file():
        raise ValueError(f"need a baseline at {path}; write one with --accept")
    known = json.loads(path.read_text())
    gated = {m.key: m for m in metrics if m.rel_tol is not None}
    for held in known.values():
        if gated.keys() != held.keys():
            apart = sorted(gated.keys() ^ held.keys())
            raise ValueError(f"need the same metrics as in {path}, only one side has {apart}")
    worst = {
        key: (min if m.better == "higher" else max)(held[key] for held in known.values())
        for key, m in gated.items()
    }
    baseline = known.get(on, worst)
    return [
        f"{key} = {gated[key].value:.4g} {gated[key].unit}, baseline {held:.4g}, {gated[key].better} is better, "
        f"{gated[key].rel_tol:.0%} allowed"
        for key, held in baseline.items()
        if gated[key].falls_short(held)
    ]
