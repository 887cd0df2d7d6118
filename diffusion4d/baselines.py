r"""Answers that any sampler has to beat.

The *flat lift* puts the evidence at depth 1. A *dressed* answer is a deterministic one with noise on top,

    x^k_{n,t} = x_{n,t} f^k_n + c (eps^k_{n,x}, eps^k_{n,y}, 0),    f^k_n = exp(a eps^k_n + b eps^k),

a factor along the ray for every point, one for the whole scene, and a lateral offset for every point, each constant
in time. The factors are log-normal, so that no depth turns negative. The scales a, b, c are fitted to minimise
ES_joint + ES_point on clips that are not scored: the joint score alone sees the total spread, and hardly how it is
divided between the scales. Noise alone takes a regressor most of the way to a calibrated Gaussian, so this is the
baseline that counts.

Snapping a dressed answer to its tracks once more would gain nothing: the snap does not see a constant offset, so it
takes it out again, and it leaves factors along the ray as they are. It is the case c = 0, which the fit may choose.

Everything being constant in time, the distances in both scores are quadratic in (f, c) with coefficients that are sums
over frames (`Moments`), so a fit costs the same however long the clips are.

Shape letters:  C clips   K samples   N points   M control points   T frames   P pairs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from diffusion4d.evidence import Evidence


def flat_lift(evidence: Evidence) -> Float[Tensor, "B N M 3"]:
    """Control points of the evidence at depth 1."""
    return torch.cat([evidence.ctrl, torch.ones_like(evidence.ctrl[..., :1])], -1)


@dataclasses.dataclass(frozen=True)
class Dressing:
    """Scales of the noise: along the ray a point, of the whole scene, lateral a point (scene units)."""

    ray: float
    scene: float
    lateral: float

    def samples(
        self, answer: Float[Tensor, "N T 3"], num_samples: int, seed: int
    ) -> Float[Tensor, "K N T 3"]:
        """The answer with noise on top; a function of the seed."""
        ray, scene, lateral = deviates(num_samples, len(answer), seed)
        factor = torch.exp(self.ray * ray + self.scene * scene[:, None])
        offset = torch.nn.functional.pad(self.lateral * lateral, (0, 1))
        return answer * factor[..., None, None].to(answer) + offset[:, :, None].to(answer)


def deviates(
    num_samples: int, num_points: int, seed: int
) -> tuple[Float[Tensor, "K N"], Float[Tensor, "K"], Float[Tensor, "K N 2"]]:
    """Standard normal numbers of a dressing: of every point, of the scene, lateral of every point."""
    generator = torch.Generator().manual_seed(seed)
    K, N = num_samples, num_points
    return (
        torch.randn((K, N), generator=generator),
        torch.randn(K, generator=generator),
        torch.randn((K, N, 2), generator=generator),
    )


Case = tuple[Float[Tensor, "_ _ 3"], Float[Tensor, "_ _ 3"], Bool[Tensor, "_ _"]]
"""A deterministic answer [N, T, 3], the truth, and where both count [N, T]; each clip has an N and T of its own."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over the chosen frames of x.x, x_xy, x.y, y_xy, y.y and 1, x being the answer and y the truth.

    Clips of fewer points are filled up with points of no frames.
    """

    xx: Float64[np.ndarray, "C N"]
    x: Float64[np.ndarray, "C N 2"]
    xy: Float64[np.ndarray, "C N"]
    y: Float64[np.ndarray, "C N 2"]
    yy: Float64[np.ndarray, "C N"]
    frames: Float64[np.ndarray, "C N"]

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Moments":
        """The sums of these clips."""
        most = max(len(answer) for answer, _, _ in cases)
        columns = []
        for case in cases:
            answer, truth, mask = (value.double().numpy() for value in case)
            chosen = mask[..., None]
            sums = (
                (chosen * answer**2).sum((1, 2)),
                (chosen * answer).sum(1)[:, :2],
                (chosen * answer * truth).sum((1, 2)),
                (chosen * truth).sum(1)[:, :2],
                (chosen * truth**2).sum((1, 2)),
                mask.sum(1),
            )
            missing = most - len(answer)
            columns.append([np.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for v in sums])
        return cls(*(np.stack(column) for column in zip(*columns, strict=True)))

    def noise(self, num_samples: int) -> "Noise":
        """Deviates of every clip; clip i draws from seed i."""
        C, N = self.xx.shape
        drawn = [deviates(num_samples, N, seed) for seed in range(C)]
        return Noise(*(torch.stack(part).double().numpy() for part in zip(*drawn, strict=True)))

    def scores(self, dressing: Dressing, noise: "Noise") -> tuple[float, float]:
        """(ES_joint, ES_point) of the dressed answers, means over the clips."""
        f = np.exp(dressing.ray * noise.ray + dressing.scene * noise.scene[..., None])
        o = dressing.lateral * noise.lateral
        xx, xy, yy, frames = (v[:, None] for v in (self.xx, self.xy, self.yy, self.frames))
        x, y = self.x[:, None], self.y[:, None]
        error = f * f * xx + 2 * f * ((o * x).sum(-1) - xy) + yy
        error += frames * (o * o).sum(-1) - 2 * (o * y).sum(-1)
        # Each sample and the next one, in a ring: as unbiased as all pairs, and for the same work many more samples.
        f, o = f - np.roll(f, 1, 1), o - np.roll(o, 1, 1)
        apart = f * f * xx + 2 * f * (o * x).sum(-1) + frames * (o * o).sum(-1)
        joint, point = 0.0, 0.0
        for squares, sign in ((error, 1.0), (apart, -0.5)):
            # Differences of large sums: what should be 0 may come out a little below.
            squares = squares.clip(0)
            joint += sign * np.sqrt(squares.sum(-1) / frames.sum(-1)).mean()
            each = np.sqrt(squares / frames.clip(1)).sum(-1) / (frames > 0).sum(-1)
            point += sign * each.mean()
        return float(joint), float(point)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Deviates of several clips: of every point, of the scene, lateral of every point."""

    ray: Float64[np.ndarray, "C K N"]
    scene: Float64[np.ndarray, "C K"]
    lateral: Float64[np.ndarray, "C K N 2"]


def fit_dressing(cases: Sequence[Case], num_samples: int = 32) -> Dressing:
    """Scales with the least mean of ES_joint + ES_point over the cases.

    The noise is the same at every trial, so the score is a smooth function of the scales.
    """
    import scipy.optimize

    moments = Moments.of(cases)
    noise = moments.noise(num_samples)

    def score(log_scales: np.ndarray) -> float:
        return sum(moments.scores(Dressing(*np.exp(log_scales).tolist()), noise))

    start = np.log([0.1, 0.05, 0.02])
    best = scipy.optimize.minimize(
        score, start, method="Nelder-Mead", options={"xatol": 0.02, "fatol": 1e-6, "maxiter": 200}
    )
    return Dressing(*np.exp(best.x).tolist())
