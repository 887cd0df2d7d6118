"""Correlated noise: its covariance exactly, and its fit."""

import dataclasses
import json
import math

import pytest
import torch
from observed import M, reordered, seeded, some_evidence

from diffusion4d.noise import PointNoise

F64 = torch.float64
N = 4


def covariance_over_time(
    num_ctrl: int, memory: float, scale: float
) -> tuple[tuple[float, ...], ...]:
    rows = range(num_ctrl)
    return tuple(tuple(scale * memory ** abs(i - j) for j in rows) for i in rows)


def some_noise(num_ctrl: int = M) -> PointNoise:
    return PointNoise(
        shared=(0.2, 0.5),
        local=(0.5, 0.3),
        reach=(0.3, 0.6),
        motion=(0.4, 0.2),
        over_time=(
            covariance_over_time(num_ctrl, 0.5, 1.0),
            covariance_over_time(num_ctrl, 0.9, 2.0),
        ),
    )


def covariance_of_points(noise: PointNoise, group: int) -> torch.Tensor:
    """C by the formula, pair by pair."""
    e = some_evidence(N=N).in_view()[0]
    C = torch.zeros(N, N, dtype=F64)
    for i in range(N):
        for j in range(N):
            place = (e[i, 0] - e[j, 0]).square().sum().item()
            apart = (e[i] - e[i, 0]) - (e[j] - e[j, 0])
            motion = apart.square().sum().item() / M
            near = math.exp(
                -place / (2 * noise.reach[group] ** 2) - motion / (2 * noise.motion[group] ** 2)
            )
            a, b = noise.shared[group], noise.local[group]
            C[i, j] = a + b * near + (1 - a - b) * (i == j)
    return C


def test_covary_is_correlate_and_its_transpose():
    factors = some_noise().factors(some_evidence(N=N))
    x = torch.randn((1, 2, N, M, 3), generator=seeded(), dtype=F64)
    # Applied to every basis vector, correlate is the matrix L.
    basis = torch.eye(N * M * 3, dtype=F64).unflatten(-1, (N, M, 3))[None]
    L = factors.correlate(basis).flatten(2)[0].T
    expected = (L @ L.T @ x.flatten(2).mT[0]).T.unflatten(-1, (N, M, 3))
    torch.testing.assert_close(factors.covary(x)[0], expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_covariance_is_c_kron_s(axis):
    noise = some_noise()
    # Correlating is linear: applied to every basis vector it is the matrix L of Cov = L L^T.
    basis = torch.zeros(1, N * M, N, M, 3, dtype=F64)
    basis[0, ..., axis] = torch.eye(N * M, dtype=F64).unflatten(-1, (N, M))
    out = noise.factors(some_evidence(N=N)).correlate(basis)
    L = out[0, ..., axis].flatten(1).T
    group = 1 if axis == 2 else 0
    S = torch.tensor(noise.over_time[group], dtype=F64)
    expected = torch.kron(covariance_of_points(noise, group), S)
    torch.testing.assert_close(L @ L.T, expected, atol=1e-7, rtol=0)
    # The axes do not mix.
    others = [a for a in range(3) if a != axis]
    assert (out[..., others] == 0).all()


def test_sampled_variance_is_s():
    # C has a unit diagonal, so S alone sets the variance: within 5 standard errors, sqrt(2 / n) each.
    noise = some_noise()
    white = torch.randn((1, 4000, N, M, 3), generator=seeded(), dtype=F64)
    drawn = noise.factors(some_evidence(N=N)).correlate(white)
    variance = drawn[0].var(0)
    expected = torch.tensor([1.0, 1.0, 2.0], dtype=F64).expand(N, M, 3)
    torch.testing.assert_close(variance, expected, rtol=5 * math.sqrt(2 / 4000), atol=0)


def test_white_noise_is_left_as_it_is():
    white = torch.randn((2, 3, N, M, 3), generator=seeded(), dtype=F64)
    factors = PointNoise.white(M).factors(some_evidence(B=2, N=N))
    torch.testing.assert_close(factors.correlate(white), white)


def test_order_of_points_carries_over_to_the_covariance():
    order = torch.tensor([2, 0, 3, 1])
    evidence = some_evidence(N=N)
    L = some_noise().factors(evidence).points[0]
    turned = some_noise().factors(reordered(evidence, order)).points[0]
    C = L @ L.mT
    torch.testing.assert_close(turned @ turned.mT, C[:, order][:, :, order])


def test_points_that_coincide_can_be_factorised():
    evidence = some_evidence(N=40)
    evidence = dataclasses.replace(evidence, ctrl=evidence.ctrl[:, :1].expand(1, 40, M, 2).float())
    noise = dataclasses.replace(some_noise(), shared=(0.5, 0.2), local=(0.5, 0.8))
    assert noise.factors(evidence).points.isfinite().all()


def test_a_configuration_through_json():
    noise = some_noise()
    assert PointNoise.from_config(json.loads(json.dumps(dataclasses.asdict(noise)))) == noise


def test_fit_recovers_what_the_residuals_were_drawn_with():
    torch.manual_seed(0)
    evidence = some_evidence(B=100, N=14, num_ctrl=4, dtype=torch.float32)
    true = some_noise(4)
    white = torch.randn((100, 1, 14, 4, 3), generator=seeded())
    fitted = PointNoise.fit(true.factors(evidence).correlate(white)[:, 0], evidence)
    for group in range(2):
        # Weights to .1; a length, which enters through neighbours alone, to a third.
        assert fitted.shared[group] == pytest.approx(true.shared[group], abs=0.1)
        assert fitted.local[group] == pytest.approx(true.local[group], abs=0.1)
        assert fitted.reach[group] == pytest.approx(true.reach[group], rel=0.35)
        assert fitted.motion[group] == pytest.approx(true.motion[group], rel=0.35)
        S, expected = (torch.tensor(n.over_time[group]) for n in (fitted, true))
        torch.testing.assert_close(S, expected, rtol=0.2, atol=0.05)


def test_independent_residuals_are_fitted_as_independent():
    evidence = some_evidence(B=60, N=10, num_ctrl=4, dtype=torch.float32)
    white = torch.randn((60, 10, 4, 3), generator=seeded())
    fitted = PointNoise.fit(white, evidence)
    # The neighbourhood may keep its weight and shrink to the point itself; what counts is C.
    L = fitted.factors(evidence).points
    assert (L @ L.mT - torch.eye(10)).abs().mean((0, 2, 3)).max() < 0.02


def test_whitening_undoes_correlating_and_gives_the_likelihood():
    factors = some_noise().factors(some_evidence(N=N))
    white = torch.randn((1, 3, N, M, 3), generator=seeded(), dtype=F64)
    drawn = factors.correlate(white)
    torch.testing.assert_close(factors.whiten(drawn), white)
    # One axis against the Gaussian's own exponent.
    only = drawn * torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    covariance = torch.kron(
        covariance_of_points(some_noise(), 1), torch.tensor(some_noise().over_time[1], dtype=F64)
    )
    x = only[0, 0, ..., 2].flatten()
    expected = x @ torch.linalg.solve(covariance, x) / 2
    torch.testing.assert_close(factors.energy(only)[0, 0], expected, rtol=1e-5, atol=0)


def test_scales_have_heavy_tails_and_mean_square_one():
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    heavy = dataclasses.replace(some_noise(), tail=0.3)
    scales = heavy.scales(normal)
    assert scales.square().mean().item() == pytest.approx(1, abs=0.01)
    assert scales.log().std().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(some_noise().scales(normal), torch.ones_like(normal))
    config = json.loads(json.dumps(dataclasses.asdict(heavy)))
    assert PointNoise.from_config(config) == heavy
    del config["tail"]
    assert PointNoise.from_config(config) == some_noise()
