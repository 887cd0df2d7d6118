"""The table of the README, from results.json; it goes between its marks.

PYTHONPATH=experiments/trials python experiments/guidance/report.py
"""

import json
from pathlib import Path

from records import mean, ratio

from diffusion4d.atomic import replace_when_done
from diffusion4d.evaluation.report import fill

REFERENCE = "end"


def scores_table(results: dict) -> str:
    """Every way of every model beside the snap at the end."""
    lines = [
        "| model | way | NFE | CPU ms a hypothesis | reprojection, px | ES all | ÷ end | ES occluded | ÷ end "
        "| coverage of 90 %, all / occluded | spread, visible / occluded | spread–skill, visible / occluded |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    count = results["settings"]["samples"]
    for model, held in results["models"].items():
        reference = held["ways"][REFERENCE]["scores"]
        for way, row in held["ways"].items():
            scores = row["scores"]
            cells = [
                f"{model}, {held['sampler']} {held['steps']}",
                way,
                f"{row['nfe']:.1f}",
                f"{1000 * sorted(row['cpu_seconds'])[len(row['cpu_seconds']) // 2] / count:.1f}",
                f"{mean(scores['tracks']['reprojection']):.2f}",
            ]
            for subset in ("all", "occluded"):
                energy = scores[subset]["energy"]
                middle, low, high = ratio(energy, reference[subset]["energy"])
                cells += [f"{mean(energy):.4f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]"]
            cells.append(
                " / ".join(f"{mean(scores[s]['coverage']):.2f}" for s in ("all", "occluded"))
            )
            both = ("visible", "occluded")
            cells.append(" / ".join(f"{mean(scores[s]['variance']) ** 0.5:.3f}" for s in both))
            skill = {
                s: mean(scores[s]["variance"]) / mean(scores[s]["squared_error"]) for s in both
            }
            cells.append(" / ".join(f"{skill[s] ** 0.5:.2f}" for s in both))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def all_tables(results: dict) -> dict[str, str]:
    """Mark in the README → table."""
    return {"scores": scores_table(results)}


def main(folder: Path) -> None:
    """Fill the README's table."""
    results = json.loads((folder / "results.json").read_text())
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(fill((folder / "README.md").read_text(), all_tables(results)))


if __name__ == "__main__":
    main(Path(__file__).parent)
