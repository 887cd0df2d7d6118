"""The table of the README, from results.json; it goes between its marks.

PYTHONPATH=experiments/trials python experiments/paths/report.py
"""

import json
from pathlib import Path

from records import Values, mean, ratio, typical

from diffusion4d.atomic import replace_when_done
from diffusion4d.evaluation.report import fill

SEEDS = {"": "0", ", seed 1": "1"}


def interval(values: tuple[float, float, float]) -> str:
    """Middle and ends."""
    middle, low, high = values
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def calibrated(scores: dict[str, Values]) -> float:
    """Spread over skill."""
    return (mean(scores["variance"]) / mean(scores["squared_error"])) ** 0.5


def scores_table(results: dict) -> str:
    """Straight over cosine, by seed, sampler and steps."""
    lines = [
        "| seed | sampler | steps | ES cosine | ES straight | straight ÷ cosine | typical world | occluded "
        "| coverage of 90 %, cosine / straight | spread–skill, cosine / straight |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    trials = results["trials"]
    for suffix, seed in SEEDS.items():
        if f"straight{suffix}" not in trials:
            continue
        round_path, straight = (
            trials[f"{path}{suffix}"]["scores"] for path in ("cosine", "straight")
        )
        for way in round_path:
            sampler, steps = way.split()
            ours, theirs = straight[way], round_path[way]
            energies = ours["all"]["energy"], theirs["all"]["energy"]
            hidden = ours["occluded"]["energy"], theirs["occluded"]["energy"]
            cells = [
                *(seed, sampler, steps, f"{mean(energies[1]):.4f}", f"{mean(energies[0]):.4f}"),
                *(
                    interval(ratio(*energies)),
                    interval(typical(*energies)),
                    interval(ratio(*hidden)),
                ),
                " / ".join(f"{mean(s['all']['coverage']):.2f}" for s in (theirs, ours)),
                " / ".join(f"{calibrated(s['all']):.2f}" for s in (theirs, ours)),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compute_table(results: dict) -> str:
    """What each trial got for the same multiply-adds."""
    lines = [
        "| trial | 10^12 multiply-adds | steps | clips | CPU s | final loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, trial in results["trials"].items():
        told = trial["training"]
        lines.append(
            f"| {name} | {told['tera_macs']:.2f} | {told['steps']:,} | {told['clips']:,} | {told['cpu_seconds']:.0f} "
            f"| {told['loss']:.3f} |"
        )
    return "\n".join(lines)


def all_tables(results: dict) -> dict[str, str]:
    """Mark in the README → table."""
    return {"scores": scores_table(results), "compute": compute_table(results)}


def main(folder: Path) -> None:
    """Fill the README's tables."""
    results = json.loads((folder / "results.json").read_text())
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(fill((folder / "README.md").read_text(), all_tables(results)))


if __name__ == "__main__":
    main(Path(__file__).parent)
