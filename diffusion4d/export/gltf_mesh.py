r"""A glTF document whose meshes are to be skinned: a user's own file kept as it is, or one made of a `Mesh`.

Everything a file holds stays: materials, textures and images, normals, tangents, texture coordinates, colours,
extensions. What is read off it is where its vertices stand in the scene,

    x = W_node p,        W_node = W_parent T R S,

once for every primitive of every node that shows a mesh. Animations are taken out: the mesh gets others.

Shape letters:  V vertices   F triangles
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from diffusion4d.errors import UserError
from diffusion4d.export.gltf import INDICES, VERTICES, Buffer, linear_light
from diffusion4d.surfaces.mesh import AXES, Mesh

_TRIANGLES = 4


@dataclass(frozen=True, eq=False)
class Part:
    """One primitive of a mesh as a node shows it."""

    node: int
    primitive: int
    matrix: Float64[np.ndarray, "4 4"]
    """W_node, from the primitive's own coordinates into the scene."""
    points: Float64[np.ndarray, "V 3"]
    """Vertices in the scene, in glTF's axes."""
    faces: Int64[np.ndarray, "F 3"]
    colours: Float32[np.ndarray, "V 3"] | None = None
    """Linear light, as glTF has it."""


@dataclass(frozen=True, eq=False)
class MeshDocument:
    """The JSON tree of a glTF file without its buffers, its binary chunk, and what of it is to be skinned."""

    tree: dict[str, Any]
    data: bytes
    parts: tuple[Part, ...]

    @property
    def mesh(self) -> Mesh:
        """All parts' triangles as one, in OpenCV's axes, with colours of the vertices if all parts have them.

        Raises:
            UserError: no triangle, or vertices that are not finite.
        """
        start = np.cumsum([0, *(len(part.points) for part in self.parts)])
        faces = [part.faces + first for part, first in zip(self.parts, start[:-1], strict=True)]
        points = np.concatenate([part.points for part in self.parts])
        colours = [part.colours for part in self.parts if part.colours is not None]
        return Mesh(
            (points * AXES).astype(np.float32),
            np.concatenate(faces),
            srgb(np.concatenate(colours)) if len(colours) == len(self.parts) else None,
        )


def read_document(path: Path) -> MeshDocument:
    """The meshes of a .glb file's scene, which are taken to stand where they should.

    Raises:
        UserError: no such file, not a glTF 2.0 file with triangles and all its data inside, or one with a skin.
    """
    if not path.is_file():
        raise UserError(f"no mesh at {path}")
    from diffusion4d.data.animated_glb import placed_nodes
    from diffusion4d.data.gltf_file import GltfFile

    try:
        file = GltfFile(path)
        skeleton, place = placed_nodes(file)
        tree, data = _chunks(path)
        if any("uri" in b for b in tree.get("buffers", [])):
            raise ValueError("need a file with all its data inside")
        if any("skin" in node for node in tree.get("nodes", [])):
            raise ValueError(
                "need a mesh without a skin: apply its armature first "
                "(in Blender: Object, Apply, Visual Geometry to Mesh)"
            )
        matrices = skeleton.matrices(None, np.zeros(1))[0]
        world = {source: matrices[number] for source, number in place.items()}
        parts = []
        for node, matrix in _lifted(tree, world):
            primitives = tree["meshes"][tree["nodes"][node]["mesh"]]["primitives"]
            for index, primitive in enumerate(primitives):
                parts.append(_part(file, node, index, primitive, matrix))
        if not sum(len(part.faces) for part in parts):
            raise ValueError("need triangles, got none in its scene")
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is not a mesh that can be animated: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        # A part that is missing, or is no part of its kind.
        told = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is not a mesh that can be animated: need a valid glTF file, got {told}"
        ) from error
    return MeshDocument(tree, data, tuple(parts))


def document_of(mesh: Mesh) -> MeshDocument:
    """A document of one mesh. A texture is shown as it is, without lights, which a photograph already has."""
    buffer = Buffer()
    points = mesh.vertices * AXES
    attributes = {"POSITION": buffer.add(points.astype(np.float32), VERTICES, bounds=True)}
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.8}
    material = {"name": "surface", "doubleSided": True, "pbrMetallicRoughness": surface}
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "diffusion4d"},
        "scene": 0,
        "scenes": [{"name": "diffusion4d", "nodes": [0]}],
        "nodes": [{"name": "surface", "mesh": 0}],
        "materials": [material],
    }
    if mesh.texture is not None and mesh.uv is not None:
        attributes["TEXCOORD_0"] = buffer.add(mesh.uv, VERTICES)
        kind = "image/png" if mesh.texture[:4] == b"\x89PNG" else "image/jpeg"
        tree["images"] = [{"bufferView": buffer.bytes(mesh.texture), "mimeType": kind}]
        tree["textures"] = [{"source": 0}]
        surface["baseColorTexture"] = {"index": 0}
    colours = None if mesh.colours is None else linear_light(mesh.colours).astype(np.float32)
    attributes["NORMAL"] = buffer.add((mesh.normals * AXES).astype(np.float32), VERTICES)
    if colours is not None and mesh.texture is None:
        attributes["COLOR_0"] = buffer.add(colours, VERTICES)
    if colours is not None or mesh.texture is not None:
        material["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    indices = buffer.add(mesh.faces.astype(np.uint32).ravel(), INDICES)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    tree["meshes"] = [{"name": "surface", "primitives": [primitive]}]
    tree |= {"bufferViews": buffer.views, "accessors": buffer.accessors}
    part = Part(0, 0, np.eye(4), points.astype(np.float64), mesh.faces, colours)
    return MeshDocument(tree, bytes(buffer.data), (part,))


def srgb(linear: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, "V 3"]:
    """Back from `linear_light` (IEC 61966-2-1)."""
    light = linear.clip(0, 1)
    curved = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return curved.astype(np.float32)


def _part(
    file: Any, node: int, index: int, primitive: dict[str, Any], matrix: Float64[np.ndarray, "4 4"]
) -> Part:
    given = primitive["attributes"]
    own = file.accessor(given.get("POSITION")).astype(np.float64)
    corners = np.arange(len(own))
    if "indices" in primitive:
        corners = file.accessor(primitive["indices"])[:, 0]
    if primitive.get("mode", _TRIANGLES) != _TRIANGLES:
        # Lines, points and strips are carried too, but say nothing of the surface.
        corners = corners[:0]
    if len(corners) % 3 or (len(corners) and not 0 <= corners.min() <= corners.max() < len(own)):
        raise ValueError(f"need three corners a triangle among {len(own)} vertices")
    colours = None
    if "COLOR_0" in given:
        colours = file.accessor(given["COLOR_0"])[:, :3].astype(np.float32)
    points = own @ matrix[:3, :3].T + matrix[:3, 3]
    return Part(node, index, matrix, points, corners.reshape(-1, 3).astype(np.int64), colours)


def _lifted(
    tree: dict[str, Any], world: dict[int, Float64[np.ndarray, "4 4"]]
) -> list[tuple[int, Float64[np.ndarray, "4 4"]]]:
    """Put every mesh that the scene shows on a node of its own at the top, each with a mesh of its own.

    A skinned mesh ignores its node's transform, so validators want it there. What the other nodes hold (lamps,
    cameras, extras) stays; those left with nothing go.

    Returns:
        The meshes' nodes, and the transforms that they had.
    """
    for key in ("animations", "buffers"):
        tree.pop(key, None)
    nodes, meshes = tree.get("nodes", []), tree.get("meshes", [])
    if not tree.get("scenes"):
        children = {c for node in nodes for c in node.get("children", [])}
        tree["scenes"] = [{"nodes": [i for i in range(len(nodes)) if i not in children]}]
    scene = tree["scenes"][tree.setdefault("scene", 0)]
    shown: list[dict[str, Any]] = []
    used: set[int] = set()
    matrices = []
    for number, matrix in world.items():
        node = nodes[number]
        if "mesh" not in node:
            continue
        mesh = node.pop("mesh")
        if mesh in used:
            copied = {**meshes[mesh], "primitives": [_copy(p) for p in meshes[mesh]["primitives"]]}
            meshes.append(copied)
            mesh = len(meshes) - 1
        used.add(mesh)
        moved = {"mesh": mesh, **{k: node.pop(k) for k in ("weights",) if k in node}}
        shown.append({"name": node.get("name", meshes[mesh].get("name", "mesh")), **moved})
        matrices.append(matrix)
    kept = _pruned(nodes, scene)
    first = len(kept)
    tree["nodes"] = kept + shown
    scene["nodes"] = [*scene.get("nodes", []), *range(first, first + len(shown))]
    return list(zip(range(first, first + len(shown)), matrices, strict=True))


def _copy(primitive: dict[str, Any]) -> dict[str, Any]:
    return {**primitive, "attributes": dict(primitive["attributes"])}


def _pruned(nodes: list[dict[str, Any]], scene: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes below the scene that hold something, or that lead to one; renumbered there and in `scene`."""
    placing = {"name", "translation", "rotation", "scale", "matrix", "children"}

    def holds(number: int) -> bool:
        node = nodes[number]
        node["children"] = [c for c in node.get("children", []) if holds(c)]
        return bool(node["children"]) or bool(set(node) - placing)

    roots = [root for root in scene.get("nodes", []) if holds(root)]
    order = list(roots)
    for number in order:
        order += nodes[number]["children"]
    place = {number: i for i, number in enumerate(order)}
    scene["nodes"] = [place[root] for root in roots]
    for number in order:
        children = [place[c] for c in nodes[number].pop("children")]
        nodes[number] |= {"children": children} if children else {}
    return [nodes[number] for number in order]


def _chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    """JSON and binary chunk."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 12)
    tree = json.loads(content[20 : 20 + length])
    start = 20 + length
    if start + 8 > len(content):
        return tree, b""
    (size,) = struct.unpack_from("<I", content, start)
    return tree, content[start + 8 : start + 8 + size]
