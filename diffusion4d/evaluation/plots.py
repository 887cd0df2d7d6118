"""Pictures of an evaluation: calibration, ranks, error against spread, score against steps, energy scores.

Each shows what scores.json holds and nothing else. A picture for which the scores hold nothing is not written.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion4d.atomic import replace_when_done
from diffusion4d.metrics import LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = ("lateral", "depth")
SUBSETS = ("all", "visible", "occluded")
FEWEST = 200
"""Bins of the spread that hold fewer numbers than this are not drawn."""


def write_all(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write every picture there is something to show for."""
    import matplotlib

    matplotlib.use("Agg")
    drawings: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
        "calibration": calibration,
        "ranks": ranks,
        "spread": spread,
        "steps": steps,
        "energy": energy,
    }
    written = []
    for name, draw in drawings.items():
        figure = draw(result)
        if figure is not None:
            path = folder / f"{name}.png"
            with replace_when_done(path) as temporary:
                figure.savefig(temporary, dpi=110)
            written.append(path)
    return written


def shown(result: dict[str, Any]) -> dict[str, str]:
    """The methods that are drawn as curves, and their colours: the sampler, and the noise it has to beat."""
    dressed = result["stands_for"].get("dressed twin", "")
    colours = {
        "samples": "#1f5fa8",
        dressed: "#c8552b",
        "gaussian head": "#7a9a3a",
        "gaussian head, joint": "#111111",
        "peer setting": "#b04fb0",
    }
    return {name: colour for name, colour in colours.items() if name in result["scores"]}


def _grid(result: dict[str, Any], title: str) -> "tuple[Figure, dict[tuple[str, str], Axes]]":
    from matplotlib.figure import Figure

    subsets = [s for s in SUBSETS if s in result["scores"].get("samples", {})]
    figure = Figure(figsize=(3.4 * len(subsets) + 0.6, 6.6), layout="constrained")
    figure.suptitle(f"{title} ({result['clips']} clips)", fontsize=11)
    axes = figure.subplots(2, len(subsets), squeeze=False)
    cells = {}
    for r, part in enumerate(PARTS):
        for c, subset in enumerate(subsets):
            cells[part, subset] = axes[r, c]
            axes[r, c].set_title(f"{part}, {subset}", fontsize=9)
            axes[r, c].tick_params(labelsize=8)
    return figure, cells


def _legend(figure: "Figure", cells: "dict[tuple[str, str], Axes]") -> None:
    """One for all: in a panel it would lie on the curves."""
    handles, labels = next(iter(cells.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)


def calibration(result: dict[str, Any]) -> "Figure | None":
    """Coverage of the central intervals against their level."""
    if "coverage_depth" not in result["scores"].get("samples", {}).get("all", {}):
        return None
    figure, cells = _grid(
        result, "Coverage of central intervals, and its mean distance to the level"
    )
    for (part, subset), axis in cells.items():
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for i, (name, colour) in enumerate(shown(result).items()):
            scores = result["scores"][name].get(subset, {})
            if f"coverage_{part}" not in scores:
                continue
            curve = scores[f"coverage_{part}"]
            axis.plot(LEVELS, curve, ".-", color=colour, markersize=4, linewidth=1.2, label=name)
            error = scores[f"calibration_error_{part}"]["value"]
            axis.text(0.97, 0.04 + 0.065 * i, f"{error:.3f}", color=colour, fontsize=8, ha="right")
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        if part == "depth":
            axis.set_xlabel("level", fontsize=8)
        if subset == "all":
            axis.set_ylabel("coverage", fontsize=8)
    _legend(figure, cells)
    return figure


def ranks(result: dict[str, Any]) -> "Figure | None":
    """Rank of the truth among the samples; level for a calibrated sampler."""
    scores = result["scores"].get("samples", {})
    if "ranks_depth" not in scores.get("all", {}):
        return None
    figure, cells = _grid(result, "Rank of the truth among the samples")
    for (part, subset), axis in cells.items():
        counts = scores[subset].get(f"ranks_{part}")
        if counts is None:
            continue
        total = sum(counts)
        density = [len(counts) * n / total for n in counts]
        axis.bar(
            range(len(counts)),
            density,
            width=1.0,
            color="#1f5fa8",
            edgecolor="white",
            linewidth=0.3,
        )
        axis.axhline(1, color="0.3", linewidth=1)
        axis.set_xlim(-0.6, len(counts) - 0.4)
        if part == "depth":
            axis.set_xlabel("samples below the truth", fontsize=8)
        if subset == "all":
            axis.set_ylabel("how often, uniform = 1", fontsize=8)
    return figure


def spread(result: dict[str, Any]) -> "Figure | None":
    """Error of the mean against predicted spread, in bins of the latter."""
    if "samples" not in result["spread_against_error"]:
        return None
    figure, cells = _grid(result, "Error of the mean against predicted spread, scene units an axis")
    for (part, subset), axis in cells.items():
        ends: list[float] = []
        for name, colour in shown(result).items():
            bins = result["spread_against_error"].get(name, {}).get(subset, {}).get(part, [])
            held = [(s, e) for n, s, e in bins if n >= FEWEST and s > 0 and e > 0]
            if held:
                xs, ys = zip(*held, strict=True)
                axis.loglog(
                    xs, ys, color=colour, marker=".", markersize=4, linewidth=1.4, label=name
                )
                ends += [*xs, *ys]
        if ends:
            low, high = min(ends) / 1.5, max(ends) * 1.5
            axis.plot([low, high], [low, high], color="0.6", linewidth=1)
            axis.set(xlim=(low, high), ylim=(low, high))
        if part == "depth":
            axis.set_xlabel("RMS spread", fontsize=8)
        if subset == "all":
            axis.set_ylabel("RMS error", fontsize=8)
    _legend(figure, cells)
    return figure


def steps(result: dict[str, Any]) -> "Figure | None":
    """Energy score over the dressed twin's against the number of steps."""
    from matplotlib.figure import Figure

    curve = result["steps"]
    if not curve:
        return None
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    colours = {"all": "#1f5fa8", "visible": "#7a9a3a", "occluded": "#c8552b", "moving": "#8a5fa0"}
    for i, (subset, by_steps) in enumerate(curve.items()):
        # A little apart, so that the intervals of the subsets can be told apart.
        xs = [int(n) * 1.03 ** (i - 1) for n in by_steps]
        ys = [r["value"] for r in by_steps.values()]
        errors = (
            [r["value"] - r["low"] for r in by_steps.values()],
            [r["high"] - r["value"] for r in by_steps.values()],
        )
        axis.errorbar(xs, ys, errors, color=colours[subset], marker="o", capsize=2, label=subset)
    axis.axhline(1, color="0.4", linewidth=1)
    axis.set_xscale("log", base=2)
    numbers = [int(n) for n in next(iter(curve.values()))]
    axis.set_xticks(numbers, [str(n) for n in numbers])
    axis.set_xlabel("denoiser evaluations a hypothesis")
    axis.set_ylabel("energy score / dressed twin's")
    axis.legend(fontsize=8)
    return figure


def energy(result: dict[str, Any]) -> "Figure | None":
    """Energy score of every method with its interval, on all points and while occluded."""
    from matplotlib.figure import Figure

    total = result["clips"]
    # A method that was scored on fewer clips stands on other ground.
    scores = {
        name: subsets
        for name, subsets in result["scores"].items()
        if name != "truth"
        and subsets.get("all", {}).get("clips") == total
        and "energy_score" in subsets["all"]
    }
    if not scores:
        return None
    names = sorted(scores, key=lambda name: -scores[name]["all"]["energy_score"]["value"])
    figure = Figure(figsize=(7.2, 0.32 * len(names) + 1.4), layout="constrained")
    axis = figure.subplots()
    for subset, colour, shift in (("all", "#1f5fa8", 0.14), ("occluded", "#c8552b", -0.14)):
        for y, name in enumerate(names):
            r = scores[name].get(subset, {}).get("energy_score")
            if r is not None:
                axis.plot([r["low"], r["high"]], [y + shift] * 2, color=colour, linewidth=2)
                label = subset if y == 0 else None
                axis.plot(r["value"], y + shift, "o", color=colour, markersize=4, label=label)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("energy score, scene units (error itself for a single answer)", fontsize=8)
    axis.set_xlim(left=0)
    axis.legend(fontsize=8)
    axis.grid(axis="x", color="0.9")
    return figure
