r"""hypotheses.glb: every hypothesis in one animated scene, exact between the frames too.

How curves become keys, and in what axes, is `export.gltf_motion`.

What is in the file, and why:
- `hypothesis_00` …: a node each, so that a viewer's outliner shows and hides it as a whole; its seed,
  rank and reprojection are in `extras`.
- below it `hypothesis_00_points`, and a node for each point, moved by a translation channel: any tool
  can parent to it or read it back. All share one small icosahedron; a material per hypothesis.
- `hypothesis_00_trails`: the paths as static lines, so that the fan is seen without playing.
- ONE animation moves everything: viewers play one clip at a time, and the fan opening is the point.
- `camera`: the clip's camera; it moves where the points are in the world. Where each hypothesis has a camera of its
  own, `camera` is that of the best-ranked one, and `hypothesis_00_camera` … stand beside the points.
"""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from diffusion4d.atomic import replace_when_done
from diffusion4d.errors import UserError
from diffusion4d.export.gltf import INDICES, VERTICES, Buffer, linear_light, pack
from diffusion4d.export.gltf_motion import (
    add_cameras,
    animate,
    camera,
    keyframes,
    require_playable,
    scene_extras,
)
from diffusion4d.export.palette import colours
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.mesh import AXES

TRAIL_SAMPLES = 32
"""Vertices of one drawn path."""
RADIUS = 0.006
"""Of a point's marker, in median depths."""


def write_glb(
    hypotheses: Hypotheses,
    path: str | os.PathLike[str],
    *,
    seconds: float,
    names: Sequence[str] | None = None,
) -> Path:
    """Write the animated scene, lasting `seconds`, all of it or nothing.

    Args:
        names: of the hypotheses' nodes; `hypothesis_00` … by default.

    Raises:
        UserError: the degree is above 3, which no glTF interpolation holds, `seconds` is not positive, or
            there are not as many names as hypotheses.
        OSError: the file cannot be written.
    """
    path = Path(path)
    content = glb(hypotheses, seconds=seconds, names=names)
    with replace_when_done(path) as temporary:
        temporary.write_bytes(content)
    return path


def glb(hypotheses: Hypotheses, *, seconds: float, names: Sequence[str] | None = None) -> bytes:
    """The file's bytes; see `write_glb`."""
    if names is None:
        names = [f"hypothesis_{k:02d}" for k in range(hypotheses.num_hypotheses)]
    if len(names) != hypotheses.num_hypotheses:
        raise UserError(f"need {hypotheses.num_hypotheses} names, got {len(names)}")
    require_playable(hypotheses, seconds)
    buffer = Buffer()
    keys, outputs = keyframes(hypotheses, seconds)
    scale = float(hypotheses.camera_points()[..., 2].median().abs().clamp_min(1e-3))
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "diffusion4d"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [
            {"name": "diffusion4d", "nodes": [], "extras": scene_extras(hypotheses, seconds)}
        ],
        "nodes": [],
        "materials": [],
        "cameras": [camera(hypotheses, scale)],
        "animations": [{"name": "hypotheses", "samplers": [], "channels": []}],
    }
    document["meshes"] = _meshes(hypotheses, names, buffer, document["materials"], RADIUS * scale)
    time = buffer.add(keys, bounds=True)
    curves = buffer.add_each(outputs.reshape(-1, *outputs.shape[2:]))
    _hypothesis_nodes(hypotheses, names, document, time, curves, outputs[:, :, 1])
    add_cameras(hypotheses, names, document, buffer, seconds)
    return pack(document, buffer)


def _meshes(
    hyp: Hypotheses,
    names: Sequence[str],
    buffer: Buffer,
    materials: list[dict[str, Any]],
    radius: float,
) -> list[dict[str, Any]]:
    """Meshes 2k and 2k + 1 are the marker and the trails of hypothesis k; materials likewise."""
    vertices, faces = _icosahedron()
    marker = {
        "attributes": {
            "POSITION": buffer.add((radius * vertices).astype(np.float32), VERTICES, bounds=True),
            "NORMAL": buffer.add(vertices.astype(np.float32), VERTICES),
        },
        "indices": buffer.add(faces, INDICES),
    }
    trails = hyp.evaluate(torch.linspace(0, 1, TRAIL_SAMPLES, dtype=torch.float64)).numpy() * AXES
    first = np.arange(trails[0, ..., 0].size, dtype=np.uint32)
    first = first.reshape(trails.shape[1:3])[:, :-1]
    segments = buffer.add(np.stack([first, first + 1], -1).ravel(), INDICES)
    meshes = []
    for k, (name, colour) in enumerate(zip(names, colours(hyp), strict=True)):
        linear = linear_light(colour).tolist()
        materials += [
            {
                "name": name,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*linear, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.6,
                },
                # A viewer without lights still shows the colour.
                "emissiveFactor": [0.4 * c for c in linear],
            },
            {
                "name": f"{name}_trails",
                "pbrMetallicRoughness": {"baseColorFactor": [*linear, 0.5], "metallicFactor": 0.0},
                "alphaMode": "BLEND",
                "extensions": {"KHR_materials_unlit": {}},
            },
        ]
        position = trails[k].reshape(-1, 3).astype(np.float32)
        lines = {
            "attributes": {"POSITION": buffer.add(position, VERTICES, bounds=True)},
            "indices": segments,
            "mode": 1,
            "material": 2 * k + 1,
        }
        meshes += [
            {"name": f"{name}_point", "primitives": [{**marker, "material": 2 * k}]},
            {"name": f"{name}_trails", "primitives": [lines]},
        ]
    return meshes


def _hypothesis_nodes(
    hyp: Hypotheses,
    names: Sequence[str],
    document: dict[str, Any],
    time: int,
    curves: list[int],
    start_KN3: Float32[np.ndarray, "K N 3"],
) -> None:
    nodes, animation = document["nodes"], document["animations"][0]
    scores, rank = hyp.scores().tolist(), hyp.rank().tolist()
    for k, name in enumerate(names):
        parent = len(nodes)
        first_point = parent + 3
        children = list(range(first_point, first_point + hyp.num_points))
        extras = {"seed": int(hyp.seeds[k]), "rank": rank.index(k)}
        if math.isfinite(scores[k]):
            extras["reprojection_px_at_256"] = scores[k]
        document["scenes"][0]["nodes"].append(parent)
        nodes += [
            {"name": name, "children": [parent + 1, parent + 2], "extras": extras},
            {"name": f"{name}_points", "children": children},
            {"name": f"{name}_trails", "mesh": 2 * k + 1},
        ]
        for n, curve in enumerate(curves[k * hyp.num_points : (k + 1) * hyp.num_points]):
            place = start_KN3[k, n].tolist()
            nodes.append({"name": f"{name}_point_{n:03d}", "mesh": 2 * k, "translation": place})
            sampler = {"input": time, "interpolation": "CUBICSPLINE", "output": curve}
            animate(animation, first_point + n, "translation", sampler)


def _icosahedron() -> tuple[np.ndarray, np.ndarray]:
    """Unit vertices [12, 3] and outward faces [60]: round enough under smooth normals, and few."""
    golden = (1 + math.sqrt(5)) / 2
    base = np.array([(0, s, t * golden) for s in (-1, 1) for t in (-1, 1)])
    vertices = np.concatenate([np.roll(base, shift, 1) for shift in range(3)])
    # The faces are the triples at mutual distance 2, the edge length.
    near = np.isclose(np.linalg.norm(vertices[:, None] - vertices, axis=-1), 2)
    faces = [
        (a, b, c)
        for a, b, c in itertools.combinations(range(12), 3)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    outward = [f if np.linalg.det(vertices[list(f)]) > 0 else (f[0], f[2], f[1]) for f in faces]
    return vertices / np.linalg.norm(vertices[0]), np.array(outward, np.uint16).ravel()
