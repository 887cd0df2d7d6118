r"""DeepMimic motions (.txt, JSON) of its humanoid, as pybullet ships them.

A frame is 44 numbers: its duration (s; the last frame's is 0), the root's position (m) and orientation, then the
joints: quaternions (w, x, y, z) relative to the parent for ball joints, an angle (rad) about z for knees and elbows.
The skeleton is that of pybullet's humanoid.urdf, which is DeepMimic's humanoid3d four times as large; its axes are
x forward, y up, z right. Hands, toes and crown are not joints: the wrist is where the urdf puts it, the toe is the
middle of the front face of the foot's box and the crown the top of the head's ball.
Sources: Peng et al., "DeepMimic" (2018); Coumans & Bai, pybullet (zlib licence), humanoid/humanoid.urdf.
Shape letters:  T frames   J joints.
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffusion4d.data.bvh import about_axis
from diffusion4d.data.skeleton import Take, forward_kinematics, z_up

Array = np.ndarray

# Name, parent, place in the parent's axes (urdf units, a quarter of a metre), numbers a frame: 4, 1 or, fixed, 0.
_JOINTS: tuple[tuple[str, str, tuple[float, float, float], int], ...] = (
    ("root", "", (0, 0, 0), 4),
    ("chest", "root", (0, 0.944604, 0), 4),
    ("neck", "chest", (0, 0.895576, 0), 4),
    ("right hip", "root", (0, 0, 0.339548), 4),
    ("right knee", "right hip", (0, -1.686184, 0), 1),
    ("right ankle", "right knee", (0, -1.639480, 0), 4),
    ("right shoulder", "chest", (-0.0962, 0.974, 0.73244), 4),
    ("right elbow", "right shoulder", (0, -1.099152, 0), 1),
    ("left hip", "root", (0, 0, -0.339548), 4),
    ("left knee", "left hip", (0, -1.686184, 0), 1),
    ("left ankle", "left knee", (0, -1.639480, 0), 4),
    ("left shoulder", "chest", (-0.0962, 0.974, -0.73244), 4),
    ("left elbow", "left shoulder", (0, -1.099152, 0), 1),
    ("head", "neck", (0, 1.11, 0), 0),
    ("right wrist", "right elbow", (0, -1.035788, 0), 0),
    ("left wrist", "left elbow", (0, -1.035788, 0), 0),
    ("right toe", "right ankle", (0.534, -0.09, 0), 0),
    ("left toe", "left ankle", (0.534, -0.09, 0), 0),
)
NAMES = tuple(joint[0] for joint in _JOINTS)
PARENTS = tuple(NAMES.index(joint[1]) if joint[1] else -1 for joint in _JOINTS)
OFFSETS_J3 = 0.25 * np.array([joint[2] for joint in _JOINTS])
WIDTH = 4 + sum(joint[3] for joint in _JOINTS)


def parse(text: str, source: str = "motion") -> tuple[Float[Array, "T 44"], bool]:
    """The frames, and whether the motion wraps round; ValueError that says which frame is wrong."""
    try:
        stored = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}, line {error.lineno}: need JSON, got {error.msg}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("Frames"), list):
        raise ValueError(f"{source}: need an object with a list 'Frames'")
    rows = stored["Frames"]
    if not rows:
        raise ValueError(f"{source}: need at least one frame, got 0")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != WIDTH:
            size = len(row) if isinstance(row, list) else type(row).__name__
            raise ValueError(f"{source}, frame {number}: need {WIDTH} numbers, got {size}")
        if not all(isinstance(value, (int, float)) and np.isfinite(value) for value in row):
            raise ValueError(f"{source}, frame {number}: need finite numbers")
    return np.array(rows, dtype=np.float64), stored.get("Loop") == "wrap"


def posed(frames_TD: Float[Array, "T 44"]) -> Take:
    """Forward kinematics: joints in metres with z up, at the rate of the first frame."""
    count = len(frames_TD)
    if not frames_TD[0, 0] > 0:
        raise ValueError(f"need a first frame that lasts > 0 s, got {frames_TD[0, 0]}")
    local_TJ33 = np.broadcast_to(np.eye(3), (count, len(NAMES), 3, 3)).copy()
    column = 4
    for joint, (name, _, _, width) in enumerate(_JOINTS):
        if width == 4:
            local_TJ33[:, joint] = quaternion_matrix(frames_TD[:, column : column + 4], name)
        elif width == 1:
            local_TJ33[:, joint] = about_axis(2, frames_TD[:, column])
        column += width
    offsets_TJ3 = np.broadcast_to(OFFSETS_J3, (count, len(NAMES), 3)).copy()
    offsets_TJ3[:, 0] = frames_TD[:, 1:4]
    positions, rotations = forward_kinematics(PARENTS, offsets_TJ3, local_TJ33)
    fps = 1 / float(frames_TD[0, 0])
    return z_up(Take(positions, np.array(PARENTS), fps, NAMES, rotations), "y")


def quaternion_matrix(wxyz_T4: Float[Array, "T 4"], name: str) -> Float[Array, "T 3 3"]:
    """Quaternions as rotations, whatever their length: some files were blended linearly and not normalised."""
    norm_T1 = np.linalg.norm(wxyz_T4, axis=-1, keepdims=True)
    if norm_T1.min() < 0.1:
        worst = int(norm_T1.argmin())
        raise ValueError(f"frame {worst}: need a quaternion for {name}, got {wxyz_T4[worst]}")
    w, x, y, z = (wxyz_T4 / norm_T1).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def read(path: Path) -> Take:
    """A motion file as a take."""
    try:
        return posed(parse(path.read_text(errors="replace"), path.name)[0])
    except ValueError as error:
        message = str(error)
        raise ValueError(
            message if message.startswith(path.name) else f"{path.name}, {message}"
        ) from error
