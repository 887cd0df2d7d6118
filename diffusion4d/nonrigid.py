r"""Errors of non-rigid structure from motion.

Truth S and answer Ŝ are [T, N, 3], both centred in every frame. ONE orthogonal Y serves the whole sequence,

    A = argmin Σ_tn ‖S_tn − A Ŝ_tn‖²,   A = U Σ Vᵀ,   Y = U Vᵀ,
    e_3D = 1 / (σ T N) Σ_tn ‖S_tn − Y Ŝ_tn‖,

σ the mean over the 3T rows of coordinates of each row's population standard deviation (Akhter et al. 2008; Gotardo and
Martinez 2011). det Y is not forced, so one reflection of the whole sequence is forgiven; no scale is. Later papers give

    e_F = mean_t ‖S_t − R_t Ŝ_t‖_F / ‖S_t‖_F

with a rotation R_t for every frame (Procrustes; the reflection, if any, is still one for the whole sequence). The two
are different numbers. Perspective answers have a free scale in every frame s_t instead:

    e_scale = mean_t √(mean_n ‖S_tn − s_t Ŝ_tn‖²),   s_t = ⟨S_t, Ŝ_t⟩ / ⟨Ŝ_t, Ŝ_t⟩,

in the unit of the truth, nothing centred: both stand where the camera sees them.

Shape letters:  T frames   N points   K samples.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def centred(points: Float[Tensor, "*batch T N 3"]) -> Float[Tensor, "*batch T N 3"]:
    """Every frame's points about their mean."""
    return points - points.mean(-2, keepdim=True)


def spread_unit(truth: Float[Tensor, "T N 3"]) -> float:
    """σ of e_3D: the mean standard deviation of a row of coordinates, in the unit of `truth`."""
    return truth.double().std(1, correction=0).mean().item()


def aligned(
    answer: Float[Tensor, "T N 3"], truth: Float[Tensor, "T N 3"]
) -> Float[Tensor, "T N 3"]:
    """Y Ŝ: the centred answer under the one orthogonal matrix of e_3D, float64."""
    S, S_hat = centred(truth.double()), centred(answer.double())
    # A flat answer spans a plane only, and there the pseudo-inverse is what "least squares" means.
    A = S.flatten(0, 1).mT @ torch.linalg.pinv(S_hat.flatten(0, 1).mT)
    U, _, Vh = torch.linalg.svd(A)
    return S_hat @ (U @ Vh).mT


def e_3d(answer: Float[Tensor, "T N 3"], truth: Float[Tensor, "T N 3"]) -> float:
    """Mean distance over σ after one orthogonal alignment of the whole sequence."""
    distance = (centred(truth.double()) - aligned(answer, truth)).norm(dim=-1)
    return distance.mean().item() / spread_unit(truth)


def e_f(answer: Float[Tensor, "T N 3"], truth: Float[Tensor, "T N 3"]) -> float:
    """Mean relative Frobenius error after a rotation of every frame; of both reflections the better one."""
    S, S_hat = centred(truth.double()), centred(answer.double())
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    errors = []
    for candidate in (S_hat, S_hat * mirror):
        U, _, Vh = torch.linalg.svd(S.mT @ candidate)
        # The determinant goes to the weakest direction (Kabsch 1976), so that R is a rotation.
        sign = torch.ones_like(U[..., 0])
        sign[:, 2] = torch.linalg.det(U @ Vh).sign()
        turned = candidate @ (U * sign[:, None] @ Vh).mT
        errors.append(((S - turned).norm(dim=(1, 2)) / S.norm(dim=(1, 2))).mean().item())
    return min(errors)


def e_scale(answer: Float[Tensor, "T N 3"], truth: Float[Tensor, "T N 3"]) -> float:
    """Root mean square distance a frame after the best scale of that frame, averaged; in the unit of the truth."""
    S, S_hat = truth.double(), answer.double()
    scale = (S * S_hat).sum((1, 2)) / S_hat.square().sum((1, 2))
    off = S - scale[:, None, None] * S_hat
    return off.square().sum(-1).mean(-1).sqrt().mean().item()


def upright(samples: Float[Tensor, "K T N 3"]) -> Float[Tensor, "K T N 3"]:
    r"""Samples, each reversed in depth as a whole (z to −z) or not, so that their mean is the best answer.

    Orthographic tracks cannot tell a shape from its reversal and e_3D forgives it, but a mean over samples that mixes
    the two is flat. The answer with the least mean squared error where a reversal is forgiven,

        min_a Σ_k min_{s = ±1} ‖s z_k − a‖²,

    is found as k-means finds its centre: a is the mean of s_k z_k, s_k the sign of ⟨z_k, a⟩. It starts from the samples
    as they are and from the signs of their Gram matrix's first eigenvector; the lower of both minima counts.
    """
    depth_KD = centred(samples)[..., 2].flatten(1).double()
    gram_KK = depth_KD @ depth_KD.mT
    starts = (torch.ones_like(gram_KK[0]), _signs(torch.linalg.eigh(gram_KK)[1][:, -1]))
    # The sum of squares about the centre falls as ‖Σ s_k z_k‖² = sᵀ G s rises.
    best = max(
        (_settled(gram_KK, start) for start in starts), key=lambda s: (s @ gram_KK @ s).item()
    )
    # Of an answer and its reversal, the one that reverses fewer samples.
    best = best * (1.0 if best.sum() >= 0 else -1.0)
    turn = torch.stack([torch.ones_like(best), torch.ones_like(best), best], -1)
    return samples * turn.to(samples)[:, None, None]


def _signs(x: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
    return torch.where(x < 0, -1.0, 1.0).to(x)


def _settled(gram: Float[Tensor, "K K"], signs: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
    """Signs that agree with the mean they make. The sum of squares never rises, so this ends."""
    for _ in range(100):
        turned = _signs(gram @ signs)
        if torch.equal(turned, signs):
            break
        signs = turned
    return signs
