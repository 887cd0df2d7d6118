"""Signals, kinematics, deformations and cameras of generated scenes against closed forms."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion4d.scenes import articulated, bodies, camera, cloth, elastic, motion, shapes
from diffusion4d.scenes.skeletons import Limb, Skeleton

U = np.linspace(0, 1, 33)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_rotation_is_the_exponential_of_the_axis_angle(shape: tuple[int, ...]) -> None:
    vectors = np.random.default_rng(0).normal(size=shape) * 2
    expected = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*shape, 3)
    np.testing.assert_allclose(motion.rotation(vectors), expected, atol=1e-13)


def test_no_rotation_is_the_identity_exactly() -> None:
    np.testing.assert_array_equal(motion.rotation(np.zeros((2, 3))), np.stack([np.eye(3)] * 2))


def test_transition_is_minimum_jerk() -> None:
    step = motion.transition(U, 0.25, 0.75)
    assert step[0] == 0
    assert step[-1] == 1
    np.testing.assert_allclose(step[16], 0.5)
    np.testing.assert_allclose(step + step[::-1], 1)
    # The peak speed of a minimum-jerk movement is 15/8 of its mean speed.
    fine = np.linspace(0, 1, 4001)
    speed = np.gradient(motion.transition(fine, 0.0, 1.0), fine).max()
    np.testing.assert_allclose(speed, 15 / 8, rtol=1e-5)


def test_an_oscillation_stays_within_one_and_below_its_bandwidth() -> None:
    fine = np.linspace(0, 1, 512, endpoint=False)
    for seed in range(5):
        signal = motion.oscillation(np.random.default_rng(seed), fine, 3.0, 4)
        assert np.abs(signal).max() <= 1
        windowed = (signal - signal.mean(0)) * np.hanning(512)[:, None]
        power = np.abs(np.fft.rfft(windowed, axis=0)) ** 2
        # Three cycles, and the two bins a Hann window leaks into.
        assert power[7:].sum() < 1e-3 * power.sum()


def test_walking_covers_its_distance_in_the_direction_it_faces() -> None:
    for seed in range(5):
        heading, position, distance = motion.ground_path(np.random.default_rng(seed), U, 2.0, 0.5)
        steps = np.diff(position, axis=0)
        np.testing.assert_allclose(np.linalg.norm(steps, axis=-1), np.diff(distance), atol=1e-12)
        middle = 0.5 * (heading[1:] + heading[:-1])
        sideways = -np.sin(middle) * steps[:, 0] + np.cos(middle) * steps[:, 1]
        np.testing.assert_allclose(sideways, 0, atol=1e-12)


def test_meshes_are_closed_and_face_outwards() -> None:
    rng = np.random.default_rng(0)
    limb = shapes.capsule(np.array([0.1, 0.2, 0.9]), np.array([0.1, 0.12, 0.05]), 0.5, 7)
    meshes = [
        shapes.box(),
        shapes.superquadric(120, 2.0),
        shapes.superquadric(120, 6.0, axial=True),
        shapes.roughened(rng, shapes.superquadric(90, 3.0), 0.3),
        limb,
    ]
    for mesh in meshes:
        a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
        # The sum of area vectors of a closed surface vanishes; its signed volume is positive outwards.
        np.testing.assert_allclose(np.cross(b - a, c - a).sum(0), 0, atol=1e-10)
        assert np.einsum("fi,fi->", np.cross(a, b), c) > 0


def test_volumes_of_known_shapes() -> None:
    def volume(mesh: shapes.Mesh) -> float:
        a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
        return float(np.einsum("fi,fi->", np.cross(a, b), c) / 6)

    np.testing.assert_allclose(volume(shapes.box()), 1)
    np.testing.assert_allclose(volume(shapes.superquadric(2000, 2.0)), np.pi / 6, rtol=5e-3)
    ring = shapes.torus(64, 64, 0.1)
    np.testing.assert_allclose(volume(ring), 2 * np.pi**2 * 0.4 * 0.1**2, rtol=1e-2)


def test_rolling_does_not_slip() -> None:
    ball = shapes.superquadric(50, 2.0)
    radius = 0.5 * np.ptp(ball.vertices[:, 2])
    fine = np.linspace(0, 1, 2001)
    for seed in range(4):
        turn, position = bodies.rolling(np.random.default_rng(seed), fine, 1.0, ball)
        velocity = np.gradient(position, fine, axis=0)
        spin = np.gradient(turn, fine, axis=0) @ turn.transpose(0, 2, 1)
        # The material point that touches the floor is at rest: v + ω × (0, 0, −r) = 0.
        contact = velocity + spin @ np.array([0, 0, -radius])
        np.testing.assert_allclose(contact[2:-2], 0, atol=1e-4)


def test_rigid_bodies_keep_their_distances() -> None:
    for seed in range(25):
        body = bodies.rigid(np.random.default_rng(seed), U, 60)
        apart = np.linalg.norm(body.vertices[:, :, None] - body.vertices[:, None, :30], axis=-1)
        np.testing.assert_allclose(apart, np.repeat(apart[:1], len(U), 0), atol=1e-12)
        assert body.vertices[..., 2].min() >= -1e-9


def test_limbs_keep_their_shape_and_hang_together() -> None:
    """A bent elbow in closed form, and isometry of every limb of every kind of creature."""
    forearm = Limb("b", 0, np.array([0, 0, 1.0]), np.array([0, 0, 0.5]), np.full(3, 0.1))
    upper = Limb("a", -1, np.zeros(3), np.array([0, 0, 1.0]), np.full(3, 0.1))
    angles = np.zeros((1, 2, 3))
    angles[0, 0, 1], angles[0, 1, 0] = np.pi / 2, np.pi / 2
    turn, place = np.eye(3)[None], np.array([[0.0, 0, 3.0]])
    vertices, _, rest, part = articulated.posed(
        Skeleton("arm", (upper, forearm)), angles, turn, place, 6
    )
    # +90° about y takes the elbow from above the shoulder to its front: (x, y, z) → (z, y, −x). The forearm turns by
    # +90° about its own x first, (x, y, z) → (x, −z, y), and is carried along.
    x, y, z = (rest[part == 1] - [0, 0, 1]).T
    expected = np.stack([y, -z, -x], -1) + np.array([1.0, 0, 3.0])
    np.testing.assert_allclose(vertices[0, part == 1], expected, atol=1e-12)

    for seed in range(25):
        body = articulated.articulated(np.random.default_rng(seed), U[::4], 100)
        for number in np.unique(body.parts):
            limb = body.vertices[:, body.parts == number]
            apart = np.linalg.norm(limb[:, :, None] - limb[:, None], axis=-1)
            np.testing.assert_allclose(apart, np.repeat(apart[:1], len(apart), 0), atol=1e-12)


def test_deformations_keep_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.5, 0.5, (1, 40, 3))
    # Volume: the Jacobian of squash and twist has determinant 1 (central differences).
    for deform in (
        lambda y: elastic.squash(y, np.array([1.4])),
        lambda y: elastic.twist(y, np.array([2.0])),
    ):
        h = 1e-5
        columns = [(deform(x + h * e) - deform(x - h * e)) / (2 * h) for e in np.eye(3)]
        np.testing.assert_allclose(np.linalg.det(np.stack(columns, -1)), 1, atol=1e-8)
    # Bend: the axis keeps its length and becomes a circle of radius 1/κ.
    axis = np.zeros((1, 1001, 3))
    axis[0, :, 2] = np.linspace(-0.5, 0.5, 1001)
    bent = elastic.bend(axis, np.array([2.0]))[0]
    np.testing.assert_allclose(np.linalg.norm(np.diff(bent, axis=0), axis=-1).sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(bent - [0.5, 0, 0], axis=-1), 0.5, atol=1e-12)
    # Sections stay normal to the axis, so what lay 0.1 inside the curve is 0.1 nearer to its centre.
    bent = elastic.bend(axis + np.array([0.1, 0, 0]), np.array([2.0]))[0]
    np.testing.assert_allclose(np.linalg.norm(bent - [0.5, 0, 0], axis=-1), 0.4, atol=1e-12)
    np.testing.assert_array_equal(elastic.bend(x, np.zeros(1)), x)


def test_folding_is_isometric() -> None:
    line = np.stack([np.linspace(-0.5, 0.5, 4001), np.linspace(-0.2, 0.4, 4001)], -1)
    direction = np.array([0.6, 0.8])
    angles = np.array([0.0, 0.7, 1.5, 3.0])
    folded = cloth.fold(line, direction, np.array([0.0, 0.1, 0.1, -0.1]), angles, 0.05)
    length = np.linalg.norm(np.diff(line, axis=0), axis=-1).sum()
    lengths = np.linalg.norm(np.diff(folded, axis=1), axis=-1).sum(1)
    np.testing.assert_allclose(lengths, length, rtol=1e-6)
    np.testing.assert_allclose(folded[0, :, :2], line, atol=1e-15)
    np.testing.assert_array_equal(folded[0, :, 2], 0)
    # A half turn and a bit lays the far end back over the near one, two radii above it.
    assert folded[3, -1] @ [*direction, 0] < folded[3, 2000] @ [*direction, 0]
    assert folded[3, :, 2].min() >= 0


def test_everything_stays_finite_and_above_the_floor() -> None:
    makers = (bodies.rigid, articulated.articulated, elastic.elastic, cloth.cloth)
    for maker in makers:
        for seed in range(60):
            body = maker(np.random.default_rng(seed), U[::4], 80)
            assert np.isfinite(body.vertices).all()
            assert body.vertices[..., 2].min() > -1e-9
            assert body.faces.max() < len(body.rest)


def test_a_camera_looks_at_its_target_the_right_way_up() -> None:
    rng = np.random.default_rng(2)
    position, target = rng.normal(size=(2, 6, 3)) * [3, 3, 1]
    extrinsics = camera.look_at(position, target, np.zeros(6))
    rotation = extrinsics[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.stack([np.eye(3)] * 6), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1)

    def seen(points: np.ndarray) -> np.ndarray:
        return np.einsum("tij,tj->ti", rotation, points) + extrinsics[:, :3, 3]

    distance = np.linalg.norm(target - position, axis=-1)
    np.testing.assert_allclose(seen(position), 0, atol=1e-12)
    np.testing.assert_allclose(seen(target)[:, :2], 0, atol=1e-12)
    np.testing.assert_allclose(seen(target)[:, 2], distance)
    # y points down in the image, so what is higher has a smaller y.
    assert (seen(target + np.array([0, 0, 0.1]))[:, 1] < 0).all()


def test_lenses_have_the_promised_size_and_field_of_view() -> None:
    for seed in range(50):
        lens = camera.random_lens(np.random.default_rng(seed))
        assert min(lens.size) == 256
        fov = np.degrees(2 * np.arctan(0.5 * max(lens.size) / lens.focal))
        assert 14.999 <= fov <= 100.001
