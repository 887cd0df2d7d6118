r"""From the scores of clips to a table with bootstrap intervals.

Every statistic is a quotient of sums over clips, or a function of such. A bootstrap draw gives clip i the weight w_i
(how often it was drawn), the same for every method, so that ratios between methods are paired:

    mean over clips    sum_i w_i v_i / sum_i w_i          over the clips where the subset holds something
    spread-skill       (sum_i w_i var_i / sum_i w_i err_i)^1/2
    calibration error  of the ranks' histogram sum_i w_i h_i
    ratio              sum_i w_i a_i / sum_i w_i b_i      over the clips both were scored on

Shape letters:  C clips   W draws   S subsets   A axes   R ranks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from diffusion4d import metrics
from diffusion4d.evaluation.cases import SUBSETS
from diffusion4d.evaluation.scores import PARTS, Scored

DRAWS = 2000

Row = Mapping[str, Scored]
"""Methods of one clip; a method may be missing."""

RATIOS: tuple[tuple[str, tuple[str, str], tuple[str, str]], ...] = (
    ("energy score / dressed twin's", ("samples", "energy_score"), ("dressed twin", "energy_score")),
    ("per point / dressed twin's", ("samples", "point_energy_score"), ("dressed twin", "point_energy_score")),
    ("depth / dressed twin's", ("samples", "energy_score_depth"), ("dressed twin", "energy_score_depth")),
    ("lateral / dressed twin's", ("samples", "energy_score_lateral"), ("dressed twin", "energy_score_lateral")),
    ("energy score / twin's error", ("samples", "energy_score"), ("twin", "energy_score")),
    ("energy score / Gaussian head's", ("samples", "energy_score"), ("gaussian head", "energy_score")),
    ("energy score / joint Gaussian head's", ("samples", "energy_score"), ("gaussian head, joint", "energy_score")),
    ("energy score / peer setting's", ("samples", "energy_score"), ("peer setting", "energy_score")),
    ("marginal minADE / twin's ADE", ("samples", "min_ade_marginal"), ("twin", "ade")),
    ("joint minADE / twin's ADE", ("samples", "min_ade_joint"), ("twin", "ade")),
    ("twin's error / flat lift's", ("twin", "energy_score"), ("flat lift", "energy_score")),
    ("edge stretch / truth's", ("samples", "edge_stretch"), ("truth", "edge_stretch")),
    ("jitter / truth's", ("samples", "jitter"), ("truth", "jitter")),
)  # fmt: skip
"""Name, and the method and metric above and below the line. "twin" and "dressed twin" stand for the stronger ones."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimates: Float[np.ndarray, "W"]) -> "Interval":
        """The first estimate is the plain one, all clips having weight 1."""
        # A draw may hold no clip of a rare subset.
        held = estimates[1:][np.isfinite(estimates[1:])]
        low, high = np.quantile(held, [0.025, 0.975]) if len(held) else (np.nan, np.nan)
        return cls(float(estimates[0]), float(low), float(high))

    def json(self) -> dict[str, float]:
        """As it is kept in scores.json."""
        return dataclasses.asdict(self)


def weights(num_clips: int) -> Float[np.ndarray, "W C"]:
    """How often each clip is drawn; the first row is 1 throughout."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=DRAWS)
    return np.concatenate([np.ones((1, num_clips)), drawn])


def _stack(rows: Sequence[Row], method: str, metric: str, subset: int) -> Float[np.ndarray, "C"]:
    """A metric of every clip; NaN where it was not scored."""
    return np.array(
        [
            row[method].values[metric][subset]
            if method in row and metric in row[method].values
            else np.nan
            for row in rows
        ]
    )


def _quotient(above: np.ndarray, below: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Weighted sums over the clips that have both, [W]."""
    both = np.isfinite(above) & np.isfinite(below)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (drawn[:, both] @ above[both]) / (drawn[:, both] @ below[both])


def ratio_with_interval(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ratio of means over clips, with a paired bootstrap 95 % interval, as JSON."""
    drawn = weights(len(ours))
    found = Interval.of(_quotient(np.array(ours), np.array(theirs), drawn))
    return {"ratio": found.value, "low": found.low, "high": found.high}


def method_names(rows: Sequence[Row]) -> list[str]:
    """In order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def strongest(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Of these methods the one with the least energy score on all points."""

    def mean(name: str) -> float:
        values = _stack(rows, name, "energy_score", 0)
        held = values[np.isfinite(values)]
        return float(held.mean()) if len(held) else np.inf

    return min(names, key=mean)


def stand_ins(rows: Sequence[Row]) -> dict[str, str]:
    """Which method "twin" and "dressed twin" stand for: the strongest of their kind."""
    names = method_names(rows)
    twins = [name for name in names if name in ("l2 twin", "l1 twin")]
    found = {name: name for name in names}
    if twins:
        found["twin"] = strongest(rows, twins)
        found["dressed twin"] = strongest(rows, [f"dressed {name}" for name in twins])
    return found


def table(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """method -> subset -> metric -> interval, with the number of clips under "clips"."""
    drawn = weights(len(rows))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method in method_names(rows):
        held = [row[method] for row in rows if method in row]
        mine = drawn[:, [method in row for row in rows]]
        found[method] = {}
        for s, subset in enumerate(SUBSETS):
            cells: dict[str, Any] = {}
            for metric in dict.fromkeys(name for h in held for name in h.values):
                values = _stack(rows, method, metric, s)
                if np.isfinite(values).any():
                    ones = np.where(np.isfinite(values), 1.0, np.nan)
                    cells[metric] = Interval.of(_quotient(values, ones, drawn)).json()
            for suffix in held[0].spread:
                variance, error = np.stack([h.spread[suffix][s] for h in held], -1)
                ratio = np.sqrt(_quotient(variance, error, mine))
                # A subset that no clip has anything in has no ratio.
                if np.isfinite(ratio[0]):
                    cells[f"spread_skill{suffix}"] = Interval.of(ratio).json()
            ranks = [h.ranks[s] for h in held if h.ranks is not None]
            if len(ranks) == len(held):
                cells |= _calibration(np.stack(ranks), mine)
            if cells:
                clips = int(np.isfinite(_stack(rows, method, "ade", s)).sum())
                found[method][subset] = {"clips": clips, **cells}
    return found


def _calibration(ranks_CAR: np.ndarray, drawn_WC: np.ndarray) -> dict[str, Any]:
    """Calibration errors with intervals, and the curves and histograms themselves."""
    found: dict[str, Any] = {}
    if not ranks_CAR.any():
        return found
    for suffix, axes in PARTS.items():
        counts_CR = ranks_CAR[:, axes].sum(1)
        pooled = torch.from_numpy(drawn_WC @ counts_CR)
        coverage = metrics.coverage_of_ranks(pooled)
        error = metrics.calibration_error(coverage).numpy()
        found[f"calibration_error{suffix}"] = Interval.of(error).json()
        found[f"coverage{suffix}"] = [round(float(c), 4) for c in coverage[0]]
        found[f"ranks{suffix}"] = counts_CR.sum(0).tolist()
    for axis, name in enumerate("xyz"):
        found[f"ranks_{name}"] = ranks_CAR[:, axis].sum(0).tolist()
    return found


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Name -> subset -> interval, and the median over clips of the clips' own ratios as "typical"."""
    drawn, names = weights(len(rows)), stand_ins(rows)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (above, above_metric), (below, below_metric) in RATIOS:
        if above not in names or below not in names:
            continue
        for s, subset in enumerate(SUBSETS):
            a = _stack(rows, names[above], above_metric, s)
            b = _stack(rows, names[below], below_metric, s)
            both = np.isfinite(a) & np.isfinite(b) & (b > 0)
            if both.any():
                typical = float(np.median(a[both] / b[both]))
                interval = Interval.of(_quotient(a, b, drawn)).json()
                found.setdefault(name, {})[subset] = {**interval, "typical": typical}
    return found


def steps_curve(rows: Sequence[Row], steps: int) -> dict[str, dict[str, dict[str, float]]]:
    """Subset -> number of steps -> energy score over the dressed twin's, on the clips that have every number."""
    names = stand_ins(rows)
    methods = {"samples": steps} | {
        name: int(name.partition("@")[2])
        for name in method_names(rows)
        if name.startswith("samples@")
    }
    common = [row for row in rows if all(name in row for name in methods)]
    if len(methods) < 2 or not common or "dressed twin" not in names:
        return {}
    drawn = weights(len(common))
    curve: dict[str, dict[str, dict[str, float]]] = {}
    for s, subset in enumerate(SUBSETS):
        below = _stack(common, names["dressed twin"], "energy_score", s)
        found = {
            str(number): Interval.of(
                _quotient(_stack(common, name, "energy_score", s), below, drawn)
            ).json()
            for name, number in sorted(methods.items(), key=lambda item: item[1])
        }
        # Every row of the table has every number of steps, or there is no row.
        if all(np.isfinite(list(interval.values())).all() for interval in found.values()):
            curve[subset] = found
    return curve


def spread_against_error(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list]]]:
    """Method -> subset -> "lateral" and "depth" -> rows of (count, RMS spread, RMS error), one a bin of spread."""
    found: dict[str, dict[str, dict[str, list]]] = {}
    for method in method_names(rows):
        held = [row[method].binned for row in rows if method in row]
        # One clip without an answer would take the bins of all others with it.
        sums = [b for b in held if b is not None and np.isfinite(b).all()]
        if not sums:
            continue
        total = np.sum(sums, 0)
        found[method] = {
            subset: {
                part: [
                    [int(n), float(np.sqrt(v / n)), float(np.sqrt(e / n))]
                    for n, v, e in total[s, p]
                    if n > 0
                ]
                for p, part in enumerate(("lateral", "depth"))
            }
            for s, subset in enumerate(SUBSETS)
        }
    return found
