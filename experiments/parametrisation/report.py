"""The tables and the picture of the README, from results.json; tables go between their marks in the README.

.venv/bin/python experiments/parametrisation/report.py
"""

import json
from pathlib import Path
from typing import Any

NAMES = {
    "bspline": "B-spline",
    "bezier": "Bézier",
    "monomial": "monomial",
    "per-frame": "per-frame",
}
INK = {"bspline": "#1565c0", "bezier": "#e07b00", "monomial": "#b3261e", "per-frame": "#5b6770"}
SUBSETS = ("all", "visible", "occluded")


def best_runs(results: dict) -> dict[str, dict]:
    """The run of each arm at its chosen learning rate."""
    rates = {arm: row["learning_rate"] for arm, row in results["summary"].items()}
    return {
        arm: next(
            run
            for run in results["runs"].values()
            if run["arm"] == arm and run["learning_rate"] == rates[arm]
        )
        for arm in NAMES
        if arm in rates
    }


def number(value: float) -> str:
    """Three digits, without an exponent below a million."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def scores_table(results: dict) -> str:
    """Held-out scores at the better learning rate; ratios to the B-spline's with 95 % intervals."""
    lines = [
        "| basis | rate | ES all | ÷ B-spline | ES visible | ÷ B-spline | ES occluded | ÷ B-spline "
        "| RMS of mean | jitter ÷ truth's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in best_runs(results):
        row = results["summary"][arm]
        cells = [NAMES[arm], f"{row['learning_rate']:g}"]
        for subset in SUBSETS:
            ratio = row[f"{subset}_ratio"]
            interval = f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
            cells += [f"{row[subset]:.3f}", "1" if arm == "bspline" else interval]
        cells += [f"{row['rms']:.3f}", number(row["jitter"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def training_table(results: dict) -> str:
    """Every run: what the basis is like, how noisy its gradients were, how steady its training."""
    lines = [
        "| basis | rate | condition | amplification | fit RMS | noise scale (clips) at 10 % · 50 % · 100 % "
        "| gradient spikes | loss spikes | steps clipped | ms a step | ES of choosing worlds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(NAMES)
    for run in sorted(
        results["runs"].values(), key=lambda r: (order.index(r["arm"]), r["learning_rate"])
    ):
        basis, training = results["bases"][run["arm"]], run["training"]
        scales = " · ".join(number(v) for v in training["noise_scale"].values())
        cells = (
            NAMES[run["arm"]],
            f"{run['learning_rate']:g}",
            number(basis["condition"]),
            number(basis["amplification"]),
            f"{basis['fit_rms']:.4f}",
            scales,
            f"{training['gradient_spikes']:.1%}",
            f"{training['loss_spikes']:.1%}",
            f"{training['clipped']:.1%}",
            f"{training['milliseconds']:.0f}",
            f"{run['choosing_score']:.3f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Scores, noise scales, and what samples of one point look like."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from diffusion4d.atomic import replace_when_done

    runs = best_runs(results)
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.05, 1))
    above, below = parts
    scores, noise, shake = above.subplots(1, 3, width_ratios=(1.5, 1.2, 1))
    others = [arm for arm in runs if arm != "bspline"]
    shown = [0.95, 1.1]
    for i, arm in enumerate(others):
        ratios = [results["summary"][arm][f"{subset}_ratio"] for subset in SUBSETS]
        middle = [r["ratio"] for r in ratios]
        error = [
            [r["ratio"] - r["low"] for r in ratios],
            [r["high"] - r["ratio"] for r in ratios],
        ]
        label = NAMES[arm]
        # One arm that is many times worse would hide what tells the others apart: it gets a line of the legend.
        if min(middle) > 1.5:
            label += " (above: " + ", ".join(f"{m:.0f}" for m in middle) + ")"
        else:
            shown = [
                min(shown[0], *(r["low"] - 0.01 for r in ratios)),
                max(shown[1], *(r["high"] + 0.01 for r in ratios)),
            ]
        places = [j + 0.22 * (i - (len(others) - 1) / 2) for j in range(len(SUBSETS))]
        scores.errorbar(
            places, middle, error, fmt="o", color=INK[arm], capsize=4, label=label, lw=2
        )
    scores.axhline(1, color=INK["bspline"], lw=2, label="B-spline")
    scores.set_ylim(shown)
    scores.set_xticks(range(len(SUBSETS)), SUBSETS)
    scores.set_xlim(-0.5, len(SUBSETS) - 0.5)
    scores.set_title("Energy score ÷ B-spline's (lower is better)", fontsize=10)
    scores.legend(fontsize=8, frameon=False)
    for arm, run in runs.items():
        steps = [int(step) for step in run["training"]["noise_scale"]]
        values = list(run["training"]["noise_scale"].values())
        noise.plot(steps, values, "o-", color=INK[arm], label=NAMES[arm], lw=2)
    noise.set_yscale("log")
    noise.set_xlabel("training step", fontsize=9)
    noise.set_title("Gradient noise scale, clips", fontsize=10)
    names = list(runs)
    shake.barh(
        [NAMES[arm] for arm in names],
        [results["summary"][arm]["jitter"] for arm in names],
        color=[INK[arm] for arm in names],
    )
    shake.axvline(1, color="black", lw=1)
    shake.set_xscale("log")
    shake.invert_yaxis()
    shake.set_title("Jitter of samples ÷ truth's", fontsize=10)
    panels = below.subplots(1, len(runs), sharey=True)
    for axes, (arm, run) in zip(panels, runs.items(), strict=True):
        for row in run["depths"]:
            axes.plot(row, color=INK[arm], lw=1, alpha=0.7)
        axes.plot(results["truth"], color="black", lw=2, label="truth")
        axes.set_title(NAMES[arm], fontsize=10)
        axes.set_xlabel("frame", fontsize=9)
    # An unstable arm would flatten the others: the panels span what the steady ones reach.
    steady = [arm for arm in runs if results["summary"][arm]["jitter"] < 1000] or list(runs)
    reached = [z for arm in steady for row in runs[arm]["depths"] for z in row] + results["truth"]
    panels[0].set_ylim(min(reached) - 0.1, max(reached) + 0.1)
    panels[0].set_ylabel("depth, scene units", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    below.suptitle("Eight samples of one point of a held-out world", fontsize=10)
    for axes in (*above.axes, *below.axes):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main(folder: Path) -> None:
    """Draw the picture beside results.json and fill the README's tables."""
    from diffusion4d.atomic import replace_when_done
    from diffusion4d.evaluation.report import fill

    results = json.loads((folder / "results.json").read_text())
    draw(results, folder / "parametrisation.png")
    tables = {"scores": scores_table(results), "training": training_table(results)}
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(fill((folder / "README.md").read_text(), tables))


if __name__ == "__main__":
    main(Path(__file__).parent)
