r"""A dense surface under every hypothesis, in pieces that fit a budget.

K hypotheses and T frames of V vertices are 12 K T V bytes, 0.9 GB of 100,000 vertices, 48 frames and 16 hypotheses;
what reads them (a writer, a renderer) takes a few frames at a time. So frames come in order, one hypothesis after the
other, as many at once as the budget holds; nodes' motions are made for a hypothesis as it comes.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.errors import UserError
from diffusion4d.fields.blend import Blend, Carrier, deform, require_fit
from diffusion4d.fields.motion import NodeMotion, Rest, motion_of
from diffusion4d.fields.skinning import Skinning
from diffusion4d.hypotheses import Hypotheses

BUDGET = 256 * 2**20
"""Bytes of vertices, and what is made on the way to them, at a time."""
_LINEAR_BYTES, _QUATERNION_BYTES = 48, 160
"""A vertex and frame: the product, its transpose and the answer; and for each node of a point two quaternions,
thrice."""


def stream(
    points: Float[Tensor, "V 3"],
    skinning: Skinning,
    hypotheses: Hypotheses,
    rest: Rest,
    blend: Blend = "linear",
    *,
    budget: int = BUDGET,
) -> Iterator[tuple[int, slice, Float[Tensor, "frames V 3"]]]:
    """The surface of every hypothesis: its number, which frames, and the vertices.

    Args:
        points: on the surface at `rest`.

    Raises:
        UserError: a budget that does not hold one frame.
        ValueError: a skinning that does not fit.
    """
    cost = _LINEAR_BYTES
    if blend == "dual_quaternion":
        cost = _QUATERNION_BYTES * skinning.indices.shape[1]
    frames = budget // (cost * max(1, len(points)))
    if frames < 1:
        raise UserError(
            f"need a budget of {cost * len(points)} bytes for a frame of {len(points)} vertices, got {budget}"
        )
    require_fit(points, skinning, hypotheses.num_points)
    carrier = None
    if blend != "dual_quaternion":
        carrier = Carrier(points, skinning, hypotheses.num_points, blend)
    for k in range(hypotheses.num_hypotheses):
        motion = motion_of(hypotheses.select(torch.tensor([k])), rest)
        for start in range(0, hypotheses.num_frames, frames):
            span = slice(start, min(start + frames, hypotheses.num_frames))
            part = NodeMotion(rest.places, motion.positions[0, span], motion.rotations[0, span])
            yield k, span, carrier(part) if carrier else deform(points, skinning, part, blend)
