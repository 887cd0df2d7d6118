"""Evidence: tracks in the spline basis, the share that was seen, tokens at points."""

import pytest
import torch
from observed import some_evidence
from torch import Tensor

from diffusion4d import evidence as module
from diffusion4d import splines
from diffusion4d.evidence import Evidence, Tokens, observe_tracks
from priors.tokens import TokenGrid

F64 = torch.float64
M = 8
T = 41
U = torch.linspace(0, 1, T, dtype=F64)
CAMERA = torch.tensor([[200.0, 100.0, 40.0, 30.0]], dtype=F64)
SIZE = torch.tensor([[60.0, 80.0]], dtype=F64)


def observe(normalised: Tensor, visibility: Tensor, u: Tensor = U, num_ctrl: int = M) -> Evidence:
    """Evidence of tracks [N, T, 2] that are given in normalised image coordinates."""
    pixels = normalised * CAMERA[0, :2] + CAMERA[0, 2:]
    return observe_tracks(pixels[None], visibility[None], CAMERA, SIZE, u, num_ctrl)


def spline_tracks(N: int = 3) -> tuple[Tensor, Tensor]:
    ctrl = torch.randn((N, M, 2), generator=torch.Generator().manual_seed(0), dtype=F64)
    return ctrl, splines.basis_matrix(U, M) @ ctrl


def test_a_spline_shaped_track_is_recovered(monkeypatch):
    ctrl, tracks = spline_tracks()
    seen = torch.ones(3, T, dtype=F64)
    # The penalty shortens a track that jumps by its own size from control point to control point by 4 % at its ends.
    bent = splines.basis_matrix(U, M) @ observe(tracks, seen).ctrl[0] - tracks
    assert bent.abs().max() < 0.04 * tracks.abs().max()
    monkeypatch.setattr(module, "RIDGE", 1e-12)
    torch.testing.assert_close(observe(tracks, seen).ctrl[0], ctrl, atol=1e-8, rtol=0)


def test_a_point_at_rest_is_recovered_exactly():
    place = torch.tensor([0.3, -0.2], dtype=F64)
    seen = torch.ones(1, T, dtype=F64)
    ctrl = observe(place.expand(1, T, 2), seen).ctrl[0, 0]
    torch.testing.assert_close(ctrl, place.expand(M, 2))


def test_what_was_hidden_does_not_matter():
    _, tracks = spline_tracks()
    seen = torch.ones(3, T, dtype=F64)
    seen[:, 12:25] = 0
    expected = observe(tracks, seen)
    for wrong in (1e3, float("nan")):
        spoilt = tracks.clone()
        spoilt[:, 12:25] = wrong
        got = observe(spoilt, seen)
        assert torch.equal(got.ctrl, expected.ctrl)
        assert torch.equal(got.weight, expected.weight)


def test_a_gap_is_crossed_in_a_straight_line():
    line = torch.stack([U, -2 * U], -1)[None]
    seen = ((U < 0.3) | (U > 0.7)).to(F64)[None]
    e = observe(line, seen)
    inside = splines.basis_matrix(U, M) @ e.ctrl[0] - line
    assert inside.abs().max() < 0.01


def test_after_the_last_sight_the_evidence_is_held():
    line = torch.stack([U, U.square()], -1)[None]
    seen = (U <= 0.4).to(F64)[None]
    e = observe(line, seen)
    # Interior knots are at .2 .4 .6 .8: the support of control points 5, 6, 7 starts at .4 or later.
    torch.testing.assert_close(e.ctrl[0, 0, 5:], e.ctrl[0, 0, 4].expand(3, 2))
    assert torch.equal(e.weight[0, 0, 5:], torch.zeros(3, dtype=F64))
    assert (e.weight[0, 0, :2] == 1).all()
    assert 0 < e.weight[0, 0, 3] < 1


def test_a_point_that_is_never_seen_stays_at_its_query():
    _, tracks = spline_tracks(1)
    e = observe(tracks, torch.zeros(1, T, dtype=F64))
    torch.testing.assert_close(e.ctrl[0, 0], tracks[0, 0].expand(M, 2), atol=1e-9, rtol=0)
    assert (e.weight == 0).all()


def test_a_query_that_no_frame_shows_counts_little_beside_what_was_seen():
    place = torch.tensor([0.3, -0.2], dtype=F64).repeat(1, T, 1)
    off = place.clone()
    off[:, 0] += 1.0
    seen = torch.ones(1, T, dtype=F64)
    visible = observe(off, seen).ctrl - observe(place, seen).ctrl
    seen[:, 0] = 0
    hidden = observe(off, seen).ctrl - observe(place, seen).ctrl
    # A whole observation against a hundredth of one.
    assert visible[0, 0, 0].min() > 0.6
    assert 0 < hidden[0, 0, 0].max() < 0.1


def test_weights_are_the_share_of_the_support_that_was_seen():
    _, tracks = spline_tracks(1)
    soft = torch.full((1, T), 0.3, dtype=F64)
    torch.testing.assert_close(observe(tracks, soft).weight, torch.full((1, 1, M), 0.3, dtype=F64))
    # The basis sums to 1 at every instant, so all that was seen is shared out.
    seen = torch.rand((1, T), generator=torch.Generator().manual_seed(0), dtype=F64)
    support = splines.basis_matrix(U, M).sum(0)
    torch.testing.assert_close((observe(tracks, seen).weight[0] * support).sum(-1), seen.sum(-1))
    # One frame of sight: w is that frame's basis over the sum of all frames'.
    once = torch.zeros(1, T, dtype=F64)
    once[0, 0] = 1
    expected = torch.zeros(M, dtype=F64)
    expected[0] = 1 / support[0]
    torch.testing.assert_close(observe(tracks, once).weight[0, 0], expected)


def test_fewer_frames_than_control_points():
    u = torch.tensor([0.0, 1.0], dtype=F64)
    line = torch.stack([u, u], -1)[None]
    e = observe(line, torch.ones(1, 2, dtype=F64), u)
    assert e.ctrl.isfinite().all()
    assert (e.ctrl.diff(dim=-2) >= 0).all()
    expected = torch.tensor([1.0, *[0.0] * (M - 2), 1.0], dtype=F64)
    torch.testing.assert_close(e.weight[0, 0], expected)


def test_focal_length():
    _, tracks = spline_tracks(1)
    e = observe(tracks, torch.ones(1, T, dtype=F64))
    # (200 + 100) / 2 over the longer side, 80 px.
    assert e.log_focal.exp().item() == pytest.approx(150 / 80)
    assert e.focal_known.tolist() == [1.0]


def ramp_grid(u: Tensor) -> TokenGrid:
    """Tokens that say where they are: (x, y, frame) in px of a 40 x 60 image with 4 x 6 patches."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    place = torch.stack([columns, rows], -1).flatten(0, 1).float() * 10 + 5
    frame = torch.arange(len(u)).float()[:, None, None].expand(-1, 24, 1)
    return TokenGrid(torch.cat([place.expand(len(u), 24, 2), frame], -1), (4, 6), (40, 60), u)


def test_tokens_know_their_place_and_are_read_along_the_track():
    u = torch.tensor([0.0, 0.4, 1.0])
    grid = ramp_grid(u)
    camera = torch.tensor([20.0, 10.0, 30.0, 20.0])
    tracks = torch.tensor(
        [[[12.0, 9.0], [20.0, 30.0], [50.0, 31.0]], [[30.0, 20.0]] * 3, [[7.0, 7.0]] * 3]
    )
    visibility = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    tokens = Tokens.of_clip(grid, tracks, visibility, camera)
    # Bilinear interpolation is exact on a ramp; the mean is over the frames that see the point.
    expected = torch.tensor([[31.0, 20.0, 1.0], [30.0, 20.0, 0.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(tokens.at_points[0], expected)
    assert tokens.positions.shape == (1, 3, 24, 3)
    # First and last patch: centres at (5, 5) and (55, 35) px.
    first, last = tokens.positions[0, 1, 0], tokens.positions[0, 2, -1]
    torch.testing.assert_close(first, torch.tensor([-25 / 20, -15 / 10, 0.4]))
    torch.testing.assert_close(last, torch.tensor([25 / 20, 15 / 10, 1.0]))
    assert torch.equal(tokens.values[0], grid.values)


def test_all_of_the_evidence_moves():
    moved = some_evidence(tokens=True).to("meta")
    assert moved.tokens is not None
    for held in (moved, moved.tokens):
        assert {v.device.type for v in vars(held).values() if isinstance(v, Tensor)} == {"meta"}
