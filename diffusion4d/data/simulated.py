r"""Actors from simulation: cloth, soft bodies, chains, hands and piles, each seed a different one.

A *kind* is a scenario with everything left to a seed: sizes, stiffness, damping, wind, paths. One kind of
every family is held out whole: no seed of it may be asked for with the split "train". A take is
kept if it looks like a motion and not like an accident; else the seed's next attempt is made:

    edge lengths stay within a factor 3 of those at rest,   no vertex moves more than 0.4 a frame,
    the tenth of the vertices that travels most travels 0.1 or more,   the whole stays within 6
    and never grows to more than 3 times its size at the start,

lengths in units of the actor's size. All runs on one core and repeats exactly on one machine with one
version of MuJoCo (Todorov, Erez & Tassa 2012), which comes with the `train` extra.
Shape letters:  T frames   V vertices   F triangles   E edges.
"""

import dataclasses
import importlib
import importlib.metadata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from diffusion4d.data.actors import SPLITS, Actor, Motion, Split
from diffusion4d.data.recipe import parsed, positive

if TYPE_CHECKING:
    from diffusion4d.data.simulation.stage import Take

Array = np.ndarray

MAX_STRETCH = 3.0
MAX_STEP = 0.4
MIN_TRAVEL = 0.1
MAX_SPAN = 6.0
MAX_GROWTH = 3.0
MAX_TRIANGLES = 1200
ATTEMPTS = 8


@dataclass(frozen=True)
class Kind:
    """A scenario: the function `name` of the module `family` in `diffusion4d.data.simulation`."""

    family: str
    held_out: bool = False


KINDS: dict[str, Kind] = {
    "flag": Kind("cloth"),
    "drape": Kind("cloth"),
    "towel": Kind("cloth", held_out=True),
    "drop": Kind("soft"),
    "poke": Kind("soft"),
    "slide": Kind("soft"),
    "roll": Kind("soft", held_out=True),
    "hair": Kind("chains"),
    "rope": Kind("chains"),
    "tail": Kind("chains"),
    "whip": Kind("chains", held_out=True),
    "grasp": Kind("hands"),
    "push": Kind("hands"),
    "turn": Kind("hands", held_out=True),
    "pile": Kind("piles"),
    "topple": Kind("piles"),
    "dominoes": Kind("piles", held_out=True),
}


@dataclass(frozen=True)
class Batch:
    """Seeds `first` … `stop` − 1 of a kind. `weight`: the odds of each of its actors within the group."""

    kind: str
    seeds: tuple[int, int]
    split: Split
    weight: float = 1.0

    def __post_init__(self) -> None:
        positive(weight=self.weight)

    def may_make(self, name: str) -> bool:
        """Whether an actor of that name is of this batch."""
        return name in {_name(self.kind, seed) for seed in range(*self.seeds)}


def read_batches(entries: Sequence[Mapping[str, Any]]) -> list[Batch]:
    """The recipe's [[simulated]] tables, checked: kinds exist, held-out ones stay so, no seed comes twice."""
    known = {field.name for field in dataclasses.fields(Batch)}
    batches: list[Batch] = []
    for entry in entries:
        if not {"kind", "seeds", "split"} <= set(entry) <= known:
            raise ValueError(
                f"a [[simulated]] table needs kind, seeds and split and may have weight; got {sorted(entry)}"
            )
        if entry["split"] not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {entry['split']!r}")
        batch = parsed(Batch, dict(entry))
        _check(batch)
        for other in batches:
            shared = max(batch.seeds[0], other.seeds[0]) < min(batch.seeds[1], other.seeds[1])
            if batch.kind == other.kind and shared:
                raise ValueError(f"seeds of {batch.kind} overlap: {other.seeds} and {batch.seeds}")
        batches.append(batch)
    return batches


def _check(batch: Batch) -> None:
    if batch.kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {batch.kind!r}")
    if KINDS[batch.kind].held_out and batch.split == "train":
        raise ValueError(f"the kind {batch.kind} is held out: its split cannot be 'train'")
    if len(batch.seeds) != 2 or not 0 <= batch.seeds[0] < batch.seeds[1]:
        raise ValueError(f"seeds must be [first, stop] with 0 <= first < stop; got {batch.seeds}")


def simulated_actors(batches: Sequence[Batch]) -> Iterator[tuple[Actor, list[Motion]]]:
    """Simulate one batch after the other: an actor with one motion for every seed.

    Raises:
        ValueError: no attempt at a seed was fit.
    """
    for batch in batches:
        for seed in range(*batch.seeds):
            actor, motion = simulated_actor(batch.kind, seed, batch.split, batch.weight)
            yield actor, [motion]


def simulated_actor(
    kind: str, seed: int, split: Split, weight: float = 1.0
) -> tuple[Actor, Motion]:
    """One actor and how it moves, the same for the same kind and seed."""
    take = unit_sized(_take(kind, seed))
    actor = Actor(
        name=_name(kind, seed),
        group="simulated",
        species=kind,
        source=f"MuJoCo {importlib.metadata.version('mujoco-core')}, scenario "
        f"diffusion4d.data.simulation.{KINDS[kind].family}.{kind}, seed {seed}",
        licence="Apache-2.0",
        split=split,
        rest=take.rest.astype(np.float32),
        faces=take.faces.astype(np.int32),
        part=take.part.astype(np.int32),
        smooth=take.smooth,
        grounded=take.grounded,
        weight=weight,
    )
    return actor, Motion(kind, take.vertices.astype(np.float32), 30.0, loops=False)


def _name(kind: str, seed: int) -> str:
    return f"simulated-{kind}-{seed:04d}"


def _take(kind: str, seed: int) -> "Take":
    """The first attempt of this seed that is fit to be kept."""
    from diffusion4d.data.simulation.stage import Unstable, film

    scenario = getattr(
        importlib.import_module(f"diffusion4d.data.simulation.{KINDS[kind].family}"), kind
    )
    reasons = []
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([zlib.crc32(kind.encode()), seed, attempt])
        try:
            take = film(scenario(rng))
        except Unstable as error:
            reasons.append(str(error))
            continue
        reason = unfit(unit_sized(take))
        if reason is None:
            return take
        reasons.append(reason)
    raise ValueError(f"no attempt at {kind}, seed {seed}, was fit: {'; '.join(reasons)}")


def unit_sized(take: "Take") -> "Take":
    """Scaled so that the largest extent is 1 in the median frame; begins above the origin; lowest point on z = 0.

    A take with a floor keeps it at z = 0 instead.
    """
    vertices_TV3 = take.vertices
    scale = 1.0 / float(np.median(np.ptp(vertices_TV3, axis=1).max(-1)))
    shift_3 = -0.5 * (vertices_TV3[0].min(0) + vertices_TV3[0].max(0))
    shift_3[2] = 0.0 if take.grounded else -vertices_TV3[..., 2].min()
    return dataclasses.replace(
        take, vertices=scale * (vertices_TV3 + shift_3), rest=scale * (take.rest + shift_3)
    )


def unfit(take: "Take") -> str | None:
    """Why a unit-sized take cannot be kept; None if it can."""
    vertices_TV3 = take.vertices
    if not np.isfinite(vertices_TV3).all():
        return "a position is not finite"
    if len(take.faces) > MAX_TRIANGLES:
        return f"{len(take.faces)} triangles"
    stretch_TE = edge_stretch(take)
    if stretch_TE.max() > MAX_STRETCH or stretch_TE.min() < 1 / MAX_STRETCH:
        return f"edges change their lengths {stretch_TE.min():.2f} to {stretch_TE.max():.2f} times"
    step = float(np.linalg.norm(np.diff(vertices_TV3, axis=0), axis=-1).max())
    if step > MAX_STEP:
        return f"a vertex moves {step:.2f} in one frame"
    travel = float(np.quantile(np.linalg.norm(np.ptp(vertices_TV3, axis=0), axis=-1), 0.9))
    if travel < MIN_TRAVEL:
        return f"nothing travels more than {travel:.2f}"
    span = float(np.ptp(vertices_TV3, axis=(0, 1)).max())
    if span > MAX_SPAN:
        return f"it spreads over {span:.1f}"
    size_T = np.ptp(vertices_TV3, axis=1).max(-1)
    if size_T.max() > MAX_GROWTH * size_T[0]:
        return f"it grows from {size_T[0]:.2f} to {size_T.max():.2f}"
    return None


def edge_stretch(take: "Take") -> Float[Array, "T E"]:
    """Every edge's length over its length at rest; edges that have none at rest (doubled corners) are left out."""
    edges_E2 = np.concatenate([take.faces[:, [0, 1]], take.faces[:, [1, 2]], take.faces[:, [2, 0]]])
    edges_E2 = np.unique(np.sort(edges_E2, axis=-1), axis=0)
    ends_TE3 = take.vertices[:, edges_E2[:, 1]] - take.vertices[:, edges_E2[:, 0]]
    rest_E = np.linalg.norm(take.rest[edges_E2[:, 1]] - take.rest[edges_E2[:, 0]], axis=-1)
    real_E = rest_E > 1e-6
    return np.linalg.norm(ends_TE3[:, real_E], axis=-1) / rest_E[real_E]
