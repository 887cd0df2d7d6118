"""Other people's cameras: each convention against one real photograph's worth of geometry, and a round trip each."""

import numpy as np
import pytest

from diffusion4d import conventions as c


def poses(*batch: int) -> np.ndarray:
    """World to camera, ours: random rotations and places."""
    rng = np.random.default_rng(len(batch))
    rotation, _ = np.linalg.qr(rng.normal(size=(*batch, 3, 3)))
    rotation *= np.linalg.det(rotation)[..., None, None]
    pose = np.broadcast_to(np.eye(4), (*batch, 4, 4)).copy()
    pose[..., :3, :3], pose[..., :3, 3] = rotation, rng.normal(size=(*batch, 3))
    return pose


BATCHES = [(), (2,), (1, 2)]


@pytest.mark.parametrize("batch", BATCHES)
def test_the_inverse_is_the_inverse(batch: tuple[int, ...]) -> None:
    np.testing.assert_allclose(c.inverse(poses(*batch)), np.linalg.inv(poses(*batch)), atol=1e-12)


@pytest.mark.parametrize("batch", BATCHES)
def test_round_trips(batch: tuple[int, ...]) -> None:
    E = poses(*batch)
    np.testing.assert_allclose(c.from_opengl(c.to_opengl(E)), E, atol=1e-12)
    np.testing.assert_allclose(c.from_blender(c.to_blender(E)), E, atol=1e-12)
    np.testing.assert_allclose(c.from_colmap(*c.to_colmap(E)), E, atol=1e-12)
    np.testing.assert_allclose(c.from_pytorch3d(*c.to_pytorch3d(E)), E, atol=1e-12)
    lens = np.broadcast_to([300.0, 280.0, 170.5, 120.0], (*batch, 4))
    np.testing.assert_allclose(
        c.ndc_to_pixels(*c.pixels_to_ndc(lens, (240, 320)), (240, 320)), lens
    )
    np.testing.assert_allclose(c.centred_at_halves(c.centred_at_integers(lens)), lens)


def test_opengl_looks_along_minus_z_with_y_up() -> None:
    """The identity view in OpenGL: what it sees at (1, 2, −5) is 1 to the right, 2 above, 5 ahead: ours (1, −2, 5)."""
    point = np.array([1.0, 2.0, -5.0, 1.0])
    np.testing.assert_allclose(c.from_opengl(np.eye(4)) @ point, [1, -2, 5, 1])


def test_a_blender_camera_on_a_tripod() -> None:
    """Blender's default camera turned up by 90° about x looks along +y of a z-up world, from (0, −7, 1)."""
    matrix_world = np.array([[1.0, 0, 0, 0], [0, 0, -1, -7], [0, 1, 0, 1], [0, 0, 0, 1]])
    E = c.from_blender(matrix_world)
    # A thing at the origin is 7 ahead and 1 below the eye's height: y down is +1.
    np.testing.assert_allclose(E @ [0, 0, 0, 1], [0, 1, 7, 1], atol=1e-12)
    # East (+x) is to the right, up (+z) is −y.
    np.testing.assert_allclose(E @ [2, 0, 1, 1], [2, 0, 7, 1], atol=1e-12)


def test_colmap_is_ours_with_a_quaternion_that_begins_with_its_real_part() -> None:
    """90° about z: (w, x, y, z) = (√½, 0, 0, √½) takes x to y."""
    half = np.sqrt(0.5)
    E = c.from_colmap(np.array([half, 0, 0, half]), np.array([0.0, 0, 3]))
    np.testing.assert_allclose(E @ [1, 0, 0, 1], [0, 1, 3, 1], atol=1e-12)
    # A quaternion of another length, or of the other sign, is the same rotation.
    again = c.from_colmap(np.array([-2 * half, 0, 0, -2 * half]), np.array([0.0, 0, 3]))
    np.testing.assert_allclose(again, E, atol=1e-12)
    quaternion, _ = c.to_colmap(E)
    np.testing.assert_allclose(quaternion, [half, 0, 0, half], atol=1e-12)


def test_pytorch3d_has_row_vectors_x_left_and_y_up() -> None:
    """R = 1, T = (0, 0, 4): X_view = X R + T. Left and up in its view are −x and −y in ours."""
    E = c.from_pytorch3d(np.eye(3), np.array([0.0, 0, 4]))
    np.testing.assert_allclose(E @ [1, 2, 0, 1], [-1, -2, 4, 1])
    # Row vectors: R turns with its transpose. 90° about z in rows takes x to −y for the column matrix below.
    R = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    row = np.array([1.0, 0, 0]) @ R
    np.testing.assert_allclose(
        (c.from_pytorch3d(R, np.zeros(3)) @ [1, 0, 0, 1])[:3], row * [-1, -1, 1]
    )


def test_ndc_spans_the_shorter_side() -> None:
    """In a 200 x 400 image a focal length of 1 in NDC is half of 200 px; the middle is (200, 100); +x is left."""
    lens = c.ndc_to_pixels(np.array([1.0, 1.0]), np.array([0.5, 0.0]), (200, 400))
    np.testing.assert_allclose(lens, [100, 100, 150, 100])


def test_pixel_centres() -> None:
    """The middle of a 3 px row is at 1.5 for us and at 1 for those whose first centre is 0."""
    np.testing.assert_allclose(c.centred_at_integers(np.array([9.0, 9, 1.5, 1.5])), [9, 9, 1, 1])


def test_a_quaternion_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zero norm"):
        c.from_colmap(np.zeros((1, 4)), np.zeros((1, 3)))
