"""Trackers by name: tokens on a texture that moves as known, and Lucas-Kanade that asks for lost points elsewhere."""

import numpy as np
import pytest
import torch
from videos import centres, waves

from diffusion4d import lucas_kanade
from diffusion4d.clip import Clip, read_clip
from diffusion4d.errors import UserError
from diffusion4d.token_tracks import track

H, W = 160, 192


def picture(seed: int, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
    """RGB [H, W, 3]: coloured spots of 12 px and more under a finer grey texture, moved by (dx, dy) px."""
    x, y = centres(H, W)
    fine = waves(seed + 9)(x - dx, y - dy)
    spots = [waves(seed + c)((x - dx) / 2, (y - dy) / 2) for c in range(3)]
    return np.rint(np.stack([0.7 * s + 0.3 * fine for s in spots], -1)).astype(np.uint8)


def clip_of(pictures: list[np.ndarray]) -> Clip:
    return read_clip(np.stack(pictures), max_frames=None)


def shifting(shifts: list[tuple[float, float]]) -> Clip:
    return clip_of([picture(5, *shift) for shift in shifts])


def blank(level: int) -> np.ndarray:
    return np.full((H, W, 3), level, np.uint8)


def grid(margin: float, count: int = 5) -> torch.Tensor:
    x, y = np.meshgrid(
        np.linspace(margin, W - margin, count), np.linspace(margin, H - margin, count)
    )
    return torch.tensor(np.stack([x, y], -1).reshape(-1, 2), dtype=torch.float32)


JUMP = [(0.0, 0.0), (1.0, 0.5), (34.0, -21.0), (35.0, -22.5)]


@pytest.mark.parametrize("tracker", ["dino", "sinkhorn"])
def test_tokens_follow_a_jump_to_a_pixel(tracker: str) -> None:
    queries = grid(50)
    tracks = track(shifting(JUMP), queries, "dino" if tracker == "dino" else "sinkhorn")
    error = (tracks.tracks - queries - torch.tensor(JUMP)[:, None]).norm(dim=-1)
    seen = tracks.visibility > 0
    assert torch.equal(tracks.tracks[0], queries)
    assert torch.equal(tracks.visibility[0], torch.ones(25))
    assert seen[2:].float().mean() > 0.8
    assert error[2:][seen[2:]].median() < 0.5


def test_fused_goes_on_where_lucas_kanade_ends() -> None:
    """A jump loses every point and every neighbour; tokens tell where it went."""
    clip, queries = shifting(JUMP), grid(50)
    alone, fused = track(clip, queries, "lk"), track(clip, queries, "fused")
    error = (fused.tracks - queries - torch.tensor(JUMP)[:, None]).norm(dim=-1)
    assert (alone.visibility[3] > 0).float().mean() < 0.2
    seen = fused.visibility[3] > 0
    assert seen.float().mean() > 0.6
    assert error[3][seen].max() < 0.5


def test_fused_is_lucas_kanade_where_that_loses_nothing() -> None:
    clip, queries = shifting([(0.7 * t, -0.4 * t) for t in range(5)]), grid(40)
    alone, fused = track(clip, queries, "lk"), track(clip, queries, "fused")
    assert (alone.visibility > 0).all()
    assert torch.equal(alone.tracks, fused.tracks)
    assert torch.equal(alone.visibility, fused.visibility)


def test_a_wrong_place_is_not_believed() -> None:
    """Frames 2 and 3 show something else: whatever place is offered, the patch is not there."""
    clip = clip_of([picture(seed) for seed in (5, 5, 40, 40)])
    points = grid(40).numpy()
    rng = np.random.default_rng(0)
    places = rng.uniform((20, 20), (W - 20, H - 20), (4, 25, 2)).astype(np.float32)
    worth = np.ones((4, 25), bool)
    _, seen = lucas_kanade.follow(clip.frames, points, elsewhere=(places, worth))
    assert (seen[2:] > 0).mean() < 0.05


def test_the_way_back_from_a_guess_knows_nothing_of_its_end() -> None:
    """Wrong guesses do not come home; right ones do. Started at its end, the way back came home from five in 100."""
    shift = np.float32([3, -2])
    here, there = (
        lucas_kanade.grey(torch.from_numpy(p).permute(2, 0, 1))
        for p in (picture(5), picture(5, *shift))
    )
    rng = np.random.default_rng(0)
    points, wrong = rng.uniform((20, 20), (W - 20, H - 20), (2, 400, 2)).astype(np.float32)
    found, off = lucas_kanade._there_and_back(here, there, points, wrong)
    away = np.linalg.norm(found - points - shift, axis=1) > 20
    assert away.sum() > 300
    assert (off[away] < 0.5).mean() < 0.02
    near = points + shift + rng.uniform(-3, 3, (400, 2)).astype(np.float32)
    found, off = lucas_kanade._there_and_back(here, there, points, near)
    assert (off < 0.1).mean() > 0.99
    assert np.median(np.linalg.norm(found - points - shift, axis=1)) < 0.01


def test_a_right_place_is_tried_only_where_it_is_worth_it() -> None:
    clip, points = shifting(JUMP), grid(50)
    places = (points + torch.tensor(JUMP)[:, None] + 4.0).numpy()
    worth = np.zeros((4, 25), bool)
    worth[:, ::2] = True
    tracks, seen = lucas_kanade.follow(
        clip.frames, points.numpy(), find_again=False, elsewhere=(places, worth)
    )
    assert (seen[3, ::2] > 0).mean() > 0.9
    assert (seen[3, 1::2] > 0).mean() < 0.2
    off = np.linalg.norm(tracks[3] - points.numpy() - np.array(JUMP[3]), axis=1)
    assert off[seen[3] > 0].max() < 0.3


def test_nothing_is_seen_in_a_frame_without_features() -> None:
    clip, queries = clip_of([picture(5), blank(120), blank(120)]), grid(40)
    for tracker in ("dino", "sinkhorn", "fused"):
        tracks = track(clip, queries, tracker)
        assert (tracks.visibility[1:] == 0).all(), tracker
        # A hidden point stays where it was seen last.
        assert torch.equal(tracks.tracks[2], queries)


def test_what_cannot_be_tracked_is_refused() -> None:
    clip = shifting(JUMP[:2])
    with pytest.raises(UserError, match="unknown encoder"):
        track(clip, grid(40), "dino", "no-such-encoder")
    with pytest.raises(UserError, match="need query points within"):
        track(clip, grid(40) + 500, "sinkhorn")
    with pytest.raises(UserError, match="need texture"):
        track(clip_of([blank(9)] * 2), grid(40), "fused")
