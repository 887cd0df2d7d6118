"""animated.glb: what other readers make of it is the skinning formula, on meshes that keep what they had."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from fans import fan
from glb import Glb, snake
from gltf_validator import messages, needs_validator
from PIL import Image
from scipy.spatial.transform import Rotation

from diffusion4d.data.animated_glb import read_animated
from diffusion4d.errors import UserError
from diffusion4d.export.gltf import Buffer, pack
from diffusion4d.export.gltf_mesh import MeshDocument, document_of, read_document
from diffusion4d.export.skinned_glb import skinned_glb
from diffusion4d.export.turns import TOLERANCE, turns
from diffusion4d.fields.skinning import Skinning
from diffusion4d.surfaces.mesh import Mesh

SECONDS = 1.6
NODES = 5


def _motion(count: int = 1):
    """Lively hypotheses and rotations with axes of their own, some of them past half a turn."""
    generator = torch.Generator().manual_seed(3)
    hyp = fan(count, NODES, 9)
    ctrl = torch.randn(hyp.control_points.shape, generator=generator)
    spin = torch.randn(count, NODES, 3, generator=generator, dtype=torch.float64)

    def rotations(k, u):
        vector = spin[k] * (4 * u.sin() + u)[:, None, None]
        matrices = Rotation.from_rotvec(vector.reshape(-1, 3).numpy()).as_matrix()
        return torch.from_numpy(matrices).reshape(len(u), NODES, 3, 3)

    return dataclasses.replace(hyp, control_points=ctrl), rotations


def _skinning(rng: np.random.Generator, count: int) -> Skinning:
    indices = np.stack([rng.permutation(NODES)[:3] for _ in range(count)]).astype(np.int64)
    weights = rng.uniform(size=(count, 3))
    weights /= weights.sum(1, keepdims=True)
    return Skinning(torch.from_numpy(indices), torch.from_numpy(weights))


def _formula(points, rest, skinning, place, turn) -> np.ndarray:
    """Σ w (R (x − g) + p), in OpenCV's axes, vertex by vertex."""
    moved = np.zeros((len(turn), len(points), 3))
    for t in range(len(turn)):
        for v, x in enumerate(points):
            nodes = skinning.indices[v].tolist()
            for n, w in zip(nodes, skinning.weights[v].tolist(), strict=True):
                moved[t, v] += w * (turn[t, n] @ (x - rest[n]) + place[n, t])
    return moved


def _ours(z_up: np.ndarray) -> np.ndarray:
    """From the axes that `read_animated` gives (z up) to OpenCV's."""
    return z_up[..., [0, 2, 1]] * [1, -1, 1]


def _picture() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).save(held, "PNG")
    return held.getvalue()


def _users_file(path: Path) -> Path:
    """A textured mesh below a turned, stretched node, shown twice, beside a lamp's node and an animation."""
    rng = np.random.default_rng(0)
    glb = Glb(
        scene=0,
        scenes=[{"nodes": [0, 3]}],
        nodes=[
            {"name": "body", "children": [1, 2], "rotation": [0, 0.6, 0, 0.8]},
            {"name": "left", "mesh": 0, "scale": [1, 2, 0.5], "translation": [-1, 0, 0]},
            {"name": "right", "mesh": 0, "translation": [1, 0.5, 0]},
            {"name": "lamp", "extras": {"watts": 40}},
        ],
    )
    image = glb.view(_picture())
    glb.tree |= {
        "images": [{"bufferView": image, "mimeType": "image/png"}],
        "textures": [{"source": 0}],
        "materials": [
            {"name": "fur", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}},
            {"name": "nose", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}},
        ],
    }
    normals = rng.normal(size=(6, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    bind = rng.normal(size=(6, 3)).astype(np.float32)
    place = glb.add(bind, min=bind.min(0).tolist(), max=bind.max(0).tolist())
    shape = {
        "POSITION": place,
        "NORMAL": glb.add(normals),
        "TEXCOORD_0": glb.add(rng.random((6, 2))),
    }
    nose = {"POSITION": place}
    glb.tree["meshes"] = [
        {
            "name": "half",
            "primitives": [
                {"attributes": shape, "material": 0},
                {"attributes": nose, "material": 1, "indices": glb.add([0, 1, 2], "uint16")},
            ],
        }
    ]
    glb.animation("old", (3, "translation", [0.0, 1.0], np.zeros((2, 3)), "LINEAR"))
    return glb.save(path)


def _document(kind: str, folder: Path) -> MeshDocument:
    if kind == "user":
        return read_document(_users_file(folder / "user.glb"))
    vertices = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    uv = np.random.default_rng(2).random((9, 2)).astype(np.float32)
    return document_of(Mesh(vertices, np.arange(9).reshape(3, 3), uv=uv, texture=_picture()))


def _skinned(kind: str, folder: Path, *, cameras: bool = False) -> bytes:
    """Two hypotheses' animations of a document, with a camera path of each if wanted."""
    document, (hyp, rotations) = _document(kind, folder), _motion(2)
    if cameras:
        paths = torch.eye(4).repeat(2, 9, 1, 1)
        paths[1, :, 0, 3] = -torch.arange(9.0)
        hyp = dataclasses.replace(hyp, frame="world", extrinsics=paths)
    skinning = _skinning(np.random.default_rng(1), len(document.mesh.vertices))
    rest = torch.zeros(NODES, 3)
    return skinned_glb(document, skinning, rest, rotations, hyp, seconds=SECONDS)


def _packed(document: MeshDocument) -> bytes:
    """The document alone, which stands still."""
    buffer = Buffer()
    buffer.data.extend(document.data)
    buffer.views.extend(document.tree["bufferViews"])
    buffer.accessors.extend(document.tree["accessors"])
    return pack(document.tree, buffer)


@needs_validator
@pytest.mark.parametrize("kind", ["mesh", "user", "cameras", "colours"])
def test_khronos_validator_finds_nothing(tmp_path, kind):
    path = tmp_path / "a.glb"
    if kind == "colours":
        colours = np.full((3, 3), 0.5, np.float32)
        mesh = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), colours)
        path.write_bytes(_packed(document_of(mesh)))
    elif kind == "cameras":
        path.write_bytes(_skinned("mesh", tmp_path, cameras=True))
    else:
        path.write_bytes(_skinned(kind, tmp_path))
    # Informations (2) and hints (3) are about what the hand-written file lacks.
    assert messages(path, 1 if kind == "user" else 3) == []


@pytest.mark.parametrize("kind", ["mesh", "user"])
def test_every_reader_sees_the_formula(tmp_path, kind):
    rng = np.random.default_rng(1)
    document = _document(kind, tmp_path)
    points = document.mesh.vertices
    assert len(points) == {"mesh": 9, "user": 24}[kind]
    rest, skinning = torch.from_numpy(rng.normal(size=(NODES, 3))), _skinning(rng, len(points))
    hyp, rotations = _motion(2)
    content = skinned_glb(
        document, skinning, rest, rotations, hyp, seconds=SECONDS, names=["a", "b"]
    )
    (tmp_path / "a.glb").write_bytes(content)
    read = read_animated(tmp_path / "a.glb")
    np.testing.assert_allclose(_ours(read.rest), points, atol=1e-5)
    u = torch.linspace(0, 1, 13, dtype=torch.float64)
    for k, name in enumerate("ab"):
        place, turn = hyp.evaluate(u)[k].double().numpy(), rotations(k, u).numpy()
        truth = _formula(points, rest.numpy(), skinning, place, turn)
        found = _ours(read.positions(read.skeleton.animation(name), SECONDS * u.numpy()))
        # Levers are up to 6 long, and rotations 1e-4 off at most.
        np.testing.assert_allclose(found, truth, atol=6e-4)


def test_a_users_file_keeps_its_looks(tmp_path):
    document = _document("user", tmp_path)
    skinning = _skinning(np.random.default_rng(1), 24)
    hyp, rotations = _motion()
    content = skinned_glb(
        document, skinning, torch.zeros(NODES, 3), rotations, hyp, seconds=SECONDS
    )
    (tmp_path / "a.glb").write_bytes(content)
    before, after = (pygltflib.GLTF2.load(tmp_path / name) for name in ("user.glb", "a.glb"))
    assert before is not None
    assert after is not None
    assert [m.name for m in after.materials] == ["fur", "nose"]
    assert [a.name for a in after.animations] == ["hypothesis_00"]
    assert [n.name for n in after.nodes if n.extras] == ["lamp"]
    assert {n.name for n in after.nodes if n.skin is not None} == {"left", "right"}
    for mesh in after.meshes:
        was = before.meshes[0].primitives[0].attributes
        assert mesh.primitives[0].attributes.TEXCOORD_0 == was.TEXCOORD_0
        assert mesh.primitives[0].attributes.NORMAL == was.NORMAL
    # trimesh finds the picture, pixel by pixel.
    scene = trimesh.load_scene(tmp_path / "a.glb")
    textured = [g for g in scene.geometry.values() if g.visual.kind == "texture"]
    pictures = [g.visual.material.baseColorTexture for g in textured]
    shown = [np.asarray(p.convert("RGB")) for p in pictures if p is not None]
    assert len(shown) == 2
    np.testing.assert_array_equal(shown[0], np.asarray(Image.open(io.BytesIO(_picture()))))


def test_colours_of_a_file_come_back(tmp_path):
    """sRGB to linear light in the file, and back."""
    colours = np.random.default_rng(0).random((3, 3)).astype(np.float32)
    mesh = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), colours)
    document = document_of(mesh)
    (tmp_path / "a.glb").write_bytes(_packed(document))
    again = read_document(tmp_path / "a.glb").mesh
    np.testing.assert_allclose(again.vertices, mesh.vertices)
    np.testing.assert_allclose(again.colours, colours, atol=1e-6)


def test_rotations_take_the_keys_they_need():
    _, rotations = _motion()
    u = torch.linspace(0, 1, 5, dtype=torch.float64)

    def but_the_first(at):
        turned = rotations(0, at)
        turned[:, 0] = torch.eye(3)
        return turned

    still, *fast = turns(but_the_first, u, SECONDS)
    assert still.nodes.tolist() == [0]
    assert len(still.times) == len(u)
    assert sorted(n for some in fast for n in some.nodes.tolist()) == [1, 2, 3, 4]
    for some in fast:
        assert len(some.times) > len(u)
        assert some.error < TOLERANCE
        # The keys' values are the rotations, in glTF's axes.
        flip = np.diag([1.0, -1.0, -1.0])
        at = torch.from_numpy(some.times.astype(np.float64) / SECONDS).clamp(0, 1)
        truth = flip @ rotations(0, at)[:, some.nodes[0]].numpy() @ flip
        found = Rotation.from_quat(some.curves[0, 1::3]).as_matrix()
        np.testing.assert_allclose(found, truth, atol=1e-5)


def test_the_camera_of_each_animation_is_its_own(tmp_path):
    (tmp_path / "a.glb").write_bytes(_skinned("mesh", tmp_path, cameras=True))
    skeleton = read_animated(tmp_path / "a.glb").skeleton
    node = [n.name for n in skeleton.nodes].index("camera")
    for animation, far in zip(skeleton.animations, (0, 8), strict=True):
        matrices = skeleton.matrices(animation, np.array([0.0, SECONDS]))
        np.testing.assert_allclose(matrices[:, node, 0, 3], [0, far], atol=1e-6)


def test_refuses_what_it_cannot_skin(tmp_path):
    with pytest.raises(UserError, match="no mesh at"):
        read_document(tmp_path / "none.glb")
    (tmp_path / "a.glb").write_bytes(b"glTF and nothing else")
    with pytest.raises(UserError, match="not a mesh that can be animated"):
        read_document(tmp_path / "a.glb")
    with pytest.raises(UserError, match="without a skin"):
        read_document(snake(np.random.default_rng(0), tmp_path / "snake.glb"))
    empty = Glb(scene=0, scenes=[{"nodes": [0]}], nodes=[{"name": "nothing"}])
    with pytest.raises(UserError, match="need triangles, got none"):
        read_document(empty.save(tmp_path / "empty.glb"))
    corners = {"attributes": {"POSITION": 0}}
    for number, meshes in (
        (7, [{"primitives": [corners]}]),
        (0, [{"name": "no primitives"}]),
        (0, [{"primitives": [{"indices": 0}]}]),
        (0, [{"primitives": [None]}]),
        ("0", [{"primitives": [corners]}]),
    ):
        glb = Glb(scene=0, scenes=[{"nodes": [0]}], nodes=[{"mesh": number}], meshes=meshes)
        glb.add(np.eye(3))
        with pytest.raises(UserError, match=r"b\.glb is not a mesh that can be animated: need"):
            read_document(glb.save(tmp_path / "b.glb"))
    document, (hyp, rotations) = _document("mesh", tmp_path), _motion()
    rest, good = torch.zeros(NODES, 3), _skinning(np.random.default_rng(1), 9)
    five = Skinning(torch.arange(5).repeat(9, 1), torch.full((9, 5), 0.2))
    for skinning, nodes, message in (
        (_skinning(np.random.default_rng(1), 8), rest, "for 9 vertices"),
        (five, rest, "at most 4"),
        (Skinning(good.indices + 3, good.weights), rest, "of 5 nodes"),
        (good, rest[:4], "5 nodes, got 1 and 4"),
    ):
        with pytest.raises(ValueError, match=message):
            skinned_glb(document, skinning, nodes, rotations, hyp, seconds=SECONDS)
