r"""What a tracker would report of a generated world.

True projections are turned into the tracks real trackers give: jitter, slow drift, points lost for good behind an
occluder or out of nowhere, points that cling to an occluder for a few frames, points that slide while they
claim to be seen. Scales are in pixels of an image whose shorter side is 256, as in METRICS of point tracking.

Shape letters:  B clips   N points   T frames.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def observe_through_tracker(
    pixels: Float[Tensor, "B N T 2"],
    visible: Bool[Tensor, "B N T"],
    size: Float[Tensor, "B 2"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B N T 2"], Float[Tensor, "B N T"]]:
    """Noisy tracks in px and soft visibility in [0, 1]; where visibility is 0 the last position is held.

    A track starts in the anchor frame, exactly where it was asked for: there is no error yet, and nothing drags it.
    """
    B, N, T, _ = pixels.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def log_uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.exp(uniform(*shape) * math.log(high / low) + math.log(low))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    unit = (size.amin(-1) / 256)[:, None, None, None]
    jitter = normal(B, N, T, 2) * log_uniform(0.05, 0.8, B, 1, 1, 1)
    jitter[:, :, 0] = 0
    drift = (normal(B, N, T, 2) * log_uniform(0.01, 0.25, B, 1, 1, 1)).cumsum(2)
    drift = drift - drift[:, :, :1]

    # Clinging: the tracker reports a point for up to three frames after it was hidden.
    cling = (uniform(B, N, 1) * 4).long()
    hidden_for = frames_since(visible)
    seen = visible | ((hidden_for <= cling) & (hidden_for < T))

    # A frame-to-frame tracker never finds a lost point again; a better one does.
    frame_to_frame = uniform(B, 1, 1) < 0.6
    seen = torch.where(frame_to_frame, seen.cummin(-1).values, seen)
    hazard = log_uniform(1e-3, 4e-2, B, 1, 1)
    fails = uniform(B, N, T) < hazard
    fails[:, :, 0] = False
    lost = torch.where(frame_to_frame, fails.cummax(-1).values, fails)
    seen = seen & ~lost

    # Sliding: some points leave their surface at some moment and go on being reported.
    slides = uniform(B, N, 1) < 0.06 * uniform(B, 1, 1)
    onset = uniform(B, N, 1) * T
    elapsed = (torch.arange(T) - onset).clamp_min(0)
    velocity = normal(B, N, 1, 2) * 1.5
    slide = torch.where(slides, elapsed, 0.0)[..., None] * velocity

    # What is reported of a hidden point is where it was last seen, dragged along by what hides it.
    dragged = hidden_for.clamp_max(4)[..., None] * normal(B, N, 1, 2)
    dragged[:, :, 0] = 0
    reported = torch.where(
        visible[..., None], pixels, hold_last_seen(pixels, visible) + unit * dragged
    )
    tracks = reported + unit * (jitter + drift + slide)
    confidence = 1 - 0.5 * uniform(B, N, T) * uniform(B, N, 1)
    visibility = seen * confidence
    return hold_last_seen(tracks, seen), visibility


def frames_since(visible: Bool[Tensor, "B N T"]) -> Tensor:
    """Frames since a point was last visible, 0 where it is; T where it never was."""
    T = visible.shape[-1]
    index = torch.arange(T)
    last = torch.where(visible, index, -T).cummax(-1).values
    return (index - last).clamp_max(T)


def hold_last_seen(
    tracks: Float[Tensor, "B N T 2"], seen: Bool[Tensor, "B N T"]
) -> Float[Tensor, "B N T 2"]:
    """Replace positions that were not seen by the last that was, or by the first position of all."""
    index = torch.where(seen, torch.arange(seen.shape[-1]), 0).cummax(-1).values
    return tracks.gather(2, index[..., None].expand_as(tracks))
