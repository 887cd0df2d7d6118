"""A pool of generated worlds on disk: drawn once, by several processes, and read many times.

Shards are safetensors files written whole or not at all, so an interrupted pool goes on where it stopped.
Symmetries (`batches.py`) make the pool endless. World i of a pool has seed `first_seed + i`, whatever the number
of processes. Packaged weights were trained on seeds below `HELD_OUT`; evaluation draws from it upwards.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion4d.atomic import replace_when_done
from diffusion4d.config import PoolSpec, RenderedSpec
from diffusion4d.data.pack import Pack
from diffusion4d.errors import UserError
from diffusion4d.scenes.observe import World
from diffusion4d.scenes.world import ACTOR, AMBIGUOUS_SHARE, generate

Job = TypeVar("Job", bound=tuple[Any, ...])

HELD_OUT = 2**31
SHARD = 128
GENERATION = 2
"""Goes up when the same seed gives another world, so that no shard of an earlier generator is taken for a new one."""


@dataclasses.dataclass(frozen=True)
class Worlds:
    """A stack of worlds.

    points: [B, N, T, 3], each instant's camera frame, median anchor depth 1. visible: [B, N, T] bool.
    moving: [B, N] bool, moves in the world frame. intrinsics: [B, 4] px. size: [B, 2] (H, W) px.
    """

    points: Tensor
    visible: Tensor
    moving: Tensor
    intrinsics: Tensor
    size: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def take(self, index: Tensor) -> "Worlds":
        """The worlds at these places, in this order."""
        return Worlds(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def stacked(worlds: Sequence[World]) -> dict[str, Tensor]:
    """The truth of several worlds, as it is kept in a shard."""
    return {
        "points": torch.from_numpy(np.stack([w.points for w in worlds])).float(),
        "visible": torch.from_numpy(np.stack([w.visible for w in worlds])),
        "moving": torch.from_numpy(np.stack([w.moving for w in worlds])),
        "intrinsics": torch.from_numpy(np.stack([w.intrinsics for w in worlds])).float(),
        "size": torch.tensor([list(w.size) for w in worlds]).float(),
    }


@dataclasses.dataclass(frozen=True)
class Cast:
    """Where the bodies of a pool come from: the pack (None: they are generated), and the main bodies' family."""

    pack: Pack | None
    family: str | None

    @classmethod
    def of(cls, spec: PoolSpec | RenderedSpec) -> "Cast":
        """Open the pack that a pool asks for.

        Raises:
            ValueError: actors only and no pack, or a pack without actors of these splits.
            UserError: no such pack.
        """
        if spec.pack is None:
            if spec.actors_only:
                raise ValueError("need a pack for worlds of actors only, got none")
            return cls(None, None)
        return cls(Pack.open(spec.pack, spec.splits), ACTOR if spec.actors_only else None)

    @property
    def label(self) -> str:
        """For names of shards: the generator and the pack that their worlds depend on."""
        if self.pack is None:
            return f"v{GENERATION}"
        only = "-actors" if self.family == ACTOR else ""
        return f"v{GENERATION}-{self.pack.fingerprint}{only}"


def draw_shard(spec: PoolSpec, first_seed: int, count: int) -> dict[str, Tensor]:
    """Generate `count` worlds with consecutive seeds."""
    cast = Cast.of(spec)
    return stacked(
        [
            generate(
                first_seed + i,
                num_points=spec.points,
                num_frames=spec.frames,
                family=cast.family,
                pack=cast.pack,
                ambiguous_share=spec.ambiguous,
            )
            for i in range(count)
        ]
    )


def _write_shard(job: tuple[PoolSpec, int, Path]) -> None:
    spec, first_seed, path = job
    torch.set_num_threads(1)
    with replace_when_done(path) as temporary:
        save_file(draw_shard(spec, first_seed, SHARD), temporary)


def draw_pool(
    folder: Path,
    spec: PoolSpec,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Generate the shards that are missing; returns the paths of all of them, in order.

    Args:
        progress: called with (shards done, shards in all).
    """
    # All that decides a shard's content is in its name, so that pools of several kinds may share a folder.
    kind = f"{spec.points}x{spec.frames}-{Cast.of(spec).label}"
    if spec.ambiguous != AMBIGUOUS_SHARE:
        kind += f"-ambiguous{spec.ambiguous:g}"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for start in range(0, spec.worlds, SHARD):
        first_seed = spec.first_seed + start
        path = folder / f"{first_seed}-{kind}.safetensors"
        jobs.append((spec, first_seed, path))
    write_missing(jobs, _write_shard, processes, progress)
    return [path for _, _, path in jobs]


def write_missing(
    jobs: Sequence[Job],
    write: Callable[[Job], None],
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Carry out the jobs whose file (their last member) does not exist, in several processes."""
    missing = [job for job in jobs if not job[-1].exists()]
    done = len(jobs) - len(missing)
    if progress:
        progress(done, len(jobs))
    if missing:
        # Forked workers would inherit the threads of torch in an undefined state.
        with multiprocessing.get_context("spawn").Pool(processes) as workers:
            for _ in workers.imap_unordered(write, missing):
                done += 1
                if progress:
                    progress(done, len(jobs))


def refuse_held_out(spec: PoolSpec | RenderedSpec) -> None:
    """Worlds to train on keep away from the seeds that are scored.

    Raises:
        UserError: they do not.
    """
    # Worlds without pictures are drawn in whole shards.
    shard = SHARD if isinstance(spec, PoolSpec) else 1
    last = spec.first_seed + -(-spec.worlds // shard) * shard - 1
    if spec.first_seed < 0 or last >= HELD_OUT:
        raise UserError(
            f"need seeds from 0 to {HELD_OUT - 1} to train on, as later ones are held out for evaluation; got "
            f"{spec.first_seed} to {last}"
        )


def read_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard.

    Raises:
        UserError: it is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and it is drawn again") from error


def load_pool(paths: list[Path]) -> Worlds:
    """Read shards into memory, as one stack."""
    shards = [read_shard(path) for path in paths]
    return Worlds(*(torch.cat([s[f.name] for s in shards]) for f in dataclasses.fields(Worlds)))
