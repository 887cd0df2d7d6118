"""The tables and the picture of the README, from results.json; tables go between their marks in the README.

PYTHONPATH=experiments/trials python experiments/few_steps/report.py
"""

import json
from pathlib import Path

import numpy as np
from records import Values, difference, mean, ratio

from diffusion4d.atomic import replace_when_done
from diffusion4d.evaluation.report import fill

REFERENCE = ("velocity", "ddim 50")
FEW = 4
"""Evaluations that a sampler of few steps may take."""
NEAR, SAME = 1.03, 0.03
"""The claim: an energy score within 3 % of the reference's, a 90 % coverage within .03 of it."""

Subsets = dict[str, dict[str, Values]]


def ways_of(results: dict) -> dict[tuple[str, str], Subsets]:
    """(row, way) → scores. What was scored in a row of its own for its length belongs to the velocity network."""
    return {
        ("velocity" if name == "velocity, 50 steps" else name, way): scores
        for name, row in results["rows"].items()
        for way, scores in row["scores"].items()
    }


def calibrated(scores: dict[str, Values]) -> float:
    """Spread over skill."""
    return (mean(scores["variance"]) / mean(scores["squared_error"])) ** 0.5


def interval(values: tuple[float, float, float], digits: int = 3) -> str:
    """Middle and ends."""
    middle, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{middle} [{low}, {high}]"


def evaluations(way: str) -> int:
    """Of the denoiser, for a hypothesis: one a step."""
    return int(way.split()[-1])


def scores_table(results: dict) -> str:
    """Every network and way, by the number of evaluations."""
    ways = ways_of(results)
    reference = ways[REFERENCE]
    lines = [
        "| NFE | network | sampler | ES all | ÷ DDIM 50 | ES occluded | ÷ DDIM 50 | coverage of 90 % | − DDIM 50 "
        "| spread–skill |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, way), scores in sorted(ways.items(), key=lambda item: evaluations(item[0][1])):
        cells = [str(evaluations(way)), name, way.split()[0]]
        for subset in ("all", "occluded"):
            energy = scores[subset]["energy"]
            against = ratio(energy, reference[subset]["energy"])
            cells += [f"{mean(energy):.4f}", interval(against)]
        inside = scores["all"]["coverage"]
        apart = difference(inside, reference["all"]["coverage"])
        cells += [f"{mean(inside):.3f}", interval(apart), f"{calibrated(scores['all']):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claim_table(results: dict) -> str:
    """For each number of evaluations up to four: the least energy score, and what meets both halves of the claim."""
    ways = ways_of(results)
    reference = ways[REFERENCE]
    lines = [
        "| NFE | least energy score | ÷ DDIM 50 | coverage − DDIM 50's | within 3 % and within .03 |",
        "|---|---|---|---|---|",
    ]
    for count in (1, 2, FEW):
        held = {key: s for key, s in ways.items() if evaluations(key[1]) == count}
        best = min(held, key=lambda key: mean(held[key]["all"]["energy"]))
        against = ratio(held[best]["all"]["energy"], reference["all"]["energy"])
        apart = difference(held[best]["all"]["coverage"], reference["all"]["coverage"])
        meets = [
            f"{name} ({way})"
            for (name, way), scores in held.items()
            if mean(scores["all"]["energy"]) <= NEAR * mean(reference["all"]["energy"])
            and abs(mean(scores["all"]["coverage"]) - mean(reference["all"]["coverage"])) <= SAME
        ]
        cells = [str(count), f"{best[0]} ({best[1]})", interval(against), interval(apart)]
        lines.append("| " + " | ".join([*cells, "; ".join(meets) or "none"]) + " |")
    return "\n".join(lines)


def compute_table(results: dict) -> str:
    """What each row got for the same multiply-adds."""
    lines = [
        "| row | 10^12 multiply-adds | steps | clips | CPU s | final loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        told = row["training"]
        stages = [told] if "tera_macs" in told else [told[k] for k in told if k.isdigit()]
        for number, stage in enumerate(stages):
            if "tera_macs" in stage:
                suffix = f" ({list(told)[number]} steps)" if len(stages) > 1 else ""
                lines.append(
                    f"| {name}{suffix} | {stage['tera_macs']:.2f} | {stage['steps']:,} | {stage['clips']:,} "
                    f"| {stage['cpu_seconds']:.0f} | {stage['loss']:.4f} |"
                )
    return "\n".join(lines)


def all_tables(results: dict) -> dict[str, str]:
    """Mark in the README → table."""
    return {
        "scores": scores_table(results),
        "claim": claim_table(results),
        "compute": compute_table(results),
        "picture": "![Energy score and coverage by the number of evaluations](few_steps.png)",
    }


def draw(results: dict, path: Path) -> None:
    """Energy score and coverage by the number of evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float, float]]] = {}
    for (name, way), scores in ways_of(results).items():
        family = "energy" if name.startswith("energy") else name
        label = f"{family}, {way.split()[0]}"
        energy, inside = mean(scores["all"]["energy"]), mean(scores["all"]["coverage"])
        curves.setdefault(label, []).append((evaluations(way), energy, inside))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for label, points in curves.items():
        row = np.array(sorted(points))
        style = "o--" if label.startswith("velocity") else "D-"
        for axes, column in zip(panels, (1, 2), strict=True):
            axes.plot(row[:, 0], row[:, column], style, ms=5, lw=1.2, label=label)
    panels[1].axhline(0.9, color="black", lw=0.8, ls=":")
    for axes, title in zip(panels, ("Energy score, all points", "Coverage of 90 %"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 50], ["1", "2", "4", "8", "50"])
        axes.set_xlabel("evaluations a hypothesis", fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False)
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main(folder: Path) -> None:
    """Draw the picture beside results.json and fill the README's tables."""
    results = json.loads((folder / "results.json").read_text())
    draw(results, folder / "few_steps.png")
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(fill((folder / "README.md").read_text(), all_tables(results)))


if __name__ == "__main__":
    main(Path(__file__).parent)
