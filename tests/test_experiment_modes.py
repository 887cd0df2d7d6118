"""The experiment on modes: its ensembles are what they are said to be, and its README says what its results say."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "experiments" / "modes"


def script(name: str) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location(f"modes_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, report = script("run"), script("report")


@pytest.mark.parametrize("shape", [(12, 80), (80, 12)])
def test_ensembles_have_the_modes_they_are_given(shape):
    rng = np.random.default_rng(0)
    values = run.ensemble(rng, shape, 3, 500.0, 0.5)
    assert len(values) == 12
    np.testing.assert_allclose(np.sqrt(values[:3]), 500, rtol=0.01)
    # White noise of variance 1/4: the trace is its sum of squares.
    none = run.ensemble(rng, shape, 0, 0.0, 0.5)
    assert none.sum() == pytest.approx(12 * 80 / 4, rel=0.15)
    assert run.numbers_of_modes(12) == (1, 3)
    assert run.numbers_of_modes(63) == (1, 3, 15)


def test_populations_are_variances_largest_first():
    for name, variance in run.populations(60).items():
        assert (variance > 0).all(), name
        assert (np.diff(variance) <= 1e-12).all(), name
    # A process of unit variance at every place.
    assert run.populations(60)["first-order autoregressive, 0.9"].sum() == pytest.approx(60)


def test_the_readme_says_what_the_results_say() -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    for table in report.TABLES.values():
        assert table(results) in readme
