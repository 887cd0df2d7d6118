"""Matchers on tokens whose motion is known, on frames that show nothing, and on the O(T^2) pipeline."""

import inspect
import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from priors import matching
from priors.epipolar import along_lines
from priors.matches import Cells, Found, Matches, found, spread_of_belief
from priors.matching import Frame, Matcher, Method, match_all_pairs, match_pair, match_to_anchor
from priors.tokens import TokenGrid

GRID, SIZE, TOKEN = (12, 14), (192, 224), 16.0
METHODS = get_args(Method)
GLIDE = torch.tensor([19.0, -7.0])
POINTS = torch.tensor([[60.0, 110.0], [71.0, 90.0], [101.5, 133.0], [40.2, 77.7], [120.0, 100.0]])


def code(points: Tensor, seed: int = 0, channels: int = 128) -> Tensor:
    """Features of places: nearly orthogonal where they are two tokens apart (random Fourier features)."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.randn(2, channels, generator=generator) / 14
    phase = torch.rand(channels, generator=generator) * 2 * torch.pi
    return (points @ number + phase).cos()


def centres() -> Tensor:
    return Cells(GRID, SIZE, 1).centres(torch.zeros(1))


def grid_of(frames: list[Tensor]) -> TokenGrid:
    return TokenGrid(torch.stack(frames), GRID, SIZE, torch.linspace(0, 1, len(frames)))


def gliding(num_frames: int = 3) -> TokenGrid:
    """The same surface, GLIDE px further in each frame."""
    return grid_of([code(centres() - t * GLIDE) for t in range(num_frames)])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_follows_what_glides(method: Method) -> None:
    matches = match_to_anchor(gliding(), POINTS, Matcher(method))
    truth = POINTS + torch.arange(3)[:, None, None] * GLIDE
    error = (matches.tracks - truth).norm(dim=-1)
    assert torch.equal(matches.tracks[0], POINTS)
    # Half the diagonal of a 4 px cell, and what bilinear tokens cost.
    assert error.max() < 4
    assert matches.visibility.min() > 0.5
    # The truth is within three deviations of what the matcher claims.
    off = matches.tracks[1:] - truth[1:]
    inverse = torch.linalg.inv(matches.covariance[1:])
    assert torch.einsum("tni,tnij,tnj->tn", off, inverse, off).max() < 9
    assert torch.equal(matches.covariance[0], torch.zeros(5, 2, 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blank", ["first", "second", "both"])
def test_a_featureless_frame_shows_nothing(method: Method, blank: str) -> None:
    """A constant image: tokens alike but for rounding. Finite answers, and no claim to see anything."""
    generator = torch.Generator().manual_seed(3)
    flat = torch.ones(168, 128) + 1e-4 * torch.randn(168, 128, generator=generator)
    textured = code(centres())
    first = flat if blank in ("first", "both") else textured
    second = flat if blank in ("second", "both") else textured
    for frames in ([first, second], [first, second, second]):
        for match in (match_to_anchor, match_all_pairs):
            matches = match(grid_of(frames), POINTS, Matcher(method))
            assert matches.tracks.isfinite().all()
            assert matches.visibility[1:].max() < 0.05, (match.__name__, len(frames))


def test_a_point_that_is_gone_is_seen_less() -> None:
    """Beyond the border the surface goes on, but the frame does not show it."""
    matches = match_to_anchor(gliding(5), torch.tensor([[200.0, 120.0], [30.0, 120.0]]))
    assert matches.visibility[4, 0] < 0.2
    assert matches.visibility[4, 1] > 0.6


def test_chunks_of_points_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = match_to_anchor(gliding(), POINTS)
    monkeypatch.setattr(matching, "ENTRIES", 2 * 168 * 16)
    parts = match_to_anchor(gliding(), POINTS)
    for name in ("tracks", "covariance", "visibility"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-4), name


def test_all_pairs_bridge_an_appearance_that_drifts() -> None:
    """The last frame shares nothing with the first one, and half of it with the one between."""
    first, last = (code(centres(), seed) for seed in range(2))
    grid = grid_of([first, 0.5**0.5 * (first + last), last])
    direct = match_to_anchor(grid, POINTS)
    bridged = match_all_pairs(grid, POINTS)
    error = [(m.tracks[2] - POINTS).norm(dim=-1) for m in (direct, bridged)]
    assert error[0].median() > TOKEN
    assert error[1].max() < 4
    assert bridged.visibility[2].min() > direct.visibility[2].max()


def test_all_pairs_agree_with_the_anchor_where_it_is_right() -> None:
    direct, bridged = (m(gliding(4), POINTS) for m in (match_to_anchor, match_all_pairs))
    assert (direct.tracks - bridged.tracks).norm(dim=-1).max() < 3


def test_the_number_of_pairs_is_linear_and_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def counted(*arguments: object) -> Found:
        next(calls)
        return match_pair(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(matching, "match_pair", counted)
    match_to_anchor(gliding(6), POINTS)
    assert next(calls) == 5
    match_all_pairs(gliding(6), POINTS)
    # 5 direct ones, and by way of each of the 4 others for each of the 5.
    assert next(calls) - 6 == 5 + 5 * 4


def test_belief_is_read_out_as_it_is_written() -> None:
    cells = Cells((2, 3), (64, 96), 2)
    x = cells.centres(torch.zeros(1, dtype=torch.float64))
    assert x[:3].tolist() == [[8, 8], [24, 8], [40, 8]]
    belief = torch.rand(4, 24, generator=torch.Generator().manual_seed(0)).double() ** 6
    belief = belief / belief.sum(-1, keepdim=True) * torch.tensor([[1.0], [0.5], [0.9], [1.0]])
    answer = found(belief, cells)
    for n in range(4):
        p = belief[n] / belief[n].sum()
        near = (x - x[p.argmax()]).norm(dim=-1) <= 32 + 8
        mean = (p[near, None] * x[near]).sum(0) / p[near].sum()
        off = x - mean
        wanted = (p[:, None, None] * off[:, :, None] * off[:, None]).sum(0)
        wanted += torch.eye(2) * 16**2 / 12
        assert torch.allclose(answer.position[n], mean)
        assert torch.allclose(answer.covariance[n], wanted)
        tokens = (-(p * p.log()).sum()).exp() / 4
        assert spread_of_belief(belief, cells)[n] == pytest.approx(tokens.clamp(1, 6).item())
        # In its own frame the second factor is 1.
        seen = belief[n].sum() * (1 - tokens.clamp(1, 6).log() / torch.tensor(6.0).log())
        assert answer.visibility[n] == pytest.approx(seen.item(), abs=1e-7)


def test_no_belief_at_all_is_the_whole_frame() -> None:
    cells = Cells((4, 4), (64, 64), 1)
    answer = found(torch.zeros(2, 16), cells)
    assert answer.visibility.tolist() == [0, 0]
    # Both coordinates are somewhere in 64 px, as seen from the first cell's centre.
    variance = torch.tensor(64.0**2 / 12)
    assert torch.allclose(answer.covariance[0].diagonal(), variance + 24.0**2, rtol=1e-4)
    assert found(torch.ones(1, 1), Cells((1, 1), (9, 9), 1)).visibility.tolist() == [0]


def test_frames_look_up_their_own_tokens() -> None:
    grid = gliding()
    frame = Frame.of(grid, 1, 2)
    inner = frame.cells.centres(torch.zeros(1)).reshape(24, 28, 2)[2:-2, 2:-2].flatten(0, 1)
    rows = frame.features.reshape(24, 28, -1)[2:-2, 2:-2].flatten(0, 1)
    assert torch.allclose(frame.at(inner), rows, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_queries_of_another_precision_are_matched_alike(method: Method) -> None:
    """Pixels in float64 are the usual ones of numpy; the third frame has an epipolar geometry to ask for."""
    single = match_to_anchor(gliding(), POINTS, Matcher(method))
    double = match_to_anchor(gliding(), POINTS.double(), Matcher(method))
    assert (double.tracks - single.tracks).abs().max() < 1e-2
    assert (double.visibility - single.visibility).abs().max() < 1e-3


def test_lines_in_double_precision_weigh_the_same() -> None:
    cells = Cells(GRID, SIZE, 2)
    belief = torch.rand(5, 4 * 168, generator=torch.Generator().manual_seed(0))
    matrix = torch.tensor([[0.0, 1e-4, -0.01], [-2e-4, 0.0, 0.02], [0.01, -0.03, 1.0]])
    single = along_lines(belief, POINTS, cells, matrix)
    assert not torch.allclose(single, belief)
    double = along_lines(belief, POINTS.double(), cells, matrix)
    assert double.dtype == belief.dtype
    torch.testing.assert_close(double, single, atol=1e-5, rtol=1e-3)


def test_what_is_no_number_is_named_at_the_door() -> None:
    match = inspect.unwrap(match_to_anchor)
    with pytest.raises(ValueError, match=r"need query points \[N, 2\] of floats, got \[20, 3\]"):
        match(gliding(), torch.rand(20, 3))
    with pytest.raises(ValueError, match=r"need query points .*, got \[5, 2\] of torch\.int64"):
        match(gliding(), POINTS.long())
    grid = gliding()
    grid.values[1, 7] = torch.nan
    for function in (match_to_anchor, match_all_pairs):
        with pytest.raises(ValueError, match=r"need finite tokens, got .* in frames \[1\]"):
            function(grid, POINTS)
    for dustbin in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"need a finite dustbin, got {dustbin}"):
            Matcher("sinkhorn", dustbin=dustbin)
    with pytest.raises(ValueError, match=r"need upsample as a whole number, got 1\.5"):
        inspect.unwrap(Matcher.__init__)(object.__new__(Matcher), upsample=1.5)
    with pytest.raises(ValueError, match="need temperature > 0, got inf"):
        Matcher(temperature=float("inf"))


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="need upsample > 0, got 0"):
        Matcher(upsample=0)
    with pytest.raises(ValueError, match="need temperature > 0, got 0"):
        Matcher(temperature=0.0)
    with pytest.raises(ValueError, match="got 0 points"):
        match_to_anchor(gliding(), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="1 coordinates that are not finite"):
        match_all_pairs(gliding(), torch.tensor([[1.0, float("nan")]]))
    tracks, covariance, seen = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2, 2), torch.ones(2, 3)
    with pytest.raises(ValueError, match="need finite tracks"):
        Matches(tracks / 0, covariance, seen)
    with pytest.raises(ValueError, match=r"need visibility in \[0, 1\], got 2\.0 to 2\.0"):
        Matches(tracks, covariance, 2 * seen)
