r"""Where a user's mesh has to stand: among the points of one hypothesis, in the anchor frame.

hypotheses.glb shows every hypothesis's points; a mesh that is put among those of one at the animation's first instant,
as Blender or any editor saves it to glTF (x right, y up, z back), is where `diffusion4d animate` expects it. A mesh in
other axes or units is nowhere near the points, and is refused: the median over its vertices of the distance to the
nearest point has to be within `NEAR` of the diagonal of the points' box.

Shape letters:  V vertices   N points
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree

from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses

NEAR = 0.2
"""Of the diagonal of the points' box."""


def chosen(hypotheses: Hypotheses, text: str) -> list[int]:
    """Numbers of hypotheses by what a user writes: best, all, or numbers such as 0,3,7.

    Raises:
        UserError: none of these, or no such hypothesis, or one twice.
    """
    if text == "best":
        return [int(hypotheses.rank()[0])]
    count = hypotheses.num_hypotheses
    if text == "all":
        return list(range(count))
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"need best, all or numbers such as 0,3,7, got {text!r}") from error
    if not all(0 <= number < count for number in numbers) or len(set(numbers)) < len(numbers):
        raise UserError(f"need different hypotheses in 0 … {count - 1}, got {text!r}")
    return numbers


def require_near(
    points: Float[np.ndarray, "V 3"], nodes: Float[np.ndarray, "N 3"], number: int
) -> None:
    """Refuse a mesh that does not stand among the nodes; both in glTF's axes.

    Args:
        number: of the hypothesis that the nodes belong to, for the message.

    Raises:
        UserError: it is nowhere near, or not finite; the message names both boxes.
    """
    if not np.isfinite(points).all():
        raise UserError("need a mesh with finite vertices, got NaN or infinity")
    distance = float(np.median(cKDTree(nodes).query(points)[0]))
    extent = float(np.linalg.norm(np.ptp(nodes, axis=0)))
    if distance > NEAR * extent:
        raise UserError(
            f"need a mesh among the points of hypothesis {number} as hypotheses.glb has them at its first instant, "
            f"got one that is {distance:.3g} away from them (median; at most {NEAR * extent:.3g}): "
            f"the mesh fills {_box(points)}, the points {_box(nodes)} (glTF's axes: x right, y up, z back)"
        )


def anchor_nodes(hypotheses: Hypotheses, number: int) -> Float[torch.Tensor, "N 3"]:
    """The points of one hypothesis in the anchor frame."""
    return hypotheses.evaluate(hypotheses.times[:1])[number, :, 0]


def _box(points: Float[np.ndarray, "V 3"]) -> str:
    low, high = points.min(0), points.max(0)
    return " × ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True))
