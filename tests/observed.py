"""Small evidence and networks for tests, random but fixed."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from diffusion4d.coordinates import BINS, Coordinates
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evidence import Evidence, Tokens

M = 5
CHANNELS = 4
COORDINATES = Coordinates(lateral=tuple(0.3 / (1 + b) for b in range(BINS)), depth=0.25)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_evidence(
    B: int = 1,
    N: int = 6,
    num_ctrl: int = M,
    *,
    tokens: bool = False,
    channels: int = CHANNELS,
    dtype: torch.dtype = torch.float64,
) -> Evidence:
    g = seeded(N)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=dtype)

    seen = Tokens(uniform(B, 2, 6, channels), uniform(B, 2, 6, 3), uniform(B, N, channels))
    return Evidence(
        ctrl=uniform(B, N, num_ctrl, 2) - 0.5,
        weight=uniform(B, N, num_ctrl),
        log_focal=uniform(B),
        focal_known=torch.ones(B, dtype=dtype),
        tokens=seen if tokens else None,
    )


def reordered(evidence: Evidence, order: Tensor) -> Evidence:
    """The same clips with their points in another order."""
    tokens = evidence.tokens
    if tokens is not None:
        tokens = dataclasses.replace(tokens, at_points=tokens.at_points[:, order])
    return dataclasses.replace(
        evidence, ctrl=evidence.ctrl[:, order], weight=evidence.weight[:, order], tokens=tokens
    )


def some_network(*, trained: bool = True, **config: Any) -> TrajectoryDiT:
    """A small network in float64; a `trained` one has random numbers where training starts from zero."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_ctrl": M,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "vector_width": 8,
        "cross_every": 2,
        "token_channels": CHANNELS,
        "coordinates": dataclasses.asdict(COORDINATES),
    }
    network = TrajectoryDiT(**(settings | config)).double().eval()
    if trained:
        g = seeded(1)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3, generator=g)
    return network
