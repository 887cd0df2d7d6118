r"""animated.glb: a dense mesh on a skeleton whose joints are the nodes; each hypothesis is an animation of its own.

A joint's matrix times its inverse bind matrix is the node's motion x ↦ R_j (x − g_j) + p_j, so a vertex goes to

    x' = Σ_j w_j (R_j (x − g_j) + p_j)                      (glTF 2.0, section 3.7.3.3; `fields.blend`, "linear")

with the translation p_j on CUBICSPLINE keys that reproduce the B-spline without loss (`export.gltf_motion`), and the
rotation R_j at the frames and linear between them. A vertex hangs on the 4 heaviest nodes, since many viewers read no
more. In any viewer the hypothesis is chosen as a clip is: "hypothesis_00" …; Blender makes an action of each.

Shape letters:  V vertices   N nodes   K hypotheses   T frames
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion4d.errors import UserError
from diffusion4d.export.gltf import INDICES, VERTICES, Buffer, linear_light, pack
from diffusion4d.export.gltf_motion import (
    AXES,
    add_camera_to_each,
    animate,
    camera,
    keyframes,
    quaternions,
    require_playable,
    scene_extras,
)
from diffusion4d.fields.motion import NodeMotion
from diffusion4d.fields.skinning import Skinning
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.mesh import Mesh

JOINTS = 4
"""Nodes a vertex in the file."""


def skinned_glb(
    mesh: Mesh,
    skinning: Skinning,
    motion: NodeMotion,
    hypotheses: Hypotheses,
    *,
    seconds: float,
    names: Sequence[str] | None = None,
) -> bytes:
    """The bytes of the file.

    Args:
        mesh: at rest, in the hypotheses' frame.
        motion: of all the hypotheses at their frames, B = (K, T).
        names: of the animations; `hypothesis_00` … by default.

    Raises:
        UserError: a degree above 3, a length that is not positive, or names or a motion of another number.
    """
    K, T = hypotheses.num_hypotheses, hypotheses.num_frames
    names = [f"hypothesis_{k:02d}" for k in range(K)] if names is None else names
    if len(names) != K or tuple(motion.positions.shape[:2]) != (K, T):
        got = f"{len(names)} names and {list(motion.positions.shape[:2])}"
        raise UserError(f"need {K} names and a motion of [{K}, {T}], got {got}")
    require_playable(hypotheses, seconds)
    buffer = Buffer()
    scale = float(hypotheses.camera_points()[..., 2].median().abs().clamp_min(1e-3))
    extras = scene_extras(hypotheses, seconds)
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "diffusion4d"},
        "scene": 0,
        "scenes": [{"name": "diffusion4d", "nodes": [0, 1], "extras": extras}],
        "nodes": [{"name": "surface", "mesh": 0, "skin": 0}],
        "materials": [_material(mesh)],
        "cameras": [camera(hypotheses, scale)],
        "meshes": [{"name": "surface", "primitives": [_primitive(mesh, skinning, buffer)]}],
    }
    if mesh.texture is not None:
        document["images"] = [{"bufferView": buffer.bytes(mesh.texture), "mimeType": "image/png"}]
        document["textures"] = [{"source": 0}]
    first = _skeleton(document, motion, buffer)
    document["animations"] = _animations(hypotheses, motion, names, seconds, first, buffer)
    add_camera_to_each(hypotheses, document, buffer, seconds)
    return pack(document, buffer)


def _primitive(mesh: Mesh, skinning: Skinning, buffer: Buffer) -> dict[str, Any]:
    held = skinning.most(JOINTS)
    short = JOINTS - held.indices.shape[1]
    joints = np.pad(held.indices.numpy(), ((0, 0), (0, short))).astype(np.uint16)
    weights = np.pad(held.weights.float().numpy(), ((0, 0), (0, short)))
    attributes = {
        "POSITION": buffer.add((mesh.vertices * AXES).astype(np.float32), VERTICES, bounds=True),
        "NORMAL": buffer.add((mesh.normals * AXES).astype(np.float32), VERTICES),
        # A joint of no weight is named 0.
        "JOINTS_0": buffer.add(np.where(weights > 0, joints, 0).astype(np.uint16), VERTICES),
        "WEIGHTS_0": buffer.add(weights, VERTICES),
    }
    if mesh.texture is not None and mesh.uv is not None:
        attributes["TEXCOORD_0"] = buffer.add(mesh.uv, VERTICES)
    elif mesh.colours is not None:
        linear = linear_light(mesh.colours).astype(np.float32)
        attributes["COLOR_0"] = buffer.add(linear, VERTICES)
    indices = buffer.add(mesh.faces.astype(np.uint32).ravel(), INDICES)
    return {"attributes": attributes, "indices": indices, "material": 0}


def _material(mesh: Mesh) -> dict[str, Any]:
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.8}
    if mesh.texture is not None:
        surface["baseColorTexture"] = {"index": 0}
    return {"name": "surface", "doubleSided": True, "pbrMetallicRoughness": surface}


def _skeleton(document: dict[str, Any], motion: NodeMotion, buffer: Buffer) -> int:
    """A root and a joint for every node, at rest; returns the number of the first joint."""
    nodes = document["nodes"]
    rest = motion.rest.double().numpy() * AXES
    first = len(nodes) + 1
    nodes.append({"name": "skeleton", "children": [*range(first, first + len(rest))]})
    nodes += [
        {"name": f"node_{n:03d}", "translation": place.tolist()} for n, place in enumerate(rest)
    ]
    inverse = np.tile(np.eye(4, dtype=np.float32), (len(rest), 1, 1))
    # Column by column, as glTF has it.
    inverse[:, 3, :3] = -rest
    document["skins"] = [
        {
            "skeleton": first - 1,
            "joints": nodes[first - 1]["children"],
            "inverseBindMatrices": buffer.add(inverse),
        }
    ]
    return first


def _animations(
    hyp: Hypotheses,
    motion: NodeMotion,
    names: Sequence[str],
    seconds: float,
    first: int,
    buffer: Buffer,
) -> list[dict[str, Any]]:
    keys, outputs = keyframes(hyp, seconds)
    time = buffer.add(keys, bounds=True)
    curves = buffer.add_each(outputs.reshape(-1, *outputs.shape[2:]))
    frames = buffer.add((seconds * hyp.times.numpy()).astype(np.float32), bounds=True)
    N = hyp.num_points
    turns = motion.rotations.double().numpy()
    found = []
    for k, name in enumerate(names):
        animation: dict[str, Any] = {"name": name, "samplers": [], "channels": []}
        turned = buffer.add_each(
            np.stack([quaternions(turns[k, :, n]).astype(np.float32) for n in range(N)])
        )
        for n in range(N):
            curve = curves[k * N + n]
            moves = {"input": time, "interpolation": "CUBICSPLINE", "output": curve}
            animate(animation, first + n, "translation", moves)
            turning = {"input": frames, "interpolation": "LINEAR", "output": turned[n]}
            animate(animation, first + n, "rotation", turning)
        found.append(animation)
    return found
