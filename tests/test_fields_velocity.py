"""Velocity fields: flows that are known, there and back, the adjoint's gradient, and a motion that is learnt."""

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from diffusion4d.errors import UserError
from diffusion4d.fields.velocity import Fit, VelocityField, fit_velocity, flow

torchdiffeq = pytest.importorskip("torchdiffeq", reason="needs the extra diffusion4d[fields]")


def _cloud(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Spin(nn.Module):
    """dx/du = a u ω × x: a turn about ω by a |ω| u² / 2."""

    def __init__(self, turn: Tensor) -> None:
        super().__init__()
        self.turn = nn.Parameter(turn)

    def forward(self, u: Tensor, x: Tensor) -> Tensor:
        return u * torch.linalg.cross(self.turn.expand_as(x), x)


def _skew(turn: Tensor) -> Tensor:
    x, y, z = turn.tolist()
    return torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=turn.dtype)


def test_a_flow_that_is_known_with_its_order_and_back() -> None:
    turn, points = torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64), _cloud(7)
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    expected = torch.stack([points @ torch.matrix_exp(_skew(turn) * u**2 / 2).mT for u in times])
    spin = _Spin(turn).requires_grad_(False)
    errors = [(flow(spin, points, times, substeps=n) - expected).abs().max() for n in (4, 8)]
    assert errors[1] < 1e-5
    # Classical Runge-Kutta steps are of order four.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.4)
    there = flow(spin, points, times, substeps=16)[-1]
    back = flow(spin, there, times.flip(0), substeps=16)[-1]
    torch.testing.assert_close(back, points, atol=1e-6, rtol=0)


def test_the_adjoint_has_the_gradient_of_the_solver() -> None:
    points, target = _cloud(5), _cloud(5, 1)
    times = torch.linspace(0, 1, 3, dtype=torch.float64)
    gradients = []
    for adjoint in (False, True):
        spin = _Spin(torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64))
        moved = flow(spin, points, times, adjoint=adjoint, substeps=16)
        (moved[-1] - target).square().sum().backward()
        gradients.append(spin.turn.grad)
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def _bending(points: Tensor, frames: int) -> Tensor:
    """A twist about z that grows with time and height, and a shift."""
    angle = torch.linspace(0, 0.8, frames, dtype=points.dtype)[:, None] * (1 + points[:, 2])
    x, y, z = points.unbind(-1)
    turned = [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()]
    return torch.stack([*turned, z + 0.3 * angle], -1)


def test_a_motion_is_learnt_reproducibly_and_keeps_its_orientation() -> None:
    nodes = _bending(0.5 * _cloud(40), 9).float()
    settings = Fit(width=32, depth=2, scale=(0.3, 0.3), stages=((1, 150), (2, 60)), last=20)
    field = fit_velocity(nodes, seed=5, settings=settings)
    u = torch.linspace(0, 1, 9)
    moved = flow(field, nodes[0], u)
    travelled = (nodes - nodes[0]).norm(dim=-1).mean()
    assert (moved - nodes).norm(dim=-1).mean() < 0.06 * travelled
    back = flow(field, moved[-1], u.flip(0), substeps=4)[-1]
    assert (back - nodes[0]).norm(dim=-1).max() < 0.01
    # Points do not act on each other: the slope of their sum has every point's own.
    slope = torch.autograd.functional.jacobian(
        lambda x: flow(field, x, u)[-1].sum(0), nodes[0, :6].clone()
    )
    assert isinstance(slope, Tensor)
    assert torch.linalg.det(slope.transpose(0, 1)).min() > 0.3
    again = fit_velocity(nodes, seed=5, settings=settings)
    torch.testing.assert_close(flow(again, nodes[0], u), moved, atol=0, rtol=0)
    other = fit_velocity(nodes, seed=6, settings=settings)
    assert not torch.equal(flow(other, nodes[0], u), moved)


def test_the_adjoint_learns_as_well() -> None:
    nodes = _bending(0.5 * _cloud(20), 5).float()
    settings = Fit(width=16, depth=1, scale=(0.3, 0.3), stages=((1, 60),), last=5, adjoint=True)
    field = fit_velocity(nodes, seed=0, settings=settings)
    moved = flow(field, nodes[0], torch.linspace(0, 1, 5))
    assert (moved - nodes).norm(dim=-1).mean() < 0.4 * (nodes - nodes[0]).norm(dim=-1).mean()


def test_what_cannot_be_fitted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="need at least 2 frames, got 1"):
        fit_velocity(torch.zeros(1, 4, 3), seed=0)
    generator = torch.Generator().manual_seed(0)
    still = VelocityField(torch.zeros(3), torch.tensor(1.0), Fit(), generator)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UserError, match=r"diffusion4d\[fields\]"):
        flow(still, torch.zeros(1, 3), torch.linspace(0, 1, 3))
