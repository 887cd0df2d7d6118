"""summary.json: what was assumed, how long it took, how well it fits, and how far it is in doubt.

Every number says its unit by its name or its neighbour; one that cannot be taken (no hidden points,
say) is null. Spread is defined in `export.spread`, reprojection in `Hypotheses.scores`.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d.atomic import replace_when_done
from diffusion4d.export.spread import spread_of
from diffusion4d.hypotheses import REFERENCE_SIDE, Hypotheses


def report(
    hypotheses: Hypotheses,
    *,
    seconds: Float[np.ndarray, "T"],
    assumptions: Mapping[str, Any],
    timings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of summary.json, of plain JSON types only.

    Args:
        seconds: when each frame is shown.
        assumptions: what the user did not say and the run took for granted, and the names of model and
            encoder; taken over as they are.
        timings: seconds by stage; taken over as they are.
    """
    hyp = hypotheses
    content = {
        "hypotheses": {
            "K": hyp.num_hypotheses,
            "N": hyp.num_points,
            "M": hyp.num_ctrl,
            "T": hyp.num_frames,
            "degree": hyp.degree,
            "seeds": hyp.seeds,
            "rank": hyp.rank(),
            "units": hyp.units,
            "frame": hyp.frame,
            "size_px": hyp.size,
            "intrinsics_px": hyp.intrinsics,
            "seconds": seconds[-1] - seconds[0],
        },
        "assumed": assumptions,
        "observed": {
            "seen_share": hyp.seen.double().mean(),
            "points_seen_to_the_end": int(hyp.seen.all(0).sum()),
            "still_points_per_hypothesis": None if hyp.static is None else hyp.static.sum(1),
        },
        "reprojection": _reprojection(hyp),
        "spread": _spread(hyp),
        "timings_s": timings,
    }
    return _plain(content)


def write_report(content: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write it as JSON, all of it or nothing.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    with replace_when_done(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def _reprojection(hyp: Hypotheses) -> dict[str, Any]:
    count = hyp.num_hypotheses * int(hyp.seen.sum())
    median = p90 = None
    if count > 0:
        # A hypothesis behind the camera errs infinitely, and nothing lies between that and a number: p90 is an error
        # that occurs, the first from which no more than a tenth are larger.
        ranks = [(count - 1) // 2, count // 2, math.ceil(0.9 * (count - 1))]
        low, high, p90 = hyp.errors_at(ranks).double().tolist()
        median = (low + high) / 2
    return {
        "about": f"px at {REFERENCE_SIDE} px shorter side, seen frames only",
        "median_px": median,
        "p90_px": p90,
        "median_px_per_hypothesis": hyp.scores(),
    }


def _spread(hyp: Hypotheses) -> dict[str, Any]:
    spread = spread_of(hyp)
    subsets = {
        "all": torch.ones_like(spread.seen),
        "seen": spread.seen,
        "hidden": ~spread.seen,
    }
    depth = {name: _size(spread.depth, mask) for name, mask in subsets.items()}
    lateral = {name: _size(spread.lateral, mask) for name, mask in subsets.items()}
    return {
        "about": f"standard deviation over the hypotheses, in {hyp.units} units: depth along the mean's "
        "viewing ray, lateral across it, per axis",
        "depth": depth,
        "lateral": lateral,
        "lateral_hidden_over_seen": _ratio(lateral["hidden"], lateral["seen"]),
        "depth_over_lateral": {name: _ratio(depth[name], lateral[name]) for name in subsets},
    }


def _size(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> dict[str, float]:
    chosen = values[mask].double().numpy()
    if len(chosen) == 0:
        return {"rms": math.nan, "median": math.nan}
    return {"rms": float(np.sqrt(np.square(chosen).mean())), "median": float(np.median(chosen))}


def _ratio(above: dict[str, float], below: dict[str, float]) -> dict[str, float]:
    return {k: above[k] / below[k] if below[k] > 0 else math.nan for k in above}


def _plain(value: Any) -> Any:
    """Numbers to seven digits, arrays to lists, not-a-number to null; the rest by its name."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, bool | int | str) or value is None:
        return value
    return str(value)
