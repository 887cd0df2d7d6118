r"""Other people's cameras, to and from ours, in plain numpy. docs/conventions.md has the table.

Ours: OpenCV axes (x right, y down, z forward), E world to camera [4, 4], X_cam = E X_world, pixel centres at +0.5.
Below, F turns the axes of a camera, F = diag(1, −1, −1, 1) for those of OpenGL and Blender (x right, y up, z backward):

    opengl      a view matrix V, world to camera:            E = F V
    blender     an object's matrix_world, camera to world:   E = F M⁻¹          (nerfstudio's transform_matrix is one)
    colmap      a unit quaternion (w, x, y, z) and t, world to camera, our axes:  E = [R(q) | t]
    pytorch3d   row vectors X_view = X_world R + T, x left, y up, z forward:     E = G [Rᵀ | T],  G = diag(−1, −1, 1, 1)

World axes are left as they are: which way is up in a world is no part of a camera.

Shape letters:  T cameras.
"""

import numpy as np
from jaxtyping import Float

Array = np.ndarray

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""F: from OpenGL's and Blender's camera axes to ours, and back."""
PYTORCH3D = np.diag([-1.0, -1.0, 1.0, 1.0])
"""G: from PyTorch3D's camera axes to ours, and back."""


def inverse(pose: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """Of a rigid motion, exactly: [Rᵀ | −Rᵀ t]. World to camera becomes camera to world."""
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    result = np.zeros_like(pose)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -(rotation @ pose[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


def from_opengl(view: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """E of an OpenGL view matrix."""
    return OPENGL @ view


def to_opengl(extrinsics: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """The OpenGL view matrix of E."""
    return OPENGL @ extrinsics


def from_blender(matrix_world: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """E of a Blender camera's matrix_world, or of nerfstudio's transform_matrix."""
    return OPENGL @ inverse(matrix_world)


def to_blender(extrinsics: Float[Array, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """matrix_world of a Blender camera, or nerfstudio's transform_matrix."""
    return inverse(OPENGL @ extrinsics)


def from_colmap(
    quaternion: Float[Array, "*batch 4"], translation: Float[Array, "*batch 3"]
) -> Float[Array, "*batch 4 4"]:
    """E of COLMAP's QW QX QY QZ and TX TY TZ; the quaternion is brought to length 1.

    Raises:
        ValueError: a quaternion of length 0.
    """
    from scipy.spatial.transform import Rotation

    extrinsics = np.zeros((*quaternion.shape[:-1], 4, 4))
    # scipy's quaternions end with the real part. It refuses a length of 0 itself.
    turns = Rotation.from_quat(np.roll(quaternion, -1, -1).reshape(-1, 4))
    extrinsics[..., :3, :3] = turns.as_matrix().reshape(*quaternion.shape[:-1], 3, 3)
    extrinsics[..., :3, 3] = translation
    extrinsics[..., 3, 3] = 1
    return extrinsics


def to_colmap(
    extrinsics: Float[Array, "*batch 4 4"],
) -> tuple[Float[Array, "*batch 4"], Float[Array, "*batch 3"]]:
    """COLMAP's quaternion, its real part first and not negative, and translation."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_matrix(extrinsics[..., :3, :3].reshape(-1, 3, 3))
    quaternion = np.roll(turns.as_quat(canonical=True), 1, -1)
    return quaternion.reshape(*extrinsics.shape[:-2], 4), extrinsics[..., :3, 3].copy()


def from_pytorch3d(
    rotation: Float[Array, "*batch 3 3"], translation: Float[Array, "*batch 3"]
) -> Float[Array, "*batch 4 4"]:
    """E of PyTorch3D's R and T."""
    extrinsics = np.zeros((*rotation.shape[:-2], 4, 4))
    extrinsics[..., :3, :3] = np.swapaxes(rotation, -1, -2)
    extrinsics[..., :3, 3] = translation
    extrinsics[..., 3, 3] = 1
    return PYTORCH3D @ extrinsics


def to_pytorch3d(
    extrinsics: Float[Array, "*batch 4 4"],
) -> tuple[Float[Array, "*batch 3 3"], Float[Array, "*batch 3"]]:
    """PyTorch3D's R and T."""
    turned = PYTORCH3D @ extrinsics
    return np.swapaxes(turned[..., :3, :3], -1, -2), turned[..., :3, 3].copy()


def ndc_to_pixels(
    focal: Float[Array, "*batch 2"], principal: Float[Array, "*batch 2"], size: tuple[int, int]
) -> Float[Array, "*batch 4"]:
    """(fx, fy, cx, cy) px of PyTorch3D's NDC focal length and principal point, of an image of `size` (H, W).

    Its NDC span [−1, 1] over the shorter side, x to the left and y upwards.
    """
    half = min(size) / 2
    middle = np.array([size[1] / 2, size[0] / 2])
    return np.concatenate([focal * half, middle - principal * half], -1)


def pixels_to_ndc(
    intrinsics: Float[Array, "*batch 4"], size: tuple[int, int]
) -> tuple[Float[Array, "*batch 2"], Float[Array, "*batch 2"]]:
    """PyTorch3D's NDC focal length and principal point of (fx, fy, cx, cy) px."""
    half = min(size) / 2
    middle = np.array([size[1] / 2, size[0] / 2])
    return intrinsics[..., :2] / half, (middle - intrinsics[..., 2:]) / half


def centred_at_integers(intrinsics: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Ours, for those who put the first pixel's centre at (0, 0) (OpenCV, PointOdyssey): cx and cy less by half."""
    return intrinsics - np.array([0.0, 0.0, 0.5, 0.5])


def centred_at_halves(intrinsics: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Theirs, for us: cx and cy more by half."""
    return intrinsics + np.array([0.0, 0.0, 0.5, 0.5])
