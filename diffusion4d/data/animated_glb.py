r"""Animated glTF meshes, evaluated exactly at any time, in float64.

A node's matrix is G_n = G_parent(n) T R S. Every vertex is moved by a few bones b, each a node n(b) and a constant
matrix I_b:

    p = Σ_k w_k G_{n(b_k)} I_{b_k} (x + Σ_s m_s δ_s),        Σ_k w_k = 1                                       (1)

with morph targets δ_s and their weights m_s, which nodes animate. For a skin, bones are its joints and I_b their
inverse bind matrices (the mesh's own node does not matter then); an unskinned mesh has one bone, its node, with I = 1.
So meshes, primitives and skins of a file become one array of vertices. glTF is y-up; what leaves here is z-up.
Source: glTF 2.0 specification (Khronos 2021), §§ 3.5, 3.7, 3.11.
Shape letters:  T instants   N nodes   B bones   V vertices   F triangles   K influences   S morph targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffusion4d.data.gltf_file import GltfFile
from diffusion4d.data.keyframes import INTERPOLATIONS, Keyframes, rotation_matrices

Array = np.ndarray
_PATHS = {"translation": 3, "rotation": 4, "scale": 3}
_TRIANGLES = 4


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
                for path in _PATHS:
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


def read_skeleton(path: Path) -> Skeleton:
    """Nodes and animations of a file, which need not hold a mesh.

    Raises:
        ValueError: not a glTF 2.0 file, or one that breaks its rules; says what was required.
        OSError: the file cannot be read.
    """
    return _skeleton(GltfFile(path))[0]


def read_animated(path: Path) -> AnimatedMesh:
    """The meshes of a file with their skins, morph targets and animations.

    Raises:
        ValueError: not a glTF 2.0 file with triangles, or one that breaks its rules; says what was required.
        OSError: the file cannot be read.
    """
    file = GltfFile(path)
    skeleton, place = _skeleton(file)
    surfaces, faces = [], []
    bones: list[Array] = []
    inverses: list[Array] = []
    morphs: list[Morph] = []
    num_bones, num_vertices = 0, 0
    for source, number in place.items():
        node = file.tree.nodes[source]
        if node.mesh is None:
            continue
        mesh = file.item("meshes", node.mesh)
        if node.skin is None:
            bones.append(np.array([number]))
            inverses.append(np.eye(4)[None])
        else:
            skin = file.item("skins", node.skin)
            missing = [j for j in skin.joints if j not in place]
            if missing:
                raise ValueError(f"need joints in the scene, got nodes {missing} outside of {path}")
            bones.append(np.array([place[j] for j in skin.joints]))
            inverse = skin.inverseBindMatrices
            inverses.append(
                np.repeat(np.eye(4)[None], len(skin.joints), 0)
                if inverse is None
                else file.matrices(inverse)[: len(skin.joints)]
            )
        for primitive in mesh.primitives:
            if primitive.mode not in (None, _TRIANGLES):
                raise ValueError(f"need triangles (mode 4), got mode {primitive.mode} in {path}")
            surface = _surface(file, primitive, node.skin is not None, len(bones[-1]))
            surfaces.append((surface[0], surface[2] + num_bones, surface[3]))
            faces.append(surface[1] + num_vertices)
            if primitive.targets:
                default = (
                    file.node_weights.get(source) or mesh.weights or [0.0] * len(primitive.targets)
                )
                at = np.arange(num_vertices, num_vertices + len(surface[0]))
                offsets = np.stack(
                    [_morph_target(file, target, len(surface[0])) for target in primitive.targets]
                )
                morphs.append(Morph(number, np.array(default, np.float64), at, offsets))
            num_vertices += len(surface[0])
        num_bones += len(bones[-1])
    if not surfaces or not sum(map(len, faces)):
        raise ValueError(f"need a mesh with triangles, got none in {path}")
    width = max(s[1].shape[1] for s in surfaces)
    joints = [np.pad(s[1], ((0, 0), (0, width - s[1].shape[1])), mode="edge") for s in surfaces]
    weights = [np.pad(s[2], ((0, 0), (0, width - s[2].shape[1]))) for s in surfaces]
    return AnimatedMesh(
        skeleton,
        np.concatenate([s[0] for s in surfaces]),
        np.concatenate(faces),
        np.concatenate(bones),
        np.concatenate(inverses),
        np.concatenate(joints),
        np.concatenate(weights),
        tuple(morphs),
    )


def _surface(
    file: GltfFile, primitive: Any, skinned: bool, num_bones: int
) -> tuple[Array, Array, Array, Array]:
    """Positions, triangles, joints and weights of one primitive."""
    given = primitive.attributes
    if given.POSITION is None:
        raise ValueError(f"need positions for every mesh, got none in {file.path}")
    bind = file.accessor(given.POSITION).astype(np.float64)
    count = len(bind)
    corners = (
        np.arange(count) if primitive.indices is None else file.accessor(primitive.indices)[:, 0]
    )
    if len(corners) % 3 or (len(corners) and not 0 <= corners.min() <= corners.max() < count):
        raise ValueError(f"need three corners a triangle among {count} vertices in {file.path}")
    if not skinned:
        return bind, corners.reshape(-1, 3), np.zeros((count, 1), np.int64), np.ones((count, 1))
    joints, weights = [], []
    while getattr(given, f"JOINTS_{len(joints)}", None) is not None:
        number = len(joints)
        joints.append(file.accessor(getattr(given, f"JOINTS_{number}")))
        weights.append(file.accessor(getattr(given, f"WEIGHTS_{number}", None)))
    if not joints:
        raise ValueError(f"need joints for a skinned mesh, got none in {file.path}")
    joint, weight = np.concatenate(joints, 1), np.concatenate(weights, 1).astype(np.float64)
    if joint.shape != weight.shape or len(joint) != count:
        raise ValueError(
            f"need 4 joints and weights for each of {count} vertices, "
            f"got {joint.shape} and {weight.shape} in {file.path}"
        )
    total = weight.sum(1, keepdims=True)
    if not (np.isfinite(weight).all() and (total > 0).all()):
        raise ValueError(f"need weights with a positive sum, got others in {file.path}")
    if ((joint < 0) | (joint >= num_bones))[weight > 0].any():
        raise ValueError(f"need joints below {num_bones}, got {joint.max()} in {file.path}")
    return bind, corners.reshape(-1, 3), np.where(weight > 0, joint, 0), weight / total


def _morph_target(file: GltfFile, target: Any, count: int) -> Array:
    number = (
        target.get("POSITION") if isinstance(target, dict) else getattr(target, "POSITION", None)
    )
    if number is None:
        return np.zeros((count, 3))
    offsets = file.accessor(number).astype(np.float64)
    if offsets.shape != (count, 3):
        raise ValueError(
            f"need morph targets of {count} vertices, got {offsets.shape} in {file.path}"
        )
    return offsets


def _skeleton(file: GltfFile) -> tuple[Skeleton, dict[int, int]]:
    """The skeleton, and where in it each node of the file is; parents come first."""
    sources = file.tree.nodes
    if file.tree.scenes:
        roots = list(file.item("scenes", file.tree.scene or 0).nodes or [])
    else:
        children = {c for node in sources for c in node.children or []}
        roots = [i for i in range(len(sources)) if i not in children]
    nodes: list[Node] = []
    place: dict[int, int] = {}
    waiting = [(root, -1) for root in reversed(roots)]
    while waiting:
        number, parent = waiting.pop()
        if number in place:
            raise ValueError(f"need a tree of nodes, got node {number} twice in {file.path}")
        source = file.item("nodes", number)
        place[number] = len(nodes)
        nodes.append(_node(source, number, parent))
        waiting += [(child, place[number]) for child in reversed(source.children or [])]
    animations = []
    for index, source in enumerate(file.tree.animations or []):
        channels = [_channel(file, source, c, place) for c in source.channels]
        name = source.name or f"animation-{index}"
        animations.append(Animation(name, tuple(c for c in channels if c is not None)))
    return Skeleton(tuple(nodes), tuple(animations)), place


def _node(source: Any, number: int, parent: int) -> Node:
    # pygltflib fills in None or the defaults, depending on the property.
    matrix = None
    if source.matrix:
        matrix = np.array(source.matrix, np.float64).reshape(4, 4).T
    return Node(
        source.name or f"node-{number}",
        parent,
        _vector(source.translation, (0, 0, 0)),
        _vector(source.rotation, (0, 0, 0, 1)),
        _vector(source.scale, (1, 1, 1)),
        matrix,
    )


def _vector(given: Sequence[float] | None, default: tuple[int, ...]) -> Array:
    return np.array(given or default, np.float64)


def _channel(file: GltfFile, source: Any, channel: Any, place: dict[int, int]) -> Channel | None:
    """None for a channel that moves nothing of the scene."""
    path, node = channel.target.path, channel.target.node
    if path not in (*_PATHS, "weights") or node not in place:
        return None
    if not 0 <= channel.sampler < len(source.samplers):
        raise ValueError(f"need one of {len(source.samplers)} samplers in {file.path}")
    sampler = source.samplers[channel.sampler]
    kind = sampler.interpolation or "LINEAR"
    if kind not in INTERPOLATIONS:
        raise ValueError(f"need an interpolation of {INTERPOLATIONS}, got {kind} in {file.path}")
    times = file.accessor(sampler.input)[:, 0].astype(np.float64)
    values = file.accessor(sampler.output).astype(np.float64)
    per_key = 3 if kind == "CUBICSPLINE" else 1
    width = _PATHS.get(path) or values.size // max(1, per_key * len(times))
    if not len(times) or values.size != len(times) * per_key * width:
        raise ValueError(
            f"need {per_key * width} numbers for each of {len(times)} keys of a {path}, "
            f"got {values.size} in {file.path}"
        )
    values = values.reshape(len(times), per_key, width)
    if per_key == 1:
        values = np.concatenate([np.zeros_like(values), values, np.zeros_like(values)], 1)
    try:
        keys = Keyframes(times, values, kind, path == "rotation")
    except ValueError as error:
        raise ValueError(f"{error}: animation {source.name!r} in {file.path}") from error
    return Channel(place[node], path, keys)
