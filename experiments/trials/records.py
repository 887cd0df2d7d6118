"""Results on disk, and how two ways compare on the same clips."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion4d.atomic import replace_when_done

Values = Sequence[float | None]


def begun(path: Path, settings: dict, parts: str) -> dict:
    """What is there already of an experiment with these settings: {"settings": ..., parts: {...}}.

    Raises:
        ValueError: it was made with other settings.
    """
    if not path.exists():
        return {"settings": settings, parts: {}}
    results = json.loads(path.read_text())
    if results["settings"] != settings:
        raise ValueError(f"need the settings of {path}, or another --out")
    return results


def write(results: dict, path: Path) -> None:
    """Whole or not at all; a list of numbers is one line."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    with replace_when_done(path) as temporary:
        temporary.write_text(text + "\n")


def ratio(ours: Values, theirs: Values) -> tuple[float, float, float]:
    """Ratio of means over the clips both have, with a paired bootstrap 95 % interval."""
    held = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    a, b = np.array(held).T
    draws = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    low, high = np.quantile(a[draws].mean(1) / b[draws].mean(1), [0.025, 0.975])
    return float(a.mean() / b.mean()), float(low), float(high)


def difference(ours: Values, theirs: Values) -> tuple[float, float, float]:
    """Difference of means over the clips both have, with a paired bootstrap 95 % interval."""
    held = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    apart = np.array(held) @ [1, -1]
    draws = np.random.default_rng(0).integers(len(apart), size=(2000, len(apart)))
    low, high = np.quantile(apart[draws].mean(1), [0.025, 0.975])
    return float(apart.mean()), float(low), float(high)


def typical(ours: Values, theirs: Values) -> tuple[float, float, float]:
    """Geometric mean of the clips' ratios, with a bootstrap 95 % interval: every clip counts alike, easy or hard."""
    held = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    logs = np.log(np.array(held)) @ [1, -1]
    draws = np.random.default_rng(0).integers(len(logs), size=(2000, len(logs)))
    low, high = np.exp(np.quantile(logs[draws].mean(1), [0.025, 0.975]))
    return float(np.exp(logs.mean())), float(low), float(high)


def mean(values: Values) -> float:
    """Over the clips that have one."""
    return float(np.mean([v for v in values if v is not None]))
