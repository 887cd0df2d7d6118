r"""The motion priors of `priors` as energies of a clip's control points, `[K, N, M, 3]` to `[K]`.

`priors` knows no splines and no clips; here the Gram matrices, the basis at the frames and the neighbour graph of the
anchor frame are put in. Each energy is differentiable and can rank hypotheses (`order`) or guide a sampler. They have
different units (`priors.motion`, `priors.rigidity`, …), so there is no sum of them without weights of one's own.

    smoothness  ∫ ‖X''‖² du, exactly       pace      steps of uneven length        rigidity  as rigid as possible
    stretch     neighbours' distances      cosines   beyond `COSINES` cosines      rank      beyond rank `RANK`

Shape letters:  K hypotheses   N points   M control points   T frames
"""

import functools

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import basis_functions, gram_matrix
from priors.cosines import high_frequency_energy
from priors.low_rank import beyond_rank
from priors.motion import Energy, on_control_points, smoothness, uneven_pace
from priors.rigidity import as_rigid_as_possible, nearest, stretch

NEIGHBOURS = 6
COSINES = 5
"""As many as the trajectory-basis lifter has."""
RANK = 9
"""Three basis shapes."""


def motion_energies(hypotheses: Hypotheses) -> dict[str, Energy]:
    """Every energy by its name, for control points of this clip on these knots.

    The neighbour graph is that of the query points. A clip with fewer points than the graph or the rank needs gets
    the graph of all of them; with a single point there is no shape, and its energies are left out.
    """
    hyp = hypotheses
    basis_TM = basis_functions(hyp.times, hyp.knots, hyp.degree)
    frames = {
        "pace": uneven_pace,
        "cosines": functools.partial(
            high_frequency_energy, num_cosines=min(COSINES, hyp.num_frames)
        ),
    }
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
