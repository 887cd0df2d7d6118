"""The tables and the picture of the README, from results.json; tables go between their marks in the README.

python experiments/consistency/report.py
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffusion4d.evaluation.report import fill

HERE = Path(__file__).parent
ENERGIES = ("photometric", "patch, shifted", "patch, carried", "semantic")
CHANGES = {"none": "as rendered", "light": "light changes", "colour": "colours change"}


def share(clips: list[dict], change: str, energy: str, baseline: str) -> tuple[float, int]:
    """Of pairs at which the truth has the lower energy, and how many pairs."""
    rows = [
        row
        for clip in clips
        for row in clip.get("holds", [])
        if (row["change"], row["energy"], row["baseline"]) == (change, energy, baseline)
    ]
    pairs = sum(row["pairs"] for row in rows)
    return sum(row["hits"] for row in rows) / max(1, pairs), pairs


def holds(clips: list[dict]) -> str:
    """A row an energy, a column a change of the pictures and a baseline."""
    columns = [(c, b) for c in CHANGES for b in ("narrow", "wide")]
    lines = [
        "| energy | " + " | ".join(f"{CHANGES[c]}, {b}" for c, b in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for energy in ENERGIES:
        cells = [f"{share(clips, c, energy, b)[0]:.3f}" for c, b in columns]
        lines.append(f"| {energy} | " + " | ".join(cells) + " |")
    counts = [share(clips, "none", ENERGIES[0], b)[1] for b in ("narrow", "wide")]
    return "\n".join([*lines, "", f"{counts[0]} narrow and {counts[1]} wide pairs."])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Of the mean, 95 %, by drawing clips again."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def weighted_ratio(clips: list[dict], name: str) -> np.ndarray:
    return np.array([clip["ranks"]["top"][name] for clip in clips])


def ranks(clips: list[dict]) -> str:
    """A row a ranker, best first."""
    names = sorted(
        clips[0]["ranks"]["top"], key=lambda name: float(weighted_ratio(clips, name).mean())
    )
    hidden = np.array([clip["ranks"]["hidden"] for clip in clips])
    much = hidden >= np.median(hidden)
    lines = [
        "| ranked by | error of the top over the mean error | 95 % | clips with more hidden | rank correlation |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        top = weighted_ratio(clips, name)
        low, high = interval(top)
        correlation = np.mean([clip["ranks"]["correlation"][name] for clip in clips])
        lines.append(
            f"| {name} | {top.mean():.3f} | {low:.3f}–{high:.3f} | {top[much].mean():.3f} | {correlation:.2f} |"
        )
    return "\n".join(lines)


def spread(clips: list[dict]) -> str:
    """How far hypotheses of one clip differ in an energy."""
    names = clips[0]["ranks"]["spread"]
    parts = [
        f"{name} {np.median([clip['ranks']['spread'][name] for clip in clips]):.3f}"
        for name in names
    ]
    return (
        "Deviation over the hypotheses of a clip, over their mean (median clip): "
        + ", ".join(parts)
        + "."
    )


def backward(clips: list[dict]) -> str:
    """One pass or one each: what ten steps reach, and what they take."""
    rows = [clip["backward"] for clip in clips if "backward" in clip]
    ratio = np.median([row["each_over_joint_seconds"] for row in rows])
    lines = [
        f"A pass each takes {ratio:.2f} times as long as one together ({len(rows)} clips, interleaved). Ten steps, "
        "each halved until it lowers the sum of the shares:",
        "",
        "| after / before | joint | each, unit slopes |",
        "|---|---|---|",
    ]

    def line(name: str, told: Callable[[dict], float], digits: int) -> str:
        joint, each = (np.mean([told(row[how]) for row in rows]) for how in ("joint", "each"))
        return f"| {name} | {joint:.{digits}f} | {each:.{digits}f} |"

    for name in rows[0]["joint"]["energy_after_over_before"]:
        lines.append(line(name, lambda r, n=name: r["energy_after_over_before"][n], 3))
    lines += [
        line("sum of the shares", lambda r: r["sum_after_over_before"], 3),
        line("CPU seconds (8 hypotheses)", lambda r: r["seconds"], 2),
        line("times that energies were taken", lambda r: r["energies_taken"], 1),
    ]
    return "\n".join(lines)


def draw(clips: list[dict], path: Path) -> None:
    """Where energies hold; what ranking by them brings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    columns = [(c, b) for c in CHANGES for b in ("narrow", "wide")]
    for i, energy in enumerate(ENERGIES):
        heights = [share(clips, c, energy, b)[0] for c, b in columns]
        left.bar(np.arange(len(columns)) + 0.2 * i - 0.3, heights, 0.19, label=energy)
    left.axhline(0.5, color="#b3261e", linewidth=1)
    left.set_xticks(range(len(columns)), [f"{CHANGES[c]}\n{b}" for c, b in columns], fontsize=7)
    left.set(ylim=(0.4, 1.0), ylabel="pairs with the truth lower (chance 0.5)")
    left.legend(fontsize=7, frameon=False, ncols=2)
    names = sorted(
        clips[0]["ranks"]["top"], key=lambda name: -float(weighted_ratio(clips, name).mean())
    )
    for i, name in enumerate(names):
        top = weighted_ratio(clips, name)
        low, high = interval(top)
        right.plot([low, high], [i, i], color="#1565c0", linewidth=2)
        right.scatter(top.mean(), i, color="#1565c0", s=20)
    right.axvline(1, color="#b3261e", linewidth=1)
    right.axvline(0.9, color="#9e9e9e", linewidth=1, linestyle=":")
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_xlabel("error of the top-ranked over the mean error")
    figure.savefig(path, dpi=110)


def main() -> None:
    clips = json.loads((HERE / "results.json").read_text())["clips"]
    readme = HERE / "README.md"
    tables = {"holds": holds, "ranks": ranks, "spread": spread, "backward": backward}
    text = fill(readme.read_text(), {name: table(clips) for name, table in tables.items()})
    readme.write_text(text)
    draw(clips, HERE / "consistency.png")


if __name__ == "__main__":
    main()
