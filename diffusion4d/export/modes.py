"""Files of the deformation space, beside the hypotheses: all of them, or none.

    modes.npz    scores, modes, spectrum, clusters, for numpy
    modes.glb    the mean motion, each of the first modes swung both ways, for any glTF viewer
    modes.png    the spectrum and its law, the first modes, the clusters
    modes.json   how many modes and clusters, out of what, and how far that can be trusted

modes.npz: `mean` [N, M, 3] and `directions` [r, N, M, 3] in (x/z, y/z, log z) of the control points, so that those with
scores s are the points (v₁ e^{v₃}, v₂ e^{v₃}, e^{v₃}) of v = mean + s · directions; `scores` [K, r]; `deviation` [r];
`values` [K − 1], the squared singular values; `knots`, `degree`; the clusters: `labels` [K], `representatives` [G] and
`weights` [G].
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffusion4d.deformation import Deformation
from diffusion4d.errors import UserError
from diffusion4d.export import staged
from diffusion4d.export.recorded import length

FILES = ("modes.npz", "modes.glb", "modes.png", "modes.json")
SWUNG = 4
"""Modes that are animated and drawn."""
AMPLITUDE = 2.0
"""Standard deviations that they are swung by."""


def write_modes(
    deformation: Deformation, out_dir: str | os.PathLike[str], *, seconds: float | None = None
) -> dict[str, Path]:
    """Write the four `FILES` into `out_dir`, made if missing; older ones are replaced.

    Args:
        seconds: that the animation takes; the frames at `recorded.ASSUMED_RATE` by default.

    Returns:
        The path of each file by its name.

    Raises:
        UserError: `seconds` is not positive; the folder cannot be made or written, or the disk is full. Nothing new
            is left.
    """
    from diffusion4d.export.glb import write_glb
    from diffusion4d.export.mode_picture import write_picture

    if seconds is None:
        seconds = length(deformation.hypotheses)
    if not seconds > 0:
        raise UserError(f"need a positive number of seconds, got {seconds}")
    swung = deformation.swing(AMPLITUDE, SWUNG)
    with staged(Path(out_dir), FILES) as stage:
        np.savez(stage / FILES[0], allow_pickle=False, **arrays(deformation))
        write_glb(swung, stage / FILES[1], seconds=seconds, names=swing_names(swung.num_hypotheses))
        write_picture(deformation, stage / FILES[2])
        text = json.dumps(report(deformation), indent=2, allow_nan=False)
        (stage / FILES[3]).write_text(text + "\n", encoding="utf-8")
    return {name: Path(out_dir) / name for name in FILES}


def swing_names(count: int) -> list[str]:
    """Names of the nodes in modes.glb: mean, mode_1_minus, mode_1_plus, …"""
    return ["mean", *(f"mode_{i // 2 + 1}_{('minus', 'plus')[i % 2]}" for i in range(count - 1))]


def arrays(deformation: Deformation) -> dict[str, np.ndarray]:
    """What modes.npz holds; see the module."""
    found, parts = deformation.modes, deformation.clusters
    return {
        "mean": deformation.mean.numpy(),
        "directions": deformation.directions.numpy(),
        "scores": found.scores.numpy(),
        "deviation": found.deviation.numpy(),
        "values": found.spectrum.values,
        "knots": deformation.hypotheses.knots.numpy(),
        "degree": np.asarray(deformation.hypotheses.degree),
        "labels": parts.labels,
        "representatives": parts.representatives,
        "weights": parts.weights,
    }


def report(deformation: Deformation) -> dict[str, Any]:
    """What modes.json says, of plain JSON types only. Numbers are shares of depth where not said otherwise."""
    found, parts = deformation.modes, deformation.clusters
    white, bulk, n = found.spectrum, found.bulk, found.spectrum.shape[0]
    total = float(white.values.sum())
    share = white.values / total if total > 0 else white.values
    modes = zip(
        found.deviation.tolist(),
        share.tolist(),
        deformation.depth_share().tolist(),
        deformation.common_share().tolist(),
        strict=False,
    )
    return {
        "modes": deformation.num_modes,
        "noise": found.noise,
        "threshold_deviation": _round((found.threshold / n) ** 0.5),
        "effective_modes": _round(white.effective),
        "of_each_mode": [
            {
                "deviation": _round(deviation),
                "variance_share": _round(variance),
                "depth_share": _round(depth),
                "common_share": _round(common),
            }
            for deviation, variance, depth, common in modes
        ],
        "white_law": {
            "holds": white.holds,
            "misfit": _round(white.misfit),
            "modes": white.count,
            "at_least": white.saturated,
            "noise": _round(white.noise),
        },
        "coloured_law": None
        if bulk is None
        else {
            "misfit": _round(bulk.misfit),
            "modes": bulk.count,
            "concentration": _round(bulk.concentration),
            "noise": _round(bulk.noise),
        },
        "clusters": {
            "count": parts.count,
            "weights": [_round(w) for w in parts.weights.tolist()],
            "representatives": parts.representatives.tolist(),
            "labels": parts.labels.tolist(),
            "silhouette": _round(parts.silhouette),
            "silhouette_required": _round(parts.required),
        },
    }


def _round(value: float) -> float:
    return float(f"{value:.5g}")
