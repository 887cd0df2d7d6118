"""animated.glb: what other readers make of it is the skinning formula, on meshes that keep what they had."""

import io
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from glb import Glb, snake
from gltf_validator import validate
from PIL import Image
from scipy.spatial.transform import Rotation

from diffusion4d.data.animated_glb import read_animated
from diffusion4d.errors import UserError
from diffusion4d.export.gltf_mesh import mesh_document, read_mesh_document, vertex_normals
from diffusion4d.export.joint_motion import TURN_TOLERANCE, joint_motion, turns
from diffusion4d.export.skinned_glb import Shot, skinned_glb
from diffusion4d.splines import BSpline

SECONDS = 1.6
FLIP = np.array([1.0, -1.0, -1.0])
NODES = 5
FRAMES = torch.linspace(0, 1, 9, dtype=torch.float64)


def _motion(seed: int, name: str = "hypothesis_00"):
    """Lively splines and rotations with axes of their own, some of them past half a turn."""
    generator = torch.Generator().manual_seed(seed)
    ctrl = torch.randn(NODES, 7, 3, generator=generator, dtype=torch.float64)
    spin = torch.randn(NODES, 3, generator=generator, dtype=torch.float64)

    def rotations(u):
        vector = spin * (4 * u.sin() + u)[:, None, None]
        matrices = Rotation.from_rotvec(vector.reshape(-1, 3).numpy()).as_matrix()
        return torch.from_numpy(matrices).reshape(len(u), NODES, 3, 3)

    spline = BSpline.clamped(ctrl)
    return joint_motion(spline, rotations, name, SECONDS, FRAMES), spline, rotations


def _weights(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.stack([rng.permutation(NODES)[:3] for _ in range(count)]).astype(np.int64)
    weights = rng.uniform(size=(count, 3))
    return indices, weights / weights.sum(1, keepdims=True)


def _formula(points, rest, indices, weights, spline, rotations, u) -> np.ndarray:
    """Σ w (R (x − g) + p), in OpenCV's axes and back, vertex by vertex."""
    place, turn = spline.evaluate(u).numpy(), rotations(u).numpy()
    moved = np.zeros((len(u), len(points), 3))
    for t in range(len(u)):
        for v, x in enumerate(points * FLIP):
            for n, w in zip(indices[v], weights[v], strict=True):
                moved[t, v] += w * (turn[t, n] @ (x - rest[n] * FLIP) + place[n, t])
    return moved * FLIP


def _read(path: Path, name: str | None, u: torch.Tensor) -> np.ndarray:
    """Vertices in glTF's axes, by our reader of other people's files."""
    mesh = read_animated(path)
    animation = None if name is None else mesh.skeleton.animation(name)
    x, y, z = np.moveaxis(mesh.positions(animation, SECONDS * u.numpy()), -1, 0)
    return np.stack([x, z, -y], -1)


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


@pytest.mark.parametrize("kind", ["arrays", "user"])
def test_every_reader_sees_the_formula(tmp_path, kind):
    rng = np.random.default_rng(1)
    if kind == "arrays":
        document = mesh_document(rng.normal(size=(9, 3)), np.arange(9).reshape(3, 3))
    else:
        document = read_mesh_document(_users_file(tmp_path / "user.glb"))
        assert len(document.points) == 24
    points, rest = document.points, rng.normal(size=(NODES, 3))
    indices, weights = _weights(rng, len(points))
    made = [_motion(3), _motion(4, "hypothesis_07")]
    content = skinned_glb(document, rest, indices, weights, [motion for motion, _, _ in made])
    (tmp_path / "a.glb").write_bytes(content)
    u = torch.linspace(0, 1, 13, dtype=torch.float64)
    still = _read(tmp_path / "a.glb", None, u[:1])[0]
    np.testing.assert_allclose(still, points, atol=1e-5)
    for motion, spline, rotations in made:
        truth = _formula(points, rest, indices, weights, spline, rotations, u)
        found = _read(tmp_path / "a.glb", motion.name, u)
        # Levers are up to 6 long, and rotations 2e-5 off at most.
        np.testing.assert_allclose(found, truth, atol=1e-4)


@pytest.mark.parametrize("kind", ["arrays", "user"])
def test_khronos_validator_finds_nothing(tmp_path, kind):
    rng = np.random.default_rng(0)
    if kind == "arrays":
        points, faces = rng.normal(size=(9, 3)), np.arange(9).reshape(3, 3)
        document = mesh_document(points, faces, uv=rng.random((9, 2)), picture=_picture())
    else:
        document = read_mesh_document(_users_file(tmp_path / "user.glb"))
    indices, weights = _weights(rng, len(document.points))
    lens = {"type": "perspective", "perspective": {"yfov": 1.0, "znear": 0.1}}
    shot = Shot(lens, np.linspace(0, SECONDS, 4), [torch.eye(4).repeat(4, 1, 1)])
    rest, motions = rng.normal(size=(NODES, 3)), [_motion(0)[0]]
    content = skinned_glb(document, rest, indices, weights, motions, shot=shot)
    (tmp_path / "a.glb").write_bytes(content)
    assert validate(tmp_path / "a.glb") == []


def test_a_users_file_keeps_its_looks(tmp_path):
    document = read_mesh_document(_users_file(tmp_path / "user.glb"))
    indices, weights = _weights(np.random.default_rng(1), 24)
    content = skinned_glb(document, np.zeros((NODES, 3)), indices, weights, [_motion(0)[0]])
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


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl"])
def test_other_formats_arrive_where_they_were(tmp_path, suffix):
    box = trimesh.creation.box((1, 2, 3)).apply_translation((0, 0, -4))
    box.export(tmp_path / f"box.{suffix}")
    points = read_mesh_document(tmp_path / f"box.{suffix}").points
    np.testing.assert_allclose(points.min(0), [-0.5, -1, -5.5], atol=1e-6)
    np.testing.assert_allclose(points.max(0), [0.5, 1, -2.5], atol=1e-6)


def test_normals_of_a_sphere_point_outwards():
    ball = trimesh.creation.icosphere(3)
    normal = vertex_normals(np.array(ball.vertices), np.array(ball.faces, np.int64))
    np.testing.assert_allclose(normal, ball.vertices, atol=0.02)


def test_rotations_take_the_keys_they_need():
    _, _, rotations = _motion(0)
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = turns(rotations, u, SECONDS)
    assert found.error < TURN_TOLERANCE
    assert len(found.times) > len(u)
    still = turns(lambda u: torch.eye(3).expand(len(u), NODES, 3, 3), u, SECONDS)
    assert len(still.times) == len(u)


def test_the_camera_of_each_animation_is_its_own(tmp_path):
    document = mesh_document(np.eye(3), np.array([[0, 1, 2]]))
    paths = torch.eye(4).repeat(2, 4, 1, 1)
    paths[1, :, 0, 3] = -torch.arange(4.0)
    lens = {"type": "perspective", "perspective": {"yfov": 1.0, "znear": 0.1}}
    shot = Shot(lens, np.linspace(0, SECONDS, 4), list(paths))
    motions = [_motion(0)[0], _motion(0, "hypothesis_01")[0]]
    content = skinned_glb(
        document,
        np.zeros((NODES, 3)),
        np.zeros((3, 1), np.int64),
        np.ones((3, 1)),
        motions,
        shot=shot,
    )
    (tmp_path / "a.glb").write_bytes(content)
    skeleton = read_animated(tmp_path / "a.glb").skeleton
    node = [n.name for n in skeleton.nodes].index("camera")
    for motion, far in zip(motions, (0, 3), strict=True):
        matrices = skeleton.matrices(skeleton.animation(motion.name), np.array([0.0, SECONDS]))
        np.testing.assert_allclose(matrices[:, node, 0, 3], [0, far], atol=1e-6)


def test_refuses_what_it_cannot_skin(tmp_path):
    with pytest.raises(UserError, match="no mesh at"):
        read_mesh_document(tmp_path / "none.glb")
    (tmp_path / "a.txt").write_text("mesh")
    with pytest.raises(UserError, match=r"need a mesh of \.glb"):
        read_mesh_document(tmp_path / "a.txt")
    (tmp_path / "a.glb").write_bytes(b"glTF and nothing else")
    with pytest.raises(UserError, match="cannot use"):
        read_mesh_document(tmp_path / "a.glb")
    with pytest.raises(UserError, match="without a skin"):
        read_mesh_document(snake(np.random.default_rng(0), tmp_path / "snake.glb"))
    empty = Glb(scene=0, scenes=[{"nodes": [0]}], nodes=[{"name": "nothing"}])
    with pytest.raises(UserError, match="need a mesh, got none"):
        read_mesh_document(empty.save(tmp_path / "empty.glb"))
    document = mesh_document(np.eye(3), np.array([[0, 1, 2]]))
    motion = _motion(0)[0]
    rest, one, sure = np.zeros((NODES, 3)), np.zeros((3, 1), np.int64), np.ones((3, 1))
    for bad, message in (
        ((rest, one, sure / 2, [motion]), "sum is 1"),
        ((rest, one + NODES, sure, [motion]), "joints among 5"),
        ((rest, one[:2], sure[:2], [motion]), "3 vertices"),
        ((rest, np.zeros((3, 5), np.int64), np.full((3, 5), 0.2), [motion]), "at most 4"),
        ((rest[:4], one, sure, [motion]), "a motion of 4 joints"),
        ((rest, one, sure, []), "need a motion"),
    ):
        with pytest.raises(ValueError, match=message):
            skinned_glb(document, *bad)
