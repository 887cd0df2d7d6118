"""Few steps from many: targets against exact flows, and what small networks learn of a mixture in seconds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from samplers.distillation import along, angle, consistency_target, progressive_target
from samplers.grids import uniform
from samplers.schedules import CosineSchedule
from samplers.solve import solve
from samplers.tables import Table, angular, renoised

F64 = torch.float64
COSINE = CosineSchedule()
VARIANCE = 0.3
Velocity = Callable[[Tensor, Tensor], Tensor]


def flow(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The exact flow for data N(0, VARIANCE): the standard score of x stays what it is."""
    scale_t, scale_s = (
        (COSINE.alpha(at) ** 2 * VARIANCE + COSINE.sigma(at) ** 2).sqrt() for at in (t, s)
    )
    return x_t * (scale_s / scale_t).reshape(t.shape + (1,) * (x_t.dim() - t.dim()))


def mean_velocity(step: float) -> Velocity:
    """Of the exact flow over an arc of this length in t, or what is left of it."""

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        s = (t - step).clamp_min(0)
        # At t = 0 there is no arc; what is answered there is multiplied by nothing.
        turn = (angle(COSINE, t, x_t) - angle(COSINE, s, x_t)).clamp_min(1e-9)
        return (x_t - flow(x_t, t, s)) / turn

    return velocity


def some_x() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_two_exact_steps_are_one_exact_step_of_twice_the_length() -> None:
    t = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=F64)
    x_t = some_x()
    target = progressive_target(COSINE, mean_velocity(0.125), x_t, (t, t - 0.125, t - 0.25))
    torch.testing.assert_close(target, mean_velocity(0.25)(x_t, t))
    x_s = along(COSINE, mean_velocity(0.25), x_t, t, t - 0.25)
    torch.testing.assert_close(x_s, flow(x_t, t, t - 0.25))


def test_the_exact_way_to_the_data_is_consistent() -> None:
    t = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=F64)
    x_t, to_data = some_x(), mean_velocity(1.0)
    target = consistency_target(COSINE, mean_velocity(0.1), to_data, x_t, (t, t - 0.1))
    torch.testing.assert_close(target, to_data(x_t, t))
    # A student that is off is drawn towards the teacher: on the last arc it has no say at all.
    target = consistency_target(COSINE, mean_velocity(0.1), lambda x, t: x + 9, x_t, (t, t - 0.1))
    torch.testing.assert_close(target[-1], to_data(x_t, t)[-1])
    assert (target[:-1] - to_data(x_t, t)[:-1]).abs().min() > 0.5


def denoiser_of(velocity: Velocity) -> Velocity:
    """x̂_0 = α x − σ V, as tables take it."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return COSINE.alpha(t) * x_t - COSINE.sigma(t) * velocity(x_t, t)

    return denoise


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_renoised_steps_of_a_consistent_network_are_exact(num_steps: int) -> None:
    # Every row maps x_t to an exact sample of the data and noises it afresh: the variance is right at every time.
    table = renoised(COSINE, uniform(num_steps))
    one, variance = torch.ones((), dtype=F64), torch.ones((), dtype=F64)
    to_data = denoiser_of(mean_velocity(1.0))
    for i in range(num_steps):
        gain = table.a[i] + table.b[i] * to_data(one, table.times[i])
        variance = gain**2 * variance + table.e[i] ** 2
        s = table.times[i + 1]
        expected = COSINE.alpha(s) ** 2 * VARIANCE + COSINE.sigma(s) ** 2
        torch.testing.assert_close(variance, expected)
    assert table.e[-1] == 0
    single, arc = renoised(COSINE, uniform(1)), angular(COSINE, uniform(1))
    for name in ("a", "b", "e"):
        torch.testing.assert_close(getattr(single, name), getattr(arc, name))


@dataclass(frozen=True)
class Islands:
    """A mixture of small Gaussians in the plane."""

    weights: Tensor
    places: Tensor
    deviation: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.places[chosen] + self.deviation * torch.randn(count, 2, generator=generator)

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """v = (α x − x̂_0) / σ, x̂_0 the mean of the islands' posterior means."""
        alpha, sigma = (f(t).reshape(-1, 1) for f in (COSINE.alpha, COSINE.sigma))
        variance = alpha**2 * self.deviation**2 + sigma**2
        apart = x_t[:, None] - alpha[..., None] * self.places
        share = torch.softmax(self.weights.log() - apart.square().sum(-1) / (2 * variance), -1)
        means = self.places + (alpha * self.deviation**2 / variance)[..., None] * apart
        x_0 = (share[..., None] * means).sum(1)
        return (alpha * x_t - x_0) / sigma

    def shares(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.places).argmin(1)
        return torch.bincount(nearest, minlength=len(self.places)) / len(x)


ISLANDS = Islands(
    torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.4]]), 0.15
)


class Plane(nn.Module):
    """A velocity in the plane."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(5, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phi = (t.expand(len(x)) * math.pi / 2)[:, None]
        return self.layers(torch.cat([x, phi, phi.sin(), phi.cos()], 1))


def fit(network: Plane, steps: int, times: Tensor, target: Callable[[Tensor, int], Tensor]) -> None:
    """Least squares of the target at the chosen times, over data under noise."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x_0 = ISLANDS.draw(256, generator)
        index = int(torch.randint(len(times), (), generator=generator))
        t = times[index]
        x_t = COSINE.alpha(t) * x_0 + COSINE.sigma(t) * torch.randn(256, 2, generator=generator)
        loss = (network(x_t, t) - target(x_t, index)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def shares_of(table: Table, velocity: Velocity) -> Tensor:
    x_1 = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2))

    class Fresh:
        def initial(self) -> Tensor:
            return x_1

        def at(self, step: int) -> Tensor:
            return torch.randn(4000, 2, generator=torch.Generator().manual_seed(3 + step))

    return ISLANDS.shares(solve(table, denoiser_of(velocity), x_1, Fresh()))


def test_consistency_finds_the_odds_of_a_mixture_in_one_step_and_in_two() -> None:
    network, grid = Plane(), uniform(12).float()

    def target(x_t: Tensor, i: int) -> Tensor:
        return consistency_target(COSINE, ISLANDS.velocity, network, x_t, (grid[i], grid[i + 1]))

    fit(network, 1200, grid[:-1], target)
    for num_steps in (1, 2):
        shares = shares_of(renoised(COSINE, uniform(num_steps)), network)
        torch.testing.assert_close(shares, ISLANDS.weights, atol=0.05, rtol=0)


def test_progressive_halving_keeps_the_odds_of_a_mixture() -> None:
    teacher: Velocity = ISLANDS.velocity
    for num_steps in (8, 4, 2, 1):
        network, grid = Plane(), uniform(2 * num_steps).float()

        def target(x_t: Tensor, i: int, teacher: Velocity = teacher, grid: Tensor = grid) -> Tensor:
            times = (grid[2 * i], grid[2 * i + 1], grid[2 * i + 2])
            return progressive_target(COSINE, teacher, x_t, times)

        fit(network, 500, grid[:-1:2], target)
        teacher = network
        if num_steps <= 2:
            shares = shares_of(angular(COSINE, uniform(num_steps)), network)
            torch.testing.assert_close(shares, ISLANDS.weights, atol=0.05, rtol=0)
