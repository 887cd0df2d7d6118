"""The table of an evaluation as Markdown, and tables in the places of a document that are kept for them."""

import re
from typing import Any

SUBSETS = ("all", "visible", "occluded", "moving")

TABLES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Proper scores",
        (
            ("energy score", "energy_score"),
            ("lateral", "energy_score_lateral"),
            ("depth", "energy_score_depth"),
            ("per point", "point_energy_score"),
            ("CRPS lateral", "crps_lateral"),
            ("CRPS depth", "crps_depth"),
            ("RMS of the mean", "rms"),
        ),
    ),
    (
        "Best of 16",
        (
            ("joint minADE", "min_ade_joint"),
            ("joint minFDE", "min_fde_joint"),
            ("marginal minADE", "min_ade_marginal"),
            ("joint minADE, K = 1", "min_ade_joint_1"),
            ("K = 4", "min_ade_joint_4"),
            ("ADE of the mean", "ade"),
        ),
    ),
    (
        "Calibration",
        (
            ("calibration error", "calibration_error"),
            ("lateral", "calibration_error_lateral"),
            ("depth", "calibration_error_depth"),
            ("spread–skill", "spread_skill"),
            ("lateral", "spread_skill_lateral"),
            ("depth", "spread_skill_depth"),
            ("90 % width, lateral", "sharpness_lateral"),
            ("depth", "sharpness_depth"),
        ),
    ),
    (
        "Realism beside diversity",
        (
            ("diversity (APD)", "diversity"),
            ("edge stretch", "edge_stretch"),
            ("jitter", "jitter"),
            ("reprojection, px at 256", "reprojection"),
        ),
    ),
)


def markdown(result: dict[str, Any]) -> str:
    """Ratios first, then a table for each kind of number; 95 % bootstrap intervals over clips."""
    stands = result["stands_for"]
    lines = [
        f"# Scores on {result['clips']} clips",
        "",
        "Scene units (median anchor depth 1), no other alignment. Intervals: 95 %, bootstrap over clips, paired.",
        "Energy scores, diversity and realism are over 16 samples; the rest over all there are: 39, and 16 at other "
        "numbers of steps. Best of 16 is the expected best of 16 out of those.",
        *(
            f"“{name}” is the {method}, the strongest of its kind."
            for name, method in stands.items()
        ),
        *_ratios(result["ratios"]),
        *_steps(result["steps"]),
    ]
    for title, columns in TABLES:
        lines += ["", f"## {title}", "", *_rows(result["scores"], columns)]
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, float], *, interval: bool) -> str:
    text = f"{value['value']:.4f}"
    return f"{text} [{value['low']:.4f}, {value['high']:.4f}]" if interval else text


def _head(columns: tuple[str, ...]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _ratios(ratios: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## Ratios",
        "",
        *_head(("of means over clips; median of the clips' own", *SUBSETS)),
    ]
    for name, by_subset in ratios.items():
        cells = []
        for subset in SUBSETS:
            r = by_subset.get(subset)
            cells.append(
                f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]; {r['typical']:.3f}"
                if r
                else "–"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _steps(curve: dict[str, Any]) -> list[str]:
    if not curve:
        return []
    numbers = list(next(iter(curve.values())))
    columns = ("energy score / dressed twin's", *(f"{n} steps" for n in numbers))
    lines = ["", "## Steps", "", *_head(columns)]
    for subset, by_steps in curve.items():
        cells = [f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in by_steps.values()]
        lines.append(f"| {subset} | " + " | ".join(cells) + " |")
    return lines


def _rows(scores: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> list[str]:
    lines = _head(("method", "subset", "clips", *(title for title, _ in columns)))
    for method, subsets in scores.items():
        for subset, cells in subsets.items():
            # The truth is scored for its realism; that it has no error says nothing.
            told = any(metric in cells for _, metric in columns)
            if not told or (method == "truth" and "edge_stretch" not in columns[1]):
                continue
            # The first number of a row has its interval; those of the others are in scores.json.
            texts = [
                _cell(cells[metric], interval=i == 0) if metric in cells else "–"
                for i, (_, metric) in enumerate(columns)
            ]
            lines.append(f"| {method} | {subset} | {cells['clips']} | " + " | ".join(texts) + " |")
    return lines


def fill(document: str, tables: dict[str, str]) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- end -->`.

    Raises:
        ValueError: a table has no place, or more than one.
    """
    for name, lines in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        document, found = re.subn(pattern, rf"\g<1>\n{lines}\n\n\g<2>", document, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"need one place for the table {name!r} in the document, got {found}")
    return document
