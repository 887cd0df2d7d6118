"""Seeded noise: a hypothesis is reproducible on its own, whatever its batch-mates.

Item k draws only from seeds[k], so seeds [7] and [3, 7] agree bit for bit on 7. Each seed owns one
stream for the noise it starts from and one for every step, addressed by number rather than by the
order of calls: adding steps or items moves no number that was there before.

Shape letters: K items (hypotheses).
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_INITIAL: Final = 0
_STEP: Final = 1


@runtime_checkable
class Noise(Protocol):
    """What the loop needs: noise for K items, addressed by step."""

    def initial(self) -> Float[Tensor, "K *shape"]:
        """The noise at t = 1."""
        ...

    def at(self, step: int) -> Float[Tensor, "K *shape"]:
        """The fresh noise of step number `step`, counted from 0."""
        ...


@dataclass(frozen=True)
class SeededNoise:
    """Standard normal noise `[K, *shape]`, one seed for each of K items.

    seeds: non-negative integers. shape: of one item. Numbers are drawn in float64 on the CPU and
    then cast to dtype and device, so a float32 or CUDA run sees the same noise as a float64 one, to
    rounding. Raises ValueError for no seeds, or one that is negative or no integer.
    """

    seeds: Sequence[int]
    shape: Sequence[int]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if len(self.seeds) == 0:
            raise ValueError("need at least one seed, got none")
        for seed in self.seeds:
            try:
                operator.index(seed)
            except TypeError:
                raise ValueError(f"need integer seeds, got {list(self.seeds)}") from None
        if min(self.seeds) < 0:
            raise ValueError(f"need non-negative seeds, got {list(self.seeds)}")

    def initial(self) -> Float[Tensor, "K *shape"]:
        """The noise at t = 1."""
        return self._draw(_INITIAL)

    def at(self, step: int) -> Float[Tensor, "K *shape"]:
        """The fresh noise of step number `step`, counted from 0. Raises ValueError if negative."""
        if step < 0:
            raise ValueError(f"need step >= 0, got step={step}")
        return self._draw(_STEP, step)

    def _draw(self, *stream: int) -> Float[Tensor, "K *shape"]:
        # torch's own CPU generator keeps 32 bits of a seed, so hashed streams could collide there;
        # SeedSequence mixes seed and stream into 128 bits.
        size = math.prod(self.shape)
        values = [
            np.random.Generator(
                np.random.PCG64(np.random.SeedSequence(int(seed), spawn_key=stream))
            ).standard_normal(size)
            for seed in self.seeds
        ]
        noise = torch.from_numpy(np.stack(values)).reshape(len(self.seeds), *self.shape)
        return noise.to(device=self.device, dtype=self.dtype)
