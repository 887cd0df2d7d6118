"""Objectives of networks that answer zero, against closed forms."""

import math

import pytest
import torch
from observed import M, seeded, some_evidence, some_network

from diffusion4d import objectives
from diffusion4d.denoiser import Anchor

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
