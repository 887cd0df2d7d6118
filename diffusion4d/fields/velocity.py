r"""The diffeomorphic alternative: space flows along a neural velocity field.

    dφ_u(x)/du = v(φ_u(x), u),   φ_0(x) = x          (Chen et al. 2018; as in Niemeyer et al. 2019, "Occupancy flow")

A flow of a smooth field never folds over and has an inverse, the flow backwards; but two things that meet cannot part
again as they were, and it must be fitted to every motion. v is a small network on Fourier features of place and time.
It is fitted in two stages: first to the nodes' own velocities along their ways, which is plain regression, then to
where the flow takes them, by differentiating through the integration (torchdiffeq; with the adjoint method memory
does not grow with the steps).

Shape letters:  N nodes   V points   I instants   C features
"""

import math
from importlib import import_module
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion4d.errors import UserError

WIDTH = 96
FREQUENCIES = 4


class VelocityField(nn.Module):
    """v(x, u), in a box in which the nodes move within [−1, 1].

    Args:
        centre, scale: of that box.
    """

    def __init__(
        self, centre: Float[Tensor, "3"], scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", centre)
        self.scale = scale
        inputs = 4 * (1 + 2 * FREQUENCIES)
        sizes = (inputs, WIDTH, WIDTH, WIDTH, 3)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes):
            layer = nn.Linear(wide, narrow)
            nn.init.trunc_normal_(layer.weight, std=wide**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(
        self, u: Float[Tensor, ""] | Float[Tensor, "V 1"], x: Float[Tensor, "V 3"]
    ) -> Tensor:
        """Velocity per u at places x."""
        place = (x - self.centre) / self.scale
        time = 2 * torch.as_tensor(u).to(x).expand(len(x), 1) - 1
        known = torch.cat([place, time], -1)
        bands = [known]
        for i in range(FREQUENCIES):
            angle = 0.5 * math.pi * 2**i * known
            bands += [angle.sin(), angle.cos()]
        return self.scale * self.layers(torch.cat(bands, -1))


def fit_velocity(
    positions: Float[Tensor, "I N 3"],
    velocities: Float[Tensor, "I N 3"],
    instants: Float[Tensor, "I"],
    *,
    seed: int,
    regression_steps: int = 2000,
    flow_steps: int = 30,
    adjoint: bool = False,
) -> VelocityField:
    """The field that takes nodes along their ways.

    Args:
        velocities: dp/du of the nodes.
        instants: u, increasing; the first one is where space is at rest.
        adjoint: gradients by the adjoint method instead of through the solver's steps.

    Raises:
        UserError: the extra `fields` is not installed.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = positions.reshape(-1, 3)
    centre = (flat.amax(0) + flat.amin(0)) / 2
    scale = float((flat - centre).abs().max().clamp_min(1e-6))
    field = VelocityField(centre, scale, generator)
    times = instants[:, None, None].expand(*positions.shape[:2], 1).reshape(-1, 1).to(positions)
    wanted = velocities.reshape(-1, 3)
    size = wanted.square().mean().clamp_min(1e-12)
    optimiser = torch.optim.Adam(field.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, regression_steps)
    for _ in range(regression_steps):
        chosen = torch.randint(len(flat), (512,), generator=generator)
        # A field that only knows the ways themselves is free to pull neighbours in: places beside them count as well.
        beside = flat[chosen] + 0.01 * scale * torch.randn(512, 3, generator=generator).to(flat)
        loss = (field(times[chosen], beside) - wanted[chosen]).square().mean() / size
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    optimiser = torch.optim.Adam(field.parameters(), lr=5e-4)
    for _ in range(flow_steps):
        moved = flow(field, positions[0], instants, adjoint=adjoint)
        loss = (moved - positions).square().mean() / scale**2
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimiser.step()
    return field.requires_grad_(False)


def flow(
    field: VelocityField,
    points: Float[Tensor, "V 3"],
    instants: Float[Tensor, "I"],
    *,
    adjoint: bool = False,
) -> Float[Tensor, "I V 3"]:
    """Where points that are at rest at the first instant are at every one. Instants that decrease run backwards.

    Raises:
        UserError: the extra `fields` is not installed.
    """
    try:
        solver = import_module("torchdiffeq")
    except ImportError as error:
        raise UserError(
            "need torchdiffeq for velocity fields: pip install 'diffusion4d[fields]'"
        ) from error
    solve = solver.odeint_adjoint if adjoint else solver.odeint
    return solve(field, points, instants.to(points), method="rk4")
