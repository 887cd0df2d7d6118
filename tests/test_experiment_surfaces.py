"""The table of the experiment on surfaces is that of its results."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "experiments" / "surfaces"


def test_the_readme_has_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    summary = json.loads((FOLDER / "results.json").read_text())["summary"]
    assert len(summary) == 6
    for name, row in summary.items():
        cells = [
            name,
            f"{100 * row['covered']:.0f} %",
            f"{100 * row['error']:.2f}",
            f"{100 * row['wrong']:.1f}",
            f"{100 * row['shown found']:.0f}",
            f"{100 * row['hidden found']:.0f}",
            f"{row['seconds']:.2f}",
        ]
        assert f"| {' | '.join(cells)} |" in text, cells
