"""Objectives of networks that answer zero, against closed forms; what energy training finds."""

import dataclasses
import math

import pytest
import torch
from observed import M, seeded, some_evidence, some_network

from diffusion4d import denoiser, objectives, sampling
from diffusion4d.denoiser import Anchor
from diffusion4d.scenes.batches import Example

B, N = 64, 6


def data() -> torch.Tensor:
    return torch.randn((B, N, M, 3), generator=seeded())


def test_mean_loss_of_zero_is_the_mean_square():
    network = some_network(trained=False, output="mean").float()
    x = data()
    loss = objectives.mean_loss(network, some_evidence(B, N, dtype=torch.float32), x)
    torch.testing.assert_close(loss, x.square().mean())


def test_gaussian_loss_and_its_gradients():
    network = some_network(trained=False, output="gaussian").float()
    x = data()
    loss = objectives.gaussian_loss(network, some_evidence(B, N, dtype=torch.float32), x)
    log_s = 3 * math.tanh(1 / 3) - 1
    s = math.exp(log_s)
    expected = s * (x.square() / (2 * s**2) + log_s).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    # d/d mu = -x / s: with beta = 1/2 the residual counts by one deviation, not two. d/d log s = s (1 - x^2 / s^2).
    assert network.project_out.bias.grad is not None
    bias = network.project_out.bias.grad.unflatten(0, (M, 6))
    by_mean = -(x / s).sum((0, 1)) / x.numel()
    slope = 1 - math.tanh(1 / 3) ** 2
    by_log_s = slope * (s * (1 - x.square() / s**2)).sum((0, 1)) / x.numel()
    torch.testing.assert_close(bias[:, :3], by_mean)
    torch.testing.assert_close(bias[:, 3:], by_log_s)


@pytest.mark.parametrize(("power", "noise_share"), [(1.0, 0.5), (0.5, None)])
def test_velocity_loss_of_zero_is_the_mean_square_velocity(power, noise_share):
    network = some_network(trained=False).float()
    evidence = some_evidence(600, N, dtype=torch.float32)
    x = torch.full((600, N, M, 3), 3.0)
    loss = objectives.velocity_loss(
        network, evidence, x, seeded(), anchor=None, noisy_power=power
    ).item()
    # E |v|^2 = E[alpha^2] + 9 E[sigma^2]; for t = sqrt(uniform), density 2 t, E[sigma^2] = 1/2 + 2 / pi^2.
    signal = 0.5 if noise_share is not None else 0.5 - 2 / math.pi**2
    assert loss == pytest.approx(signal + 9 * (1 - signal), rel=0.05)


def test_velocity_points_from_data_to_noise():
    # E[v] = -E[sigma] r, and E[sin(pi t / 2)] = 2 / pi; the gradient at zero is -2 E[v] over the 3 M outputs.
    network = some_network(trained=False).float()
    evidence = some_evidence(600, N, dtype=torch.float32)
    x = torch.full((600, N, M, 3), 3.0)
    objectives.velocity_loss(
        network, evidence, x, seeded(), anchor=None, noisy_power=1.0
    ).backward()
    gradient = network.project_out.bias.grad
    assert gradient is not None
    expected = torch.full_like(gradient, 2 * 3 * (2 / math.pi) / (3 * M))
    torch.testing.assert_close(gradient, expected, rtol=0.1, atol=0)


def test_velocity_loss_is_of_the_residual():
    # A regressor that answers exactly leaves nothing but noise to predict: E |v|^2 = E[alpha^2] = 1/2.
    network = some_network(trained=False, anchored=True).float()
    x = torch.randn((600, N, M, 3), generator=seeded())
    anchor = Anchor(x, torch.full_like(x, 0.7))
    evidence = some_evidence(600, N, dtype=torch.float32)
    loss = objectives.velocity_loss(
        network, evidence, x, seeded(), anchor=anchor, noisy_power=1.0
    ).item()
    assert loss == pytest.approx(0.5, rel=0.1)


def test_median_loss_of_zero_is_the_mean_absolute_value():
    network = some_network(trained=False, output="mean").float()
    x = data()
    loss = objectives.median_loss(network, some_evidence(B, N, dtype=torch.float32), x)
    torch.testing.assert_close(loss, x.abs().mean())


def test_fair_score_of_scenes_and_of_paths():
    # Truth at zero, two samples at a and b along one axis: (|a| + |b|) / 2 - |a - b| / 2.
    samples = torch.zeros(1, 2, 3, 4, 3, dtype=torch.float64)
    samples[:, 0, :, :, 0] = 1.0
    samples[:, 1, :, :, 0] = -2.0
    truth = torch.zeros(1, 1, 3, 4, 3, dtype=torch.float64)
    for over_points in (True, False):
        score = objectives.fair_score(samples, truth, over_points=over_points)
        torch.testing.assert_close(score, torch.zeros(1, dtype=torch.float64), atol=1e-8, rtol=0)
    samples[:, 1] = -samples[:, 1]
    torch.testing.assert_close(
        objectives.fair_score(samples, truth), torch.ones(1, dtype=torch.float64)
    )
    # Only one of the three points is chosen, and it alone is off.
    samples[:, :, 1:] = 0
    weight = torch.zeros(1, 3, 4, dtype=torch.float64)
    weight[:, 0] = 1
    scene = objectives.fair_score(samples, truth, over_points=True, weight=weight)
    torch.testing.assert_close(scene, torch.ones(1, dtype=torch.float64))
    nothing = objectives.fair_score(
        samples, truth, over_points=True, weight=torch.zeros_like(weight)
    )
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-4, rtol=0)


def test_fair_score_is_proper_and_its_expectation_is_known():
    # In one dimension E|X - y| - E|X - X'| / 2 for X, y ~ N(0, 1) is 1 / sqrt(pi); any other spread scores worse.
    truth = torch.randn(40_000, 1, 1, 1, 1, generator=seeded(), dtype=torch.float64)
    white = torch.randn(40_000, 2, 1, 1, 1, generator=seeded(1), dtype=torch.float64)

    def score(spread: float) -> float:
        padded = [torch.nn.functional.pad(x, (0, 2)) for x in (spread * white, truth)]
        return objectives.fair_score(padded[0], padded[1]).mean().item()

    assert score(1.0) == pytest.approx(math.pi**-0.5, abs=0.01)
    assert score(1.0) < min(score(0.6), score(1.5))


def test_edges_lead_to_the_nearest_points():
    evidence = some_evidence(2, 7)
    near = objectives.neighbours(evidence)
    place = evidence.in_view()[..., 0, :]
    points = torch.nn.functional.pad(place, (0, 1))[:, None, :, None]
    lengths = objectives.edges(points, near).norm(dim=-1)[:, 0, :, 0]
    apart = torch.cdist(place, place) + torch.eye(7).double() * 9
    nearest = apart.sort(-1).values[..., : objectives.NEIGHBOURS].flatten(1)
    torch.testing.assert_close(lengths, nearest)


def test_stretch_is_nothing_under_rigid_motion_and_the_log_of_a_scale():
    evidence = some_evidence(2, 7)
    near = objectives.neighbours(evidence)
    shape = torch.randn(2, 1, 7, 1, 3, generator=seeded(), dtype=torch.float64)
    angle = torch.linspace(0, 1, 5, dtype=torch.float64)
    zero = torch.zeros_like(angle)
    turn = torch.stack(
        [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, zero + 1], -1
    )
    turned = (
        torch.einsum(
            "tij,bkntj->bknti", turn.unflatten(-1, (3, 3)), shape.expand(-1, -1, -1, 5, -1)
        )
        + angle[:, None]
    )
    assert objectives.stretch(turned, near).abs().max() < 1e-9
    grown = 1000 * shape * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None]
    logs = objectives.stretch(grown, near)[..., 0]
    expected = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64).log().expand_as(logs)
    torch.testing.assert_close(logs, expected, atol=1e-3, rtol=0)


def test_energy_training_finds_spread_and_mean():
    """Truths that the evidence does not tell apart, N(m, s^2) in log depth: two steps from noise learn m and s."""
    torch.manual_seed(0)
    network = some_network(trained=False, token_channels=0).float()
    evidence = some_evidence(64, 3, dtype=torch.float32)
    evidence = type(evidence)(
        ctrl=torch.zeros_like(evidence.ctrl), weight=torch.ones_like(evidence.weight),
        log_focal=torch.zeros(64), focal_known=torch.ones(64),
    )  # fmt: skip
    table = sampling.table_for("angular", 2)
    u = torch.linspace(0, 1, 6)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    # Spread is learnt more slowly than the mean, and wanders while steps are large.
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=500)
    generator = seeded(3)
    mean, deviation = 0.3, 0.1
    for _ in range(500):
        zeta = mean + deviation * torch.randn((64, 1, 1, 1), generator=generator)
        ctrl = torch.tensor([0.0, 0.0, 1.0]) * zeta.exp().expand(64, 3, M, 3)
        points = ctrl[..., :1, :].expand(64, 3, 6, 3)
        seen = torch.ones(64, 3, 6)
        example = Example(
            evidence, ctrl, points, seen.bool(), seen[..., 0].bool(), seen[..., None].expand(-1, -1, -1, 2),
            seen, torch.ones(64, 4), u,
        )  # fmt: skip
        clip = denoiser.prepare(network, evidence)
        loss = objectives.energy_loss(clip, example, generator, table=table, num_samples=2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    one = denoiser.prepare(network, some_clip(evidence))
    depth = sampling.sample(one, list(range(200)), table)[..., 2].log().mean((1, 2))
    assert depth.mean().item() == pytest.approx(mean, abs=0.05)
    assert depth.std().item() == pytest.approx(deviation, rel=0.4)


def some_clip(evidence):
    """The first clip of a batch."""
    return dataclasses.replace(
        evidence,
        **{f: getattr(evidence, f)[:1] for f in ("ctrl", "weight", "log_focal", "focal_known")},
    )


def test_marginal_score_of_samples_of_known_spread():
    # Residuals N(0, 1) and samples of the same law: fair CRPS 1 / sqrt(pi); a point mass scores E|x| = sqrt(2 / pi).
    evidence = some_evidence(64, N)
    residual = torch.randn((64, 1, N, M, 3), generator=seeded(), dtype=torch.float64)
    network = some_network()
    clip = denoiser.prepare(network, evidence)
    ctrl = clip.decode(residual).squeeze(1)
    seen = torch.ones(64, N, 4)
    example = Example(
        evidence, ctrl, ctrl[..., :4, :], seen.bool(), seen[..., 0].bool(), seen[..., None].expand(-1, -1, -1, 2),
        seen, torch.ones(64, 4), torch.linspace(0, 1, 4),
    )  # fmt: skip
    samples = torch.randn((64, 4, N, M, 3), generator=seeded(1), dtype=torch.float64)
    score = objectives.marginal_score(clip, example, samples).item()
    assert score == pytest.approx(math.pi**-0.5, abs=0.02)
    nothing = objectives.marginal_score(clip, example, torch.zeros_like(samples)).item()
    assert nothing == pytest.approx((2 / math.pi) ** 0.5, abs=0.02)


def whole_example(evidence, ctrl):
    """An example whose truth is these control points."""
    B, N = ctrl.shape[:2]
    seen = torch.ones(B, N, 4)
    return Example(
        evidence, ctrl, ctrl[..., :4, :], seen.bool(), seen[..., 0].bool(), seen[..., None].expand(-1, -1, -1, 2),
        seen, torch.ones(B, 4), torch.linspace(0, 1, 4),
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["progressive", "consistency"])
def test_a_student_of_a_network_that_says_nothing_has_nothing_to_learn(objective):
    """v = 0 is the mean velocity over any arc; a student that says 1 is off by 1, or by what its own answer leaves."""
    evidence = some_evidence(B, N)
    truth = torch.randn((B, 1, N, M, 3), generator=seeded(), dtype=torch.float64)
    silent, loud = (some_network(trained=False, token_channels=0) for _ in range(2))
    torch.nn.init.ones_(loud.project_out.bias)
    teacher = denoiser.prepare(silent, evidence)
    example = whole_example(evidence, teacher.decode(truth)[:, 0])

    def loss(network, **settings):
        student = denoiser.prepare(network, evidence)
        if objective == "progressive":
            return objectives.progressive_loss(student, teacher, example, seeded(), num_steps=3)
        return objectives.consistency_loss(
            student, teacher, example, seeded(), noisy_power=1.0, **settings
        )

    settings = {} if objective == "progressive" else {"num_intervals": 4}
    # V = 1 against φ_s / φ_t: the mean over four times of (1 − s / t)^2 = (1/4, 1/3, 1/2, 1)^2.
    expected = 1 if objective == "progressive" else (1 / 16 + 1 / 9 + 1 / 4 + 1) / 4
    assert loss(silent, **settings).item() == pytest.approx(0, abs=1e-12)
    assert loss(loud, **settings).item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_student_that_goes_where_its_teacher_goes_has_no_loss(num_steps):
    """The loss is the distance of the student's steps from the teacher's two, as their tables take them."""
    evidence = some_evidence(2, N)
    teacher = denoiser.prepare(some_network(token_channels=0), evidence)
    quiet = denoiser.prepare(some_network(trained=False, token_channels=0), evidence)
    truth = 0.1 * torch.randn((2, 1, N, M, 3), generator=seeded(), dtype=torch.float64)
    example = whole_example(evidence, teacher.decode(truth)[:, 0])
    loss = objectives.progressive_loss(quiet, teacher, example, seeded(), num_steps=num_steps)
    # A student that says nothing stays where it is, so its loss is the squared mean velocity of the teacher.
    generator = seeded()
    step = torch.randint(num_steps, (2, 1), generator=generator)
    times = sampling.table_for("angular", 2 * num_steps).times
    x = objectives.noised(quiet, example, times[2 * step], generator)
    table = sampling.table_for("angular", 2 * num_steps)
    expected = []
    for clip in range(2):
        y = x.clone()
        for i in (2 * int(step[clip]), 2 * int(step[clip]) + 1):
            t = table.times[i]
            answer = teacher.velocity(y, t)
            answer = denoiser.SCHEDULE.alpha(t) * y - denoiser.SCHEDULE.sigma(t) * answer
            y = table.a[i] * y + table.b[i] * answer
        expected.append(((x - y)[clip] / (math.pi / 2 / num_steps)).square().mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_half_precision_leaves_the_gradient_of_consistency_whole():
    """Copies of weights that are made without gradients first would have none."""
    evidence = some_evidence(4, N, dtype=torch.float32)
    network, taught = (some_network(token_channels=0).float() for _ in range(2))
    truth = torch.randn((4, 1, N, M, 3), generator=seeded())
    teacher = denoiser.prepare(taught.requires_grad_(False), evidence)
    example = whole_example(evidence, teacher.decode(truth)[:, 0])

    def gradient(enabled: bool) -> torch.Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            student = denoiser.prepare(network, evidence)
            loss = objectives.consistency_loss(
                student, teacher, example, seeded(), num_intervals=4, noisy_power=0.5
            )
        loss.backward()
        parameters = dict(network.named_parameters())
        named = [parameters[name].grad for name in ("blocks.0.mlp.0.weight", "embed_noised.weight")]
        return torch.cat([g.flatten() for g in named if g is not None])

    whole, half = gradient(False), gradient(True)
    assert torch.nn.functional.cosine_similarity(whole, half, 0) > 0.98
