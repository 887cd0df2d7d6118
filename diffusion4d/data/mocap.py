r"""Actors from motion capture: takes of one skeleton, fleshed out as several bodies.

A recipe entry names files and says what to make of them; every skeleton found among them becomes `variants` actors of
different build. Takes are brought to at most 30 frames a second, broken where a joint jumps, and long ones cut into
pieces. With `deal`, the pieces are dealt out among the variants, so that none is stored twice.
In a recipe (see `diffusion4d.data.build`) an entry is a table [[mocap]] with the words of `MocapEntry`.
Shape letters:  T frames   J joints   V vertices.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from diffusion4d.data import amc, bvh, deepmimic, jointed, positions
from diffusion4d.data.actors import Actor, Motion, Split
from diffusion4d.data.recipe import found, positive
from diffusion4d.data.skeleton import Take, pieces, resampled, steady

Array = np.ndarray

FPS = 30.0
_LETTERS = "abcdefgh"
"""Names of the bodies of different build."""


@dataclass(frozen=True)
class MocapEntry:
    """One line of the recipe: files, relative to the folder of sources, and what becomes of them."""

    name: str
    files: tuple[str, ...]
    """Patterns."""
    source: str
    licence: str
    without: tuple[str, ...] = ()
    """Names of files that are left out."""
    species: str = "human"
    group: str = "mocap"
    split: Split = "train"
    weight: float = 1.0
    """Odds in the group of everything this entry makes, all bodies together."""
    variants: int = 2
    """Bodies of different build for every skeleton."""
    deal: bool = False
    """Deal the pieces out among the variants, instead of giving every body all of them."""
    grounded: bool = True
    longest: float = 20.0
    """Seconds of a piece."""
    most_pieces: int = 3
    """Pieces of a take."""
    shortest: float = 0.75
    """Seconds; shorter stretches are left out."""
    metres: float = 1.0
    """Metres of one unit of a .bvh file."""
    fps: float = 120.0
    """Frames a second of an .amc file, which does not tell it; 120 is CMU's."""
    up: Literal["y", "z"] = "y"
    """The axis that points up in a .bvh or .amc file."""

    def __post_init__(self) -> None:
        positive(weight=self.weight, shortest=self.shortest, longest=self.longest)
        positive(most_pieces=self.most_pieces, metres=self.metres, fps=self.fps)
        if not 1 <= self.variants <= len(_LETTERS):
            raise ValueError(f"need 1 to {len(_LETTERS)} variants, got {self.variants}")
        if not self.shortest < self.longest:
            raise ValueError(f"need shortest < longest, got {self.shortest} and {self.longest}")

    def may_make(self, name: str) -> bool:
        """Whether an actor of that name could be of this entry, whatever skeletons its files have."""
        letters = _LETTERS[: self.variants]
        return re.fullmatch(rf"{re.escape(self.name)}(-\d+)?-[{letters}]", name) is not None


def mocap_actors(
    source: Path, entries: Iterable[MocapEntry]
) -> Iterator[tuple[Actor, list[Motion]]]:
    """The actors of every entry, in order; ValueError when an entry finds no file, or no usable take."""
    for entry in entries:
        skeletons = _by_skeleton(_takes(source, entry))
        if not skeletons:
            raise ValueError(f"mocap {entry.name!r}: need takes of {entry.shortest} s, got none")
        bodies = len(skeletons) * entry.variants
        for number, takes in enumerate(skeletons):
            stem = entry.name if len(skeletons) == 1 else f"{entry.name}-{number}"
            yield from _variants(entry, stem, takes, entry.weight / bodies)


def read(path: Path, metres: float = 1.0, fps: float = 120.0, up: str = "y") -> Take:
    """A take by its file's kind: .bvh, .amc with the .asf beside it, .npz (positions) or .txt (DeepMimic).

    Raises:
        ValueError: a file of another kind, one that breaks its rules, or no .asf, or several, beside an .amc.
    """
    if path.suffix == ".bvh":
        return bvh.read(path, metres, up)
    if path.suffix == ".amc":
        skeletons = sorted(path.parent.glob("*.asf"))
        if len(skeletons) != 1:
            names = [skeleton.name for skeleton in skeletons]
            raise ValueError(f"{path.name}: need one .asf beside it, got {names}")
        return amc.read(skeletons[0], path, fps, up)
    if path.suffix == ".npz":
        return positions.read(path)
    if path.suffix == ".txt":
        return deepmimic.read(path)
    raise ValueError(f"{path.name}: need .bvh, .amc, .npz or .txt, got {path.suffix!r}")


def _takes(source: Path, entry: MocapEntry) -> Iterator[tuple[str, Take]]:
    for pattern in entry.files:
        try:
            paths = found(source, pattern)
        except ValueError as error:
            raise ValueError(f"mocap {entry.name!r}: {error}") from error
        for path in (path for path in paths if path.name not in entry.without):
            take = read(path, entry.metres, entry.fps, entry.up)
            cuts = [
                piece
                for stretch in steady(take, shortest=entry.shortest)
                for piece in pieces(resampled(stretch, FPS), entry.longest, entry.most_pieces)
            ]
            for number, piece in enumerate(cuts):
                yield (path.stem if len(cuts) == 1 else f"{path.stem}-{number}"), piece


def _by_skeleton(takes: Iterator[tuple[str, Take]]) -> list[list[tuple[str, Take]]]:
    """Takes whose tree and bone lengths (within 2 % of the longest) agree."""
    groups: list[list[tuple[str, Take]]] = []
    for name, take in takes:
        length_J = jointed.bone_lengths(take)
        for group in groups:
            first = group[0][1]
            if len(first.parents) != len(take.parents) or (first.parents != take.parents).any():
                continue
            other_J = jointed.bone_lengths(first)
            if np.abs(length_J - other_J).max() < 0.02 * other_J.max():
                group.append((name, take))
                break
        else:
            groups.append([(name, take)])
    return groups


def _variants(
    entry: MocapEntry, stem: str, takes: list[tuple[str, Take]], weight: float
) -> Iterator[tuple[Actor, list[Motion]]]:
    model = max((take for _, take in takes), key=len)
    for variant in range(entry.variants):
        own = takes[variant :: entry.variants] if entry.deal else takes
        if not own:
            continue
        # The same entry always makes the same bodies, whatever else the recipe has.
        rng = np.random.default_rng([*stem.encode(), variant])
        body = jointed.body(model, jointed.random_build(rng), rng)
        paths = [jointed.moved(body, take) for _, take in own]
        extents = [np.ptp(path_TV3, axis=1).max(-1) for path_TV3 in paths]
        scale = 1 / float(np.median(np.concatenate(extents)))
        motions = [
            Motion(name, *_placed(path_TV3 * scale, entry.grounded, take.fps))
            for (name, take), path_TV3 in zip(own, paths, strict=True)
        ]
        low_3 = np.array([*body.pose.positions[0, 0, :2], body.rest[:, 2].min()])
        yield (
            Actor(
                name=f"{stem}-{_LETTERS[variant]}",
                group=entry.group,
                species=entry.species,
                source=entry.source,
                licence=entry.licence,
                split=entry.split,
                rest=((body.rest - low_3) * scale).astype(np.float32),
                faces=body.faces.astype(np.int32),
                part=body.part.astype(np.int32),
                smooth=True,
                grounded=entry.grounded,
                weight=weight,
            ),
            motions,
        )


def _placed(
    vertices_TV3: Float[Array, "T V 3"], grounded: bool, fps: float
) -> tuple[Array, float, bool]:
    """Begin at the origin, with the lowest moment on the floor; and whether the end meets the beginning."""
    start_3 = vertices_TV3[0].mean(0)
    # A single deep frame must not lift a whole take: the floor is where the lowest fiftieth of the frames touch.
    low = np.quantile(vertices_TV3[..., 2].min(1), 0.02) if grounded else start_3[2]
    placed = vertices_TV3 - np.array([start_3[0], start_3[1], low])
    loops = bool(np.abs(placed[-1] - placed[0]).max() < 0.02)
    return placed.astype(np.float32), fps, loops
