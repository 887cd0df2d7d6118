r"""Back from a deformed place to where it was at rest: x' ↦ x, by Newton's method with the map's own Jacobian.

    x ← x − J(x)⁻¹ (φ(x) − x')

from the rest place of the nearest node, with steps halved until the miss falls. Where the field folds over, a place has
several origins or none; then the one that is found has a miss above the tolerance, and says so.

Shape letters:  V points   N nodes
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d.fields.blend import jacobian
from diffusion4d.fields.motion import NodeMotion
from diffusion4d.fields.skinning import Skinning

SkinAt = Callable[[Float[Tensor, "V 3"]], Skinning]


def invert(
    places: Float[Tensor, "V 3"],
    skin_at: SkinAt,
    motion: NodeMotion,
    *,
    tolerance: float = 1e-6,
    steps: int = 40,
) -> tuple[Float[Tensor, "V 3"], Bool[Tensor, "V"]]:
    """Rest places of deformed ones, and which of them were found.

    Args:
        skin_at: weights at any places (`skinning.skin_by_graph`).
        motion: of one hypothesis at one instant, B = ().
        tolerance: of the miss |φ(x) − x'|, as a share of the nodes' extent.

    Raises:
        ValueError: a motion with more than one B.
    """
    if motion.positions.ndim != 2:
        raise ValueError(f"need one instant, got positions {list(motion.positions.shape)}")
    extent = (motion.rest.amax(0) - motion.rest.amin(0)).norm().clamp_min(1e-12)
    nearest = torch.cdist(places[None], motion.positions[None])[0].argmin(1)
    back = motion.rotations[nearest].mT @ (places - motion.positions[nearest])[..., None]
    x = motion.rest[nearest] + back.squeeze(-1)
    miss = _forward(x, skin_at, motion) - places
    for _ in range(steps):
        if bool((miss.norm(dim=-1) <= tolerance * extent).all()):
            break
        slope = jacobian(x, skin_at, motion)
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        step = torch.linalg.lstsq(slope + 1e-9 * eye, miss[..., None]).solution.squeeze(-1)
        share = torch.ones_like(miss[:, :1])
        for _ in range(8):
            tried = x - share * step
            after = _forward(tried, skin_at, motion) - places
            worse = after.norm(dim=-1, keepdim=True) > miss.norm(dim=-1, keepdim=True)
            if not bool(worse.any()):
                break
            share = torch.where(worse, share / 2, share)
        keep = (after.norm(dim=-1) < miss.norm(dim=-1))[:, None]
        x, miss = torch.where(keep, tried, x), torch.where(keep, after, miss)
    return x, miss.norm(dim=-1) <= tolerance * extent


def _forward(x: Tensor, skin_at: SkinAt, motion: NodeMotion) -> Tensor:
    held = skin_at(x)
    turned = motion.rotations[held.indices] @ x[:, None, :, None]
    places = turned.squeeze(-1) + motion.offsets[held.indices]
    return (held.weights[..., None] * places).sum(1)
