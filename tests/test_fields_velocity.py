"""The velocity field: it follows motions it was fitted to, there and back, the same by both gradients."""

import math
import sys

import pytest
import torch

from diffusion4d.errors import UserError
from diffusion4d.fields.velocity import VelocityField, fit_velocity, flow

pytest.importorskip("torchdiffeq", reason="needs torchdiffeq, the extra fields")


def test_it_follows_a_turn_and_comes_back() -> None:
    """A body that turns by 90° about z: points between the nodes turn, too, and the flow backwards undoes it."""
    generator = torch.Generator().manual_seed(0)
    rest = torch.rand(80, 3, generator=generator) - 0.5
    instants = torch.linspace(0, 1, 13)
    angle = 0.5 * math.pi * instants[:, None]
    x, y, z = rest.T
    positions = torch.stack(
        [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos(), z.expand(13, -1)], -1
    )
    velocities = (
        0.5
        * math.pi
        * torch.stack([-positions[..., 1], positions[..., 0], 0 * positions[..., 2]], -1)
    )
    field = fit_velocity(
        positions, velocities, instants, seed=0, regression_steps=400, flow_steps=10
    )
    points = 0.7 * (torch.rand(50, 3, generator=generator) - 0.5)
    moved = flow(field, points, instants)
    expected = torch.stack([-points[:, 1], points[:, 0], points[:, 2]], -1)
    assert (moved[-1] - expected).norm(dim=-1).mean() < 0.02
    back = flow(field, moved[-1], instants.flip(0))[-1]
    torch.testing.assert_close(back, points, atol=1e-3, rtol=0)
    again = fit_velocity(
        positions, velocities, instants, seed=0, regression_steps=400, flow_steps=10
    )
    assert torch.equal(flow(again, points, instants), moved)


def test_both_gradients_agree() -> None:
    field = VelocityField(torch.zeros(3), 1.0, torch.Generator().manual_seed(1)).double()
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    instants = torch.linspace(0, 1, 21, dtype=torch.float64)
    slopes = []
    for adjoint in (False, True):
        field.zero_grad()
        flow(field, points, instants, adjoint=adjoint)[-1].square().sum().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-4, rtol=1e-3)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    field = VelocityField(torch.zeros(3), 1.0, torch.Generator().manual_seed(1))
    with pytest.raises(UserError, match=r"diffusion4d\[fields\]"):
        flow(field, torch.zeros(1, 3), torch.linspace(0, 1, 3))
