"""From network to denoiser: what samplers make of a network that has learnt nothing, anchors, formulas."""

import dataclasses
import math

import pytest
import torch
from observed import COORDINATES, M, seeded, some_evidence, some_network

from diffusion4d import denoiser
from diffusion4d.denoiser import LIMIT, SCHEDULE, Anchor
from diffusion4d.noise import PointNoise
from diffusion4d.sampling import CorrelatedNoise, table_for
from samplers.noise import SeededNoise
from samplers.predictions import target, to_x_0
from samplers.solve import solve
from samplers.tables import Table

F64 = torch.float64
N = 3


def some_noise() -> PointNoise:
    over_time = tuple(tuple(0.8 ** abs(i - j) for j in range(M)) for i in range(M))
    return PointNoise((0.3, 0.5), (0.4, 0.3), (0.5, 0.5), (0.5, 0.5), (over_time, over_time))


def untrained_clip() -> denoiser.ClipDenoiser:
    network = some_network(trained=False, noise=dataclasses.asdict(some_noise()))
    return denoiser.prepare(network, some_evidence(N=N))


def deviation_without_knowledge(table: Table) -> float:
    """Deviation of the sample where v = 0, so x_0 = alpha x_t, for noise of deviation 1.

    (x_t, x_0 of the step before) is linear in what came before; its covariance is carried along.
    """
    cov = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64)
    for i, alpha in enumerate(SCHEDULE.alpha(table.times[:-1]).tolist()):
        step = torch.tensor(
            [
                [float(table.a[i]) + float(table.b[i]) * alpha, float(table.d[i].sum())],
                [alpha, 0.0],
            ],
            dtype=F64,
        )
        cov = step @ cov @ step.T
        cov[0, 0] += table.e[i] ** 2
    return float(cov[0, 0].sqrt())


def test_what_few_steps_leave_of_the_deviation():
    # Rotating by the angle of a step and shrinking to the denoiser's answer multiplies by its cosine.
    for steps in (1, 2, 8, 16):
        expected = math.cos(math.pi / 2 / steps) ** steps
        assert deviation_without_knowledge(table_for("ddim", steps)) == pytest.approx(expected)
    assert deviation_without_knowledge(table_for("ancestral", 1000)) == pytest.approx(1, abs=0.003)
    assert deviation_without_knowledge(table_for("dpmpp_2m", 64)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_an_untrained_network_samples_the_covariance_of_the_noise(sampler):
    clip = untrained_clip()
    # Deterministic samplers are linear here: basis vectors give the matrix from white noise to sample.
    for axis in range(3):
        basis = torch.zeros(1, N * M, N, M, 3, dtype=F64)
        basis[0, ..., axis] = torch.eye(N * M, dtype=F64).unflatten(-1, (N, M))
        noise = clip.factors.correlate(basis)
        table = table_for(sampler, 8)
        out = solve(table, lambda x, t: clip.denoise(x[None], t)[0], noise[0])
        expected = deviation_without_knowledge(table) * noise[0]
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-9)


def test_an_untrained_network_samples_the_covariance_with_fresh_noise():
    clip, table, K = untrained_clip(), table_for("ancestral", 6), 3000
    noise = CorrelatedNoise(SeededNoise(range(K), (N, M, 3)), clip.factors)
    out = solve(table, lambda x, t: clip.denoise(x[None], t)[0], noise.initial(), noise)
    C = (clip.factors.points @ clip.factors.points.mT)[0]
    S = clip.factors.over_time @ clip.factors.over_time.mT
    for axis, group in ((0, 0), (1, 0), (2, 1)):
        expected = deviation_without_knowledge(table) ** 2 * torch.kron(C[group], S[group])
        # A sampled covariance of numbers with variance <= 1 errs by sqrt(2 / K); five times that is allowed.
        drawn = out[..., axis].flatten(1).T.cov()
        torch.testing.assert_close(drawn, expected, atol=5 * math.sqrt(2 / K), rtol=0)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_the_denoiser_reads_a_velocity(t):
    network = some_network()
    clip = denoiser.prepare(network, some_evidence(N=N, tokens=True))
    x_t = torch.randn((1, 2, N, M, 3), generator=seeded(), dtype=F64)
    time = torch.tensor(t, dtype=F64)
    alpha, sigma = SCHEDULE.alpha(time), SCHEDULE.sigma(time)
    v = network(x_t, time.expand(1, 2), clip.conditioning)
    x_0 = alpha * x_t - sigma * v
    torch.testing.assert_close(clip.denoise(x_t, time), x_0.clamp(-LIMIT, LIMIT))
    torch.testing.assert_close(to_x_0("v_prediction", v, x_t, alpha, sigma), x_0)
    # What v is trained to be gives x_0 back.
    noise = torch.randn(x_t.shape, generator=seeded(1), dtype=F64)
    v = target("v_prediction", x_0, noise, alpha, sigma)
    torch.testing.assert_close(alpha * (alpha * x_0 + sigma * noise) - sigma * v, x_0)


def test_an_anchor_measures_in_deviations_of_the_regressor():
    g = seeded()
    mean = torch.randn((1, N, M, 3), generator=g, dtype=F64)
    anchor = Anchor(mean, torch.randn((1, N, M, 3), generator=g, dtype=F64))
    one_off = mean + anchor.log_std.exp()
    torch.testing.assert_close(anchor.encode(one_off), torch.ones_like(mean))
    r = torch.randn((1, 2, N, M, 3), generator=g, dtype=F64)
    x = anchor.decode(r)
    torch.testing.assert_close(anchor.encode(x[:, 1]), r[:, 1])
    assert (anchor.encode(mean + 1e6) == LIMIT).all()
    assert torch.equal(anchor.stacked()[..., :3], mean)


def test_regressors():
    evidence = some_evidence(N=N)
    mean = denoiser.regress(some_network(output="mean"), evidence)
    assert (mean.log_std == 0).all()
    assert (mean.mean != 0).any()
    start = denoiser.regress(some_network(trained=False, output="gaussian"), evidence)
    assert (start.mean == 0).all()
    expected = torch.full_like(start.log_std, 3 * math.tanh(1 / 3) - 1)
    torch.testing.assert_close(start.log_std, expected)
    ends = denoiser.bounded_log_std(torch.tensor([-1e9, -1.0, 1e9]))
    torch.testing.assert_close(ends, torch.tensor([-4.0, -1.0, 2.0]))


def test_decoding_goes_through_the_anchor_and_the_coordinates():
    evidence = some_evidence(N=N)
    regressor = some_network(output="gaussian")
    sampler = some_network(anchored=True)
    clip = denoiser.prepare(sampler, evidence, regressor)
    answer = denoiser.regress(regressor, evidence)
    zero = torch.zeros(1, 1, N, M, 3, dtype=F64)
    expected = COORDINATES.decode(answer.mean[:, None].double(), evidence)
    torch.testing.assert_close(clip.decode(zero), expected)


def test_a_network_without_coordinates_is_refused():
    network = some_network(coordinates=None)
    with pytest.raises(ValueError, match="without coordinates"):
        denoiser.prepare(network, some_evidence())
    assert denoiser.noise_of(network) == PointNoise.white(M)
