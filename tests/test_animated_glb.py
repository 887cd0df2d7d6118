"""Animated glTF against trimesh's reader, scipy's rotations and interpolation, and closed forms."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from glb import Glb, snake
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation, Slerp

from diffusion4d.data.animated_glb import read_animated, read_skeleton
from diffusion4d.data.gltf_file import GltfFile

TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)


def z_up(points: np.ndarray) -> np.ndarray:
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def one_triangle(glb: Glb, **primitive: object) -> None:
    attributes = {"POSITION": glb.add(TRIANGLE)}
    glb.tree["meshes"] = [{"primitives": [{"attributes": attributes, **primitive}]}]


def raw(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def test_unskinned_meshes_stand_where_trimesh_has_them(tmp_path: Path) -> None:
    """Two meshes, one of them twice, below turned, scaled and matrix nodes."""
    rng = np.random.default_rng(0)
    glb = Glb()
    primitives = []
    for count in (5, 4):
        position, index = glb.add(rng.normal(size=(count, 3))), glb.add([0, 1, 2, 2, 3, 1], "uint8")
        primitives.append({"attributes": {"POSITION": position}, "indices": index})
    matrix = np.eye(4)
    matrix[:3] = rng.normal(size=(3, 4))
    turn = Rotation.random(rng=rng).as_quat().tolist()
    glb.tree |= {
        "meshes": [{"primitives": [primitives[0]]}, {"primitives": [primitives[1]]}],
        "nodes": [
            {
                "name": "a",
                "mesh": 0,
                "rotation": turn,
                "scale": [1, 2, 3],
                "translation": [1, 2, 3],
            },
            {"name": "b", "mesh": 1, "matrix": matrix.T.reshape(-1).tolist(), "children": [0]},
            {"name": "c", "mesh": 0, "rotation": turn, "children": [1]},
        ],
        "scenes": [{"nodes": [2]}],
    }
    path = glb.save(tmp_path / "static.glb")
    mesh = read_animated(path)
    scene = trimesh.load(path)
    assert isinstance(scene, trimesh.Scene)
    theirs = np.concatenate(
        [
            trimesh.transform_points(scene.geometry[geometry].vertices, matrix)
            for matrix, geometry in (scene.graph[name] for name in scene.graph.nodes_geometry)
        ]
    )
    ours = mesh.rest
    assert len(mesh.faces) == 6
    order, other = np.lexsort(ours.round(4).T), np.lexsort(z_up(theirs).round(4).T)
    np.testing.assert_allclose(ours[order], z_up(theirs)[other], atol=1e-5)


def test_skinning_is_the_sum_of_weighted_bones(tmp_path: Path) -> None:
    """By loops, with scipy's rotations, slerp and Hermite cubics, on the numbers of the file."""
    path = snake(np.random.default_rng(1), tmp_path / "snake.glb")
    mesh = read_animated(path)
    tree, data = raw(path)

    def numbers(index: int) -> np.ndarray:
        entry = tree["accessors"][index]
        view = tree["bufferViews"][entry["bufferView"]]
        kind = {5126: np.float32, 5121: np.uint8, 5123: np.uint16}[entry["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[entry["type"]]
        flat = np.frombuffer(data, kind, entry["count"] * width, view["byteOffset"])
        return flat.reshape(-1, width).astype(np.float64)

    turn, step, cubic = (
        (numbers(s["input"])[:, 0], numbers(s["output"])) for s in tree["animations"][0]["samplers"]
    )
    slerp = Slerp(turn[0], Rotation.from_quat(turn[1]))
    values = cubic[1].reshape(2, 3, 3)
    # glTF gives a tangent at either side of a key; between two keys it is the outer's out and the inner's in.
    hermite = CubicHermiteSpline(cubic[0], values[:, 1], [values[0, 2], values[1, 0]])
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    bind, joints, weights = (numbers(attributes[k]) for k in ("POSITION", "JOINTS_0", "WEIGHTS_0"))
    inverse = numbers(tree["skins"][0]["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)

    def matrix(translation: np.ndarray, rotation: Rotation, scale: list[float]) -> np.ndarray:
        out = np.eye(4)
        out[:3, :3] = rotation.as_matrix() @ np.diag(scale)
        out[:3, 3] = translation
        return out

    times = np.array([-1.0, 0.0, 0.3, 0.5, 0.99, 1.0, 1.7, 2.0, 9.0])
    got = mesh.positions(mesh.skeleton.animation("wag"), times)
    nodes = tree["nodes"]
    identity = Rotation.identity()
    for t, found in zip(times, got, strict=True):
        armature = matrix(np.array([0, 0, 3.0]), identity, [1, 1, 1])
        along = hermite(np.clip(t, *cubic[0]))
        base = armature @ matrix(along, Rotation.from_quat(nodes[2]["rotation"]), [1, 1, 1])
        middle = base @ matrix(np.array([0, 1.0, 0]), slerp(np.clip(t, 0, 2)), [1, 2, 0.5])
        tip = middle @ matrix(step[1][0 if t < 1 else 1], identity, [1, 1, 1])
        for v in range(len(bind)):
            expected = np.zeros(4)
            for j, w in zip(joints[v].astype(int), weights[v], strict=True):
                expected += w * ([base, middle, tip][j] @ inverse[j] @ [*bind[v], 1])
            np.testing.assert_allclose(found[v], z_up(expected[:3] / weights[v].sum()), atol=1e-6)


def test_morph_targets_add_up(tmp_path: Path) -> None:
    """Weights from the node before the mesh's, and animated ones before both; a target may lack positions."""
    glb = Glb()
    first, second = np.random.default_rng(2).normal(size=(2, 3, 3)).astype(np.float32)
    one_triangle(glb, targets=[{"POSITION": glb.add(first)}, {}, {"POSITION": glb.add(second)}])
    glb.tree["meshes"][0]["weights"] = [0.5, 7.0, 0.0]
    glb.tree["nodes"] = [{"mesh": 0, "weights": [0.25, 0.0, 1.0]}, {"mesh": 0}]
    keys = [[0.0, 0.0, 0.0], [1.0, 5.0, -2.0]]
    glb.animation("blend", (0, "weights", [0.0, 4.0], np.ravel(keys), "LINEAR"))
    mesh = read_animated(glb.save(tmp_path / "morph.glb"))
    expected = np.concatenate([TRIANGLE + 0.25 * first + second, TRIANGLE + 0.5 * first])
    np.testing.assert_allclose(mesh.rest, z_up(expected), atol=1e-6)
    moved = mesh.positions(mesh.skeleton.animations[0], np.array([1.0]))[0]
    np.testing.assert_allclose(moved[:3], z_up(TRIANGLE + 0.25 * first - 0.5 * second), atol=1e-6)
    assert (mesh.dominant() == -1).all()


def test_cubic_weights_have_tangents_for_every_target(tmp_path: Path) -> None:
    glb = Glb()
    one_triangle(glb, targets=[{"POSITION": glb.add(np.eye(3))}, {"POSITION": glb.add(-np.eye(3))}])
    glb.tree["nodes"] = [{"mesh": 0}]
    # In-tangents, values, out-tangents of both targets, key by key.
    keys = np.array([[[0, 0], [1, 2], [3, -1]], [[2, 4], [0, 1], [0, 0]]], float)
    glb.animation("blend", (0, "weights", [1.0, 3.0], keys.reshape(-1), "CUBICSPLINE"))
    mesh = read_animated(glb.save(tmp_path / "cubic.glb"))
    curve = CubicHermiteSpline([1.0, 3.0], keys[:, 1], [keys[0, 2], keys[1, 0]])
    times = np.linspace(1, 3, 7)
    found = mesh.positions(mesh.skeleton.animations[0], times)
    for t, x in zip(times, found, strict=True):
        blend = curve(t)
        np.testing.assert_allclose(x, z_up(TRIANGLE + (blend[0] - blend[1]) * np.eye(3)), atol=1e-6)


def test_accessors_of_all_layouts(tmp_path: Path) -> None:
    """Interleaved, normalised, sparse over zeros and over data, and data in a text."""
    glb = Glb()
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = glb.view(rows.tobytes(), byteStride=16)
    glb.tree["accessors"].append(
        {"bufferView": view, "byteOffset": 4, "componentType": 5126, "count": 3, "type": "VEC3"}
    )
    bytes_ = glb.add([[-128], [-127], [127]], "int8", normalized=True)
    shorts = glb.add([0, 65535], "uint16", normalized=True)
    places, values = (
        glb.view(np.array([1, 3], "<u2").tobytes()),
        glb.view(np.array([[5, 6, 7], [8, 9, 10]], "<f4").tobytes()),
    )
    sparse = {
        "count": 2,
        "indices": {"bufferView": places, "componentType": 5123},
        "values": {"bufferView": values},
    }
    glb.tree["accessors"].append(
        {"componentType": 5126, "count": 4, "type": "VEC3", "sparse": sparse}
    )
    base = glb.add(np.ones((4, 3)))
    glb.tree["accessors"][base]["sparse"] = sparse
    path = glb.save(tmp_path / "layouts.glb")
    tree = {**glb.tree, "buffers": [{"byteLength": len(glb.data)}]}
    text = base64.b64encode(glb.data).decode()
    tree["buffers"][0]["uri"] = f"data:application/octet-stream;base64,{text}"
    (tmp_path / "text.gltf").write_text(json.dumps(tree))
    tree["buffers"][0]["uri"] = "data.bin"
    (tmp_path / "beside.gltf").write_text(json.dumps(tree))
    (tmp_path / "data.bin").write_bytes(glb.data)
    for name in (path.name, "text.gltf", "beside.gltf"):
        file = GltfFile(tmp_path / name)
        np.testing.assert_array_equal(file.accessor(0), rows[:, 1:])
        np.testing.assert_array_equal(file.accessor(bytes_)[:, 0], [-1, -1, 1])
        np.testing.assert_array_equal(file.accessor(shorts)[:, 0], [0, 1])
        zeros = [[0, 0, 0], [5, 6, 7], [0, 0, 0], [8, 9, 10]]
        np.testing.assert_array_equal(file.accessor(base - 1), zeros)
        ones = [[1, 1, 1], [5, 6, 7], [1, 1, 1], [8, 9, 10]]
        np.testing.assert_array_equal(file.accessor(base), ones)


def test_data_beside_the_file_and_in_a_text_as_the_specification_has_them(tmp_path: Path) -> None:
    """Both media types of buffers, a percent-encoded name; data that is missing is told by its name."""
    glb = Glb(nodes=[{"mesh": 0}])
    one_triangle(glb)
    (tmp_path / "my data.bin").write_bytes(glb.data)
    path = tmp_path / "a.gltf"
    text = base64.b64encode(glb.data).decode()
    uris = [
        "my%20data.bin",
        *(f"data:application/{t};base64,{text}" for t in ("gltf-buffer", "octet-stream")),
    ]
    for uri in uris:
        path.write_text(json.dumps({**glb.tree, "buffers": [{"byteLength": 36, "uri": uri}]}))
        np.testing.assert_array_equal(read_animated(path).bind, TRIANGLE)
    for uri, name in (
        ("his%20data.bin", "his data.bin"),
        ("data:application/gltf-buffer;base64,A", "data:"),
    ):
        path.write_text(json.dumps({**glb.tree, "buffers": [{"byteLength": 36, "uri": uri}]}))
        with pytest.raises(ValueError, match=f"need the data '{name}.*' beside .*a.gltf"):
            read_animated(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("nodes",), 3),
        (("nodes", 1, "children"), ["a"]),
        (("nodes", 3, "mesh"), "a"),
        (("nodes", 3, "weights"), {"a": 1}),
        (("scenes", 0, "nodes"), 4),
        (("skins", 0, "joints"), None),
        (("meshes", 0, "primitives"), None),
        (("meshes", 0, "primitives", 0, "attributes"), []),
        (("animations", 0, "channels", 0, "target"), None),
        (("animations", 0, "channels", 0, "sampler"), "a"),
        (("animations", 0, "samplers"), {}),
        (("accessors", 0, "count"), "a"),
        (("accessors", 0, "count"), 1e30),
        (("accessors", 0, "componentType"), []),
        (("bufferViews", 0, "byteOffset"), "a"),
        (("bufferViews", 0, "byteStride"), -64),
        (("bufferViews", 0, "buffer"), None),
    ],
)
def test_a_tree_with_parts_of_other_types_is_no_gltf(
    tmp_path: Path, where: tuple[str | int, ...], value: object
) -> None:
    tree, data = raw(snake(np.random.default_rng(1), tmp_path / "snake.glb"))
    part: Any = tree
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    glb = Glb(**tree)
    glb.data = data
    with pytest.raises(ValueError, match=r"need .*changed\.glb"):
        read_animated(glb.save(tmp_path / "changed.glb"))


def test_a_body_moves_by_another_files_animation(tmp_path: Path) -> None:
    """On the same rig exactly as its owner; with bones twice as long the same turns, and twice the way."""
    owner = read_skeleton(snake(np.random.default_rng(1), tmp_path / "snake.glb"))
    wag, times = owner.animations[0], np.linspace(0, 2, 5)
    own = owner.matrices(wag, times)
    lent = owner.borrowed(owner)
    np.testing.assert_allclose(lent.matrices(lent.animations[0], times), own, atol=1e-12)
    larger = replace(
        owner, nodes=tuple(replace(n, translation=2 * n.translation) for n in owner.nodes)
    ).borrowed(owner)
    moved = larger.matrices(larger.animations[0], times)
    np.testing.assert_allclose(moved[..., :3, :3], own[..., :3, :3], atol=1e-12)
    names = [node.name for node in owner.nodes]
    base = names.index("base")
    for start in (names.index("middle"), names.index("tip")):
        np.testing.assert_allclose(
            moved[:, start, :3, 3] - moved[:, base, :3, 3],
            2 * (own[:, start, :3, 3] - own[:, base, :3, 3]),
            atol=1e-9,
        )
    # The base's rest is at its parent's origin, where lengths have no ratio.
    np.testing.assert_allclose(
        np.diff(moved[:, base, :3, 3], axis=0), np.diff(own[:, base, :3, 3], axis=0), atol=1e-9
    )


def test_refusals_say_what_was_needed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"need a .glb or .gltf file"):
        read_animated(tmp_path / "missing.glb")
    (tmp_path / "noise.glb").write_bytes(b"not a mesh at all")
    with pytest.raises(ValueError, match=r"need a glTF 2.0 file"):
        read_animated(tmp_path / "noise.glb")
    (tmp_path / "noise.gltf").write_text("{")
    with pytest.raises(ValueError, match=r"need a glTF 2.0 file"):
        read_animated(tmp_path / "noise.gltf")

    def refused(message: str, **tree: object) -> None:
        glb = Glb()
        one_triangle(glb)
        glb.tree |= {"nodes": [{"mesh": 0}], **tree}
        with pytest.raises(ValueError, match=message):
            read_animated(glb.save(tmp_path / "refused.glb"))

    refused("need a mesh with triangles", nodes=[{}])
    refused("need nodes in the scene", nodes=[])
    refused("need one of 1 meshes, got number 3", nodes=[{"mesh": 3}])
    refused("need a file without KHR_draco", extensionsRequired=["KHR_draco_mesh_compression"])
    refused("need a tree of nodes", nodes=[{"mesh": 0, "children": [0]}], scenes=[{"nodes": [0]}])
    skins = [{"joints": [0]}]
    refused("need joints for a skinned mesh", nodes=[{"mesh": 0, "skin": 0}], skins=skins)
    refused(r"got mode 1", meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}]}])
    refused(r"need one of 1 accessors", meshes=[{"primitives": [{"attributes": {"POSITION": 9}}]}])
    glb = Glb(nodes=[{"mesh": 0}])
    one_triangle(glb)
    glb.tree["accessors"][0]["count"] = 400
    with pytest.raises(ValueError, match=r"need \d+ bytes of data, got 36"):
        read_animated(glb.save(tmp_path / "short.glb"))
    glb = Glb(nodes=[{"mesh": 0}])
    one_triangle(glb)
    glb.animation("back", (0, "translation", [1.0, 0.0], np.zeros((2, 3)), "LINEAR"))
    with pytest.raises(ValueError, match=r"need key times that increase.*'back'"):
        read_animated(glb.save(tmp_path / "back.glb"))
    glb = Glb(nodes=[{"mesh": 0}])
    one_triangle(glb)
    glb.animation("few", (0, "rotation", [0.0, 1.0], np.zeros((2, 3)), "LINEAR"))
    with pytest.raises(ValueError, match="need 4 numbers for each of 2 keys of a rotation, got 6"):
        read_animated(glb.save(tmp_path / "few.glb"))
