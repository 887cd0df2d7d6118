r"""The motion priors of `priors` as energies of a clip's control points, `[K, N, M, 3]` to `[K]`.

`priors` knows no splines and no clips; here the Gram matrices, the basis at the frames and the neighbour graph of the
anchor frame are put in. Each energy is differentiable and can rank hypotheses (`order`) or guide a sampler. They have
different units (`priors.motion`, `priors.rigidity`, …), so there is no sum of them without weights of one's own.

    smoothness  ∫ ‖X''‖² du, exactly       pace      steps of uneven length        rigidity  as rigid as possible
    stretch     neighbours' distances      cosines   beyond `COSINES` cosines      rank      beyond rank `RANK`
    speed       above a limit              background  of points that stand still

Shape letters:  K hypotheses   N points   M control points   T frames
"""

import functools
import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import basis_functions, gram_matrix
from priors.cosines import high_frequency_energy
from priors.low_rank import beyond_rank
from priors.motion import (
    Energy,
    background_motion,
    on_control_points,
    smoothness,
    speeding,
    uneven_pace,
)
from priors.rigidity import as_rigid_as_possible, nearest, stretch

NEIGHBOURS = 6
COSINES = 5
"""As many as the trajectory-basis lifter has."""
RANK = 9
"""Three basis shapes."""
SPEED_LIMIT = 4.0
"""Median depths a clip. On 64 held-out generated worlds of 48 frames one true step in a thousand is faster."""


def motion_energies(
    hypotheses: Hypotheses,
    *,
    speed_limit: float = SPEED_LIMIT,
    background: Float[Tensor, "N"] | None = None,
) -> dict[str, Energy]:
    """Every energy by its name, for control points of this clip on these knots.

    The neighbour graph is that of the query points. A clip with fewer points than the graph or the rank needs gets
    the graph of all of them; with a single point there is no shape, and its energies are left out. So is "background"
    where nobody says what it is; it means something in the world, or before a camera that stands still.

    Args:
        speed_limit: the speed above which "speed" counts, in the unit of the points for the whole clip.
        background: how surely each point stands still, >= 0; without it, the share of the hypotheses that hold it to
            (`Hypotheses.static`).

    Raises:
        ValueError: a negative speed limit; weights that are no [N], negative, not finite, or all 0.
    """
    hyp = hypotheses
    if not 0 <= speed_limit < math.inf:
        raise ValueError(f"need speed_limit >= 0, got {speed_limit}")
    if background is None and hyp.static is not None and bool(hyp.static.any()):
        background = hyp.static.float().mean(0)
    basis_TM = basis_functions(hyp.times, hyp.knots, hyp.degree)
    frames = {
        "pace": uneven_pace,
        "cosines": functools.partial(
            high_frequency_energy, num_cosines=min(COSINES, hyp.num_frames)
        ),
        "speed": functools.partial(speeding, u=hyp.times, limit=speed_limit),
    }
    if background is not None:
        # Asked once here, so that what does not fit is told before a sampler runs.
        background_motion(hyp.evaluate(), background)
        frames["background"] = functools.partial(background_motion, weights=background)
    if hyp.num_points > 1:
        graph = nearest(hyp.query_points, min(NEIGHBOURS, hyp.num_points - 1))
        frames["rigidity"] = functools.partial(as_rigid_as_possible, graph=graph)
        frames["stretch"] = functools.partial(stretch, graph=graph)
        frames["rank"] = functools.partial(beyond_rank, rank=RANK)
    energies = {name: on_control_points(energy, basis_TM) for name, energy in frames.items()}
    gram_MM = gram_matrix(hyp.knots, hyp.degree, min(2, hyp.degree))
    return {"smoothness": functools.partial(smoothness, gram=gram_MM), **energies}


def order(hypotheses: Hypotheses, energy: Energy) -> Int64[Tensor, "K"]:
    """Indices of the hypotheses, least energy first; ties keep their order. `select` sorts by it."""
    return energies_of(hypotheses, energy).argsort(stable=True)


def energies_of(hypotheses: Hypotheses, energy: Energy) -> Float[Tensor, "K"]:
    """The energy of each hypothesis."""
    with torch.no_grad():
        return energy(hypotheses.control_points)
