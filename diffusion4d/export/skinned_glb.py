r"""animated.glb: a dense mesh on a skeleton whose joints are the nodes; each hypothesis is an animation of its own.

A joint's matrix times its inverse bind matrix is the node's motion x ↦ R_j (x − g_j) + p_j, so a vertex goes to

    x' = Σ_j w_j (R_j (x − g_j) + p_j)                      (glTF 2.0, section 3.7.3.3; `fields.blend`, "linear")

with B_j = [1, −g_j] W the inverse bind matrix, where W takes the file's own coordinates to x (`gltf_mesh`). The
translation p_j has CUBICSPLINE keys that reproduce the B-spline without loss (`gltf_motion`), and the rotation R_j
as many as it takes (`turns`): the file is the field between the frames too. There are keys at the frames, though the
curves need none: Blender keeps the values of keys alone and draws tangents of its own through them, so it shows every
frame as it is and is off in between.

A vertex hangs on at most 4 nodes, since many viewers read no more. In any viewer the hypothesis is chosen as a clip
is: "hypothesis_00" …; Blender makes an action of each. Without one, the mesh is as it was given.

Shape letters:  V vertices   N nodes   K hypotheses   T frames   U instants
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion4d.export.gltf import VERTICES, Buffer, pack
from diffusion4d.export.gltf_mesh import MeshDocument
from diffusion4d.export.gltf_motion import (
    add_camera_to_each,
    animate,
    camera,
    keyframes,
    require_playable,
    scene_extras,
)
from diffusion4d.export.turns import turns
from diffusion4d.fields.skinning import Skinning
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.mesh import AXES

JOINTS = 4
"""Nodes a vertex in the file."""


def skinned_glb(
    document: MeshDocument,
    skinning: Skinning,
    rest: Float[Tensor, "N 3"],
    rotations: Callable[[int, Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]],
    hypotheses: Hypotheses,
    *,
    seconds: float,
    names: Sequence[str] | None = None,
) -> bytes:
    """The bytes of the file.

    Args:
        document: the mesh at rest.
        skinning: of the document's vertices, with at most `JOINTS` nodes each.
        rest: where nodes are when the mesh is at rest.
        rotations: of the nodes under the k-th of the hypotheses at clip times u.
        names: of the animations; `hypothesis_00` … by default.

    Raises:
        UserError: a degree above 3, or a length that is not positive.
        ValueError: another number of names, vertices or nodes, or too many nodes a vertex.
    """
    K, N = hypotheses.num_hypotheses, hypotheses.num_points
    names = [f"hypothesis_{k:02d}" for k in range(K)] if names is None else names
    held = skinning.indices.shape
    if len(names) != K or len(rest) != N:
        raise ValueError(f"need {K} names and {N} nodes, got {len(names)} and {len(rest)}")
    V = sum(len(part.points) for part in document.parts)
    if held[0] != V or held[1] > JOINTS or int(skinning.indices.max()) >= min(N, 2**16):
        got = f"{list(held)} up to node {int(skinning.indices.max())}"
        raise ValueError(f"need at most {JOINTS} of {N} nodes for {V} vertices, got {got}")
    require_playable(hypotheses, seconds)
    tree, buffer = document.tree, Buffer()
    buffer.data.extend(document.data)
    buffer.views.extend(tree.get("bufferViews", []))
    buffer.accessors.extend(tree.get("accessors", []))
    nodes = [dict(node) for node in tree["nodes"]]
    scenes = [dict(scene) for scene in tree["scenes"]]
    scene = scenes[tree["scene"]]
    places = (rest.double().numpy() * AXES).astype(np.float32)
    root = len(nodes)
    joints = list(range(root + 1, root + 1 + N))
    nodes.append({"name": "skeleton", "children": joints})
    nodes += [
        {"name": f"node_{n:03d}", "translation": place} for n, place in enumerate(places.tolist())
    ]
    scene["nodes"] = [*scene["nodes"], root]
    scene["extras"] = {**scene.get("extras", {}), **scene_extras(hypotheses, seconds)}
    made = {**tree, "nodes": nodes, "scenes": scenes}
    made["meshes"], made["skins"] = _skins(document, skinning, places, nodes, joints, buffer)
    made["animations"] = _animations(hypotheses, rotations, names, seconds, joints, buffer)
    lens = camera(
        hypotheses, float(hypotheses.camera_points()[..., 2].median().abs().clamp_min(1e-3))
    )
    made["cameras"] = [*tree.get("cameras", []), lens]
    add_camera_to_each(hypotheses, made, buffer, seconds)
    return pack(made, buffer)


def _skins(
    document: MeshDocument,
    skinning: Skinning,
    places: Float[np.ndarray, "N 3"],
    nodes: list[dict[str, Any]],
    joints: list[int],
    buffer: Buffer,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The document's meshes with joints and weights on them, and a skin for each node that shows one."""
    short = ((0, 0), (0, JOINTS - skinning.indices.shape[1]))
    weights = np.pad(skinning.weights.float().numpy(), short)
    # A joint of no weight is named 0.
    indices = np.where(weights > 0, np.pad(skinning.indices.numpy(), short), 0).astype(np.uint16)
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
            inverse = np.tile(np.eye(4), (len(places), 1, 1))
            inverse[:, :3, 3] = -places
            # Column by column, as glTF has it.
            columns = (inverse @ part.matrix).swapaxes(1, 2).astype(np.float32)
            node["skin"] = len(skins)
            skins.append(
                {
                    "skeleton": joints[0] - 1,
                    "joints": joints,
                    "inverseBindMatrices": buffer.add(columns),
                }
            )
        stop = start + len(part.points)
        attributes = meshes[node["mesh"]]["primitives"][part.primitive]["attributes"]
        attributes["JOINTS_0"] = buffer.add(indices[start:stop], VERTICES)
        attributes["WEIGHTS_0"] = buffer.add(weights[start:stop], VERTICES)
        start = stop
    return meshes, skins


def _animations(
    hyp: Hypotheses,
    rotations: Callable[[int, Float64[Tensor, "U"]], Float[Tensor, "U N 3 3"]],
    names: Sequence[str],
    seconds: float,
    joints: list[int],
    buffer: Buffer,
) -> list[dict[str, Any]]:
    keys, outputs = keyframes(hyp, seconds, hyp.times)
    time = buffer.add(keys, bounds=True)
    u = torch.from_numpy(keys.astype(np.float64) / seconds).clamp(0, 1)
    scores = hyp.scores().tolist()
    found = []
    for k, name in enumerate(names):
        extras: dict[str, Any] = {"seed": int(hyp.seeds[k])}
        if np.isfinite(scores[k]):
            extras["reprojection_px_at_256"] = scores[k]
        animation: dict[str, Any] = {"name": name, "samplers": [], "channels": [], "extras": extras}
        ways = [("translation", np.arange(len(joints)), time, outputs[k])]
        for some in turns(lambda at, k=k: rotations(k, at), u, seconds):
            ways.append(("rotation", some.nodes, buffer.add(some.times, bounds=True), some.curves))
        for path, numbers, at, curves in ways:
            for n, curve in zip(numbers, buffer.add_each(curves), strict=True):
                sampler = {"input": at, "interpolation": "CUBICSPLINE", "output": curve}
                animate(animation, joints[n], path, sampler)
        found.append(animation)
    return found
