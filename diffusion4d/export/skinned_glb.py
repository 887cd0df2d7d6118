r"""animated.glb: a mesh that nodes carry along, one animation a hypothesis.

The skeleton is the nodes: a joint each, side by side. A vertex at x in the scene follows up to four of them,

    x' = Σ_n w_n G_n B_n p = Σ_n w_n (R_n(t) (x − g_n) + p_n(t)),     Σ_n w_n = 1,                                (1)

with the joint's matrix G_n = [R_n, p_n], its inverse bind matrix B_n = [1, −g_n] W of the rest place g_n, and W that
takes the file's own coordinates p to x (`gltf_mesh`). This is linear-blend skinning, all that glTF 2.0 (§ 3.7.3) knows;
four joints a vertex is what every viewer takes.

- `hypothesis_00` … are animations of the same joints, so that a viewer's list of clips is the list of hypotheses, and
  of its camera, where the cameras differ or move.
- Translations are CUBICSPLINE keys at the knots, exact for the spline (`gltf_scene`); rotations are CUBICSPLINE
  quaternions at keys of their own, as many as they take.
- Between the animations nothing moves: the rest pose is the mesh as it was given.

Shape letters:  V vertices   N nodes (joints)   J joints a vertex   T frames   keys of an animation
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from diffusion4d.export.gltf import VERTICES, Buffer, pack
from diffusion4d.export.gltf_mesh import MeshDocument
from diffusion4d.export.gltf_scene import animate, animate_camera, camera_node

JOINTS = 4
"""Joints a vertex."""


@dataclass(frozen=True, eq=False)
class JointMotion:
    """How every joint moves under one hypothesis, as CUBICSPLINE keys in glTF's axes."""

    name: str
    times: Float32[np.ndarray, "keys"]
    """s."""
    places: Float32[np.ndarray, "N triplets 3"]
    """In-tangent, value and out-tangent of every key."""
    turn_times: Float32[np.ndarray, "turn_keys"]
    """s."""
    turns: Float32[np.ndarray, "N turn_triplets 4"]
    """The same of unit quaternions (x, y, z, w)."""
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Shot:
    """The camera: its lens as glTF's `camera`, and where it stands in every animation."""

    lens: dict[str, Any]
    seconds: Float[np.ndarray, "T"]
    paths: Sequence[Float[Tensor, "T 4 4"]] | None
    """World to camera, a path an animation; None for a camera that stays at the origin."""


def skinned_glb(
    document: MeshDocument,
    rest: Float[np.ndarray, "N 3"],
    indices: Int64[np.ndarray, "V J"],
    weights: Float[np.ndarray, "V J"],
    motions: Sequence[JointMotion],
    *,
    shot: Shot | None = None,
    extras: dict[str, Any] | None = None,
) -> bytes:
    """The bytes of the file.

    Args:
        rest: where the nodes are while the vertices are where `document` has them, in glTF's axes.
        indices: of the nodes that each of the document's vertices follows, at most `JOINTS`.
        weights: ≥ 0, each row with the sum 1.
        extras: of the scene.

    Raises:
        ValueError: shapes do not fit together, there are too many joints a vertex, weights that are no partition of
            unity, or no motion.
    """
    indices, weights = _checked(document, rest, indices, weights, motions)
    tree = document.tree
    buffer = Buffer()
    buffer.data.extend(document.data)
    buffer.views.extend(tree.get("bufferViews", []))
    buffer.accessors.extend(tree.get("accessors", []))
    nodes = [dict(node) for node in tree["nodes"]]
    scenes = [dict(scene) for scene in tree["scenes"]]
    scene = scenes[tree["scene"]]
    root = len(nodes)
    joints = list(range(root + 1, root + 1 + len(rest)))
    nodes.append({"name": "skeleton", "children": joints})
    nodes += [
        {"name": f"node_{n:03d}", "translation": place}
        for n, place in enumerate(rest.astype(np.float32).tolist())
    ]
    scene["nodes"] = [*scene["nodes"], root]
    scene["extras"] = {**scene.get("extras", {}), **(extras or {})}
    meshes, skins = _skinned(document, nodes, rest, indices, weights, joints, buffer)
    animations = [_animation(motion, joints, buffer) for motion in motions]
    document_tree = {**tree, "nodes": nodes, "scenes": scenes, "meshes": meshes, "skins": skins}
    document_tree["animations"] = animations
    if shot is not None:
        cameras = list(tree.get("cameras", []))
        scene["nodes"].append(len(nodes))
        _add_camera(shot, nodes, animations, len(cameras), buffer)
        document_tree["cameras"] = [*cameras, shot.lens]
    return pack(document_tree, buffer)


def _checked(
    document: MeshDocument,
    rest: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    motions: Sequence[JointMotion],
) -> tuple[np.ndarray, np.ndarray]:
    """Joints [V, 4] and weights [V, 4], float32, the heaviest first; what has no weight is joint 0."""
    count = len(document.points)
    if indices.shape != weights.shape or len(indices) != count:
        raise ValueError(
            f"need joints and weights of {count} vertices, got {indices.shape} and {weights.shape}"
        )
    if indices.shape[1] > JOINTS:
        raise ValueError(f"need at most {JOINTS} joints a vertex, got {indices.shape[1]}")
    if not 0 <= indices.min() <= indices.max() < min(len(rest), 2**16):
        raise ValueError(f"need joints among {len(rest)} nodes, below 65536, got {indices.max()}")
    if not (weights.min() >= 0 and np.abs(weights.sum(1) - 1).max() < 1e-4):
        raise ValueError("need weights >= 0 whose sum is 1 at every vertex")
    if not motions:
        raise ValueError("need a motion, got none")
    for motion in motions:
        if not len(motion.places) == len(motion.turns) == len(rest):
            raise ValueError(
                f"need a motion of {len(rest)} joints, got {len(motion.places)} in {motion.name}"
            )
    pad = ((0, 0), (0, JOINTS - indices.shape[1]))
    order = np.argsort(-np.pad(weights, pad), axis=1, kind="stable")
    weights = np.take_along_axis(np.pad(weights, pad), order, 1).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    indices = np.take_along_axis(np.pad(indices, pad), order, 1)
    return np.where(weights > 0, indices, 0).astype(np.uint16), weights


def _skinned(
    document: MeshDocument,
    nodes: list[dict[str, Any]],
    rest: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    joints: list[int],
    buffer: Buffer,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The document's meshes with joints and weights on them, and a skin for each node that shows one."""
    meshes = [
        {
            **mesh,
            "primitives": [{**p, "attributes": dict(p["attributes"])} for p in mesh["primitives"]],
        }
        for mesh in document.tree["meshes"]
    ]
    skins: list[dict[str, Any]] = []
    start = 0
    for part in document.parts:
        node = nodes[part.node]
        if "skin" not in node:
            inverse_N44 = np.tile(np.eye(4), (len(rest), 1, 1))
            inverse_N44[:, :3, 3] = -rest.astype(np.float32)
            # glTF stores matrices by columns.
            columns = (inverse_N44 @ part.matrix).swapaxes(1, 2).reshape(-1, 16)
            columns[:, [3, 7, 11]], columns[:, 15] = 0, 1
            inverse = buffer.add(columns.astype(np.float32))
            node["skin"] = len(skins)
            skins.append(
                {"skeleton": joints[0] - 1, "joints": joints, "inverseBindMatrices": inverse}
            )
        stop = start + len(part.points)
        attributes = meshes[node["mesh"]]["primitives"][part.primitive]["attributes"]
        attributes["JOINTS_0"] = buffer.add(indices[start:stop], VERTICES)
        attributes["WEIGHTS_0"] = buffer.add(weights[start:stop], VERTICES)
        start = stop
    return meshes, skins


def _animation(motion: JointMotion, joints: list[int], buffer: Buffer) -> dict[str, Any]:
    animation: dict[str, Any] = {"name": motion.name, "samplers": [], "channels": []}
    if motion.extras:
        animation["extras"] = motion.extras
    for path, times, curves in (
        ("translation", motion.times, motion.places),
        ("rotation", motion.turn_times, motion.turns),
    ):
        time = buffer.add(times, bounds=True)
        for joint, curve in zip(joints, buffer.add_each(curves), strict=True):
            sampler = {"input": time, "interpolation": "CUBICSPLINE", "output": curve}
            animate(animation, joint, path, sampler)
    return animation


def _add_camera(
    shot: Shot,
    nodes: list[dict[str, Any]],
    animations: list[dict[str, Any]],
    lens: int,
    buffer: Buffer,
) -> None:
    """One node; every animation moves it along its own path."""
    nodes.append(camera_node("camera", None if shot.paths is None else shot.paths[0], lens))
    if shot.paths is None or len(shot.seconds) == 1:
        return
    times = buffer.add(shot.seconds.astype(np.float32), bounds=True)
    for animation, path_T44 in zip(animations, shot.paths, strict=True):
        animate_camera(animation, len(nodes) - 1, path_T44, buffer, times)
