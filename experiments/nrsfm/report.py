"""The table and the picture of the README, from results.json; the table goes between its marks in the README.

.venv/bin/python experiments/nrsfm/report.py
"""

import json
import re
from pathlib import Path
from typing import Any

COLUMNS = {
    "flat lift": "flat lift",
    "twin": "L2 twin",
    "mean": "**mean of K**",
    "likeliest": "likeliest chain",
    "sample": "one sample",
    "best of K": "best of K (oracle)",
}
OTHERS = ("PTA", "BMM", "MDH", "MLH")
INK = {"flat lift": "#b0b7bf", "twin": "#5b6770", "mean": "#1565c0", "best of K": "#90bdf0"}
INK_OTHERS = {"PTA": "#e07b00", "BMM": "#b3261e", "MDH": "#e07b00", "MLH": "#b3261e"}
UNITS = {"e_3d": "e_3D", "e_scale": "mm"}


def others(row: dict) -> dict[str, float]:
    """Errors of other people's methods: as published, else recomputed from the shapes they stored."""
    return row["recomputed"] | row["published"]


def table(results: dict) -> str:
    """A row a set; the best answer that needs no truth is the one to compare, so the oracle stands apart."""
    lines = [
        "| set | frames × points | unit | "
        + " | ".join(COLUMNS.values())
        + " | whole sequence at once |",
        "|---|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for name, row in results["sets"].items():
        digits = 3 if row["metric"] == "e_3d" else 1
        cells = [name, f"{row['frames']} × {row['points']}", UNITS[row["metric"]]]
        for column in COLUMNS:
            value = row["errors"].get(column)
            cells.append("–" if value is None else f"{value:.{digits}f}")
        theirs = others(row)
        cells.append(", ".join(f"{k} {theirs[k]:.{digits}f}" for k in OTHERS if k in theirs) or "–")
        lines.append("| " + " | ".join(cells) + " |")
    chosen = results["settings"]
    length = f"{chosen['length']} frames" if chosen["travel"] == 0 else "as long as tracks need"
    lines.append(
        f"\nModel `{results['model']}`, twin `{results['twin']}`; K = {chosen['k']}, {chosen['steps']} steps; windows: "
        f"{length}; lens of the orthographic sets: {chosen['fov']:g}°; {results['cpu_seconds']} CPU seconds in all."
    )
    return "\n".join(lines)


def verdict(results: dict) -> str:
    """Who is better than whom, in words that follow from the numbers."""
    rows = results["sets"]

    def worse_than_mean(rival: str) -> list[str]:
        return [n for n, row in rows.items() if row["errors"]["mean"] < row["errors"][rival]]

    told = []
    for rival, name in (("flat lift", "flat lift"), ("twin", "L2 twin")):
        won = worse_than_mean(rival)
        lost = [n for n in rows if n not in won]
        told.append(
            f"The mean of K is better than the {name} on {len(won)} of {len(rows)} sets"
            + (f" (not on {', '.join(lost)})" if lost else "")
            + "."
        )
    ahead, behind = [], []
    for name, row in rows.items():
        for method, value in others(row).items():
            (ahead if value < row["errors"]["mean"] else behind).append(f"{method} on {name}")
    told.append(f"Better than it: {', '.join(ahead) or 'nobody'}.")
    if behind:
        told.append(f"Worse than it: {', '.join(behind)}.")
    return " ".join(told)


def plot(results: dict, path: Path) -> None:
    """Errors over the flat lift's: a group of bars a set, other people's methods as lines across."""
    # matplotlib is heavy, and only a picture needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from diffusion4d.atomic import replace_when_done

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    width = 0.19
    told: set[str] = set()
    for i, row in enumerate(results["sets"].values()):
        flat = row["errors"]["flat lift"]
        for j, (name, colour) in enumerate(INK.items()):
            label = COLUMNS[name].strip("*") if i == 0 else None
            axes.bar(
                i + (j - 1.5) * width, row["errors"][name] / flat, width, color=colour, label=label
            )
        for method, value in others(row).items():
            label = None if method in told else f"{method} (whole sequence)"
            told.add(method)
            style = "-" if method in ("PTA", "MDH") else "--"
            axes.hlines(
                value / flat, i - 0.42, i + 0.42, INK_OTHERS[method], style, lw=1.6, label=label
            )
    axes.set_xticks(range(len(results["sets"])), results["sets"])
    axes.set_ylabel("error ÷ flat lift's")
    axes.axhline(1, color="#333333", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Software": None})


def main(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    readme = folder / "README.md"
    text = readme.read_text()
    for mark, content in (("table", table(results)), ("verdict", verdict(results))):
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda m, c=content: f"{m[1]}\n{c}\n\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            raise ValueError(f"need the marks of the {mark} once in {readme}, found {count}")
    readme.write_text(text)
    plot(results, folder / "nrsfm.png")


if __name__ == "__main__":
    main(Path(__file__).parent)
