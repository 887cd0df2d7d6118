"""The table and the picture of the README, from results.json; the table goes between its marks in the README.

.venv/bin/python experiments/two_answers/report.py
"""

import json
from pathlib import Path

KINDS = {"reversal": "depth reversal", "fork": "fork behind a wall"}
INK = {"samples": "#1565c0", "Gaussian": "#e07b00", "twin": "#b3261e"}


def table(results: dict) -> str:
    """What was run, and a row for each kind of scene and method."""
    told = results["settings"]
    lines = [
        f"Model `{told['model']}`, twin `{told['twin']}`: {told['scenes']} scenes of each kind, "
        f"{told['samples']} samples of {told['steps']} steps, {told['points']} points.",
        "",
        "| scenes | method | both found | between | distance to nearest | share at the truth (perfect) "
        "| Brier (perfect) | error of the share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, title in KINDS.items():
        for method in ("samples", "Gaussian"):
            row = results["kinds"][kind][method]
            cells = [
                title,
                method,
                f"{row['both_found']:.0%}",
                f"{row['between']:.0%}",
                f"{row['distance']:.2f}",
                f"{row['share_at_truth']:.2f} ({row['perfect_share_at_truth']:.2f})",
                f"{row['brier']:.3f} ({row['perfect_brier']:.3f})",
                f"{row['error_of_share']:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        twin = results["kinds"][kind]["twin"]
        place = f"median place {twin['place']:.2f}"
        lines.append(f"| {title} | twin | {place} | {twin['between']:.0%} | – | – | – | – |")
    return "\n".join(lines)


def reliability(results: dict) -> str:
    """How often the first answer was true, by the share of samples at it; both kinds."""
    lines = [
        "| scenes | share of samples at an answer | it was true | scenes |",
        "|---|---|---|---|",
    ]
    for kind, title in KINDS.items():
        for row in results["kinds"][kind]["samples"]["reliability"]:
            lines.append(f"| {title} | {row['said']:.2f} | {row['was']:.2f} | {row['scenes']} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Histograms of where samples put one point, for the first scenes of each kind."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from diffusion4d.atomic import replace_when_done

    columns = max(len(pictures) for pictures in results["pictures"].values())
    figure = Figure(figsize=(2.9 * columns, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(KINDS), columns, squeeze=False)
    for axes_of_kind, (kind, title) in zip(grid, KINDS.items(), strict=True):
        for axes, picture in zip(axes_of_kind, results["pictures"][kind], strict=False):
            half = abs(picture["answers"][1])
            edges = np.linspace(-3 * half, 3 * half, 25)
            for method, style in (("samples", "stepfilled"), ("Gaussian", "step")):
                # What lies outside is drawn at the margin, not left out.
                values = np.clip(picture[method], edges[0], edges[-1])
                axes.hist(
                    values,
                    edges,
                    histtype=style,
                    color=INK[method],
                    alpha=0.75,
                    label=method,
                    lw=1.6,
                )
            for number, answer in enumerate(picture["answers"]):
                true = number == picture["truth"]
                axes.axvline(
                    answer,
                    color="black",
                    lw=2.2 if true else 1.2,
                    ls="-" if true else "--",
                    label="truth" if true else "other answer",
                )
            axes.plot(
                np.clip(picture["twin"], edges[0], edges[-1]),
                [0],
                "^",
                color=INK["twin"],
                ms=9,
                label="twin",
                clip_on=False,
            )
            axes.set_yticks([])
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right", "left"]].set_visible(False)
        axes_of_kind[0].set_ylabel(title, fontsize=10)
    grid[0, 0].legend(fontsize=7, frameon=False)
    figure.supxlabel(
        "where the point that differs most is put, along the line between the answers (scene units)",
        fontsize=9,
    )
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(folder: Path) -> None:
    """Draw the picture beside results.json and fill the README's tables."""
    from diffusion4d.atomic import replace_when_done
    from diffusion4d.evaluation.report import fill

    results = json.loads((folder / "results.json").read_text())
    draw(results, folder / "two_answers.png")
    tables = {"scores": table(results), "reliability": reliability(results)}
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(fill((folder / "README.md").read_text(), tables))


if __name__ == "__main__":
    main(Path(__file__).parent)
