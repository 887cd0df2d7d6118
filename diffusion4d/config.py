"""Settings of a training run, as nested frozen values; the command line is derived from them."""

import dataclasses
from pathlib import Path
from typing import Literal

from diffusion4d.scenes.batches import Dropout
from diffusion4d.scenes.pool import PoolSpec


@dataclasses.dataclass(frozen=True)
class Network:
    """Size of the network."""

    num_ctrl: int = 12
    """Control points a trajectory; 12 for up to about 48 frames."""
    width: int = 192
    depth: int = 6
    num_heads: int = 3
    token_channels: int = 128
    """Channels of the encoder's tokens; 0 for a network that takes none."""


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """How weights are found."""

    steps: int = 8_000
    batch: int = 32
    """Clips a step."""
    points: int = 64
    """Trajectories a clip."""
    learning_rate: float = 1e-3
    warmup: int = 200
    """Steps of linear warm-up, before the cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is saved."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network on generated worlds."""

    out: Path = Path("runs/tiny")
    """Folder of the run: checkpoint, logs, and the finished model. A run that finds its checkpoint goes on."""
    objective: Literal["velocity", "mean", "gaussian"] = "velocity"
    """velocity: the sampler; mean: its L2 twin; gaussian: the regressor that a sampler can stand on."""
    regressor: Path | None = None
    """Finished "gaussian" model whose residual a "velocity" network learns."""
    start_from: Path | None = None
    """Finished model whose weights, where they fit, are the first weights."""
    pool: Path = Path("runs/pool")
    """Folder of generated worlds; those that are missing are generated."""
    images: Path | None = None
    """Folder of rendered worlds with tokens; without it, training sees tracks alone."""
    image_share: float = 0.3
    """Share of steps drawn from the rendered worlds."""
    noisy_power: float = 0.5
    """Diffusion times are drawn as uniform ** this: below 1, more of them where noise is high."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 pays where the processor multiplies it natively; weights stay in float32."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    processes: int = 2
    """Processes that generate worlds."""
    network: Network = dataclasses.field(default_factory=Network)
    optimisation: Optimisation = dataclasses.field(default_factory=Optimisation)
    worlds: PoolSpec = dataclasses.field(default_factory=PoolSpec)
    dropout: Dropout = dataclasses.field(default_factory=Dropout)
