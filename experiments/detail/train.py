r"""Trains the network that samples detail (`diffusion4d.detail.sampling`) on the recipe's meshes.

Every mesh is a pair of base and detail at two spacings (√(area / 1500) and √(area / 3000)), with two draws of the
points each. A step takes one of these clouds and K = 2 times t, and compares the network's velocity with α ε − σ x_0
(Salimans & Ho 2022). What the network is told of the base is disturbed by noise of a random size up to `BLUR` standard
deviations, so that it does not lean on what is barely there (Ho et al. 2022, conditioning augmentation). Step i draws
from a generator seeded by (seed, i): a run that was killed goes on as if it had not been.

    python experiments/detail/train.py --meshes FOLDER --out runs/detail

The moving average goes to OUT/model.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from detail_data import SMOOTH, files, pair
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor

from diffusion4d import checkpoint
from diffusion4d.atomic import replace_when_done
from diffusion4d.detail.network import DetailNetwork
from diffusion4d.detail.points import Cloud
from diffusion4d.train import seeded
from samplers.predictions import target
from samplers.schedules import CosineSchedule

POINTS = (1500, 3000)
DRAWS = 2
BLUR = 0.3
COMMON = 0.4
"""Odds of a fish of the cute pack, of which there are many on the same few bodies; all others have 1."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train the network that samples detail."""

    meshes: Path = Path("meshes")
    out: Path = Path("runs/detail")
    steps: int = 3500
    samples: int = 2
    """Noised copies of a cloud in a step."""
    learning_rate: float = 2e-3
    ema: float = 0.998
    width: int = 64
    depth: int = 6
    bases: int = 6
    seed: int = 0
    save_every: int = 250


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A cloud with its true detail, in units of its spacing."""

    cloud: Cloud
    detail: Float[Tensor, "N"]
    odds: float


def clouds(meshes: Path, split: str = "train") -> list[Known]:
    """All of a split."""
    found = []
    for path in files(meshes, split):
        odds = COMMON if path.parent.name == "cute_fish_pack" else 1.0
        for points in POINTS:
            mesh = pair(path, points)
            for draw in range(DRAWS):
                cloud, detail = mesh.cloud(draw)
                found.append(Known(cloud, torch.from_numpy(detail).float(), odds))
    return found


def fitted(settings: Settings, known: list[Known]) -> DetailNetwork:
    """An untrained network with the standardisation of these clouds."""
    features = torch.cat([k.cloud.features for k in known])
    soft = 0.2
    told = torch.cat([(k.detail / soft).asinh() for k in known])
    torch.manual_seed(settings.seed)
    return DetailNetwork(
        width=settings.width,
        depth=settings.depth,
        bases=settings.bases,
        soft=soft,
        deviation=float(told.square().mean().sqrt()),
        mean=tuple(features.mean(0).tolist()),
        spread=tuple(features.std(0).clamp_min(1e-3).tolist()),
        smooth=SMOOTH,
    )


def loss_of(
    network: DetailNetwork, known: Known, samples: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Squared error of the velocity at stratified times."""
    cloud, schedule = known.cloud, CosineSchedule()
    t = (torch.rand((), generator=generator) + torch.arange(samples)) / samples
    noise = torch.randn(samples, len(cloud), generator=generator)
    x_0 = network.encode(known.detail).expand(samples, -1)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    blur = BLUR * torch.rand((), generator=generator)
    features = network.standardised(cloud.features)
    features = features + blur * torch.randn(features.shape, generator=generator)
    told = network(alpha * x_0 + sigma * noise, t, features, cloud.neighbours, cloud.edges)
    return (told - target("v_prediction", x_0, noise, alpha, sigma)).square().mean()


def train(settings: Settings) -> DetailNetwork:
    """All steps that are not done yet; the moving average is returned and saved."""
    settings.out.mkdir(parents=True, exist_ok=True)
    known = clouds(settings.meshes)
    print(f"{len(known)} clouds, {sum(len(k.cloud) for k in known):,} points", file=sys.stderr)
    network = fitted(settings, known)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", file=sys.stderr)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=0.01)
    average = EMAModel(network.parameters(), decay=settings.ema, use_ema_warmup=False)
    state = settings.out / "state.safetensors"
    begun = 0
    if state.exists():
        begun = checkpoint.load(state, network, average, optimiser)
    for group in optimiser.param_groups:
        group["initial_lr"] = settings.learning_rate
    rate = get_cosine_schedule_with_warmup(
        optimiser, num_warmup_steps=100, num_training_steps=settings.steps, last_epoch=begun - 1
    )
    odds = torch.tensor([k.odds for k in known])
    losses, clock = [], time.perf_counter()
    for step in range(begun, settings.steps):
        generator = seeded(settings.seed, step)
        chosen = known[int(torch.multinomial(odds, 1, generator=generator))]
        loss = loss_of(network, chosen, settings.samples, generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        average.step(network.parameters())
        losses.append(loss.item())
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            checkpoint.save(state, step + 1, network, average, optimiser)
            spent = time.perf_counter() - clock
            told = {"step": step + 1, "loss": float(np.mean(losses)), "seconds": round(spent, 1)}
            print(json.dumps(told), file=sys.stderr, flush=True)
            losses = []
    average.copy_to(network.parameters())
    network.save_pretrained(settings.out / "model")
    with replace_when_done(settings.out / "settings.json") as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(settings), default=str, indent=1) + "\n")
    return network


if __name__ == "__main__":
    train(tyro.cli(Settings, description=__doc__))
