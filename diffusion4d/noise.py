r"""Noise that is correlated over the point graph and over time.

Neighbours move together, and a depth that is wrong stays wrong. White noise hides such shared modes last and
gives them away first: with N M independent numbers the mean over a scene is known from x_t while every
single point is still lost in noise, so a few-step sampler settles the shared modes in its first step, at their mean.
So noise is drawn with the covariance of what is diffused,

    Cov[eps] = C (x) S,    C = a 11^T + b G + (1 - a - b) I,
    G_ij = exp(-|q_i - q_j|^2 / 2 l^2 - |m_i - m_j|^2 / 2 k^2),

separately for image-plane offsets and for depth. q is a point's place in the anchor frame, m its observed motion, both
as shares of the picture; S the covariance over the M control points. The weights, lengths and S are fitted to
residuals by maximum likelihood.

How far off a regressor is differs more from clip to clip than it can tell. A sampler of few steps may be given noise
with the tails that such a mixture of scales has: all of a hypothesis's noise times exp(tail z - tail^2), z normal, of
mean square 1. (Many small steps towards a Gaussian are derived for Gaussian noise; there the tail is 0.)

Shape letters:  B clips   K hypotheses   N points   M control points.  Groups: 0 image plane (x, y), 1 depth.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.evidence import Evidence

GROUP_OF_AXIS = (0, 0, 1)


@dataclasses.dataclass(frozen=True)
class PointNoise:
    """Covariance of the noise; `shared` is a, `local` b, `reach` l, `motion` k, `over_time` S, one a group.

    tail: log deviation of the scale from hypothesis to hypothesis.
    """

    shared: tuple[float, float]
    local: tuple[float, float]
    reach: tuple[float, float]
    motion: tuple[float, float]
    over_time: tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]
    tail: float = 0.0

    @classmethod
    def white(cls, num_ctrl: int) -> "PointNoise":
        """Independent unit noise on every number."""
        eye = tuple(tuple(float(i == j) for j in range(num_ctrl)) for i in range(num_ctrl))
        return cls((0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (eye, eye))

    @classmethod
    def from_config(cls, config: dict) -> "PointNoise":
        """Rebuild from the lists that JSON makes of tuples."""
        pair = {k: (config[k][0], config[k][1]) for k in ("shared", "local", "reach", "motion")}
        first, second = (tuple(tuple(row) for row in matrix) for matrix in config["over_time"])
        return cls(**pair, over_time=(first, second), tail=config.get("tail", 0.0))

    def scales(self, normal: Float[Tensor, "*K"]) -> Float[Tensor, "*K"]:
        """Scales of hypotheses from normal numbers; their mean square is 1."""
        return (self.tail * normal - self.tail**2).exp()

    def factors(self, evidence: Evidence) -> "Factors":
        """Cholesky factors for these clips."""
        like = evidence.ctrl
        over_time = torch.linalg.cholesky(torch.tensor(self.over_time, dtype=torch.float64))
        apart = squared_distances(evidence)
        weights = torch.tensor([self.shared, self.local, self.reach, self.motion]).to(like)
        points = torch.linalg.cholesky(correlation(weights, apart))
        return Factors(points, over_time.to(like))

    @classmethod
    def fit(
        cls, residual: Float[Tensor, "B N M 3"], evidence: Evidence, steps: int = 150
    ) -> "PointNoise":
        """Maximum likelihood on residuals of a batch of clips."""
        groups = (residual[..., :2], residual[..., 2:])
        M = residual.shape[-2]
        S = torch.stack([torch.einsum("bnma,bnka->mk", g, g) / (g.numel() / M) for g in groups])
        # A little of the identity keeps the factor well conditioned where neighbours in time agree almost exactly.
        S = S + 0.01 * S.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(M)
        inverse = torch.linalg.inv(torch.linalg.cholesky(S))
        white = [
            torch.einsum("km,bnma->bnka", inverse[i], g).flatten(2) for i, g in enumerate(groups)
        ]
        apart = squared_distances(evidence)
        logits = torch.zeros(3, 2, requires_grad=True)
        lengths = torch.tensor([[0.2, 0.2], [0.1, 0.1]]).log().requires_grad_()
        optimiser = torch.optim.Adam([logits, lengths], lr=0.05)
        for _ in range(steps):
            weights = torch.cat([logits.softmax(0)[:2], lengths.exp()])
            factor = torch.linalg.cholesky(correlation(weights, apart))
            loss = torch.zeros(())
            for i, y in enumerate(white):
                solved = torch.linalg.solve_triangular(factor[:, i], y, upper=False)
                half_logdet = factor[:, i].diagonal(dim1=-2, dim2=-1).log().sum(-1)
                loss = loss + (solved.square().sum((-2, -1)) / 2 + y.shape[-1] * half_logdet).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        pairs = torch.cat([logits.softmax(0)[:2], lengths.exp()]).detach().tolist()
        first, second = (tuple(tuple(row) for row in matrix) for matrix in S.tolist())
        return cls(*((p[0], p[1]) for p in pairs), over_time=(first, second))


@dataclasses.dataclass(frozen=True)
class Factors:
    """Cholesky factors of C [B, 2, N, N] and of S [2, M, M]."""

    points: Float[Tensor, "B 2 N N"]
    over_time: Float[Tensor, "2 M M"]

    def correlate(self, white: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """White noise to noise with this covariance."""
        groups = list(GROUP_OF_AXIS)
        mixed = torch.einsum("bain,bknma->bkima", self.points[:, groups], white)
        return torch.einsum("ajm,bkima->bkija", self.over_time[groups], mixed)

    def whiten(self, noise: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """The inverse of `correlate`."""
        groups = list(GROUP_OF_AXIS)
        points_B13NN = self.points[:, groups][:, None]
        rows = torch.linalg.solve_triangular(points_B13NN, noise.movedim(-1, 2), upper=False)
        over_time = self.over_time[groups]
        return torch.linalg.solve_triangular(over_time, rows.mT, upper=False).mT.movedim(2, -1)

    def energy(self, noise: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K"]:
        """½ εᵀ (C ⊗ S)⁻¹ ε: the point graph as a motion prior on what the noise is added to, in its coordinates.

        Under the noise itself it is 3 N M / 2 on average; neighbours that part cost more than those that move alike.
        """
        return self.whiten(noise).square().sum((-3, -2, -1)) / 2

    def covary(self, x: Float[Tensor, "B K N M 3"]) -> Float[Tensor, "B K N M 3"]:
        """Times the covariance C (x) S."""
        transposed = Factors(self.points.mT, self.over_time.mT)
        return self.correlate(transposed.correlate(x))


def squared_distances(evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Between points of a clip: of places in the anchor frame, of observed motions. Both [B, N, N]."""
    ctrl = evidence.in_view()
    place = ctrl[..., 0, :]
    motion = (ctrl - ctrl[..., :1, :]).flatten(-2)
    scale = ctrl.shape[-2]
    return (
        torch.cdist(place, place).square(),
        torch.cdist(motion, motion).square() / scale,
    )


def correlation(weights: Float[Tensor, "4 2"], apart: tuple[Tensor, Tensor]) -> Tensor:
    """C for both groups, [B, 2, N, N]. `weights`: rows shared, local, reach, motion."""
    shared, local, reach, motion = (row[:, None, None] for row in weights)
    place_sq, motion_sq = (d[:, None] for d in apart)
    near = torch.exp(-place_sq / (2 * reach**2) - motion_sq / (2 * motion**2))
    eye = torch.eye(place_sq.shape[-1], dtype=place_sq.dtype, device=place_sq.device)
    # The floor on the independent part keeps the factorisation positive when points coincide.
    return shared + local * near + (1 - shared - local).clamp_min(1e-3) * eye
