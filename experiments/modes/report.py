"""Fill the tables of README.md from results.json.

python experiments/modes/report.py
"""

import json
from pathlib import Path

from diffusion4d.atomic import replace_when_done

HERE = Path(__file__).parent


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _size(shape: list[int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def nothing_table(results: dict) -> str:
    """Pure white noise."""
    head = ["K − 1 × numbers", "none found", "law holds"]
    rows = [[_size(r["shape"]), _share(r["none"]), _share(r["holds"])] for r in results["nothing"]]
    return _table(head, rows)


def known_table(results: dict) -> str:
    """Right number of modes in white noise, by strength."""
    strengths = sorted({r["strength"] for r in results["known"]})
    head = ["K − 1 × numbers", "modes", *(f"{s:g} ×" for s in strengths)]
    kinds = dict.fromkeys((tuple(r["shape"]), r["modes"]) for r in results["known"])
    found = {(tuple(r["shape"]), r["modes"], r["strength"]): r["right"] for r in results["known"]}
    rows = [
        [_size(list(shape)), str(count), *(_share(found[shape, count, s]) for s in strengths)]
        for shape, count in kinds
    ]
    return _table(head, rows)


def coloured_table(results: dict) -> str:
    """Noise that is not white, under both laws."""
    head = [
        "K − 1 × numbers", "noise", "modes", "strength", "white law right (median found)", "white law said to hold",
        "coloured law right (median found)",
    ]  # fmt: skip
    rows = [
        [
            _size(r["shape"]),
            r["noise"],
            str(r["modes"]),
            f"{r['strength']:g}" if r["modes"] else "–",
            f"{_share(r['white_right'])} ({r['white_median']:g})",
            _share(r["white_holds"]),
            f"{_share(r['coloured_right'])} ({r['coloured_median']:g})",
        ]
        for r in results["coloured"]
    ]
    return _table(head, rows)


def clips_table(results: dict) -> str:
    """The real clips."""
    head = [
        "clip", "modes", "their variance", "deviations", "in depth", "effective modes", "white law (misfit)",
        "coloured misfit", "clusters", "silhouette (required)",
    ]  # fmt: skip
    rows = []
    for name, r in results["clips"].items():
        least = "≥ " if r["white_saturated"] else ""
        misfit = "–" if r["coloured_misfit"] is None else _share(r["coloured_misfit"])
        rows.append(
            [
                name,
                str(r["modes"]),
                _share(r["share"]),
                ", ".join(f"{d:.2f}" for d in r["deviation"]),
                ", ".join(_share(d) for d in r["depth_share"]),
                f"{r['effective']:.1f}",
                f"{least}{r['white_modes']} ({r['white_misfit']:.2f})",
                misfit,
                " + ".join(_share(w) for w in r["clusters"]),
                f"{r['silhouette']:.2f} ({r['required']:.2f})",
            ]
        )
    return _table(head, rows)


TABLES = {
    "nothing": nothing_table,
    "known": known_table,
    "coloured": coloured_table,
    "clips": clips_table,
}


def main(folder: Path = HERE) -> None:
    results = json.loads((folder / "results.json").read_text())
    text = (folder / "README.md").read_text()
    for name, table in TABLES.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition("<!-- end -->")
        text = f"{before}<!-- {name} -->\n\n{table(results)}\n\n<!-- end -->{after}"
    with replace_when_done(folder / "README.md") as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
