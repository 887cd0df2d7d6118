"""What trials are trained and scored on.

Shape letters:  B clips   N points.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffusion4d.config import Dropout, Network
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import Worlds, load_pool
from diffusion4d.scenes.tokenised import TokenisedWorlds, draw_with_tokens
from diffusion4d.train import seeded

PER_BATCH = 8
"""Clips that are sampled at once."""


def shards_of(folder: Path) -> list[Path]:
    """Shards in the order of their seeds."""
    paths = [p for p in folder.glob("*.safetensors") if p.name[0].isdigit()]
    return sorted(paths, key=lambda path: int(path.name.partition("-")[0]))


def scenes_of(worlds: Worlds, count: int, num_points: int) -> Iterator[Example]:
    """Worlds through a tracker, some at once; the focal length is withheld in three of ten, nothing else."""
    count = min(count, len(worlds))
    for start in range(0, count, PER_BATCH):
        chosen = torch.arange(start, min(start + PER_BATCH, count))
        yield draw(
            worlds.take(chosen),
            seeded(1, start),
            num_ctrl=Network().num_ctrl,
            num_points=num_points,
            dropout=Dropout(tracks=0.0),
            augment=False,
        )


def load_tokens(folder: Path, encoder: str) -> list[TokenisedWorlds]:
    """Rendered worlds with their cached tokens, whatever else their shards hold.

    Args:
        encoder: how its fingerprint starts. A folder may hold the tokens of several.

    Raises:
        ValueError: not exactly one encoder of that fingerprint has tokens here, or not of all worlds.
    """
    paths = sorted(folder.glob(f"tokens-{encoder}*.safetensors"))
    found = {path.name.split("-")[1] for path in paths}
    if len(found) != 1:
        raise ValueError(f"need tokens of one encoder {encoder}… in {folder}, got {len(found)}")
    shards = [load_file(path) for path in shards_of(folder)]
    stacks = []
    for path in paths:
        height, width = (int(n) for n in path.stem.split("-")[2].split("x"))
        fields = [f.name for f in dataclasses.fields(Worlds)]
        shape = f"{height}x{width}"
        held = [shard for shard in shards if f"{shape}/points" in shard]
        worlds = Worlds(*(torch.cat([s[f"{shape}/{name}"] for s in held]) for name in fields))
        both = load_file(path)
        values = both["values"]
        if len(values) != len(worlds):
            raise ValueError(f"need tokens of {len(worlds)} worlds, {path} has {len(values)}")
        rows = round(math.sqrt(values.shape[2] * height / width))
        grid = (rows, values.shape[2] // rows)
        frames = held[0][f"{shape}/frames"]
        stacks.append(TokenisedWorlds(worlds, values, both["mirrored"], grid, frames))
    return stacks


def pictured_scenes(
    stacks: Sequence[TokenisedWorlds], held_back: int, num_points: int
) -> tuple[list[TokenisedWorlds], list[Example]]:
    """What is left to train on, and the last worlds of each stack as scenes of one clip each."""
    rest, scenes = [], []
    for number, stack in enumerate(stacks):
        order = torch.arange(len(stack))
        first = len(stack) - len(stack) // held_back
        rest.append(stack.take(order[:first]))
        for index in order[first:]:
            scenes.append(
                draw_with_tokens(
                    [stack.take(index[None])],
                    seeded(1, number, int(index)),
                    batch=1,
                    num_ctrl=Network().num_ctrl,
                    num_points=num_points,
                    dropout=Dropout(tracks=0.0, tokens=0.0),
                    augment=False,
                )
            )
    return rest, scenes


@dataclasses.dataclass(frozen=True)
class Data:
    """Everything trials share: to train on, worlds and rendered worlds; to be scored on, scenes of either kind."""

    worlds: Worlds
    scenes: list[Example]
    imaged: list[TokenisedWorlds]
    pictured: list[Example]

    @classmethod
    def tracked(
        cls, pool: Path, choosing: Path, *, shards: int, scored: int, num_points: int
    ) -> "Data":
        """From folders of worlds to train on and worlds to score; tracks alone, no images."""
        worlds = load_pool(shards_of(pool)[:shards])
        scenes = list(scenes_of(load_pool(shards_of(choosing)), scored, num_points))
        return cls(worlds, scenes, [], [])

    @classmethod
    def load(
        cls,
        pool: Path,
        choosing: Path,
        rendered: Path,
        *,
        encoder: str,
        shards: int,
        scored: int,
        held_back: int,
        num_points: int,
    ) -> "Data":
        """From folders of worlds to train on, worlds to score, and rendered worlds for both."""
        tracked = cls.tracked(pool, choosing, shards=shards, scored=scored, num_points=num_points)
        imaged, pictured = pictured_scenes(load_tokens(rendered, encoder), held_back, num_points)
        return dataclasses.replace(tracked, imaged=imaged, pictured=pictured)

    def blind(self) -> list[Example]:
        """The scenes with images, without their tokens."""
        return [
            dataclasses.replace(scene, evidence=dataclasses.replace(scene.evidence, tokens=None))
            for scene in self.pictured
        ]
