r"""The deformation space of a clip: in which directions its hypotheses differ, and whether they fall into groups.

Control points are taken as the camera sees them, (x/z, y/z, log z) = v: a change of 0.1 is a tenth of the depth in
every direction, and nothing that is put together from such changes comes to lie behind the camera. Two hypotheses
are apart by the root mean square over points and clip time,

    ‖v − v'‖² = 1/N Σ_n ∫ ‖Σ_m N_m(u) d_{n,m}‖² du = 1/N Σ_n Σ_{ml} G_{ml} ⟨d_{n,m}, d_{n,l}⟩,   d = v − v',

with G the exact Gram matrix of the basis (`splines.gram_matrix`). With G = L Lᵀ the numbers Lᵀ v / √N have this as
their Euclidean distance; `priors.modes` decomposes them, and `priors.clusters` parts their scores:

    v^k ≈ v̄ + Σ_i s^k_i m_i + noise

A score of 1 is a root mean square change of 1. Differences in depth are judged as ratios: in plain units the far
background would be all there is, and a symmetric doubt about log z would look like a cluster with a long tail.

Shape letters:  K hypotheses   N points   M control points   r modes
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import gram_matrix
from priors import clusters as partition
from priors import modes as principal
from priors import spectrum
from priors.clusters import Clusters
from priors.modes import Modes, Noise


@dataclass(frozen=True, eq=False)
class Deformation:
    """Modes and clusters of the hypotheses of a clip."""

    hypotheses: Hypotheses
    mean: Float64[Tensor, "N M 3"]
    """v̄."""
    directions: Float64[Tensor, "r N M 3"]
    """m: the change of v for a score of 1."""
    modes: Modes
    """The same in the numbers that were decomposed; scores, deviations and the spectrum are here."""
    clusters: Clusters
    """Of the hypotheses by their scores."""

    @property
    def num_modes(self) -> int:
        return len(self.directions)

    @property
    def verdict(self) -> str:
        """How many modes, out of what noise, and what that is worth, in words."""
        found, K = self.modes, self.hypotheses.num_hypotheses
        if found.noise == "white" and found.spectrum.saturated:
            few = K <= principal.coloured.FEWEST
            why = "too few" if few else "half of what they can show, which leaves too little"
            return f"at least {self.num_modes}; {K} hypotheses: {why} to test the noise"
        unlike = found.noise == "white" and not found.spectrum.holds
        doubt = "; but what is left does not look white" if unlike else ""
        return f"{self.num_modes}, out of {found.noise} noise{doubt}"

    def at(self, scores: Float64[Tensor, "S r"]) -> Hypotheses:
        """The motions with these scores. They were not sampled: their seeds are their places in the list."""
        view_SNM3 = self.mean + torch.tensordot(scores, self.directions, 1)
        ctrl = _from_view(view_SNM3).float()
        hyp = self.hypotheses
        # What is put together from several hypotheses has no cameras of its own: the best-ranked one's look at it.
        extrinsics = hyp.best.extrinsics[0] if hyp.extrinsics.ndim == 4 else hyp.extrinsics
        seeds = torch.arange(len(scores))
        return replace(hyp, control_points=ctrl, seeds=seeds, extrinsics=extrinsics, static=None)

    def swing(self, amplitude: float = 2.0, most: int | None = None) -> Hypotheses:
        """The mean, then each mode (the first `most`) at −amplitude and +amplitude of its own deviations."""
        turns = torch.diag(amplitude * self.modes.deviation)[:most]
        both = torch.stack([-turns, turns], 1).flatten(0, 1)
        return self.at(torch.cat([both.new_zeros(1, self.num_modes), both]))

    @property
    def representatives(self) -> Hypotheses:
        """The hypothesis that stands for each cluster, the largest cluster first."""
        return self.hypotheses.select(torch.from_numpy(self.clusters.representatives))

    def depth_share(self) -> Float64[Tensor, "r"]:
        """Share of each mode's squared change that is in depth."""
        squared_r3 = self.modes.directions.square().sum((1, 2))
        return squared_r3[:, 2] / squared_r3.sum(-1)

    def common_share(self) -> Float64[Tensor, "r"]:
        """Share of each mode's squared change that all points have in common."""
        common_rM3 = self.modes.directions.mean(1)
        return common_rM3.square().sum((1, 2)) * self.hypotheses.num_points


def modes(
    hypotheses: Hypotheses,
    *,
    noise: Noise = "auto",
    level: float = spectrum.LEVEL,
    most_clusters: int = partition.MOST,
    seed: int = 0,
) -> Deformation:
    """The modes and clusters of K hypotheses.

    Args:
        noise: what modes have to stand out of: white noise, coloured noise, or auto (`priors.modes`).
        level: chance of taking noise for a mode.
        seed: of the simulated noise and of the ensembles that clusters are compared with.

    Raises:
        UserError: fewer than 5 hypotheses, or 9 where the noise is to be coloured; a control point that is not in front
            of the camera.
        ValueError: `level` outside (0, 1).
    """
    hyp = hypotheses.to("cpu")
    fewest = 1 + (principal.coloured.FEWEST if noise == "coloured" else spectrum.FEWEST)
    if hyp.num_hypotheses < fewest:
        raise UserError(
            f"need at least {fewest} hypotheses to find modes, got {hyp.num_hypotheses}"
        )
    behind = int((hyp.control_points[..., 2] <= 0).sum())
    if behind:
        raise UserError(f"need control points in front of the camera, got {behind} that are not")
    view_KNM3 = _to_view(hyp.control_points.double())
    factor_MM = torch.linalg.cholesky(gram_matrix(hyp.knots, hyp.degree))
    root = hyp.num_points**0.5
    found = principal.modes(factor_MM.mT @ view_KNM3 / root, noise=noise, level=level, seed=seed)
    return Deformation(
        hypotheses=hyp,
        mean=view_KNM3.mean(0),
        directions=root * torch.linalg.solve(factor_MM.mT, found.directions),
        modes=found,
        clusters=partition.clusters(found.scores.numpy(), most=most_clusters, seed=seed),
    )


def shape_modes(
    hypotheses: Hypotheses, k: int, *, noise: Noise = "auto", level: float = spectrum.LEVEL
) -> Modes:
    """Modes of the shape over the clip: the frames of hypothesis k are the samples, `[T, N, 3]`, in its own units.

    Frames follow each other smoothly, so they are not independent samples, and the count describes the motion
    rather than tests it.

    Raises:
        ValueError: as `priors.modes.modes`.
    """
    shapes_TN3 = hypotheses.evaluate()[k].transpose(0, 1).double()
    return principal.modes(shapes_TN3, noise=noise, level=level)


def _to_view(ctrl: Float64[Tensor, "K N M 3"]) -> Float64[Tensor, "K N M 3"]:
    depth = ctrl[..., 2:]
    return torch.cat([ctrl[..., :2] / depth, depth.log()], -1)


def _from_view(view: Float64[Tensor, "S N M 3"]) -> Float64[Tensor, "S N M 3"]:
    depth = view[..., 2:].exp()
    return torch.cat([view[..., :2] * depth, depth], -1)
