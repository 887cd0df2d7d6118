r"""A pack: a folder of actors, one safetensors file each, from which motions are drawn one at a time.

A file holds the tensors `rest`, `faces`, `part` and `motion/<name>`, and as metadata one JSON text with everything
else, including a digest of the tensors. An optional `odds.json` gives groups relative odds (1 for those it leaves
out). Motions stay on disk until they are drawn, so a pack may be larger than memory and costs a process nothing.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusion4d.atomic import replace_when_done
from diffusion4d.data.actors import SPLITS, Actor, Motion
from diffusion4d.errors import UserError

MOST_TRIANGLES = 2_000
"""Worlds build a ray caster for every frame of every actor, which takes 1 ms for a thousand triangles."""
ODDS = "odds.json"
FILES = "[!.]*.safetensors"
"""Pattern of the actors' files; a name with a dot in front is one that is still being written."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LARGEST_EXTENT = (0.5, 2.0)
_DESCRIPTION = (
    *("name", "group", "species", "source", "licence", "split", "smooth", "grounded", "weight"),
)


def write_actor(folder: Path, actor: Actor, motions: Sequence[Motion]) -> Path:
    """Write an actor with its motions as one file of a pack; replaces one of the same name.

    Raises:
        ValueError: the actor or a motion is not what a world can take; says what is required.
    """
    _check(actor, motions)
    tensors = {"rest": actor.rest, "faces": actor.faces, "part": actor.part}
    tensors |= {f"motion/{motion.name}": motion.vertices for motion in motions}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(tensor.data)
    about = {name: getattr(actor, name) for name in _DESCRIPTION}
    about["motions"] = {m.name: {"fps": m.fps, "loops": m.loops} for m in motions}
    about["digest"] = digest.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{actor.name}.safetensors"
    with replace_when_done(path) as temporary:
        save_file(tensors, temporary, {"actor": json.dumps(about, ensure_ascii=False)})
    return path


def write_odds(folder: Path, odds: Mapping[str, float]) -> Path:
    """Give groups relative odds in `draw`; those not named have 1.

    Raises:
        ValueError: an odd is not positive.
    """
    odds = positive_odds(odds)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_when_done(folder / ODDS) as temporary:
        temporary.write_text(json.dumps(odds, indent=1))
    return folder / ODDS


def positive_odds(odds: Any) -> dict[str, float]:
    """Odds by group.

    Raises:
        ValueError: they are something else than positive finite numbers by name.
    """
    if not isinstance(odds, Mapping):
        raise ValueError(f"need odds by group, got {odds!r}")
    wrong = {
        name: odd
        for name, odd in odds.items()
        if isinstance(odd, bool) or not isinstance(odd, (int, float)) or not 0 < odd < math.inf
    }
    if wrong:
        raise ValueError(f"need positive odds, got {wrong}")
    return dict(odds)


def others(folder: Path, names: Collection[str]) -> list[Path]:
    """Files of actors in a folder, but for those of these names; what `write_actor` has not written is no such file."""
    paths = []
    for path in sorted(folder.glob(FILES)):
        if path.stem in names:
            continue
        try:
            _read(path)
        except ValueError:
            continue
        paths.append(path)
    return paths


@dataclass(frozen=True)
class _Entry:
    """An actor, its file, and the motions to be found there: (name, fps, loops)."""

    actor: Actor
    path: Path
    motions: tuple[tuple[str, float, bool], ...]

    def motion(self, number: int) -> Motion:
        name, fps, loops = self.motions[number]
        with safe_open(self.path, "numpy") as file:
            return Motion(name, file.get_tensor(f"motion/{name}"), fps, loops)


@dataclass(frozen=True)
class Pack:
    """Actors of some splits, by name. `fingerprint` changes with anything that a draw depends on."""

    folder: Path
    actors: tuple[Actor, ...]
    fingerprint: str
    _entries: tuple[_Entry, ...] = field(repr=False)
    _odds: tuple[tuple[str, float], ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, splits: Sequence[str] = ("train",)) -> "Pack":
        """Read all but the motions.

        Raises:
            ValueError: no such split, no actors of these splits, or a file that is not an actor's.
            UserError: no such folder, or a file in it is damaged.
        """
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"need splits of {SPLITS}, got {unknown}")
        if not folder.is_dir():
            raise UserError(f"need a folder with a pack, got {folder}")
        entries, digest = [], hashlib.blake2b(digest_size=6)
        for path in sorted(folder.glob(FILES)):
            entry, about = _read(path)
            if entry.actor.split in splits:
                entries.append(entry)
                digest.update(json.dumps(about, sort_keys=True).encode())
        if not entries:
            raise ValueError(f"need a pack with actors of {tuple(splits)}, got none in {folder}")
        given = {}
        if (folder / ODDS).exists():
            try:
                given = positive_odds(json.loads((folder / ODDS).read_text()))
            except ValueError as error:
                raise UserError(f"need odds of groups in {folder / ODDS}: {error}") from error
        groups = sorted({entry.actor.group for entry in entries})
        odds = tuple((group, float(given.get(group, 1.0))) for group in groups)
        digest.update(json.dumps(odds).encode())
        actors = tuple(entry.actor for entry in entries)
        return cls(folder, actors, digest.hexdigest(), tuple(entries), odds)

    def draw(self, rng: np.random.Generator) -> tuple[Actor, Motion]:
        """A group by the pack's odds, an actor by weight, any of its motions; a function of the generator's state."""
        odds = np.array([odd for _, odd in self._odds])
        group = self._odds[int(rng.choice(len(odds), p=odds / odds.sum()))][0]
        members = [entry for entry in self._entries if entry.actor.group == group]
        weights = np.array([entry.actor.weight for entry in members])
        entry = members[int(rng.choice(len(members), p=weights / weights.sum()))]
        return entry.actor, entry.motion(int(rng.integers(len(entry.motions))))

    def motions(self, name: str) -> tuple[Motion, ...]:
        """All motions of the actor of that name, in the order they were written by name.

        Raises:
            ValueError: no such actor.
        """
        for entry in self._entries:
            if entry.actor.name == name:
                return tuple(entry.motion(i) for i in range(len(entry.motions)))
        raise ValueError(f"need an actor of {[a.name for a in self.actors]}, got {name!r}")


def _read(path: Path) -> tuple[_Entry, dict[str, Any]]:
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if "actor" not in metadata:
                raise ValueError("it has no description of an actor")
            about = json.loads(metadata["actor"])
            tensors = {name: file.get_tensor(name) for name in ("rest", "faces", "part")}
        actor = Actor(**{name: about[name] for name in _DESCRIPTION}, **tensors)
        motions = sorted((name, m["fps"], m["loops"]) for name, m in about["motions"].items())
    except (AttributeError, KeyError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"need a file written by write_actor, got {path}: {error}") from error
    return _Entry(actor, path, tuple(motions)), about


def _check(actor: Actor, motions: Sequence[Motion]) -> None:
    """Refuse what a world could not take."""
    who = f"actor {actor.name!r}"
    if not _NAME.fullmatch(actor.name):
        raise ValueError(f"need a name of letters, digits and _.-, got {actor.name!r}")
    if actor.split not in SPLITS:
        raise ValueError(f"need a split of {SPLITS}, got {actor.split!r} for {who}")
    if not 0 < actor.weight < math.inf:
        raise ValueError(f"need a finite positive weight, got {actor.weight} for {who}")
    count = len(actor.rest)
    if not 0 < len(actor.faces) <= MOST_TRIANGLES:
        raise ValueError(f"need 1 to {MOST_TRIANGLES} triangles, got {len(actor.faces)} for {who}")
    if actor.faces.min() < 0 or actor.faces.max() >= count:
        raise ValueError(f"need triangles of vertices 0 to {count - 1}, got others for {who}")
    if len(actor.part) != count or actor.part.min() < -1:
        raise ValueError(f"need a part >= -1 for each of {count} vertices of {who}")
    names = [motion.name for motion in motions]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"need one or more motions with different names, got {names} for {who}")
    for motion in motions:
        what = f"motion {motion.name!r} of {who}"
        if motion.vertices.shape[1:] != (count, 3) or len(motion.vertices) < 2:
            raise ValueError(
                f"need [2 or more, {count}, 3] positions, got {motion.vertices.shape} for {what}"
            )
        if not np.isfinite(motion.vertices).all():
            raise ValueError(f"need finite positions, got NaN or infinity for {what}")
        if not 0 < motion.fps < math.inf:
            raise ValueError(f"need a positive frame rate, got {motion.fps} for {what}")
    extents = [
        float(np.ptp(f, axis=0).max())
        for m in motions
        for f in m.vertices[:: len(m.vertices) // 5 + 1]
    ]
    low, high = _LARGEST_EXTENT
    if not low <= np.median(extents) <= high:
        raise ValueError(
            f"need a largest extent of about 1, got {np.median(extents):.3g} for {who}"
        )
