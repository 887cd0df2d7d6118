r"""What the page shows, as one JSON value.

The page gets the control points and the basis, not the trajectories: X = B c is a small product that a browser does
at any u as it plays, and K N M numbers are a quarter of K N T. Numbers are float32, little endian, in base64;
pictures are JPEG.

Shape letters:  K hypotheses   N points   M control points   T frames   S instants of the drawn paths
"""

import base64
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion4d.clip import Clip
from diffusion4d.errors import UserError
from diffusion4d.export.palette import colours
from diffusion4d.export.recorded import clock
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.pictures import in_proportion
from diffusion4d.splines.basis import basis_functions

PATH_INSTANTS = 4
"""Instants of a drawn path for each frame interval."""
QUALITY = 72
"""Of the JPEGs."""
FEWEST_FOR_CLUSTERS = 8


def content(
    hypotheses: Hypotheses,
    clip: Clip | None = None,
    *,
    title: str = "",
    source: Path | None = None,
) -> dict[str, Any]:
    """Everything that the page needs.

    Args:
        clip: the video, with the frames of the hypotheses.
        source: folder of the hypotheses, whose summary.json tells the seconds where there is no clip.

    Raises:
        UserError: a clip with another number of frames, or out of proportion with the hypotheses'.
    """
    hyp = hypotheses.to("cpu")
    if clip is not None and hyp.num_frames != clip.T:
        raise UserError(
            f"need the clip with the {hyp.num_frames} frames of the hypotheses, got {clip.T}"
        )
    if clip is not None and not in_proportion(clip.size, hyp.size):
        (height, width), (rows, columns) = clip.size, hyp.size
        raise UserError(
            f"need the clip of the hypotheses, {columns} x {rows} px or in proportion, "
            f"got one of {width} x {height}"
        )
    dense = np.interp(
        np.arange((hyp.num_frames - 1) * PATH_INSTANTS + 1) / PATH_INSTANTS,
        np.arange(hyp.num_frames),
        hyp.times.numpy(),
    )
    basis = basis_functions(torch.from_numpy(dense), hyp.knots, hyp.degree)
    return {
        "title": title,
        "K": hyp.num_hypotheses,
        "N": hyp.num_points,
        "M": hyp.num_ctrl,
        "T": hyp.num_frames,
        "S": len(dense),
        "perFrame": PATH_INSTANTS,
        "seconds": [round(float(s), 5) for s in clock(hyp, clip, source)],
        "units": hyp.units,
        "frame": hyp.frame,
        "size": list(hyp.size),
        "intrinsics": hyp.intrinsics.tolist(),
        "seeds": hyp.seeds.tolist(),
        "rank": hyp.rank().tolist(),
        "fit": [None if not math.isfinite(s) else round(s, 3) for s in hyp.scores().tolist()],
        "control": _numbers(hyp.control_points),
        "basis": _numbers(basis),
        "cameras": _numbers(hyp.extrinsics.reshape(-1, hyp.num_frames, 4, 4)[:, :, :3]),
        "numCameras": 1 if hyp.extrinsics.ndim == 3 else hyp.num_hypotheses,
        "tracks": _numbers(hyp.tracks),
        "visibility": _numbers(hyp.visibility),
        "colours": _numbers(torch.from_numpy(colours(hyp))),
        "scale": _numbers(torch.from_numpy(_cividis())),
        **_clusters(hyp),
        "frames": [] if clip is None else [_jpeg(frame) for frame in clip.frames],
    }


def as_json(value: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _clusters(hyp: Hypotheses) -> dict[str, Any]:
    """Groups of hypotheses with their weights and representatives, or why there are none."""
    from diffusion4d import deformation

    if hyp.num_hypotheses < FEWEST_FOR_CLUSTERS:
        reason = f"clusters need {FEWEST_FOR_CLUSTERS} hypotheses, here are {hyp.num_hypotheses}"
        return {"clusters": None, "whyNoClusters": reason}
    try:
        found = deformation.modes(hyp).clusters
    except UserError as error:
        return {"clusters": None, "whyNoClusters": f"no clusters: {error}"}
    grouped = {
        "labels": [int(label) for label in found.labels],
        "representatives": [int(k) for k in found.representatives],
        "weights": [round(float(w), 4) for w in found.weights],
    }
    return {"clusters": grouped, "whyNoClusters": ""}


def _numbers(array: torch.Tensor) -> str:
    values = array.detach().to(torch.float32).contiguous().numpy()
    # A point that a tracker lost has no place; the page knows a lost one by its visibility.
    return base64.b64encode(np.nan_to_num(values).astype("<f4").tobytes()).decode("ascii")


def _jpeg(frame: torch.Tensor) -> str:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _cividis() -> np.ndarray:
    """A scale that colour-blind eyes read as others do (Nuñez, Anderton & Renslow 2018)."""
    from matplotlib import colormaps

    return colormaps["cividis"](np.linspace(0.08, 1, 64))[:, :3]
