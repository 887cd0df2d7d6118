"""A measurement that can fail a build: metrics, and what a committed baseline says of them.

Two things fail: falling short of the baseline by more than the tolerance, and losing a goal that the baseline reached.
A goal that was never reached on a processor fails nothing there; `missed` says it at every run.

Tolerances of ratios that ran side by side are one and a half times the largest shortfall from the median among four
runs of the same code (repeated.json), in steps of 5 %, at least 10 %: `tolerance_of`.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from processors import known_as

Better = Literal["higher", "lower"]

EVERYWHERE = "every processor"
"""Where a baseline keeps what does not depend on one."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number, which way is better, and by what share it may fall short of a baseline.

    rel_tol: None for what depends on the machine, which is recorded and never gated. goal: what was set out for.
    everywhere: it does not depend on the processor, such as a score.
    """

    key: str
    value: float
    unit: str
    better: Better
    rel_tol: float | None = None
    goal: float | None = None
    everywhere: bool = False

    def falls_short(self, baseline: float) -> bool:
        """Worse than the baseline by more than the tolerance, or a goal lost; what is no number always is."""
        if self.rel_tol is None:
            return False
        if self.reached is False and dataclasses.replace(self, value=baseline).reached:
            return True
        if self.better == "higher":
            return not self.value >= baseline * (1 - self.rel_tol)
        return not self.value <= baseline * (1 + self.rel_tol)

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal

    def __str__(self) -> str:
        return f"{self.key} = {self.value:.4g} {self.unit}".strip()


def tolerance_of(values: Sequence[float], better: Better) -> float:
    """What repeated runs of the same code allow: see above."""
    middle = statistics.median(values)
    short = 1 - min(values) / middle if better == "higher" else max(values) / middle - 1
    return max(0.1, math.ceil(20 * 1.5 * short - 1e-9) / 20)


def recorded(metrics: Iterable[Metric]) -> list[dict]:
    """As results.json keeps them."""
    return [dataclasses.asdict(m) | {"reached": m.reached} for m in metrics]


def missed(metrics: Iterable[Metric]) -> list[str]:
    """Goals that were not reached, in words."""
    return [
        f"{m}, goal {'≥' if m.better == 'higher' else '≤'} {m.goal:g}"
        for m in metrics
        if m.reached is False
    ]


def write_baseline(metrics: Iterable[Metric], path: Path, on: str) -> None:
    """Take what was measured for what later runs on this processor are held to; others' values stay."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    for m in metrics:
        if m.rel_tol is not None:
            held.setdefault(EVERYWHERE if m.everywhere else on, {})[m.key] = m.value
    path.write_text(json.dumps(held, indent=1) + "\n")


def shortfalls(metrics: Iterable[Metric], path: Path, on: str, *, some: bool = False) -> list[str]:
    """What falls short of the baseline, in words; empty if nothing does.

    Held against what this processor gave; one that is not in the file, against the worst that any gave.

    Args:
        some: these are not all metrics, so the baseline may hold others.

    Raises:
        ValueError: there is no baseline, or it lacks something that was measured, or holds something that was not.
    """
    if not path.is_file():
        raise ValueError(f"need a baseline at {path}; write one with --accept")
    known = json.loads(path.read_text())
    everywhere = known.pop(EVERYWHERE, {})
    gated = {m.key: m for m in metrics if m.rel_tol is not None}
    for held in known.values():
        apart = gated.keys() - (held.keys() | everywhere.keys())
        if not some:
            apart |= (held.keys() | everywhere.keys()) - gated.keys()
        if apart:
            raise ValueError(
                f"need the same metrics as in {path}, only one side has {sorted(apart)}"
            )
    own = known.get(known_as(on, known))

    def baseline_of(m: Metric) -> float:
        if m.key in everywhere:
            return everywhere[m.key]
        if own is not None:
            return own[m.key]
        return (min if m.better == "higher" else max)(held[m.key] for held in known.values())

    found = []
    for m in gated.values():
        held = baseline_of(m)
        if m.falls_short(held):
            goal = dataclasses.replace(m, value=held).reached
            found.append(
                f"{m}, baseline {held:.4g}, {m.better} is better, {m.rel_tol:.0%} allowed"
                + (f", and not past the goal of {m.goal:g}" if goal else "")
            )
    return found
