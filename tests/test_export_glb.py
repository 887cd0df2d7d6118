"""hypotheses.glb: exact by the specification's own formula, right side up, and valid."""

import dataclasses
import json
import math
import struct

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from fans import fan
from gltf_validator import messages, needs_validator

from diffusion4d import deformation
from diffusion4d.errors import UserError
from diffusion4d.export.glb import TRAIL_SAMPLES, glb, write_glb
from diffusion4d.export.modes import write_modes
from diffusion4d.export.palette import colours
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import knot_vector

FLIP = np.array([1, -1, -1])
SECONDS = 2.5


def _open(content: bytes) -> pygltflib.GLTF2:
    document = pygltflib.GLTF2.load_from_bytes(content)
    assert document is not None
    return document


def _array(document: pygltflib.GLTF2, index: int) -> np.ndarray:
    accessor = document.accessors[index]
    view = document.bufferViews[accessor.bufferView]
    dtype = {5126: np.float32, 5123: np.uint16, 5125: np.uint32}[accessor.componentType]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
    start = view.byteOffset + accessor.byteOffset
    flat = np.frombuffer(document.binary_blob(), dtype, accessor.count * width, start)
    return flat if width == 1 else flat.reshape(-1, width)


def _node(document: pygltflib.GLTF2, name: str) -> int:
    return next(i for i, node in enumerate(document.nodes) if node.name == name)


def _track(document: pygltflib.GLTF2, node: int, path: str) -> tuple[np.ndarray, np.ndarray, str]:
    animation = document.animations[0]
    channel = next(c for c in animation.channels if c.target.node == node and c.target.path == path)
    sampler = animation.samplers[channel.sampler]
    return _array(document, sampler.input), _array(document, sampler.output), sampler.interpolation


def _cubic_spline(times: np.ndarray, output: np.ndarray, at: np.ndarray) -> np.ndarray:
    """glTF 2.0, appendix C.5, as it is written there."""
    arriving, value, leaving = output.reshape(-1, 3, 3).swapaxes(0, 1).astype(float)
    k = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    t_d = (times[k + 1] - times[k]).astype(float)
    t = ((at - times[k]) / t_d)[:, None]
    t_d = t_d[:, None]
    return (
        (2 * t**3 - 3 * t**2 + 1) * value[k]
        + t_d * (t**3 - 2 * t**2 + t) * leaving[k]
        + (-2 * t**3 + 3 * t**2) * value[k + 1]
        + t_d * (t**3 - t**2) * arriving[k + 1]
    )


def _with_degree(degree: int, knots: torch.Tensor | None = None) -> Hypotheses:
    hyp = fan(3, 5)
    knots = knot_vector(hyp.num_ctrl, degree) if knots is None else knots
    lively = hyp.control_points + 0.3 * torch.randn(
        hyp.control_points.shape, generator=torch.Generator().manual_seed(0)
    )
    return dataclasses.replace(hyp, control_points=lively, knots=knots, degree=degree)


_CORNER = torch.tensor([0, 0, 0, 0, 0.3, 0.3, 0.3, 1, 1, 1, 1], dtype=torch.float64)


@pytest.mark.parametrize(
    "hyp",
    [_with_degree(3), _with_degree(2), _with_degree(1), _with_degree(3, _CORNER)],
    ids=["cubic", "quadratic", "linear", "corner"],
)
def test_the_animation_is_the_spline_between_the_frames_too(hyp):
    document = _open(glb(hyp, seconds=SECONDS))
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    truth = hyp.evaluate(u).numpy() * FLIP
    for k in range(hyp.num_hypotheses):
        for n in range(hyp.num_points):
            node = _node(document, f"hypothesis_{k:02d}_point_{n:03d}")
            times, output, interpolation = _track(document, node, "translation")
            assert interpolation == "CUBICSPLINE"
            assert (times[0], times[-1]) == (0, SECONDS)
            # Nothing arrives at the first key, and nothing leaves the last.
            assert not output[0].any()
            assert not output[-1].any()
            found = _cubic_spline(times, output, SECONDS * u.numpy())
            np.testing.assert_allclose(found, truth[k, n], atol=1e-5)
            np.testing.assert_array_equal(document.nodes[node].translation, output[1])


def test_every_knot_is_a_key():
    hyp = _with_degree(3)
    document = _open(glb(hyp, seconds=SECONDS))
    times, _, _ = _track(document, _node(document, "hypothesis_00_point_000"), "translation")
    keys = hyp.knots.unique().numpy() * SECONDS
    assert all(np.isclose(times, key, atol=1e-6).any() for key in keys)


def test_axes_and_units_are_those_of_gltf():
    # A point 2 ahead, 1 to the right and 0.5 down for OpenCV is up −0.5 and back −2 for glTF.
    hyp = fan(1, 1)
    still = torch.tensor([1.0, 0.5, 2.0]).expand_as(hyp.control_points).clone()
    document = _open(glb(dataclasses.replace(hyp, control_points=still), seconds=1.0))
    node = document.nodes[_node(document, "hypothesis_00_point_000")]
    assert node.translation == [1.0, -0.5, -2.0]


def test_the_camera_frames_what_the_clip_framed():
    hyp = fan()
    document = _open(glb(hyp, seconds=1.0))
    lens = document.cameras[0].perspective
    (height, width), (fx, fy) = hyp.size, hyp.intrinsics[:2].tolist()
    assert math.tan(lens.yfov / 2) == pytest.approx(height / 2 / fy)
    assert math.tan(lens.yfov / 2) * lens.aspectRatio == pytest.approx(width / 2 / fx)
    node = document.nodes[_node(document, "camera")]
    assert node.translation is None
    assert node.rotation is None


def test_a_world_camera_moves_as_the_extrinsics_say():
    hyp = fan()
    # Past half a turn, where a quaternion read off a matrix changes its sign.
    angle = torch.linspace(0, 5.5, hyp.num_frames)
    extrinsics = torch.eye(4).repeat(hyp.num_frames, 1, 1)
    extrinsics[:, 0, 0] = extrinsics[:, 2, 2] = angle.cos()
    extrinsics[:, 0, 2], extrinsics[:, 2, 0] = angle.sin(), -angle.sin()
    extrinsics[:, :3, 3] = torch.tensor([0.3, -0.1, 0.5])
    hyp = dataclasses.replace(hyp, extrinsics=extrinsics, frame="world")
    document = _open(glb(hyp, seconds=SECONDS))
    node = _node(document, "camera")
    times, places, _ = _track(document, node, "translation")
    _, turns, interpolation = _track(document, node, "rotation")
    assert interpolation == "LINEAR"
    np.testing.assert_allclose(times, SECONDS * hyp.times.numpy(), atol=1e-6)
    # The short way round between neighbours.
    assert ((turns[1:] * turns[:-1]).sum(-1) > 0).all()
    world = hyp.evaluate()[0, :, 5].double().numpy() * FLIP
    x, y, z, w = turns[5].astype(float)
    rotation = trimesh.transformations.quaternion_matrix([w, x, y, z])[:3, :3]
    # Into the node's frame: transpose of its rotation, after its place.
    local = (world - places[5]) @ rotation
    np.testing.assert_allclose(local * FLIP, hyp.camera_points()[0, :, 5].numpy(), atol=1e-5)


def test_every_hypothesis_is_one_node_with_its_seed_rank_and_colour():
    hyp = fan(error=torch.tensor([3.0, 0.5, 2.0, 1.0]))
    document = _open(glb(hyp, seconds=1.0))
    assert len(document.animations) == 1
    assert len(document.animations[0].channels) == 4 * 6
    roots = [document.nodes[i].name for i in document.scenes[0].nodes]
    assert roots == [*(f"hypothesis_{k:02d}" for k in range(4)), "camera"]
    for k, colour in enumerate(colours(hyp)):
        parent = document.nodes[_node(document, f"hypothesis_{k:02d}")]
        assert parent.extras["seed"] == 10 + k
        assert parent.extras["rank"] == hyp.rank().tolist().index(k)
        points = document.nodes[parent.children[0]]
        assert len(points.children) == hyp.num_points
        mesh = document.meshes[document.nodes[points.children[2]].mesh]
        linear = document.materials[mesh.primitives[0].material].pbrMetallicRoughness
        srgb = [1.055 * c ** (1 / 2.4) - 0.055 for c in linear.baseColorFactor[:3]]
        np.testing.assert_allclose(srgb, colour, atol=1e-6)


def test_trails_are_the_paths():
    hyp = fan()
    document = _open(glb(hyp, seconds=1.0))
    mesh = document.meshes[document.nodes[_node(document, "hypothesis_02_trails")].mesh]
    primitive = mesh.primitives[0]
    assert primitive.mode == pygltflib.LINES
    place = _array(document, primitive.attributes.POSITION).reshape(6, TRAIL_SAMPLES, 3)
    u = torch.linspace(0, 1, TRAIL_SAMPLES, dtype=torch.float64)
    np.testing.assert_allclose(place, hyp.evaluate(u)[2].numpy() * FLIP, atol=1e-6)
    segments = _array(document, primitive.indices).reshape(6, TRAIL_SAMPLES - 1, 2)
    # No segment joins two points.
    assert (segments // TRAIL_SAMPLES == np.arange(6)[:, None, None]).all()
    assert (np.diff(segments, axis=-1) == 1).all()


def test_trimesh_reads_the_first_instant(tmp_path):
    hyp = fan()
    scene = trimesh.load_scene(write_glb(hyp, tmp_path / "a.glb", seconds=1.0))
    for k, n in ((0, 0), (3, 5)):
        matrix, _ = scene.graph[f"hypothesis_{k:02d}_point_{n:03d}"]
        np.testing.assert_allclose(matrix[:3, 3], hyp.evaluate()[k, n, 0].numpy() * FLIP, atol=1e-6)
    marker = scene.geometry["hypothesis_00_point"]
    assert marker.is_watertight
    # Faces turned inside out would have a negative volume.
    assert marker.volume > 0


def test_size_grows_with_points_and_not_with_frames():
    small, long = glb(fan(), seconds=1.0), glb(fan(num_frames=96), seconds=1.0)
    assert abs(len(long) - len(small)) < 200
    assert len(glb(fan(16, 128), seconds=1.0)) < 4e6


def test_container_is_what_its_header_says():
    content = glb(fan(), seconds=1.0)
    magic, version, length = struct.unpack_from("<III", content)
    assert (magic, version, length) == (0x46546C67, 2, len(content))
    size, kind = struct.unpack_from("<II", content, 12)
    assert (kind, size % 4) == (0x4E4F534A, 0)
    document = json.loads(content[20 : 20 + size])
    rest, kind = struct.unpack_from("<II", content, 20 + size)
    assert kind == 0x004E4942
    assert 20 + size + 8 + rest == len(content)
    assert 0 <= rest - document["buffers"][0]["byteLength"] < 4


def test_refuses_what_gltf_cannot_hold():
    with pytest.raises(UserError, match="degree <= 3"):
        glb(_with_degree(4), seconds=1.0)
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="positive length"):
            glb(fan(), seconds=seconds)


@needs_validator
@pytest.mark.parametrize("frame", ["camera", "world"])
def test_khronos_validator_finds_nothing(tmp_path, frame):
    path = write_glb(dataclasses.replace(fan(), frame=frame), tmp_path / "a.glb", seconds=SECONDS)
    assert messages(path) == []


@needs_validator
def test_khronos_validator_finds_nothing_in_modes(tmp_path):
    files = write_modes(deformation.modes(fan(12)), tmp_path)
    assert messages(files["modes.glb"]) == []
