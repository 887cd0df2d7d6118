"""The tables and the picture of the README, from results.json; tables go between their marks in the README.

python experiments/world/report.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from diffusion4d.evaluation.report import fill

HERE = Path(__file__).parent
SOURCES = {
    "hypotheses": "hypotheses of the model",
    "lifted": "tracks at depth 1",
    "truth": "true points",
}
GROUND = 0.15


def column(worlds: list[dict], *path: str) -> np.ndarray:
    """One number a world, NaN where it has none."""
    values = []
    for world in worlds:
        value: Any = world
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(np.nan if value is None else float(value))
    return np.array(values)


def classes(worlds: list[dict]) -> dict[str, list[dict]]:
    """By what is true: does the camera move, and is ground tracked?"""
    moving = [w for w in worlds if w["kind"] != "static"]
    still = [w for w in worlds if w["kind"] == "static"]
    return {
        "camera moves, ground tracked": [w for w in moving if w["ground"] >= GROUND],
        "camera still, ground tracked": [w for w in still if w["ground"] >= GROUND],
        "camera moves, no ground": [w for w in moving if w["ground"] < GROUND],
        "camera still, no ground": [w for w in still if w["ground"] < GROUND],
    }


def verdicts(worlds: list[dict]) -> str:
    """What was said of the camera, by what is true."""
    lines = [
        "| truly | worlds | points | said still | world frame | left in camera frames |",
        "|---|---|---|---|---|---|",
    ]
    for truth, some in classes(worlds).items():
        for source, title in SOURCES.items():
            if not some:
                continue
            still = np.mean([w[source]["still"] for w in some])
            frame = np.mean([w[source]["frame"] == "world" for w in some])
            lines.append(
                f"| {truth} | {len(some)} | {title} | {still:.0%} | {frame:.0%} | {1 - still - frame:.0%} |"
            )
    return "\n".join(lines)


def shown(values: np.ndarray, form: str) -> str:
    """Median and mean of what there is."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "–"
    return f"{np.median(values):{form}} ({values.mean():{form}})"


def poses(worlds: list[dict]) -> str:
    """Errors of camera paths where the camera moves and ground is tracked."""
    some = classes(worlds)["camera moves, ground tracked"]
    lines = [
        "| points | rotation, degrees | the identity's | direction, degrees | precision, recall of still points "
        "(0.001) | (0.02) |",
        "|---|---|---|---|---|---|",
    ]
    for source, title in SOURCES.items():
        cells = [
            shown(column(some, source, "rotation"), ".2f"),
            shown(column(some, "none"), ".2f"),
            shown(column(some, source, "direction"), ".1f"),
        ]
        grounded = classes(worlds)
        both = grounded["camera moves, ground tracked"] + grounded["camera still, ground tracked"]
        for limit in ("0.001", "0.02"):
            precision = np.nanmean(column(both, source, f"precision_{limit}"))
            recall = np.nanmean(column(both, source, f"recall_{limit}"))
            cells.append(f"{precision:.2f}, {recall:.2f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def errors(worlds: list[dict]) -> str:
    """EPE in either frame, means over worlds; hypotheses of the model."""
    lines = [
        "| worlds | subset | camera frame | world frame | camera frame taken for the world | camera frame, after |",
        "|---|---|---|---|---|---|",
    ]
    for truth, some in classes(worlds).items():
        if "no ground" in truth or not some:
            continue
        for subset in ("all", "moving", "still"):
            cells = [
                f"{np.nanmean(column(some, 'hypotheses', f'{name}_{subset}')):.4f}"
                for name in ("camera", "world", "as_world", "corrected")
            ]
            lines.append(f"| {truth} ({len(some)}) | {subset} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(worlds: list[dict]) -> str:
    """Drift of still points, and what images lose, in words."""
    placed = [w for w in worlds if w["hypotheses"]["frame"] == "world"]
    moved = [
        w
        for w in classes(worlds)["camera moves, ground tracked"]
        if w["hypotheses"]["frame"] == "world"
    ]
    before, after = (
        np.nanmean(column(moved, "hypotheses", f"drift_{name}")) for name in ("camera", "world")
    )
    median = np.median([w["hypotheses"]["refit_px"][0] for w in placed])
    tail = np.median([w["hypotheses"]["refit_px"][1] for w in placed])
    old = np.mean([w["hypotheses"]["reprojection"][0] for w in placed])
    new = np.mean([w["hypotheses"]["reprojection"][1] for w in placed])
    return (
        f"True still points drift by {before:.3f} from the first to the last frame in camera frames, by {after:.3f} in "
        f"the world ({len(moved)} worlds). The refit moves the images of moving points by {median:.2f} px (median), "
        f"{tail:.2f} px (95 %); the median reprojection of seen points goes from {old:.2f} to {new:.2f} px, "
        f"still points being held ({len(placed)} worlds)."
    )


def draw(worlds: list[dict], path: Path) -> None:
    """Rotation errors against how far the camera turns; EPE in both frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    some = classes(worlds)["camera moves, ground tracked"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    turn = np.maximum(column(some, "none"), 0.01)
    for source, ink in (("lifted", "#9e9e9e"), ("hypotheses", "#1565c0"), ("truth", "#2e7d32")):
        error = np.maximum(column(some, source, "rotation"), 1e-3)
        left.scatter(turn, error, s=22, color=ink, label=SOURCES[source])
    span = np.array([turn.min(), turn.max()])
    left.plot(span, span, color="#b3261e", linewidth=1, label="no estimate at all")
    left.set(xscale="log", yscale="log", xlabel="true mean rotation, degrees")
    left.set_ylabel("error of the rotation, degrees")
    left.set_title("Camera paths, ground tracked", loc="left", fontsize=10)
    camera, world = (column(some, "hypotheses", f"{n}_still") for n in ("as_world", "world"))
    right.scatter(camera, world, s=22, color="#1565c0")
    span = np.array([np.nanmin(world), np.nanmax(camera)])
    right.plot(span, span, color="#b3261e", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="camera frame taken for the world")
    right.set_ylabel("world frame")
    right.set_title("Mean error of still points", loc="left", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    worlds = json.loads((HERE / "results.json").read_text())["worlds"]
    readme = HERE / "README.md"
    tables = {"verdicts": verdicts, "poses": poses, "errors": errors, "costs": costs}
    text = fill(readme.read_text(), {name: table(worlds) for name, table in tables.items()})
    readme.write_text(text)
    draw(worlds, HERE / "world.png")


if __name__ == "__main__":
    main()
