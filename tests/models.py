"""Small worlds and models for tests: everything is real but its size."""

import numpy as np
import torch

from diffusion4d import cameras
from diffusion4d.coordinates import BINS
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.noise import PointNoise
from diffusion4d.pipeline import Diffusion4DPipeline, preprocessing_of
from diffusion4d.scenes.pool import Worlds
from priors.dinov3 import Encoder

CTRL = 6


def simple_worlds(count: int = 4, points: int = 20, frames: int = 9) -> Worlds:
    """Points on a sine's way at different depths, with truth in closed form; every third one is hidden at the end."""
    rng = torch.Generator().manual_seed(7)
    u = torch.linspace(0, 1, frames)
    size = torch.tensor([[48.0, 64.0]]).expand(count, 2).clone()
    intrinsics = torch.stack(
        [cameras.intrinsics_from_fov((48, 64), 40.0 + 5 * i) for i in range(count)]
    )
    place = torch.rand(count, points, 3, generator=rng) - torch.tensor([0.5, 0.5, -0.7])
    way = torch.rand(count, points, 3, generator=rng) - 0.5
    moved = place[:, :, None] + 0.3 * way[:, :, None] * torch.sin(3 * u)[:, None]
    visible = torch.ones(count, points, frames, dtype=torch.bool)
    visible[:, ::3, frames // 2 :] = False
    moving = torch.ones(count, points, dtype=torch.bool)
    scale = moved[:, :, 0, 2].median(-1).values[:, None, None, None]
    return Worlds(moved / scale, visible, moving, intrinsics, size)


def small_network(
    output: str = "velocity", *, anchored: bool = False, token_channels: int = 0, seed: int = 0
) -> TrajectoryDiT:
    """A network whose every weight is random, so that nothing is zero for want of training."""
    torch.manual_seed(seed)
    network = TrajectoryDiT(
        num_ctrl=CTRL,
        width=32,
        depth=2,
        num_heads=2,
        cross_every=2,
        token_channels=token_channels,
        output=output,
        anchored=anchored,
        coordinates={"lateral": [0.1] * BINS, "depth": 0.3, "limit": 8.0},
        noise=PointNoise.white(CTRL).__dict__ if output == "velocity" else None,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return network.eval()


def small_pipeline(kind: str = "sampler", encoder: Encoder | None = None) -> Diffusion4DPipeline:
    """A "sampler" alone, an "anchored" sampler on its regressor, or a deterministic "twin"."""
    channels = encoder.channels if encoder else 0
    known = (
        {
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
            "encoder_preprocessing": preprocessing_of(encoder),
        }
        if encoder
        else {}
    )
    if kind == "twin":
        return Diffusion4DPipeline(small_network("mean", token_channels=channels), **known)
    if kind == "anchored":
        network = small_network(anchored=True, token_channels=channels)
        regressor = small_network("gaussian", token_channels=channels, seed=1)
        return Diffusion4DPipeline(network, regressor, **known)
    return Diffusion4DPipeline(small_network(token_channels=channels), **known)


def textured_frames(frames: int = 8, height: int = 64, width: int = 80) -> np.ndarray:
    """RGB [T, H, W, 3]: blurred noise that shifts by a pixel a frame, which Lucas-Kanade follows easily."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(height + 8, width + frames + 8))
    for axis in (0, 1):
        noise = sum(np.roll(noise, shift, axis) for shift in range(-2, 3)) / 5
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    pictures = [noise[4 : 4 + height, 4 + t : 4 + t + width] for t in range(frames)]
    return np.repeat((255 * np.stack(pictures))[..., None], 3, -1).astype(np.uint8)


def flowing_tracks(
    frames: int = 8, points: int = 10, size: tuple[int, int] = (64, 80)
) -> tuple[np.ndarray, np.ndarray]:
    """Tracks [T, N, 2] px and visibility [T, N] of points that drift to the left; the first is lost half-way."""
    rng = np.random.default_rng(1)
    start = rng.uniform(0.2, 0.8, (points, 2)) * (size[1], size[0])
    tracks = start[None] + np.arange(frames)[:, None, None] * np.array([-1.0, 0.2])
    visibility = np.ones((frames, points))
    visibility[frames // 2 :, 0] = 0
    return tracks.astype(np.float32), visibility.astype(np.float32)
