"""Diffusion coordinates: round trips, scales, symmetry."""

import dataclasses
import itertools
import math

import pytest
import torch
from observed import COORDINATES, seeded, some_evidence

from diffusion4d.coordinates import BINS, NEAREST, Coordinates
from diffusion4d.evidence import Evidence

F64 = torch.float64


def test_encode_undoes_decode_and_decode_undoes_encode():
    evidence = some_evidence(B=2)
    x = torch.rand((2, 1, 6, 5, 3), generator=seeded(), dtype=F64) * 8 - 4
    ctrl = COORDINATES.decode(x, evidence)
    torch.testing.assert_close(COORDINATES.encode(ctrl[:, 0], evidence)[:, None], x)
    # exp and log: depth is positive whatever was sampled.
    assert (ctrl[..., 2] > 0).all()


def test_zero_is_the_evidence_at_depth_1():
    evidence = some_evidence()
    ctrl = COORDINATES.decode(torch.zeros(1, 1, 6, 5, 3, dtype=F64), evidence)
    torch.testing.assert_close(ctrl[0, 0, ..., :2], evidence.ctrl[0])
    assert (ctrl[..., 2] == 1).all()


def test_one_unit_is_one_scale():
    evidence = some_evidence()
    ctrl = torch.cat([evidence.ctrl, torch.ones_like(evidence.ctrl[..., :1])], -1)
    away = ctrl.clone()
    away[..., 0] += 2 * COORDINATES.scale(evidence)[..., 0]
    x = COORDINATES.encode(away, evidence)
    torch.testing.assert_close(x[..., 0], torch.full_like(x[..., 0], 2.0))
    torch.testing.assert_close(x[..., 1:], torch.zeros_like(x[..., 1:]), atol=1e-12, rtol=0)
    # No power of the lens is fitted into these: log depth has one scale.
    twice = COORDINATES.encode(2 * ctrl, evidence)
    torch.testing.assert_close(
        twice[..., 2], torch.full_like(twice[..., 2], math.log(2) / COORDINATES.depth)
    )


def test_an_offset_is_a_share_of_the_picture_through_any_lens():
    """Focal length times 2, normalised coordinates by 2: the same picture, so the same numbers."""
    evidence = some_evidence()
    longer = dataclasses.replace(
        evidence, ctrl=evidence.ctrl / 2, log_focal=evidence.log_focal + math.log(2)
    )
    x = torch.randn(1, 1, 6, 5, 3, generator=seeded(), dtype=F64)
    by_lens = dataclasses.replace(COORDINATES, power=0.5)
    near, far = by_lens.decode(x, evidence), by_lens.decode(x, longer)
    torch.testing.assert_close(far[..., :2] / far[..., 2:] * 2, near[..., :2] / near[..., 2:])
    torch.testing.assert_close(far[..., 2].log() * 2**0.5, near[..., 2].log())
    torch.testing.assert_close(longer.in_view(), evidence.in_view())


def test_the_power_of_the_lens_is_fitted():
    log_focal = torch.linspace(-0.8, 1.3, 400, dtype=F64)
    evidence = dataclasses.replace(some_evidence(B=400), log_focal=log_focal)
    log_depth = 0.2 * torch.randn(400, 6, 5, 1, generator=seeded(), dtype=F64)
    log_depth = log_depth * (-0.6 * log_focal).exp()[:, None, None, None]
    ctrl = torch.cat([evidence.ctrl, torch.ones_like(log_depth)], -1) * log_depth.exp()
    fitted = Coordinates.fit(ctrl, evidence)
    assert fitted.power == pytest.approx(0.6, abs=0.03)
    assert fitted.depth == pytest.approx(0.2, rel=0.05)


def test_far_offsets_are_clipped_and_near_points_pushed_out():
    evidence = some_evidence()
    ctrl = torch.cat([evidence.ctrl + 100, torch.ones_like(evidence.ctrl[..., :1])], -1)
    assert (COORDINATES.encode(ctrl, evidence)[..., :2] == COORDINATES.limit).all()
    behind = torch.cat([evidence.ctrl, torch.full_like(evidence.ctrl[..., :1], -1.0)], -1)
    wide = dataclasses.replace(COORDINATES, limit=1e9)
    depth = wide.decode(wide.encode(behind, evidence)[:, None], evidence)[..., 2]
    torch.testing.assert_close(depth, torch.full_like(depth, NEAREST))


def test_scale_falls_from_bin_to_bin_and_is_geometric_between():
    def scale(weight: torch.Tensor) -> torch.Tensor:
        seen = weight.to(F64)[None, None]
        ctrl = torch.zeros(*seen.shape, 2, dtype=F64)
        one = torch.ones(1, dtype=F64)
        return COORDINATES.scale(Evidence(ctrl, seen, torch.zeros_like(one), one))[0, 0]

    at_bins = scale(torch.linspace(0, 1, BINS))
    torch.testing.assert_close(at_bins[:, 0], torch.tensor(COORDINATES.lateral, dtype=F64))
    assert torch.equal(at_bins[:, 0], at_bins[:, 1])
    assert (at_bins[:, 2] == COORDINATES.depth).all()
    half = scale(torch.tensor([1 / 16]))[0, 0].item()
    assert half == pytest.approx(math.sqrt(COORDINATES.lateral[0] * COORDINATES.lateral[1]))
    assert (scale(torch.linspace(0, 1, 101))[:, 0].diff() < 0).all()


def test_rotation_about_the_optical_axis():
    evidence = some_evidence()
    ctrl = torch.rand((1, 6, 5, 3), generator=seeded(), dtype=F64) + 0.5
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s], [s, c]], dtype=F64)
    turned = torch.cat([ctrl[..., :2] @ turn.mT, ctrl[..., 2:]], -1)
    seen = dataclasses.replace(evidence, ctrl=evidence.ctrl @ turn.mT)
    wide = dataclasses.replace(COORDINATES, limit=1e9)
    plain, rotated = wide.encode(ctrl, evidence), wide.encode(turned, seen)
    torch.testing.assert_close(rotated[..., 2], plain[..., 2])
    torch.testing.assert_close(rotated[..., :2], plain[..., :2] @ turn.mT)


def test_fit_recovers_the_scales():
    # Control points drawn from the coordinates themselves, with shares at the bins.
    evidence = some_evidence(B=200, N=18, num_ctrl=9)
    place = torch.randint(0, BINS, (200, 18, 9), generator=seeded())
    evidence = dataclasses.replace(evidence, weight=place / (BINS - 1.0))
    x = torch.randn((200, 1, 18, 9, 3), generator=seeded(1), dtype=F64)
    fitted = Coordinates.fit(COORDINATES.decode(x, evidence)[:, 0], evidence)
    # Without its largest hundredth the mean of an exponential variable (two squared Gaussians) is
    # 1 + .01 log .01 / .99, that of one squared Gaussian 1 - 2 z phi(z) / .99 at z = 2.5758.
    lateral = math.sqrt(1 + 0.01 * math.log(0.01) / 0.99)
    z = 2.5758
    depth = math.sqrt(1 - 2 * z * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) / 0.99)
    # 3600 numbers a bin: a standard error near 1 %.
    for got, true in zip(fitted.lateral, COORDINATES.lateral, strict=True):
        assert got == pytest.approx(lateral * true, rel=0.05)
    assert fitted.depth == pytest.approx(depth * COORDINATES.depth, rel=0.02)


def test_a_share_that_never_occurs_is_interpolated():
    evidence = some_evidence(B=4, N=8)
    place = torch.tensor([0, 8])[torch.randint(0, 2, (4, 8, 5), generator=seeded())]
    evidence = dataclasses.replace(evidence, weight=place / 8.0)
    x = torch.randn((4, 1, 8, 5, 3), generator=seeded(1), dtype=F64)
    fitted = Coordinates.fit(COORDINATES.decode(x, evidence)[:, 0], evidence).lateral
    ratios = [after / before for before, after in itertools.pairwise(fitted)]
    assert ratios == pytest.approx([(fitted[8] / fitted[0]) ** (1 / 8)] * 8)
