r"""Long clips in overlapping windows: sampled apart, chained into coherent samples of the whole.

Window w covers frames a_w … b_w and has K_w hypotheses x^k_w. Neighbours saw the frames of their overlap O both, so a
hypothesis of one goes with those of the next that say the same there,

    d_w(k, l) = √( mean over O and points of ‖x^k_w − x^l_{w+1} − o‖² ),
    p(k_0 … k_{W−1}) ∝ Π_w exp(−d_w(k_w, k_{w+1}) / τ),

where o is what neighbours cannot know of each other (the log scale of a monocular clip: one offset a window; or
nothing). The likeliest chain is found by Viterbi's recursion, chains are drawn exactly by filtering backward and
sampling forward:

    β_w(k) = Σ_l exp(−d_w(k, l) / τ) β_{w+1}(l),    k_0 ~ β_0,   k_{w+1} ~ exp(−d_w(k_w, ·) / τ) β_{w+1}.

A chain is one sample of the long clip: where windows overlap one fades linearly into the next. A denoiser sees one
window at a time, so its memory does not grow with the clip. Everything here is a pure function of tensors.

Positions may be in any coordinates in which `o` adds: metric points (freedom "none"), or (X/Z, Y/Z, log Z), where the
scale of a window is an offset of the last ("offset").

Shape letters:  W windows   K, L hypotheses   N points   T frames   O frames of an overlap   D coordinates.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Freedom = Literal["none", "offset"]


def cut(num_frames: int, length: int, overlap: int) -> list[range]:
    """As few windows of `length` frames as overlap by at least `overlap`, evenly spread over the clip.

    A clip that is no longer than one window is one window.

    Raises:
        ValueError: no frame, or an overlap that is not within 1 … length − 1.
    """
    if num_frames < 1:
        raise ValueError(f"need at least 1 frame, got {num_frames}")
    if not 1 <= overlap < length:
        raise ValueError(f"need 1 <= overlap < length, got overlap={overlap}, length={length}")
    if num_frames <= length:
        return [range(num_frames)]
    last = num_frames - length
    count = math.ceil(last / (length - overlap))
    # Floors of even steps are at most ceil(last / count) <= length - overlap apart.
    return [range(i * last // count, i * last // count + length) for i in range(count + 1)]


def disagreement(
    left: Float[Tensor, "K N O D"],
    right: Float[Tensor, "L N O D"],
    freedom: Freedom = "none",
    weight: Float[Tensor, "N O"] | None = None,
) -> Float[Tensor, "K L"]:
    """d(k, l): root mean square distance of two windows' hypotheses over the frames they share.

    Args:
        freedom: "offset" compares up to one constant offset for every pair.
        weight: how much each point counts in each frame, such as its visibility; all alike by default.

    Raises:
        ValueError: nothing has weight.
    """
    share = _shares(left, weight)
    if freedom == "offset":
        # The best offset is the difference of means, so centring both sides finds it for all pairs at once.
        left, right = (x - _mean(x, share)[:, None, None] for x in (left, right))
    root = share.sqrt()
    return torch.cdist((left * root).flatten(1), (right * root).flatten(1))


def likeliest(seams: Sequence[Float[Tensor, "_ _"]], num_hypotheses: int) -> Int64[Tensor, "W"]:
    """The chain k_0 … k_{W−1} with the least sum of disagreements (Viterbi 1967).

    Args:
        seams: d_0 … d_{W−2}. num_hypotheses: K_0, which is all there is to choose from without seams.
    """
    cost = torch.zeros(num_hypotheses, dtype=torch.float64)
    origins: list[Tensor] = []
    for seam in seams:
        best = (cost[:, None] + seam.double().cpu()).min(0)
        cost = best.values
        origins.append(best.indices)
    chain = [cost.argmin()]
    for origin in reversed(origins):
        chain.append(origin[chain[-1]])
    return torch.stack(chain[::-1])


def usual_temperature(seams: Sequence[Float[Tensor, "_ _"]]) -> float:
    """τ: the disagreement that is usual between a hypothesis and the one next door that suits it best (median)."""
    if not seams:
        return 1.0
    nearest = torch.cat([seam.min(1).values for seam in seams])
    return max(nearest.median().item(), 1e-9)


def draw(
    seams: Sequence[Float[Tensor, "_ _"]],
    num_hypotheses: int,
    num_chains: int,
    generator: torch.Generator,
    temperature: float | None = None,
) -> Int64[Tensor, "chains W"]:
    """Chains drawn from p(k_0 … k_{W−1}), independent of each other.

    Chains are stratified at the first window: without seams, as many chains as hypotheses are each of them once.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    tau = usual_temperature(seams) if temperature is None else temperature
    if not tau > 0:
        raise ValueError(f"need a temperature above 0, got {tau}")
    log_kernel = [-seam.double().cpu() / tau for seam in seams]
    log_beta = [torch.zeros(log_kernel[-1].shape[1] if seams else num_hypotheses).double()]
    for log_k in reversed(log_kernel):
        log_beta.append(torch.logsumexp(log_k + log_beta[-1], 1))
    log_beta.reverse()
    # Evenly spaced quantiles with one random shift: no hypothesis is drawn more often than its share, rounded up.
    shift = torch.rand(1, generator=generator, dtype=torch.float64)
    quantiles = (torch.arange(num_chains) + shift) / num_chains
    cumulative = log_beta[0].softmax(0).cumsum(0)
    first = torch.searchsorted(cumulative, quantiles).clamp_max(len(cumulative) - 1)
    chains = [first]
    for log_k, beta in zip(log_kernel, log_beta[1:], strict=True):
        odds = (log_k[chains[-1]] + beta).softmax(-1)
        chains.append(torch.multinomial(odds, 1, generator=generator).squeeze(-1))
    return torch.stack(chains, -1)


def blend(
    parts: Sequence[Float[Tensor, "K N _ D"]],
    windows: Sequence[range],
    freedom: Freedom = "none",
    weight: Float[Tensor, "N T"] | None = None,
) -> Float[Tensor, "K N T D"]:
    """One long track set from a window's part each: linear fades over the overlaps.

    With freedom "offset" every part is first moved by the offset that makes it agree with what is before it.

    Raises:
        ValueError: parts and windows do not fit, windows leave a gap, or share no frame.
    """
    if len(parts) != len(windows) or any(
        part.shape[2] != len(window) for part, window in zip(parts, windows, strict=False)
    ):
        lengths, wanted = [part.shape[2] for part in parts], [len(window) for window in windows]
        raise ValueError(f"need parts of {wanted} frames, got {lengths}")
    for before, after in itertools.pairwise(windows):
        if not before.start < after.start < before.stop < after.stop:
            raise ValueError(f"need windows that overlap and go on, got {before} and {after}")
    whole = parts[0]
    begin = windows[0].start
    for part, window in zip(parts[1:], windows[1:], strict=True):
        kept, shared = window.start - begin, begin + whole.shape[2] - window.start
        old, new = whole[:, :, kept:], part[:, :, :shared]
        if freedom == "offset":
            seen = None if weight is None else weight[:, window.start : window.start + shared]
            share = _shares(old, seen)
            offset = (_mean(old, share) - _mean(new, share))[:, None, None]
            part, new = part + offset, new + offset
        fade = torch.arange(1, shared + 1, dtype=whole.dtype, device=whole.device) / (shared + 1)
        mixed = torch.lerp(old, new, fade[:, None])
        whole = torch.cat([whole[:, :, :kept], mixed, part[:, :, shared:]], 2)
    return whole


def chain(
    parts: Sequence[Float[Tensor, "_ N _ D"]],
    windows: Sequence[range],
    chains: Int64[Tensor, "chains W"],
    freedom: Freedom = "none",
    weight: Float[Tensor, "N T"] | None = None,
) -> Float[Tensor, "chains N T D"]:
    """The long samples that chains of hypotheses make."""
    chosen = [part[chains[:, w].to(part.device)] for w, part in enumerate(parts)]
    return blend(chosen, windows, freedom, weight)


def seams_between(
    parts: Sequence[Float[Tensor, "_ N _ D"]],
    windows: Sequence[range],
    freedom: Freedom = "none",
    weight: Float[Tensor, "N T"] | None = None,
) -> list[Float[Tensor, "_ _"]]:
    """d_0 … d_{W−2} of neighbouring windows, each [K_w, K_{w+1}]."""
    seams = []
    for (left, a), (right, b) in itertools.pairwise(zip(parts, windows, strict=True)):
        shared = a.stop - b.start
        seen = None if weight is None else weight[:, b.start : a.stop]
        seams.append(disagreement(left[:, :, -shared:], right[:, :, :shared], freedom, seen))
    return seams


def _shares(
    like: Float[Tensor, "K N O D"], weight: Float[Tensor, "N O"] | None
) -> Float[Tensor, "N O 1"]:
    """Weights that add up to 1 over points and frames."""
    weight = like.new_ones(like.shape[1:3]) if weight is None else weight.to(like)
    if not bool(weight.sum() > 0):
        raise ValueError("need an overlap in which something has weight, got weight 0 throughout")
    return (weight / weight.sum())[..., None]


def _mean(x: Float[Tensor, "K N O D"], share: Float[Tensor, "N O 1"]) -> Float[Tensor, "K D"]:
    return (x * share).sum((1, 2))
