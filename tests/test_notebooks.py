"""Notebooks run from top to bottom, and the .ipynb is what its source gives."""

from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
# The same cells with less to compute, and what they have to print.
QUICK = {
    "fan": {
        "HYPOTHESES, POINTS = 16, 96": "HYPOTHESES, POINTS = 3, 24",
        "frames=32": "frames=8, side=96",
    },
    "mixture": {
        "SAMPLES, PATHS = 4000, 42": "SAMPLES, PATHS = 400, 3",
        "uniform(1500)": "uniform(150)",
    },
}
PRINTED = {
    "fan": ["[3, 24, 12, 3]", "of 3"],
    "mixture": ["UniPC-2: 8 rows", "Heun: 7 rows", "['0.35', '0.10', '0.25', '0.10', '0.20']"],
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_runs(source: Path) -> None:
    text = source.read_text()
    for full, quick in QUICK[source.stem].items():
        assert full in text
        text = text.replace(full, quick)
    notebook = jupytext.reads(text, fmt="py:percent")
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for text in PRINTED[source.stem]:
        assert text in printed


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_ipynb_is_its_source(source: Path) -> None:
    shown = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    cells = jupytext.read(source).cells
    assert [cell.source for cell in shown.cells] == [cell.source for cell in cells]
