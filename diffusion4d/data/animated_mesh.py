r"""Meshes moved by nodes, skins and morph targets as in glTF 2.0, evaluated exactly at any time, in float64.

A node's matrix is G_n = G_parent(n) T R S. Every vertex is moved by a few bones b, each a node n(b) and a constant
matrix I_b:

    p = Σ_k w_k G_{n(b_k)} I_{b_k} (x + Σ_s m_s δ_s),        Σ_k w_k = 1                                       (1)

with morph targets δ_s and their weights m_s, which nodes animate. glTF is y-up; the vertices that leave here are z-up.
Source: glTF 2.0 specification (Khronos 2021), §§ 3.5, 3.7, 3.11.
Shape letters:  T instants   N nodes   B bones   V vertices   F triangles   K influences   S morph targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from diffusion4d.data.keyframes import Keyframes, rotation_matrices

Array = np.ndarray
TRANSFORM = {"translation": 3, "rotation": 4, "scale": 3}
"""Properties of a node that can be animated, and how many numbers they have; rotations are quaternions (x, y, z, w)."""


@dataclass(frozen=True)
class Node:
    """A coordinate frame: its name, parent (−1: none), and its own transform as T R S or as a matrix."""

    name: str
    parent: int
    translation: Float[Array, "3"]
    rotation: Float[Array, "4"]
    scale: Float[Array, "3"]
    matrix: Float[Array, "4 4"] | None


@dataclass(frozen=True)
class Channel:
    """What an animation does to one property of one node."""

    node: int
    path: str
    keys: Keyframes


@dataclass(frozen=True)
class Animation:
    """A named set of channels; it lasts from `start` to `stop` (s)."""

    name: str
    channels: tuple[Channel, ...]

    @property
    def start(self) -> float:
        """Time of its first key, s."""
        return min((float(c.keys.times[0]) for c in self.channels), default=0.0)

    @property
    def stop(self) -> float:
        """Time of its last key, s."""
        return max((float(c.keys.times[-1]) for c in self.channels), default=0.0)


@dataclass(frozen=True)
class Morph:
    """Offsets of some vertices for each of S targets, blended by weights that belong to a node."""

    node: int
    weights: Float[Array, "S"]
    vertices: Int[Array, "v"]
    offsets: Float[Array, "S v 3"]


@dataclass(frozen=True)
class Skeleton:
    """Nodes, parents before children, and animations of them."""

    nodes: tuple[Node, ...]
    animations: tuple[Animation, ...]

    def animation(self, name: str) -> Animation:
        """The animation of that name.

        Raises:
            ValueError: no such animation.
        """
        for animation in self.animations:
            if animation.name == name:
                return animation
        raise ValueError(f"need one of {[a.name for a in self.animations]}, got {name!r}")

    def matrices(
        self, animation: Animation | None, times: Float[Array, "T"]
    ) -> Float[Array, "T N 4 4"]:
        """World matrices of all nodes (y up); None for the pose without animation."""
        channels = {(c.node, c.path): c.keys for c in animation.channels} if animation else {}
        world_TN44 = np.zeros((len(times), len(self.nodes), 4, 4))
        for number, node in enumerate(self.nodes):
            local_T44 = np.zeros((len(times), 4, 4))
            if node.matrix is not None:
                local_T44[:] = node.matrix
            else:
                parts = []
                for path in TRANSFORM:
                    keys = channels.get((number, path))
                    still = getattr(node, path)
                    parts.append(keys.at(times) if keys else np.repeat(still[None], len(times), 0))
                translation_T3, rotation_T4, scale_T3 = parts
                local_T44[:, :3, :3] = rotation_matrices(rotation_T4) * scale_T3[:, None]
                local_T44[:, :3, 3] = translation_T3
                local_T44[:, 3, 3] = 1
            parent = node.parent
            world_TN44[:, number] = local_T44 if parent < 0 else world_TN44[:, parent] @ local_T44
        return world_TN44

    def borrowed(self, other: "Skeleton", names: Mapping[str, str] | None = None) -> "Skeleton":
        """These nodes with the other skeleton's animations, node by node of the same name (or as `names` maps them).

        A bone's animated translation is added as what it differs from the other's rest, scaled by the ratio of the
        bones' lengths, so that bodies keep their own proportions. Channels of nodes that are not here are left out.
        """
        own = {node.name: number for number, node in enumerate(self.nodes)}
        animations = []
        for animation in other.animations:
            channels = []
            for channel in animation.channels:
                theirs = other.nodes[channel.node]
                name = (names or {}).get(theirs.name, theirs.name)
                if name not in own or self.nodes[own[name]].matrix is not None:
                    continue
                keys = channel.keys
                if channel.path == "translation":
                    keys = _moved_over(keys, theirs.translation, self.nodes[own[name]].translation)
                channels.append(Channel(own[name], channel.path, keys))
            animations.append(Animation(animation.name, tuple(channels)))
        return replace(self, animations=tuple(animations))


def _moved_over(keys: Keyframes, theirs: Array, ours: Array) -> Keyframes:
    lengths = np.linalg.norm(ours), np.linalg.norm(theirs)
    ratio = float(lengths[0] / lengths[1]) if min(lengths) > 1e-6 else 1.0
    values = ratio * keys.values
    values[:, 1] += ours - ratio * theirs
    return replace(keys, values=values)


@dataclass(frozen=True)
class AnimatedMesh:
    """All triangle meshes of a file as one, with their bones, morph targets and animations.

    bind: positions x of eq. (1), y up. bones and inverse: node n(b) and constant I_b. joints, weights: of eq. (1).
    """

    skeleton: Skeleton
    bind: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    bones: Int[Array, "B"]
    inverse: Float[Array, "B 4 4"]
    joints: Int[Array, "V K"]
    weights: Float[Array, "V K"]
    morphs: tuple[Morph, ...] = field(default=())

    def positions(
        self, animation: Animation | None, times: Float[Array, "T"]
    ) -> Float[Array, "T V 3"]:
        """Vertices at these times (s), z up; None for the pose without animation."""
        moved_TB44 = self.skeleton.matrices(animation, times)[:, self.bones] @ self.inverse
        x_TV3 = np.repeat(self.bind[None], len(times), 0)
        for morph in self.morphs:
            keys = next(
                (
                    c.keys
                    for c in (animation.channels if animation else ())
                    if (c.node, c.path) == (morph.node, "weights")
                ),
                None,
            )
            m_TS = keys.at(times) if keys else np.repeat(morph.weights[None], len(times), 0)
            x_TV3[:, morph.vertices] += np.einsum("ts,svi->tvi", m_TS, morph.offsets)
        p_TV3 = np.zeros_like(x_TV3)
        for joint_V, weight_V in zip(self.joints.T, self.weights.T, strict=True):
            if weight_V.any():
                chosen_TV44 = moved_TB44[:, joint_V]
                p_TV3 += weight_V[:, None] * (
                    (chosen_TV44[..., :3, :3] @ x_TV3[..., None])[..., 0] + chosen_TV44[..., :3, 3]
                )  # eq. (1)
        x, y, z = np.moveaxis(p_TV3, -1, 0)
        return np.stack([x, -z, y], -1)

    @property
    def rest(self) -> Float[Array, "V 3"]:
        """The pose without animation, z up."""
        return self.positions(None, np.zeros(1))[0]

    def with_animations_of(
        self, other: Skeleton, names: Mapping[str, str] | None = None
    ) -> "AnimatedMesh":
        """The same body moved by another file's animations; see `Skeleton.borrowed`."""
        return replace(self, skeleton=self.skeleton.borrowed(other, names))

    def only(self, vertices: Int[Array, "v"], faces: Int[Array, "f 3"]) -> "AnimatedMesh":
        """Some of the vertices, renumbered 0 … v − 1, and other triangles of them; they move as they did."""
        place = np.full(len(self.bind), -1)
        place[vertices] = np.arange(len(vertices))
        morphs = []
        for morph in self.morphs:
            stays = place[morph.vertices] >= 0
            kept = place[morph.vertices[stays]]
            morphs.append(replace(morph, vertices=kept, offsets=morph.offsets[:, stays]))
        return replace(
            self,
            bind=self.bind[vertices],
            faces=faces,
            joints=self.joints[vertices],
            weights=self.weights[vertices],
            morphs=tuple(morphs),
        )

    def dominant(self) -> Int[Array, "V"]:
        """The bone that alone moves a vertex (weight above 0.99, no morph target), −1 where several do."""
        most = self.weights.argmax(1)
        row = np.arange(len(most))
        bone = np.where(self.weights[row, most] > 0.99, self.joints[row, most], -1)
        for morph in self.morphs:
            bone[morph.vertices[np.abs(morph.offsets).max((0, 2)) > 0]] = -1
        return bone
