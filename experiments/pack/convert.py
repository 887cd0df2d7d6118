r"""Motion capture as its publishers give it → archives of joint positions (.npz), which the recipe reads.

    python experiments/pack/convert.py --sources sources --cmu DOWNLOAD --reactidle DOWNLOAD --bvh 01_01.bvh

CMU's takes come as rows of 117 numbers, 120 a second: the root's place (an inch is 0.45, as in CMU's skeletons), then
for each of 38 joints the rotation vector r of its parent's axes as seen from its own. With R(r) the rotation about r:

    G_j = G_π(j) R(r_j)ᵀ        p_j = p_π(j) + G_π(j) o_j                                                   (1)

The first frame (a pose for calibration) is left out and CMU's takes are halved to 60 frames a second. Most positions
are rounded, as those were that the packaged weights have seen.
Shape letters:  T frames   J joints.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float

from diffusion4d.data import bvh, positions
from diffusion4d.data.skeleton import Take, forward_kinematics, z_up

Array = np.ndarray

METRES = 0.0254 / 0.45
"""Of a unit of length in CMU's files."""
CMU_TAKES = {
    "walking": (*range(1, 6), *range(13, 22), *range(28, 49), 51, 52),
    "running": tuple(range(1, 6)),
    "directing_traffic": (4,),
    "basketball": tuple(range(1, 6)),
    "jumping": tuple(range(1, 6)),
}
REACTIDLE_TAKES = ("000_genuine", "001_acted", "002_acted", "007_genuine")
# Joint, parent, place in the parent's axes (in METRES; x left, y up, z ahead).
CMU_JOINTS: tuple[tuple[str, str, tuple[float, float, float]], ...] = (
    ("Hips", "", (0, 0, 0)),
    ("LHipJoint", "Hips", (0, 0, 0)),
    ("LeftUpLeg", "LHipJoint", (1.6567, -1.8028, 0.6248)),
    ("LeftLeg", "LeftUpLeg", (2.5972, -7.1357, 0)),
    ("LeftFoot", "LeftLeg", (2.4923, -6.8477, 0)),
    ("LeftToeBase", "LeftFoot", (0.1970, -0.5414, 2.1458)),
    ("LeftToeEnd", "LeftToeBase", (0, 0, 1.1125)),
    ("RHipJoint", "Hips", (0, 0, 0)),
    ("RightUpLeg", "RHipJoint", (-1.6107, -1.8028, 0.6248)),
    ("RightLeg", "RightUpLeg", (-2.5950, -7.1298, 0)),
    ("RightFoot", "RightLeg", (-2.4678, -6.7802, 0)),
    ("RightToeBase", "RightFoot", (-0.2303, -0.6326, 2.1337)),
    ("RightToeEnd", "RightToeBase", (0, 0, 1.1157)),
    ("LowerBack", "Hips", (0, 0, 0)),
    ("Spine", "LowerBack", (0.0196, 2.0546, -0.1411)),
    ("Spine1", "Spine", (0.0102, 2.0643, -0.0592)),
    ("Neck", "Spine1", (0, 0, 0)),
    ("Neck1", "Neck", (0.0071, 1.5671, 0.1497)),
    ("Head", "Neck1", (0.0343, 1.5604, -0.1001)),
    ("HeadEnd", "Head", (0.0131, 1.6256, -0.0527)),
    ("LeftShoulder", "Spine1", (0, 0, 0)),
    ("LeftArm", "LeftShoulder", (3.5421, 0.9044, -0.1737)),
    ("LeftForeArm", "LeftArm", (4.8651, 0, 0)),
    ("LeftHand", "LeftForeArm", (3.3555, 0, 0)),
    ("LeftFingerBase", "LeftHand", (0, 0, 0)),
    ("LFingers", "LeftFingerBase", (0.6612, 0, 0)),
    ("LFingersEnd", "LFingers", (0.5331, 0, 0)),
    ("LThumb", "LeftHand", (0, 0, 0)),
    ("LThumbEnd", "LThumb", (0.5412, 0, 0.5412)),
    ("RightShoulder", "Spine1", (0, 0, 0)),
    ("RightArm", "RightShoulder", (-3.4980, 0.7599, -0.3262)),
    ("RightForeArm", "RightArm", (-5.0265, 0, 0)),
    ("RightHand", "RightForeArm", (-3.3643, 0, 0)),
    ("RightFingerBase", "RightHand", (0, 0, 0)),
    ("RFingers", "RightFingerBase", (-0.7304, 0, 0)),
    ("RFingersEnd", "RFingers", (-0.5889, 0, 0)),
    ("RThumb", "RightHand", (0, 0, 0)),
    ("RThumbEnd", "RThumb", (-0.5978, 0, 0.5978)),
)


@dataclass(frozen=True)
class Settings:
    """What was downloaded, and where the recipe's sources are."""

    sources: Path = Path("sources")
    """Folder that the recipe's paths start from; archives go to mocap/positions in it."""
    cmu: Path | None = None
    """Clone of chaneyddtt/Convolutional-Sequence-to-Sequence-Model-for-Human-Dynamics."""
    reactidle: Path | None = None
    """Clone of Enekoassets/ReActIdle."""
    bvh: Path | None = None
    """CMU's take 01_01 (.bvh), as assimp has it among its test models."""


def cmu_take(rows_TD: Float[Array, "T 117"]) -> Take:
    """The take of which these are the rows; eq. (1)."""
    from scipy.spatial.transform import Rotation

    names = [name for name, _, _ in CMU_JOINTS]
    parents = np.array([names.index(parent) if parent else -1 for _, parent, _ in CMU_JOINTS])
    offsets_J3 = METRES * np.array([place for _, _, place in CMU_JOINTS])
    offsets_TJ3 = np.repeat(offsets_J3[None], len(rows_TD), 0)
    offsets_TJ3[:, 0] = METRES * rows_TD[:, :3]
    # The rotation by −r is the transpose of that by r.
    turns = Rotation.from_rotvec(-rows_TD[:, 3:].reshape(-1, 3)).as_matrix()
    local_TJ33 = turns.reshape(len(rows_TD), len(names), 3, 3)
    positions_TJ3, _ = forward_kinematics(parents.tolist(), offsets_TJ3, local_TJ33)
    return z_up(Take(positions_TJ3, parents, 120.0), "y")


def archived(take: Take, every: int, digits: int | None) -> Take:
    """Every n-th frame after the first, without orientations; positions (m) and the rate rounded, if at all."""
    kept_TJ3, fps = take.positions[1::every], take.fps / every
    if digits is not None:
        kept_TJ3, fps = np.round(kept_TJ3, digits), float(round(fps))
    return replace(take, positions=kept_TJ3, rotations=None, fps=fps)


def _found(folder: Path, name: str) -> Path:
    paths = sorted(folder.rglob(name))
    if len(paths) != 1:
        raise ValueError(f"need one file {name} in {folder}, got {len(paths)}")
    return paths[0]


def converted(settings: Settings) -> Iterator[tuple[str, Take]]:
    """Archives' names and takes of whatever was given.

    Raises:
        ValueError: a file of the lists above is missing, or is not what it should be.
    """
    if settings.cmu is not None:
        folder = settings.cmu / "data" / "cmu_mocap" / "train"
        for action, numbers in CMU_TAKES.items():
            for number in numbers:
                path = _found(folder, f"{action}_{number}.txt")
                rows_TD = np.loadtxt(path, delimiter=",", ndmin=2)
                if rows_TD.shape[1] != 117:
                    raise ValueError(f"need rows of 117 numbers, got {rows_TD.shape[1]} in {path}")
                yield f"cmu__train__{action}_{number}", archived(cmu_take(rows_TD), 2, 4)
    if settings.reactidle is not None:
        for name in REACTIDLE_TAKES:
            take = bvh.read(_found(settings.reactidle, f"{name}.bvh"))
            yield f"reactidle__{name}", archived(take, 1, 5)
    if settings.bvh is not None:
        yield "cmubvh__01_01", archived(bvh.read(settings.bvh, METRES), 2, None)


def main(settings: Settings) -> list[Path]:
    """Write the archives; returns their paths."""
    folder = settings.sources / "mocap" / "positions"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, take in converted(settings):
        paths.append(folder / f"{name}.npz")
        positions.write(paths[-1], take)
        print(paths[-1].name, len(take), "frames")
    return paths


if __name__ == "__main__":
    main(tyro.cli(Settings))
