"""The tables and the picture of the README, from results.json; tables go between their marks in the README.

python experiments/trials/report.py
"""

import json
from collections.abc import Callable
from pathlib import Path

from records import Values, mean, ratio, typical

BASELINE, WAY = "baseline", "ancestral 8"
GROUPS = {
    "nothing learnt": ("untrained", "untrained, white noise"),
    "seed": ("baseline", "baseline, seed 1"),
    "objective": (
        "energy, 1 step",
        "energy, 2 steps",
        "energy, 2 steps, rate ÷ 3",
        "energy, 2 steps, after v",
    ),
    "prediction": ("x0", "flow"),
    "noise": ("white noise",),
    "coordinates, anchor": ("no anchor", "no anchor, Cartesian", "own anchor"),
    "width": ("width 128", "width 256"),
    "tokens (scored without)": ("tokens, 10 % withheld", "tokens, 50 % withheld"),
}
PAIRS = (
    ("Cartesian ÷ projective, no anchor", ("no anchor, Cartesian", WAY), ("no anchor", WAY)),
    ("own anchor ÷ no anchor", ("own anchor", WAY), ("no anchor", WAY)),
    ("energy, 1 step ÷ v in 1 step", ("energy, 1 step", "angular 1"), (BASELINE, "angular 1")),
    ("energy, 2 steps ÷ v in 2 steps", ("energy, 2 steps", "angular 2"), (BASELINE, "angular 2")),
    (
        "energy, 2 steps, after v ÷ v in 2 steps",
        ("energy, 2 steps, after v", "angular 2"),
        (BASELINE, "angular 2"),
    ),
    ("energy, 2 steps ÷ 1 step", ("energy, 2 steps", "angular 2"), ("energy, 1 step", "angular 1")),
    ("flow by Euler ÷ flow by ancestral", ("flow", "ddim 8"), ("flow", WAY)),
    (
        "images seen ÷ withheld, 10 %",
        ("tokens, 10 % withheld", "images"),
        ("tokens, 10 % withheld", "images withheld"),
    ),
    (
        "images seen ÷ withheld, 50 %",
        ("tokens, 50 % withheld", "images"),
        ("tokens, 50 % withheld", "images withheld"),
    ),
    (
        "50 % ÷ 10 %, images seen",
        ("tokens, 50 % withheld", "images"),
        ("tokens, 10 % withheld", "images"),
    ),
    (
        "50 % ÷ 10 %, images withheld",
        ("tokens, 50 % withheld", "images withheld"),
        ("tokens, 10 % withheld", "images withheld"),
    ),
)


def compared(
    results: dict,
    ours: tuple[str, str],
    theirs: tuple[str, str],
    subset: str,
    how: Callable[[Values, Values], tuple[float, float, float]] = ratio,
) -> str:
    """A ratio of energy scores as a cell; – where either is missing."""
    trials = results["trials"]
    if any(way not in trials.get(name, {"scores": {}})["scores"] for name, way in (ours, theirs)):
        return "–"
    if ours == theirs:
        return "1"
    sides = (trials[name]["scores"][way][subset]["energy"] for name, way in (ours, theirs))
    middle, low, high = how(*sides)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def first_way(trial: dict) -> str:
    """How the trial's sampler is meant to be used."""
    return next(iter(trial["scores"]))


def scores_table(results: dict) -> str:
    """Every trial, by what it changes."""
    lines = [
        "| changed | trial | sampled | clips | ES all | ÷ baseline | typical world | ES occluded | ÷ baseline "
        "| coverage of 90 % | spread–skill |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group, names in GROUPS.items():
        for name in names:
            if name not in results["trials"]:
                continue
            trial = results["trials"][name]
            way = first_way(trial)
            cells = [group, name, way.replace(" ", ", "), f"{trial['training']['clips']:,}"]
            for subset in ("all", "occluded"):
                row = trial["scores"][way][subset]
                against = compared(results, (name, way), (BASELINE, WAY), subset)
                cells += [f"{mean(row['energy']):.4f}", against]
                if subset == "all":
                    sides = (name, way), (BASELINE, WAY)
                    cells.append(compared(results, *sides, subset, typical))
            row = trial["scores"][way]["all"]
            calibrated = (mean(row["variance"]) / mean(row["squared_error"])) ** 0.5
            cells += [f"{mean(row['coverage']):.2f}", f"{calibrated:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def steps_table(results: dict) -> str:
    """The velocity network in few steps beside the networks trained through theirs."""
    lines = [
        "| steps | v, ancestral | v, angular | energy, angular | energy ÷ v, the better way |",
        "|---|---|---|---|---|",
    ]
    trials = results["trials"]
    for steps in (1, 2, 4, 8):
        cells, best = [str(steps)], None
        for way in (f"ancestral {steps}", f"angular {steps}"):
            row = trials.get(BASELINE, {"scores": {}})["scores"].get(way)
            if row is None:
                cells.append("–")
                continue
            value = mean(row["all"]["energy"])
            cells.append(f"{value:.4f}")
            if best is None or value < best[0]:
                best = (value, way)
        name, way = f"energy, {steps} step{'s' * (steps > 1)}", f"angular {steps}"
        if name in trials and best is not None:
            cells.append(f"{mean(trials[name]['scores'][way]['all']['energy']):.4f}")
            cells.append(compared(results, (name, way), (BASELINE, best[1]), "all"))
        else:
            cells += ["–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pairs_table(results: dict) -> str:
    """What is to be compared with something else than the baseline."""
    lines = ["| energy score of | all | occluded |", "|---|---|---|"]
    for title, ours, theirs in PAIRS:
        cells = [compared(results, ours, theirs, subset) for subset in ("all", "occluded")]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def compute_table(results: dict) -> str:
    """What each trial got for the same multiply-adds."""
    lines = [
        "| trial | parameters | 10^12 multiply-adds | steps | clips | CPU s | final loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, trial in results["trials"].items():
        training = trial["training"]
        before = [
            (f" ({k} before)", training[k]) for k in ("regressor", "velocity") if k in training
        ]
        parts = [*before, ("", training)]
        for suffix, row in parts:
            if row["steps"]:
                lines.append(
                    f"| {name}{suffix} | {row['parameters']:,} | {row['tera_macs']:.2f} | {row['steps']:,} "
                    f"| {row['clips']:,} | {row['cpu_seconds']:.0f} | {row['loss']:.3f} |"
                )
    return "\n".join(lines)


def all_tables(results: dict) -> dict[str, str]:
    """Mark in the README -> table."""
    return {
        "scores": scores_table(results),
        "steps": steps_table(results),
        "pairs": pairs_table(results),
        "compute": compute_table(results),
    }


def draw(results: dict, path: Path) -> None:
    """Ratios to the baseline with their intervals, and the score by number of steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from diffusion4d.atomic import replace_when_done

    trials = results["trials"]
    reference = trials[BASELINE]["scores"][WAY]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    names = [n for held in GROUPS.values() for n in held if n in trials and n != BASELINE]
    for place, name in enumerate(names):
        scores = trials[name]["scores"][first_way(trials[name])]
        for subset, shift, ink in (("all", -0.16, "#1565c0"), ("occluded", 0.16, "#e07b00")):
            middle, low, high = ratio(scores[subset]["energy"], reference[subset]["energy"])
            left.errorbar(
                middle,
                place + shift,
                xerr=[[middle - low], [high - middle]],
                fmt="o",
                ms=5,
                color=ink,
                capsize=3,
                label=subset if place == 0 else None,
            )
    left.axvline(1, color="black", lw=1)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    left.set_title("Energy score ÷ baseline's (lower is better)", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    for kind, style in (("ancestral", "o-"), ("angular", "s--")):
        steps = [s for s in (1, 2, 4, 8) if f"{kind} {s}" in trials[BASELINE]["scores"]]
        rows = [trials[BASELINE]["scores"][f"{kind} {s}"]["all"]["energy"] for s in steps]
        right.plot(steps, [mean(r) for r in rows], style, color="#1565c0", label=f"v, {kind}")
    for steps in (1, 2):
        name = f"energy, {steps} step{'s' * (steps > 1)}"
        if name in trials:
            value = mean(trials[name]["scores"][f"angular {steps}"]["all"]["energy"])
            label = "energy, through its steps" if steps == 1 else None
            right.plot([steps], [value], "D", color="#b3261e", ms=8, label=label)
    nothing = mean(trials["untrained"]["scores"]["angular 1"]["all"]["energy"])
    right.axhline(nothing, color="#5b6770", lw=1, ls=":", label="regressor's Gaussian")
    right.set_xscale("log", base=2)
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.set_xlabel("steps a sample", fontsize=9)
    right.set_title("Energy score, all points", fontsize=10)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main(folder: Path) -> None:
    """Draw the picture beside results.json and fill the README's tables."""
    from diffusion4d.atomic import replace_when_done
    from diffusion4d.evaluation.report import fill

    results = json.loads((folder / "results.json").read_text())
    draw(results, folder / "trials.png")
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(fill((folder / "README.md").read_text(), all_tables(results)))


if __name__ == "__main__":
    main(Path(__file__).parent)
