"""The flat lift, and deterministic answers dressed with noise."""

import dataclasses
import math

import pytest
import torch
from observed import some_evidence

from diffusion4d import baselines, cameras, metrics, splines
from diffusion4d.baselines import Case, Dressing, Moments, deviates
from diffusion4d.snap import snap

CAMERA = torch.tensor([1.0, 1.0, 0.0, 0.0])
TRUE = Dressing(ray=0.15, scene=0.2, lateral=0.05)


def some_answer(N: int = 6, T: int = 3, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    rays = torch.rand((N, T, 2), generator=g) - 0.5
    depth = 0.7 + torch.rand((N, 1), generator=g)
    return cameras.unproject(rays, depth.expand(N, T).contiguous(), CAMERA)


def test_flat_lift_projects_onto_the_evidence_at_depth_1():
    evidence = some_evidence()
    ctrl = baselines.flat_lift(evidence)
    assert (ctrl[..., 2] == 1).all()
    torch.testing.assert_close(cameras.project(ctrl, CAMERA.double()), evidence.ctrl)


def test_noise_along_the_ray_keeps_the_image():
    answer = some_answer()
    x = Dressing(0.1, 0.05, 0.0).samples(answer, 7, seed=0)
    images = cameras.project(x, CAMERA)
    torch.testing.assert_close(images, cameras.project(answer, CAMERA).expand_as(images))
    # Constant in time, and the factor of the scene is shared by its points.
    factor = x[..., 2] / answer[..., 2]
    torch.testing.assert_close(factor, factor[..., :1].expand_as(factor))
    scene = Dressing(0.0, 0.05, 0.0).samples(answer, 7, seed=0)[..., 2] / answer[..., 2]
    torch.testing.assert_close(scene, scene[:, :1, :1].expand_as(scene))
    assert scene.std(0).min() > 0.01


def test_lateral_noise_is_an_offset_in_x_and_y():
    answer = some_answer()
    offset = Dressing(0.0, 0.0, 0.3).samples(answer, 5, seed=0) - answer
    assert (offset[..., 2] == 0).all()
    torch.testing.assert_close(offset, offset[:, :, :1].expand_as(offset))


def test_deviations_are_the_scales():
    answer = torch.tensor([0.0, 0.0, 2.0]).expand(40, 1, 3)
    x = Dressing(0.1, 0.2, 0.3).samples(answer, 4000, seed=0)
    # Log factors: variance a^2 + b^2, and covariance b^2 between points. Errors of about 2 %.
    factor = (x[..., 0, 2] / 2).log()
    assert factor.var(0).mean().item() == pytest.approx(0.1**2 + 0.2**2, rel=0.1)
    assert factor.mean(1).var().item() == pytest.approx(0.2**2 + 0.1**2 / 40, rel=0.1)
    lateral = x[..., 0, :2]
    assert lateral.std(0).mean().item() == pytest.approx(0.3, rel=0.05)
    assert lateral.mean(1).std().item() == pytest.approx(0.3 / math.sqrt(40), rel=0.1)
    # However wide, nothing is moved behind the camera.
    assert Dressing(2.0, 2.0, 0.0).samples(answer, 400, seed=0)[..., 2].min() > 0


def test_a_seed_fixes_the_samples():
    answer, dressing = some_answer(), Dressing(0.1, 0.2, 0.3)
    assert torch.equal(dressing.samples(answer, 4, 3), dressing.samples(answer, 4, 3))
    assert not torch.equal(dressing.samples(answer, 4, 3), dressing.samples(answer, 4, 4))


def some_cases() -> list[Case]:
    """Answers whose errors are drawn from a dressing, under masks."""
    cases: list[Case] = []
    for seed in range(40):
        answer = some_answer(N=20, T=2, seed=seed)
        truth = TRUE.samples(answer, 1, seed=1000 + seed)[0]
        mask = torch.ones(20, 2, dtype=torch.bool)
        mask[0] = False
        mask[1, 1] = False
        cases.append((answer, truth, mask))
    return cases


def test_scores_from_moments_are_those_of_the_samples():
    # In a ring of three samples all pairs are neighbours.
    cases = some_cases()[:3]
    cases[1] = (*(x[:15] for x in cases[1]),)
    moments = Moments.of(cases)
    joint, point = [], []
    for seed, (answer, truth, mask) in enumerate(cases):
        drawn = [x[:, : len(answer)] if x.ndim > 1 else x for x in deviates(3, 20, seed)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(baselines, "deviates", lambda *_, drawn=drawn: drawn)
            samples = TRUE.samples(answer.double(), 3, seed)
        expected = metrics.energy_scores(samples, truth.double(), mask)
        joint.append(expected.joint.item())
        point.append(expected.point.item())
    got = moments.scores(TRUE, moments.noise(3))
    assert got == pytest.approx((sum(joint) / 3, sum(point) / 3), rel=1e-5)


def test_fit_finds_the_scales_of_the_errors():
    cases = some_cases()
    fitted = baselines.fit_dressing(cases)
    moments = Moments.of(cases)
    noise = moments.noise(32)

    def score(d: Dressing) -> float:
        return sum(moments.scores(d, noise))

    assert score(fitted) <= score(TRUE) + 1e-4
    assert fitted.ray == pytest.approx(TRUE.ray, rel=0.25)
    # A factor of the scene is told from those of its points by 40 numbers; an offset hides behind factors.
    assert fitted.scene == pytest.approx(TRUE.scene, rel=0.4)
    assert fitted.lateral < 2 * TRUE.lateral
    for name in ("ray", "scene"):
        for factor in (0.5, 2.0):
            wrong = dataclasses.replace(fitted, **{name: factor * getattr(fitted, name)})
            assert score(fitted) < score(wrong), name


def test_snapping_again_takes_an_offset_out_and_leaves_factors():
    # So a dressed answer that is snapped once more is the dressing without lateral noise.
    u = torch.linspace(0, 1, 9)
    g = torch.Generator().manual_seed(0)
    ctrl = torch.rand((5, 6, 3), generator=g) + torch.tensor([-0.5, -0.5, 0.7])
    points = splines.basis_matrix(u, 6) @ ctrl
    rays = points[..., :2] / points[..., 2:]
    visibility = torch.ones(5, 9)
    visibility[2:, 5:] = 0
    snapped = snap(ctrl[None], rays, visibility, u)
    offset = torch.tensor([0.05, -0.03, 0.0])
    assert (snap(ctrl[None] + offset, rays, visibility, u) - snapped).abs().max() < 1e-4
    scaled = snap(1.3 * ctrl[None], rays, visibility, u)
    assert (scaled / 1.3 - snapped).abs().max() < 0.01
