r"""A glTF document whose meshes are to be skinned: a user's own file kept as it is, or one made of arrays.

Everything a file holds stays: materials, textures and images, normals, tangents, texture coordinates, colours,
extensions. What is read off it is where its vertices stand in the scene,

    x = W_node p,        W_node = W_parent T R S,

once for every primitive of every node that shows a mesh. Animations are taken out: the mesh gets others.

Shape letters:  V vertices   F triangles
"""

import json
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from diffusion4d.errors import UserError
from diffusion4d.export.gltf import INDICES, VERTICES, Buffer

SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
"""Files that `read_mesh_document` takes; those but .glb are read by trimesh."""


@dataclass(frozen=True, eq=False)
class Part:
    """One primitive of a mesh as a node shows it."""

    node: int
    primitive: int
    matrix: Float64[np.ndarray, "4 4"]
    """W_node, from the primitive's own coordinates into the scene."""
    points: Float64[np.ndarray, "V 3"]
    """Vertices in the scene, in glTF's axes."""


@dataclass(frozen=True, eq=False)
class MeshDocument:
    """The JSON tree of a glTF file without its buffers, its binary chunk, and what of it is to be skinned."""

    tree: dict[str, Any]
    data: bytes
    parts: tuple[Part, ...]

    @property
    def points(self) -> Float64[np.ndarray, "V 3"]:
        """All parts' vertices, one after the other."""
        return np.concatenate([part.points for part in self.parts])


def read_mesh_document(path: Path) -> MeshDocument:
    """A file with meshes, its scene's units and axes taken as they are.

    Raises:
        UserError: no such file, not a format of `SUFFIXES`, no mesh in it, or a skin; a package is missing.
    """
    if not path.is_file():
        raise UserError(f"no mesh at {path}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"need a mesh of {', '.join(SUFFIXES)}, got {path.name}")
    if suffix == ".glb":
        return _parsed(path, path)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "mesh.glb"
        converted.write_bytes(_converted(path))
        return _parsed(converted, path)


def mesh_document(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int64[np.ndarray, "F 3"],
    *,
    uv: Float[np.ndarray, "V 2"] | None = None,
    picture: bytes | None = None,
    colours: Float[np.ndarray, "V 3"] | None = None,
) -> MeshDocument:
    """A document of one mesh, given in glTF's axes.

    Args:
        uv: texture coordinates, (0, 0) the picture's upper left corner.
        picture: a JPEG or PNG file; it is shown as it is, without lights, which are already in it.
        colours: linear light in [0, 1], for want of a picture.
    """
    buffer = Buffer()
    attributes = {"POSITION": buffer.add(vertices.astype(np.float32), VERTICES, bounds=True)}
    material: dict[str, Any] = {
        "name": "surface",
        "doubleSided": True,
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
    }
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "diffusion4d"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "surface", "mesh": 0}],
        "materials": [material],
    }
    if uv is not None and picture is not None:
        attributes["TEXCOORD_0"] = buffer.add(uv.astype(np.float32), VERTICES)
        kind = "image/png" if picture[:4] == b"\x89PNG" else "image/jpeg"
        view = buffer.view(np.frombuffer(picture, np.uint8))
        tree["images"] = [{"bufferView": view, "mimeType": kind}]
        # Clamped: beyond the picture's edge is its edge, not the other side.
        tree["samplers"] = [{"wrapS": 33071, "wrapT": 33071}]
        tree["textures"] = [{"source": 0, "sampler": 0}]
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        material["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    else:
        attributes["NORMAL"] = buffer.add(vertex_normals(vertices, faces), VERTICES)
        if colours is not None:
            attributes["COLOR_0"] = buffer.add(colours.astype(np.float32), VERTICES)
    indices = buffer.add(faces.astype(np.uint32).ravel(), INDICES)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    tree["meshes"] = [{"name": "surface", "primitives": [primitive]}]
    tree |= {"bufferViews": buffer.views, "accessors": buffer.accessors}
    part = Part(0, 0, np.eye(4), vertices.astype(np.float64))
    return MeshDocument(tree, bytes(buffer.data), (part,))


def vertex_normals(
    vertices: Float[np.ndarray, "V 3"], faces: Int64[np.ndarray, "F 3"]
) -> Float32[np.ndarray, "V 3"]:
    """Unit normals, of the triangles around each vertex by their area; (0, 0, 1) where there are none."""
    corner = vertices[faces].astype(np.float64)
    across = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal = np.zeros(vertices.shape)
    np.add.at(normal, faces, across[:, None])
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = np.where(length > 0, normal / np.maximum(length, 1e-300), [0.0, 0.0, 1.0])
    return normal.astype(np.float32)


def _converted(path: Path) -> bytes:
    """Any mesh that trimesh reads, as GLB."""
    try:
        import trimesh
    except ImportError as error:
        raise UserError(
            f"reading {path.suffix} takes trimesh: pip install 'diffusion4d[surfaces]'"
        ) from error
    try:
        content: Any = trimesh.load_scene(path).export(file_type="glb")
    except Exception as error:
        # trimesh passes on whatever its parsers raised.
        raise UserError(f"need a mesh that trimesh reads, got {path}: {error}") from error
    return content


def _parsed(path: Path, shown: Path) -> MeshDocument:
    try:
        import pygltflib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "reading a mesh takes pygltflib: pip install 'diffusion4d[surfaces]'"
        ) from error
    from diffusion4d.data.animated_glb import placed_nodes
    from diffusion4d.data.gltf_file import GltfFile

    try:
        file = GltfFile(path)
        skeleton, place = placed_nodes(file)
        tree, data = _chunks(path)
        if len(tree.get("buffers", [])) > 1 or any("uri" in b for b in tree.get("buffers", [])):
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
            for index, primitive in enumerate(
                tree["meshes"][tree["nodes"][node]["mesh"]]["primitives"]
            ):
                own = file.accessor(primitive["attributes"].get("POSITION")).astype(np.float64)
                parts.append(Part(node, index, matrix, own @ matrix[:3, :3].T + matrix[:3, 3]))
        if not sum(len(part.points) for part in parts):
            raise ValueError("need a mesh, got none in its scene")
    except (ValueError, struct.error) as error:
        raise UserError(f"cannot use {shown}: {error}") from error
    return MeshDocument(tree, data, tuple(parts))


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
