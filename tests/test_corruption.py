"""A tracker's view of exact projections: what is held, what never comes back, and how large the errors are."""

import pytest
import torch
from torch import Tensor

from diffusion4d.scenes.corruption import frames_since, hold_last_seen, observe_through_tracker

B, N, T = 64, 40, 16
SIZE = torch.tensor([[256.0, 320.0]])


def observed(visible: Tensor, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """True pixels, tracks, visibility."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(B, N, 1, 2, generator=generator) * 200
    pixels = scale * (start + torch.arange(T)[:, None] * torch.tensor([1.0, 0.5]))
    size = (scale * SIZE).expand(B, 2)
    tracks, visibility = observe_through_tracker(
        pixels, visible, size, torch.Generator().manual_seed(seed + 1)
    )
    return pixels, tracks, visibility


ALWAYS = torch.ones(B, N, T, dtype=torch.bool)


@pytest.fixture
def hidden_for_a_while() -> Tensor:
    visible = ALWAYS.clone()
    visible[:, ::2, 5:11] = False
    return visible


def test_where_nothing_is_seen_the_last_position_is_held(hidden_for_a_while):
    _, tracks, visibility = observed(hidden_for_a_while)
    lost = visibility[..., 1:] == 0
    assert lost.any()
    assert torch.equal(tracks[:, :, 1:][lost], tracks[:, :, :-1][lost])


def test_visibility_is_a_share_that_says_lost_or_at_least_half(hidden_for_a_while):
    _, _, visibility = observed(hidden_for_a_while)
    assert ((visibility == 0) | (visibility >= 0.5)).all()
    assert visibility.max() <= 1
    # Nothing is lost in the anchor frame.
    assert (visibility[..., 0] > 0).all()


def test_a_frame_to_frame_tracker_never_finds_a_point_again(hidden_for_a_while):
    _, _, visibility = observed(hidden_for_a_while)
    seen = visibility > 0
    found_again = (seen[..., 1:] & ~seen[..., :-1]).any(-1)
    never = ~found_again.any(-1)
    # Six clips in ten are tracked from frame to frame; in the others, hidden points are found at some time.
    assert 0.4 < never.float().mean() < 0.8
    assert found_again[:, ::2][~never].float().mean() > 0.8


def test_a_hidden_point_is_reported_for_three_frames_at_most():
    visible = ALWAYS.clone()
    visible[:, :, 5:] = False
    _, _, visibility = observed(visible)
    seen = (visibility > 0).float().mean((0, 1))
    assert (seen[8:] == 0).all()
    # Zero to three frames, equally often, among those not lost before.
    assert seen[5] / seen[4] == pytest.approx(0.75, abs=0.05)
    assert seen[7] / seen[4] == pytest.approx(0.25, abs=0.05)


def test_a_track_starts_where_it_was_asked_for(hidden_for_a_while):
    pixels, tracks, _ = observed(hidden_for_a_while)
    torch.testing.assert_close(tracks[:, :, 0], pixels[:, :, 0])


def test_a_point_never_seen_stays_at_its_first_projection():
    pixels, tracks, visibility = observed(torch.zeros_like(ALWAYS))
    assert not visibility.any()
    torch.testing.assert_close(tracks, pixels[:, :, :1].expand_as(tracks))


def test_errors_have_the_stated_size():
    """Frame 1 holds jitter and one step of drift: log-uniform scales of 0.05-0.8 and 0.01-0.25 px."""
    pixels, tracks, visibility = observed(ALWAYS, seed=3)
    error = (tracks - pixels)[:, :, 1][visibility[:, :, 1] > 0]
    # E s^2 of a log-uniform s is (high^2 - low^2) / (2 ln(high / low)).
    jitter = (0.8**2 - 0.05**2) / (2 * torch.tensor(0.8 / 0.05).log())
    drift = (0.25**2 - 0.01**2) / (2 * torch.tensor(0.25 / 0.01).log())
    assert error.square().mean().sqrt() == pytest.approx((jitter + drift).sqrt().item(), rel=0.2)
    assert error.mean().abs() < 0.02


def test_errors_grow_with_the_image():
    _, small, _ = observed(ALWAYS, seed=3)
    _, large, _ = observed(ALWAYS, seed=3, scale=2.0)
    torch.testing.assert_close(large, 2 * small, rtol=1e-4, atol=1e-3)


def test_frames_since_a_point_was_seen():
    visible = torch.tensor([[[1, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]]).bool()
    expected = [[0, 0, 1, 2, 0, 1], [6, 6, 0, 1, 2, 3], [6] * 6]
    assert frames_since(visible)[0].tolist() == expected


def test_holding():
    values = torch.arange(4.0)[None, None, :, None].expand(1, 1, 4, 2)
    seen = torch.tensor([[[False, True, False, True]]])
    assert hold_last_seen(values, seen)[0, 0, :, 0].tolist() == [0, 1, 1, 3]
