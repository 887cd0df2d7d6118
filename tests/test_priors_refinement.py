"""Refinement to a fraction of a pixel on a texture that is known everywhere."""

import inspect

import numpy as np
import pytest
import torch
from videos import centres, waves

from priors import refinement
from priors.matches import Matches
from priors.refinement import LEAST_REACH, refine

SHIFT = (5.3, -2.6)


def frames() -> torch.Tensor:
    value = waves()
    x, y = centres(96, 128)
    both = [value(x, y), value(x - SHIFT[0], y - SHIFT[1])]
    return torch.from_numpy(np.stack([np.stack([f] * 3) for f in both]).astype(np.uint8))


def coarse(points: torch.Tensor, error: float) -> Matches:
    """Matches that are `error` px off in both axes, and say so."""
    tracks = torch.stack([points, points + torch.tensor(SHIFT) + error])
    covariance = torch.eye(2).expand(2, len(points), 2, 2) * error**2
    return Matches(tracks, covariance.clone(), torch.full((2, len(points)), 0.7))


POINTS = torch.tensor([[40.0, 40.0], [63.5, 50.2], [90.1, 61.9], [30.7, 70.3]])


@pytest.mark.parametrize("error", [3.0, -5.0])
def test_a_coarse_match_becomes_a_fine_one(error: float) -> None:
    fine = refine(frames(), coarse(POINTS, error))
    off = (fine.tracks[1] - POINTS - torch.tensor(SHIFT)).norm(dim=-1)
    assert off.max() < 0.4
    assert fine.covariance[1].diagonal(dim1=-2, dim2=-1).max() < 2
    assert torch.equal(fine.tracks[0], POINTS)
    assert torch.equal(fine.visibility, torch.full((2, 4), 0.7))


def test_what_is_not_there_stays_as_it_was() -> None:
    """Another picture, a flat one, and a flat patch: the token's answer stands."""
    before = coarse(POINTS, 3.0)
    first = frames()
    noise = torch.randint(0, 256, (1, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    flat = torch.full((1, 3, 96, 128), 90)
    for other in (noise, flat):
        after = refine(torch.cat([first[:1], other.to(torch.uint8)]), before)
        assert torch.equal(after.tracks, before.tracks)
        assert torch.equal(after.covariance, before.covariance)
    after = refine(torch.cat([flat.to(torch.uint8), first[1:]]), before)
    assert torch.equal(after.tracks, before.tracks)


def test_matches_at_the_border_and_beyond() -> None:
    points = torch.tensor([[0.5, 0.5], [127.9, 95.9], [-40.0, 300.0]])
    matches = Matches(points.expand(2, 3, 2), torch.eye(2).expand(2, 3, 2, 2), torch.ones(2, 3))
    assert refine(frames(), matches).tracks.isfinite().all()


def test_floats_are_refined_as_bytes_are() -> None:
    first = refine(frames(), coarse(POINTS, 3.0))
    second = refine(frames() / 255, coarse(POINTS, 3.0))
    assert torch.equal(first.tracks, second.tracks)
    assert torch.equal(first.covariance, second.covariance)
    assert not torch.equal(first.tracks, coarse(POINTS, 3.0).tracks)
    with pytest.raises(ValueError, match=r"need float frames in \[0, 1\], got .* to 2\d\d"):
        refine(frames().float(), coarse(POINTS, 3.0))


def test_a_match_that_claims_to_be_exact_is_searched_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two px each way, and the prior is a px wide at least: whatever the covariance says."""
    wrong = coarse(POINTS, float(LEAST_REACH) - 0.6)
    sure = Matches(wrong.tracks, 0 * wrong.covariance, wrong.visibility)
    truth = POINTS + torch.tensor(SHIFT)
    # It was off by 2 px; what is left is the prior's pull.
    assert (refine(frames(), sure).tracks[1] - truth).norm(dim=-1).max() < 1
    far = coarse(POINTS, LEAST_REACH + 4.0)
    sure = Matches(far.tracks, 0 * far.covariance, far.visibility)
    assert (refine(frames(), sure).tracks[1] - truth).norm(dim=-1).min() > 3
    # A prior as narrow as the claim holds the match where it was.
    monkeypatch.setattr(refinement, "DOUBT", 1e-3)
    narrow = refine(frames(), Matches(wrong.tracks, 0 * wrong.covariance, wrong.visibility))
    assert (narrow.tracks[1] - truth).norm(dim=-1).min() > 1


def test_other_frames_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"need frames of shape \[T, 3, H, W\], got \[2, 96, 128, 3"
    ):
        inspect.unwrap(refine)(frames().permute(0, 2, 3, 1), coarse(POINTS, 1.0))
    with pytest.raises(ValueError, match="need the 2 frames that were matched, got 3"):
        refine(frames()[[0, 1, 1]], coarse(POINTS, 1.0))
