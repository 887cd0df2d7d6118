"""The flat lift, and deterministic answers dressed with noise."""

import math

import pytest
import torch
from observed import some_evidence

from diffusion4d import baselines, cameras, metrics
from diffusion4d.baselines import Case, Dressing

CAMERA = torch.tensor([1.0, 1.0, 0.0, 0.0])


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
    # Var of (1 + a e)(1 + b e'): (1 + a^2)(1 + b^2) - 1; its covariance between points: b^2. Errors of about 2 %.
    factor = x[..., 0, 2] / 2
    variance = (1 + 0.1**2) * (1 + 0.2**2) - 1
    assert factor.var(0).mean().item() == pytest.approx(variance, rel=0.1)
    assert factor.mean(1).var().item() == pytest.approx(0.2**2 + 0.1**2 / 40, rel=0.1)
    lateral = x[..., 0, :2]
    assert lateral.std(0).mean().item() == pytest.approx(0.3, rel=0.05)
    assert lateral.mean(1).std().item() == pytest.approx(0.3 / math.sqrt(40), rel=0.1)


def test_a_seed_fixes_the_samples():
    answer, dressing = some_answer(), Dressing(0.1, 0.2, 0.3)
    assert torch.equal(dressing.samples(answer, 4, 3), dressing.samples(answer, 4, 3))
    assert not torch.equal(dressing.samples(answer, 4, 3), dressing.samples(answer, 4, 4))


def test_fit_finds_the_spread_of_the_errors():
    true = Dressing(ray=0.15, scene=0.08, lateral=0.05)
    cases: list[Case] = []
    for seed in range(12):
        answer = some_answer(N=20, T=2, seed=seed)
        truth = true.samples(answer, 1, seed=1000 + seed)[0]
        cases.append((answer, truth, torch.ones(20, 2, dtype=torch.bool)))
    fitted = baselines.fit_dressing(cases, num_samples=4)

    def variance(d: Dressing) -> float:
        square = sum(a.square().sum(-1).mean().item() for a, _, _ in cases) / len(cases)
        return square * ((1 + d.ray**2) * (1 + d.scene**2) - 1) + 2 * d.lateral**2

    # In many dimensions the joint score sees the total spread, and hardly how it is divided between the scales.
    assert math.sqrt(variance(fitted)) == pytest.approx(math.sqrt(variance(true)), rel=0.2)

    def score(d: Dressing) -> float:
        scores = [
            metrics.energy_score(d.samples(a, 4, i), t, m) for i, (a, t, m) in enumerate(cases)
        ]
        return torch.stack(scores).mean().item()

    bare = torch.stack([metrics.energy_score(a[None], t, m) for a, t, m in cases]).mean().item()
    assert score(fitted) <= score(true) + 1e-4 < 0.85 * bare
    for factor in (0.5, 2.0):
        wrong = Dressing(factor * fitted.ray, factor * fitted.scene, factor * fitted.lateral)
        assert score(fitted) < score(wrong)
