r"""Tracks from an encoder's tokens, and Lucas-Kanade that asks tokens where a lost point may be.

    "dino", "sinkhorn"   every frame's tokens are matched with those of frame 0 (`priors.matching`: soft attention with
                         the neighbours' votes, or optimal transport), then refined to the pixel (`priors.refinement`)
    "fused"              Lucas-Kanade; where a point is lost and its neighbours do not tell where it is, the place that
                         "dino" trusts is tried, and from there the point is followed again

Lucas-Kanade drifts and loses; matching with frame 0 does neither, but is coarse and may take one thing for another.
In "fused" a token match is therefore a guess only: the patch of frame 0 has to be found there (`lucas_kanade.follow`).
Frames are encoded at `SIDE` px, so that cost and memory do not depend on how large the clip is.

Shape letters:  T frames   N points.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor

from diffusion4d import lucas_kanade
from diffusion4d.clip import Clip
from diffusion4d.errors import UserError
from diffusion4d.queries import check_queries
from diffusion4d.tracking import Tracks, track_lk
from priors.dinov3 import Encoder, load_encoder
from priors.matches import Matches
from priors.matching import Matcher, match_to_anchor
from priors.refinement import refine

Tracker = Literal["lk", "dino", "sinkhorn", "fused"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)
SIDE = 256
"""Shorter side, px, that frames are brought to before they are encoded."""

SEEN = 0.35
"""A token match below this visibility counts as hidden."""

TRUSTED = 0.25
"""A token match below this visibility is no guess for a lost point; Lucas-Kanade checks every guess."""


def track(
    clip: Clip, queries: Float32[Tensor, "N 2"], tracker: Tracker = "lk", encoder: str = "tiny"
) -> Tracks:
    """Follow points of frame 0 through a clip.

    Args:
        queries: px in frame 0, pixel centres at + 0.5.
        encoder: whose tokens are matched: a packaged one, a folder or a model id. "lk" needs none.

    Raises:
        UserError: an unknown tracker, an encoder that cannot be loaded, points that cannot be followed; "lk" and
            "fused": no texture in the first frame.
    """
    if tracker not in TRACKERS:
        raise UserError(f"need a tracker out of {', '.join(TRACKERS)}, got {tracker!r}")
    if tracker == "lk":
        return track_lk(clip, queries)
    check_queries(queries, clip.size)
    if tracker == "fused":
        lucas_kanade.require_texture(lucas_kanade.grey(clip.frames[0]))
    matcher = Matcher("sinkhorn" if tracker == "sinkhorn" else "hough")
    matches = match_clip(clip, queries, matcher, _encoder(encoder))
    if tracker != "fused":
        return _held(matches, clip.size)
    tracks_TN2, seen_TN = lucas_kanade.follow(
        clip.frames,
        queries.cpu().numpy(),
        elsewhere=(matches.tracks.numpy(), matches.visibility.numpy() >= TRUSTED),
    )
    return Tracks(torch.from_numpy(tracks_TN2), torch.from_numpy(seen_TN), None, clip.size)


@torch.no_grad()
def match_clip(
    clip: Clip, queries: Float32[Tensor, "N 2"], matcher: Matcher, encoder: Encoder
) -> Matches:
    """Matches of frame 0's points with every frame, refined, in px of the clip."""
    grid = encoder.at_size((SIDE, SIDE)).encode(clip.frames, clip.u.float())
    return refine(clip.frames, match_to_anchor(grid.to("cpu"), queries.cpu().float(), matcher))


def _encoder(name: str) -> Encoder:
    try:
        return load_encoder(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def _held(matches: Matches, size: tuple[int, int]) -> Tracks:
    """As tracks are kept: a hidden point has visibility 0 and the position it was last seen at."""
    seen_TN = matches.visibility >= SEEN
    seen_TN[0] = True
    visibility_TN = torch.where(seen_TN, matches.visibility, 0.0)
    # The query point is where it is, however like others it looks.
    visibility_TN[0] = 1
    frame_TN = torch.arange(len(seen_TN))[:, None].expand_as(seen_TN)
    last_TN = torch.where(seen_TN, frame_TN, 0).cummax(0).values
    tracks_TN2 = matches.tracks.gather(0, last_TN[..., None].expand_as(matches.tracks))
    return Tracks(tracks_TN2.contiguous(), visibility_TN, None, size)
