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


@dataclasses.dataclass(frozen=True)
class RenderedSpec:
    """Which rendered worlds a pool holds."""

    worlds: int = 2_500
    """Worlds in the pool."""
    points: int = 128
    """Points a world."""
    frames: int = 32
    """Frames a world."""
    key_frames: int = 6
    """Frames that are rendered: those nearest to the Greville abscissae of a cubic with as many control points."""
    side: int = 128
    """Shorter side of the images, px."""
    samples: int = 1
    """Rays along each side of a pixel: 2 is smoother and takes four times as long."""
    first_seed: int = 1_000_000
    """Seed of the first world; held-out worlds start at 2147483648."""


@dataclasses.dataclass(frozen=True)
class TrainEncoder:
    """Train the small image encoder on rendered worlds."""

    out: Path = Path("runs/encoder")
    """Folder of the run: checkpoint, logs, and the finished model. A run that finds its checkpoint goes on."""
    pool: Path = Path("runs/rendered")
    """Folder of rendered worlds; those that are missing are rendered."""
    steps: int = 2_500
    batch: int = 24
    """Clips a step, with two key frames each."""
    points: int = 64
    """Surface points a clip."""
    learning_rate: float = 1e-3
    warmup: int = 100
    """Steps of linear warm-up, before the cosine."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.998
    """Decay of the moving average of the weights, which is what is saved."""
    temperature: float = 0.07
    """Of the softmax over candidates."""
    radius: float = 8.0
    """Points of one image closer than this, in pixels, are no negatives of each other."""
    depth_weight: float = 0.2
    """Weight of the auxiliary loss on relative depth."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 pays where the processor multiplies it natively; weights stay in float32."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    processes: int = 2
    """Processes that render worlds."""
    worlds: RenderedSpec = dataclasses.field(default_factory=RenderedSpec)
