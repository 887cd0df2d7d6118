r"""Posterior guidance: what a hypothesis must fit, inside the loop instead of after it.

Two ways, each from a denoiser to a denoiser (`samplers.guidance`):

    snapping     x̂_0 → encode(snap(decode(x̂_0)))               closed form, exact, no gradient; one evaluation a step
    guided       x̂_0 − (σ² / α) Σ ∇_{x_t} Σ_j w_j E_j(decode(x̂_0))      any energies; two evaluations' worth a step

An energy maps control points [K, N, M, 3] of one clip's hypotheses to how badly each of the K fits, as minus a log
likelihood. `reprojection` is one; photometric and semantic consistency can be others, each with its own weight. Σ is
the covariance of the noise, so a gradient on what was seen moves what was hidden as far as the two are correlated. What
becomes of the spread of hidden points is measured in experiments/guidance.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from diffusion4d import denoiser, splines
from diffusion4d.denoiser import ClipDenoiser
from diffusion4d.snap import NEAREST, snap
from samplers.guidance import Correct, Energy, descended, weighted
from samplers.solve import Denoise

ControlEnergy = Callable[[Tensor], Tensor]
"""Control points [K, N, M, 3], camera frame, scene units → energies [K]."""


def reprojection(
    rays: Float[Tensor, "*K N T 2"],
    visibility: Float[Tensor, "N T"],
    u: Float[Tensor, "T"],
    *,
    tolerance: float,
    degree: int = 3,
    multiplicity: int = 1,
) -> ControlEnergy:
    r"""Distance to the tracks where these were seen:  Σ_{n,t} v (√(1 + d² / tolerance²) − 1).

    d²/2 in units of the tolerance where d is small, and linear beyond, so that a track that went astray pulls no harder
    than others.

    Args:
        rays: observed tracks in normalised image coordinates, the same for all hypotheses or one set for each.
        visibility: in [0, 1]; 0 leaves an instant out.
        tolerance: deviation of a track, in normalised image coordinates.

    Raises:
        ValueError: a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"need a positive tolerance, got {tolerance}")

    def energy(ctrl: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K"]:
        basis_TM = splines.basis_matrix(u, ctrl.shape[-2], degree, multiplicity).to(ctrl)
        points = basis_TM @ ctrl
        image = points[..., :2] / points[..., 2:].clamp_min(NEAREST)
        squares = (image - rays.to(ctrl)).square().sum(-1) / tolerance**2
        return (visibility.to(ctrl) * ((1 + squares).sqrt() - 1)).sum((-2, -1))

    return energy


def on_diffused(clip: ClipDenoiser, energy: ControlEnergy) -> Energy:
    """An energy of control points as one of what is diffused, for one clip (B = 1)."""

    def of_residual(r: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K"]:
        return energy(clip.decode(r[None]).squeeze(0))

    return of_residual


def guided(
    clip: ClipDenoiser, denoise: Denoise, energies: Sequence[tuple[float, ControlEnergy]]
) -> Denoise:
    """Every estimate goes down the weighted energies' gradient, taken through the network.

    But at t = 1, where nothing moves: `sampling.sample` refuses this for a table of one row, and the packaged model
    takes one unless more are asked for.

    Raises:
        ValueError: no energy, or a weight that is negative or not finite.
    """
    energy = weighted([(weight, on_diffused(clip, e)) for weight, e in energies])
    schedule, _ = denoiser.path_of(clip.network)

    def covariance(slope: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K N M 3"]:
        return clip.factors.covary(slope[None]).squeeze(0)

    return descended(denoise, energy, schedule, covariance)


def snapping(
    clip: ClipDenoiser,
    rays: Float[Tensor, "*K N T 2"],
    visibility: Float[Tensor, "N T"],
    u: Float[Tensor, "T"],
) -> Correct:
    """The snap of `snap.py` as a correction of estimates, for `samplers.guidance.corrected`."""
    multiplicity = clip.network.config["multiplicity"]

    def correct(r: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K N M 3"]:
        ctrl = snap(clip.decode(r[None]).squeeze(0), rays, visibility, u, multiplicity=multiplicity)
        return clip.encode(ctrl[None]).squeeze(0).to(r)

    return correct
