"""Snapping hypotheses to the tracks."""

import math

import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from diffusion4d import splines
from diffusion4d.snap import DRIFT, HELD, JITTER, doubted, misfit, snap

F64 = torch.float64
K, N, M, T = 3, 4, 8, 25
U = torch.linspace(0, 1, T, dtype=F64)
BASIS = splines.basis_matrix(U, M)


def sampled() -> Tensor:
    g = torch.Generator().manual_seed(0)
    lateral = torch.randn((K, N, M, 2), generator=g, dtype=F64) * 0.3
    depth = 1 + torch.rand((K, N, M, 1), generator=g, dtype=F64)
    return torch.cat([lateral, depth], -1)


def rays_of(ctrl: Tensor) -> Tensor:
    points = BASIS @ ctrl
    return points[..., :2] / points[..., 2:]


def tracks() -> Tensor:
    """Smooth tracks that no hypothesis was drawn from."""
    phase = torch.arange(N, dtype=F64)[:, None]
    return torch.stack([0.3 * torch.sin(3 * U + phase), 0.2 * U * phase], -1)


def test_a_hypothesis_that_fits_is_left_alone():
    ctrl = sampled()[:1]
    torch.testing.assert_close(snap(ctrl, rays_of(ctrl)[0], torch.ones(N, T, dtype=F64), U), ctrl)


def test_tracks_that_a_spline_can_follow_are_met_exactly():
    # Another lateral motion at the same depths: there is a spline with no reprojection error at all.
    ctrl = sampled()[:1]
    other = torch.cat([ctrl[..., :2].flip(-3), ctrl[..., 2:]], -1)
    seen = torch.ones(N, T, dtype=F64)
    snapped = snap(ctrl, rays_of(other)[0], seen, U, ridge=1e-10)
    torch.testing.assert_close(snapped, other, atol=1e-6, rtol=0)


def test_every_hypothesis_lands_on_the_tracks():
    ctrl = sampled()
    before = (rays_of(ctrl) - tracks()).norm(dim=-1)
    after = (rays_of(snap(ctrl, tracks(), torch.ones(N, T, dtype=F64), U)) - tracks()).norm(dim=-1)
    assert after.median() < 0.1 * before.median()
    # What is left is at the ends, where a jagged sample resists most.
    assert (after.mean((1, 2)) < 0.15 * before.mean((1, 2))).all()


def test_depths_are_not_touched():
    ctrl = sampled()
    snapped = snap(ctrl, tracks(), torch.ones(N, T, dtype=F64), U)
    assert torch.equal(snapped[..., 2], ctrl[..., 2])
    assert not torch.allclose(snapped[..., :2], ctrl[..., :2], atol=0.05)


def test_what_was_hidden_stays_as_sampled_up_to_an_offset():
    ctrl = sampled()
    seen = (U < 0.4).to(F64).expand(N, T).contiguous()
    spoilt = tracks()
    spoilt[:, 10:] = float("nan")
    moved = (snap(ctrl, spoilt, seen, U) - ctrl)[..., :2]
    # Five spans: the support of control points 5, 6 and 7 starts at .4, so the correction of 4 is held.
    torch.testing.assert_close(moved[:, :, 5:], moved[:, :, 4:5].expand(-1, -1, 3, -1))
    assert moved[:, :, 4].abs().min() > 1e-4


def test_a_strong_prior_leaves_the_sample_up_to_an_offset():
    ctrl = sampled()
    moved = (snap(ctrl, tracks(), torch.ones(N, T, dtype=F64), U, ridge=1e7) - ctrl)[..., :2]
    torch.testing.assert_close(moved, moved[:, :, :1].expand_as(moved), atol=1e-5, rtol=0)
    # The offset is the one that brings the sample nearest to the tracks: the mean error, weighted as the fit is.
    depth = (BASIS @ ctrl[..., 2:]).squeeze(-1)
    short = tracks() * depth[..., None] - BASIS @ ctrl[..., :2]
    weight = depth.square().reciprocal()[..., None]
    offset = (weight * short).sum(-2) / weight.sum(-2)
    torch.testing.assert_close(moved[:, :, 0], offset, atol=1e-5, rtol=0)


def test_doubts_before_a_gap_do_not_swing_what_is_hidden():
    ctrl = sampled()
    seen = (U < 0.45).to(F64).expand(N, T).contiguous()
    generator = torch.Generator().manual_seed(0)
    doubts = 0.01 * torch.randn(64, N, T, 2, generator=generator, dtype=F64)
    tracked = tracks() + doubts

    def swing(held: float) -> Tensor:
        """How far the last control points scatter, over how far those that are seen do."""
        moved = snap(ctrl[:1].expand(64, -1, -1, -1), tracked, seen, U, held=held)[..., :2]
        scatter = moved.std(0)
        return scatter[:, -1].mean() / scatter[:, :3].mean()

    assert swing(5.0) < 0.8 * swing(0.01)


def test_it_is_the_minimum_of_what_it_says():
    ctrl, ridge = sampled(), 0.05
    seen = torch.rand((N, T), generator=torch.Generator().manual_seed(1), dtype=F64)
    depth = (BASIS @ ctrl[..., 2:]).squeeze(-1)
    differences = splines.BSpline.clamped(torch.eye(M, dtype=F64), 3).derivative().ctrl / (M - 3)
    # How much of what lies under each step of control points was seen.
    knots = splines.knot_vector(M).numpy()[1:-1]
    under = torch.from_numpy(BSpline.design_matrix(U.numpy(), knots, 2).toarray())
    share = seen @ under / under.sum(0)
    strength = (ridge**share * HELD ** (1 - share))[:, :, None]

    def cost(lateral: Tensor) -> Tensor:
        off = (BASIS @ lateral - tracks() * depth[..., None]).square().sum(-1)
        held = (strength * (differences @ (lateral - ctrl[..., :2])).square()).sum()
        return (seen * off / depth.square()).sum() + held

    lateral = snap(ctrl, tracks(), seen, U, ridge=ridge)[..., :2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(lateral), lateral)
    assert gradient.abs().max() < 1e-8
    (away,) = torch.autograd.grad(cost(start := ctrl[..., :2].clone().requires_grad_()), start)
    assert away.abs().max() > 0.1


@pytest.mark.parametrize("sight", [0.0, 1e-12])
def test_a_point_that_was_never_seen_stays_as_sampled(sight):
    ctrl = sampled()
    seen = torch.ones(N, T, dtype=F64)
    seen[1] = 0
    seen[1, 3] = sight
    hidden = tracks()
    hidden[1] = float("nan")
    snapped = snap(ctrl, hidden, seen, U)
    assert torch.equal(snapped[:, 1], ctrl[:, 1])
    alone = snap(ctrl[:, 2:], tracks()[2:], seen[2:], U)
    torch.testing.assert_close(snapped[:, 2:], alone)


def test_misfit_says_how_far_splines_pass_by_what_was_seen():
    seen = torch.ones(N, T, dtype=F64)
    assert misfit(100 * tracks(), seen, U, M) < 0.1
    # A zigzag of a frame's period is beyond any spline: each instant is missed by its amplitude.
    zigzag = tracks() + 0.5 * (-1.0) ** torch.arange(T, dtype=F64)[:, None]
    assert misfit(zigzag, seen, U, M) == pytest.approx(0.5 * 2**0.5, rel=0.1)
    # What is hidden does not count, and a point that was never seen is no error.
    hidden = seen.clone()
    hidden[:, 10:] = 0
    hidden[0] = 0
    jump = tracks()
    jump[:, 10:] += 5
    assert misfit(100 * jump, hidden, U, M) < 0.1
    assert misfit(jump, torch.zeros_like(seen), U, M) == 0


def test_doubts_have_the_trackers_size_and_spare_the_anchor_frame():
    seeds = list(range(4000))
    rays = torch.zeros(1, 9, 2, dtype=F64)
    error = doubted(rays, 0.01, seeds) / 0.01
    assert (error[:, :, 0] == 0).all()

    def mean_square(low: float, high: float) -> float:
        """E s^2 of a log-uniform s."""
        return (high**2 - low**2) / (2 * math.log(high / low))

    frames = torch.arange(1, 9, dtype=F64)
    expected = mean_square(*JITTER) + mean_square(*DRIFT) * frames
    found = error[:, 0, 1:].square().mean((0, 2))
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)
    # One hypothesis is the same whichever others there are.
    assert torch.equal(doubted(rays, 0.01, seeds[5:6])[0], doubted(rays, 0.01, seeds[:9])[5])


def test_every_hypothesis_may_have_its_own_tracks():
    ctrl, seen = sampled(), torch.ones(N, T, dtype=F64)
    both = torch.stack([tracks(), tracks() + 0.1])
    snapped = snap(ctrl[:2], both, seen, U)
    for k in range(2):
        torch.testing.assert_close(snapped[k : k + 1], snap(ctrl[k : k + 1], both[k], seen, U))
