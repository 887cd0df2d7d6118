r"""Animated glTF files: their meshes, primitives and skins as one `animated_mesh.AnimatedMesh`.

For a skin, bones are its joints and their constant matrices the inverse bind matrices (the mesh's own node does not
matter then); an unskinned mesh has one bone, its node, with the identity.
Source: glTF 2.0 specification (Khronos 2021), §§ 3.5, 3.7, 3.11.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion4d.data.animated_mesh import (
    TRANSFORM,
    AnimatedMesh,
    Animation,
    Channel,
    Morph,
    Node,
    Skeleton,
)
from diffusion4d.data.gltf_file import GltfFile, well_formed
from diffusion4d.data.keyframes import INTERPOLATIONS, Keyframes

Array = np.ndarray
_TRIANGLES = 4


def read_skeleton(path: Path) -> Skeleton:
    """Nodes and animations of a file, which need not hold a mesh.

    Raises:
        ValueError: not a glTF 2.0 file, or one that breaks its rules; says what was required.
        OSError: the file cannot be read.
    """
    with well_formed(path):
        return placed_nodes(GltfFile(path))[0]


def read_animated(path: Path) -> AnimatedMesh:
    """The meshes of a file with their skins, morph targets and animations.

    Raises:
        ValueError: not a glTF 2.0 file with triangles, or one that breaks its rules; says what was required.
        OSError: the file cannot be read.
    """
    with well_formed(path):
        return _mesh(GltfFile(path))


def _mesh(file: GltfFile) -> AnimatedMesh:
    path = file.path
    skeleton, place = placed_nodes(file)
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


def placed_nodes(file: GltfFile) -> tuple[Skeleton, dict[int, int]]:
    """The skeleton, and where in it each node of the file's scene is; parents come first.

    Raises:
        ValueError: nodes that are no tree, or an animation that breaks the rules.
    """
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
    if not nodes:
        raise ValueError(f"need nodes in the scene, got none in {file.path}")
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
    if path not in (*TRANSFORM, "weights") or node not in place:
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
    width = TRANSFORM.get(path) or values.size // max(1, per_key * len(times))
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
