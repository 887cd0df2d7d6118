r"""Answers that any sampler has to beat.

The *flat lift* puts the evidence at depth 1. A *dressed* answer is a deterministic one with noise on top,

    x^k_{n,t} = x_{n,t} (1 + a eps^k_n) (1 + b eps^k) + c (eps^k_{n,x}, eps^k_{n,y}, 0),

a factor along the ray for every point, one for the whole scene, and a lateral offset for every point, each constant
in time; the scales a, b, c are fitted to minimise the energy score on clips that are not evaluated. Noise alone
takes a regressor most of the way to a calibrated Gaussian, so this is the baseline that counts.

Shape letters:  K samples   N points   M control points   T frames.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d import metrics
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
        generator = torch.Generator().manual_seed(seed)
        K, N = num_samples, len(answer)
        ray = torch.randn((K, N, 1, 1), generator=generator)
        scene = torch.randn((K, 1, 1, 1), generator=generator)
        lateral = torch.randn((K, N, 1, 2), generator=generator)
        offset = torch.nn.functional.pad(self.lateral * lateral, (0, 1))
        return answer * (1 + self.ray * ray) * (1 + self.scene * scene) + offset


Case = tuple[Float[Tensor, "N T 3"], Float[Tensor, "N T 3"], Bool[Tensor, "N T"]]


def fit_dressing(cases: Sequence[Case], num_samples: int = 8) -> Dressing:
    """Scales with the least mean energy score over cases of (answer, truth, mask).

    The noise is the same at every trial, so the score is a smooth function of the scales.
    """

    def score(log_scales: np.ndarray) -> float:
        dressing = Dressing(*np.exp(log_scales).tolist())
        scores = [
            metrics.energy_score(dressing.samples(answer, num_samples, seed), truth, mask)
            for seed, (answer, truth, mask) in enumerate(cases)
        ]
        return float(torch.stack(scores).mean())

    start = np.log([0.1, 0.05, 0.02])
    best = scipy.optimize.minimize(
        score, start, method="Nelder-Mead", options={"xatol": 0.03, "fatol": 1e-5, "maxiter": 120}
    )
    return Dressing(*np.exp(best.x).tolist())
