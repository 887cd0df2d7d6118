r"""Actors from animated glTF files.

Every animation is sampled evenly from its first key to its last, at about 30 frames a second. Actors are scaled so
that the median over frames of their largest extent is 1; each motion starts above the origin, and its lowest vertex is
on the floor where the actor is grounded. Vertices that one bone moves, and that really keep their distances in all
motions, form a rigid part.
Shape letters:  T frames   V vertices   F triangles   J joints.
"""

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from diffusion4d.data.actors import Actor, Motion, Split
from diffusion4d.data.animated_glb import read_animated, read_skeleton
from diffusion4d.data.animated_mesh import AnimatedMesh, Animation, Skeleton
from diffusion4d.data.decimation import decimated, merged
from diffusion4d.data.jointed import body, moved, random_build
from diffusion4d.data.recipe import found, positive
from diffusion4d.data.skeleton import Y_UP_TO_Z_UP, Take

Array = np.ndarray
RATE = 30.0
STILL = 0.01
"""An animation in which nothing ever gets farther than this from where it was (actor's size) is left out."""
CLOSED = 0.03
"""An animation that ends as near to its first pose as this is one that loops."""


@dataclasses.dataclass(frozen=True)
class Animated:
    """A table [[animated]] or [[skeletons]] of a recipe."""

    files: str
    """Pattern of the files, relative to the folder of sources."""
    prefix: str
    """Goes before the file's name in the actor's name."""
    group: str
    source: str
    licence: str
    grounded: bool
    animations: str | None = None
    """Files whose animations move the bodies, node by node of the same name; else their own."""
    species: str | None = None
    """The files' names by default."""
    held_out: tuple[str, ...] = ()
    """Files (names without ending) of the split "held-out"."""
    leave_out: tuple[str, ...] = ()
    """Files (names without ending) that are not read."""
    skip: tuple[str, ...] = ("*Rest*", "*T-Pose*", "*_Pose", "*Spawn*")
    """Patterns of animations to leave out."""
    split: Split = "train"
    """Of those that are not held out."""
    smooth: bool = True
    weight: float = 1.0
    """Odds in the group of each file."""
    triangles: int = 1_500
    bodies: int = 1
    """How many bodies each skeleton gets."""

    def __post_init__(self) -> None:
        positive(weight=self.weight, triangles=self.triangles, bodies=self.bodies)

    def may_make(self, name: str) -> bool:
        """Whether an actor of that name could be of this table; which files there are is not looked at."""
        return name.startswith(_name(self.prefix, ""))


Sampled = tuple[str, Float[Array, "_ V 3"], float]
"""An animation's name, its positions (as many frames as it has) and how many frames are a second."""


def mesh_actors(sources: Path, given: Animated) -> Iterator[tuple[Actor, list[Motion]]]:
    """An actor for every file that matches.

    Raises:
        ValueError: there are no such files, or one cannot be read.
    """
    for path in _files(sources, given):
        mesh = reduced(read_animated(path), given.triangles)
        skeleton = mesh.skeleton
        if given.animations is not None:
            lent = [skeleton.borrowed(read_skeleton(p)) for p in found(sources, given.animations)]
            animations = tuple(a for lender in lent for a in lender.animations)
            skeleton = dataclasses.replace(skeleton, animations=animations)
            mesh = dataclasses.replace(mesh, skeleton=skeleton)
        sampled = []
        for animation in _chosen(skeleton.animations, given.skip):
            times, rate = instants(animation)
            sampled.append((animation.name, mesh.positions(animation, times), rate))
        yield actor_of(path.stem, given, mesh.rest, mesh.faces, mesh.dominant(), sampled)


def skeleton_actors(sources: Path, given: Animated) -> Iterator[tuple[Actor, list[Motion]]]:
    """Bodies of random build around the bones of every file that matches, each with all motions of the file.

    Raises:
        ValueError: there are no such files, or one cannot be read.
    """
    for path in _files(sources, given):
        skeleton = read_skeleton(path)
        takes = [
            (animation.name, take_of(skeleton, animation))
            for animation in _chosen(skeleton.animations, given.skip)
        ]
        if not takes:
            raise ValueError(f"need an animation that is not left out, got none in {path}")
        for number in range(given.bodies):
            rng = np.random.default_rng(number)
            limbs = body(takes[0][1], random_build(rng), rng)
            sampled = [(name, moved(limbs, take), take.fps) for name, take in takes]
            actor, motions = actor_of(
                path.stem, given, limbs.rest, limbs.faces, limbs.part, sampled
            )
            weight = given.weight / given.bodies
            name = actor.name if given.bodies == 1 else f"{actor.name}-{number}"
            yield dataclasses.replace(actor, name=name, weight=weight), motions


def take_of(skeleton: Skeleton, animation: Animation) -> Take:
    """Where the nodes are during an animation, from the first one on that carries more than one chain."""
    times, rate = instants(animation)
    matrices_TN44 = skeleton.matrices(animation, times)
    parents = np.array([node.parent for node in skeleton.nodes])
    # An armature and a root on the floor have one child, and no limb belongs between them.
    first = 0
    while (parents == first).sum() == 1:
        first += 1
    below = [first]
    for number in range(first + 1, len(parents)):
        if parents[number] in below:
            below.append(number)
    place = {number: index for index, number in enumerate(below)}
    turn_TJ33 = matrices_TN44[:, below][..., :3, :3]
    turn_TJ33 = turn_TJ33 / np.linalg.norm(turn_TJ33, axis=-2, keepdims=True)
    return Take(
        matrices_TN44[:, below][..., :3, 3] @ Y_UP_TO_Z_UP.T,
        np.array([place.get(int(parents[number]), -1) for number in below]),
        rate,
        tuple(skeleton.nodes[number].name for number in below),
        Y_UP_TO_Z_UP @ turn_TJ33,
    )


def instants(animation: Animation) -> tuple[Float[Array, "T"], float]:
    """Evenly spaced times from the first key to the last, and how many a second."""
    seconds = animation.stop - animation.start
    count = max(1, round(RATE * seconds))
    return np.linspace(animation.start, animation.stop, count + 1), count / max(seconds, 1e-9)


def reduced(mesh: AnimatedMesh, triangles: int) -> AnimatedMesh:
    """The same mesh without doubled vertices, and with at most so many triangles."""
    offsets = np.zeros((len(mesh.bind), 0))
    for morph in mesh.morphs:
        block = np.zeros((len(mesh.bind), 3 * len(morph.offsets)))
        block[morph.vertices] = morph.offsets.swapaxes(0, 1).reshape(len(morph.vertices), -1)
        offsets = np.concatenate([offsets, block], 1)
    influence = np.zeros((len(mesh.bind), len(mesh.bones)))
    np.add.at(influence, (np.arange(len(mesh.bind))[:, None], mesh.joints), mesh.weights)
    size = np.ptp(mesh.rest, axis=0).max()
    grid = np.concatenate([mesh.rest / (1e-5 * size), offsets / (1e-5 * size), 1e3 * influence], 1)
    mesh = mesh.only(*merged(np.round(grid), mesh.faces))
    return mesh.only(*decimated(mesh.rest, mesh.faces, triangles))


def actor_of(
    stem: str,
    given: Animated,
    rest: Float[Array, "V 3"],
    faces: Int[Array, "F 3"],
    part: Int[Array, "V"],
    sampled: Sequence[Sampled],
) -> tuple[Actor, list[Motion]]:
    """An actor in its axes, with those of its motions in which something moves.

    Raises:
        ValueError: nothing moves in any of them.
    """
    extents = [np.ptp(frame, axis=0).max() for _, frames, _ in sampled for frame in frames[::3]]
    scale = 1 / float(np.median(extents)) if extents else 1.0
    motions: list[Motion] = []
    for name, frames, rate in sampled:
        frames = scale * frames
        if np.linalg.norm(frames - frames[0], axis=-1).max() < STILL:
            continue
        middle = 0.5 * (frames[0].min(0) + frames[0].max(0))
        floor = frames[..., 2].min() if given.grounded else middle[2]
        frames = frames - np.array([middle[0], middle[1], floor])
        frames, loops = _closed(frames)
        taken = {motion.name for motion in motions}
        short = _short(name) if _short(name) not in taken else f"{_short(name)}-{len(taken)}"
        motions.append(Motion(short, frames.astype(np.float32), rate, loops))
    if not motions:
        raise ValueError(f"need an animation in which something moves, got none for {stem}")
    actor = Actor(
        name=_name(given.prefix, stem),
        group=given.group,
        species=given.species or stem,
        source=given.source,
        licence=given.licence,
        split="held-out" if stem in given.held_out else given.split,
        rest=(scale * rest).astype(np.float32),
        faces=faces.astype(np.int32),
        part=_rigid_parts(part, motions).astype(np.int32),
        smooth=given.smooth,
        grounded=given.grounded,
        weight=given.weight,
    )
    return actor, motions


def _name(prefix: str, stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{prefix}-{stem}").lower()


def _closed(frames: Float[Array, "T V 3"]) -> tuple[Float[Array, "T V 3"], bool]:
    """Whether the motion loops; one whose last frame is the one before the first gets that as its end."""
    gap = np.linalg.norm(frames[-1] - frames[0], axis=-1).max()
    if gap < CLOSED:
        return frames, True
    step = max(
        np.linalg.norm(after - before, axis=-1).max()
        for before, after in itertools.pairwise(frames)
    )
    if gap < step:
        return np.concatenate([frames, frames[:1]]), True
    return frames, False


def _rigid_parts(part: Int[Array, "V"], motions: Sequence[Motion]) -> Int[Array, "V"]:
    """Parts, renumbered from 0, that keep their distances in all motions (a bone may stretch); −1 elsewhere."""
    out = np.full(len(part), -1)
    count = 0
    for number in np.unique(part[part >= 0]):
        own = np.flatnonzero(part == number)
        if len(own) < 4:
            continue
        # Distances to four vertices that span the piece tell all others.
        some = own[np.linspace(0, len(own) - 1, 4).astype(int)]
        stretch = 0.0
        for motion in motions:
            frames = motion.vertices.astype(np.float64)
            apart = np.linalg.norm(frames[:, own, None] - frames[:, None, some], axis=-1)
            stretch = max(stretch, float(np.ptp(apart, axis=0).max()))
        if stretch < 1e-4:
            out[own] = count
            count += 1
    return out


def _files(sources: Path, given: Animated) -> list[Path]:
    paths = found(sources, given.files)
    stems = {path.stem for path in paths}
    if missing := sorted((set(given.held_out) | set(given.leave_out)) - stems):
        raise ValueError(f"need the files {missing} among {given.files}, got none")
    return [path for path in paths if path.stem not in given.leave_out]


def _chosen(animations: Sequence[Animation], skip: Sequence[str]) -> list[Animation]:
    return [a for a in animations if not any(fnmatch.fnmatch(a.name, pattern) for pattern in skip)]


def _short(name: str) -> str:
    """Exporters put the armature's name before the animation's."""
    return name.rpartition("|")[2]
