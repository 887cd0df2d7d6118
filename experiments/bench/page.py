"""The tables and the picture of the README, from results.json.

python experiments/bench/page.py
"""

import json
from pathlib import Path

from diffusion4d.evaluation.report import fill

HERE = Path(__file__).parent
AXES = {
    "K": "hypotheses K",
    "N": "points N, all sampled",
    "N, nodes fixed": "points N, 64 sampled",
    "T": "frames T",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ladder_table(results: dict) -> str:
    """The gains, one at a time."""

    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        [
            row["loop"],
            f"{row['per_second']:.2f}",
            times(row["of_the_one_before"]),
            times(row["of_the_first"]),
        ]
        for row in results["ladder"]
    ]
    return table(["loop", "hypotheses a CPU second", "÷ the one before", "÷ the first"], rows)


def metrics_table(results: dict) -> str:
    """Every metric, its goal, and whether it was reached."""
    reached = {True: "yes", False: "**no**", None: ""}
    rows = [
        [
            f"`{m['key']}`",
            f"{m['value']:.4g} {m['unit']}".strip(),
            "" if m["goal"] is None else f"{'≥' if m['better'] == 'higher' else '≤'} {m['goal']:g}",
            reached[m["reached"]],
            "" if m["rel_tol"] is None else f"{100 * m['rel_tol']:g} %",
        ]
        for m in results["metrics"]
    ]
    return table(["metric", "measured", "goal", "reached", "gate allows"], rows)


def missed_line(results: dict) -> str:
    """The goals that were not reached."""
    missed = [m for m in results["metrics"] if m["reached"] is False]
    named = [
        f"`{m['key']}` ({m['value']:.3g}, goal {'≥' if m['better'] == 'higher' else '≤'} {m['goal']:g})"
        for m in missed
    ]
    asked = sum(m["goal"] is not None for m in results["metrics"])
    return f"Goals missed, {len(missed)} of {asked}: " + (", ".join(named) or "none") + "."


def runs_table(results: dict) -> str:
    """Where each part was measured."""
    rows = [
        [", ".join(run["parts"]), run["machine"]["processor"], f"`{run['model']['scores']}`"]
        for run in results["runs"]
    ]
    return table(["parts", "measured on", "model"], rows)


def budgets_table(results: dict) -> str:
    """What some seconds of sampling buy."""

    def number(row: dict, name: str) -> str:
        return f"{row[name]:.4f}" if name in row else "–"

    rows = [
        [
            f"{row['seconds']} s",
            row["loop"],
            f"{row['affordable']:,}",
            f"{row['drawn']:,}" + (" (capped)" if row["drawn"] < row["affordable"] else ""),
            number(row, "min_ade"),
            number(row, "energy"),
        ]
        for row in results["budgets"]["rows"]
    ]
    return table(
        ["budget", "loop", "samples it affords", "scored", "joint minADE", "energy score"], rows
    )


def draw_curves(results: dict, path: Path) -> None:
    """Time and memory against K, N and T, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    powers = {m["key"]: m["value"] for m in results["metrics"]}
    figure, axes = plt.subplots(2, len(AXES), figsize=(12, 5), sharex="col")
    for column, (name, label) in enumerate(AXES.items()):
        curve = results["curves"][name]
        power = powers["exponent_" + name.replace(", ", "_").replace(" ", "_")]
        upper, lower = axes[0, column], axes[1, column]
        upper.loglog(curve["size"], curve["seconds"], "o-", color="tab:blue")
        upper.set_title(f"time ~ size^{power:.2f}", fontsize=9)
        lower.loglog(
            curve["size"], [max(b, 2**20) / 2**20 for b in curve["bytes"]], "o-", color="tab:orange"
        )
        lower.set_xlabel(label)
    axes[0, 0].set_ylabel("CPU seconds")
    axes[1, 0].set_ylabel("MiB at most")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


TABLES = {
    "ladder": ladder_table,
    "metrics": metrics_table,
    "missed": missed_line,
    "runs": runs_table,
    "budgets": budgets_table,
}
"""What has its place in the README, by the name there."""


def fill_readme(results: dict, folder: Path) -> None:
    """Put tables and picture where the README has their places."""
    readme = folder / "README.md"
    readme.write_text(
        fill(readme.read_text(), {name: make(results) for name, make in TABLES.items()})
    )
    draw_curves(results, folder / "curves.png")


if __name__ == "__main__":
    fill_readme(json.loads((HERE / "results.json").read_text()), HERE)
