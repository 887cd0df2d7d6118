"""BVH files against a two-bone arm worked out by hand, scipy's rotations, a round trip, and files that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion4d.data import bvh

ARM = """HIERARCHY
ROOT shoulder {
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
  JOINT elbow
  {
    OFFSET 2 0 0
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {
      OFFSET 1 0 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.025
0 0 0 0 0 0 0 0 0
1 2 3 90 0 0 90 0 0
"""


def test_an_arm_bent_twice_by_a_right_angle() -> None:
    take = bvh.posed(bvh.parse(ARM), metres=0.5)
    assert take.names == ("shoulder", "elbow", "elbow_end")
    assert take.parents.tolist() == [-1, 0, 1]
    assert take.fps == pytest.approx(40)
    # The arm along x, turned about the file's z: the elbow goes up (y), the hand back (−x). In the take, up is z.
    bent = 0.5 * np.array([[1, -3, 2], [1, -3, 4], [0, -3, 4]])
    np.testing.assert_allclose(take.positions[1], bent, atol=1e-15)
    np.testing.assert_allclose(take.positions[0], 0.5 * np.array([[0, 0, 0], [2, 0, 0], [3, 0, 0]]))


def random_file(rng: np.random.Generator) -> bvh.Bvh:
    """A tree of seven joints with every kind of channel list."""
    rotations = ["Xrotation", "Yrotation", "Zrotation"]
    positions = ("Xposition", "Yposition", "Zposition")
    parents = (-1, 0, 1, 2, 1, 4, 0)
    channels = [tuple(str(c) for c in rng.permutation(rotations)) for _ in parents]
    channels[0] = positions + channels[0]
    channels[4] = (*channels[4], *positions)
    channels[2] = ("Yrotation",)
    channels[3] = channels[5] = ()
    values = rng.uniform(-180, 180, (4, sum(map(len, channels))))
    names = ("hips", "chest", "arm", "arm_end", "neck", "neck_end", "left leg")
    return bvh.Bvh(names, parents, rng.normal(size=(7, 3)), tuple(channels), values, 1 / 30)


@pytest.mark.parametrize("seed", range(3))
def test_euler_orders_agree_with_scipy(seed: int) -> None:
    file = random_file(np.random.default_rng(seed))
    take = bvh.posed(file, up="z")
    column, turn, place = 0, {}, {}
    for joint, channels in enumerate(file.channels):
        named = dict(zip(channels, file.values[:, column : column + len(channels)].T, strict=True))
        column += len(channels)
        turns = [name for name in channels if name.endswith("rotation")]
        offset = np.tile(file.offsets[joint], (4, 1))
        if "Xposition" in named:
            offset = np.stack([named[f"{x}position"] for x in "XYZ"], -1)
        # Capital letters: intrinsic, each turn in the axes left by the one before.
        order = "".join(name[0] for name in turns)
        angles = np.stack([named[name] for name in turns], -1) if turns else np.zeros((4, 1))
        local = Rotation.from_euler(order or "X", angles, degrees=True)
        parent = file.parents[joint]
        turn[joint] = turn[parent] * local if parent >= 0 else local
        place[joint] = place[parent] + turn[parent].apply(offset) if parent >= 0 else offset
        np.testing.assert_allclose(take.positions[:, joint], place[joint], atol=1e-12)
        assert take.rotations is not None
        np.testing.assert_allclose(take.rotations[:, joint], turn[joint].as_matrix(), atol=1e-12)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = random_file(np.random.default_rng(7))
    again = bvh.parse(bvh.written(file))
    assert (again.names[:3], again.parents) == (file.names[:3], file.parents)
    assert again.channels == file.channels
    assert again.frame_time == file.frame_time
    np.testing.assert_array_equal(again.offsets, file.offsets)
    np.testing.assert_array_equal(again.values, file.values)
    (tmp_path / "a.bvh").write_text(bvh.written(file))
    read = bvh.read(tmp_path / "a.bvh", metres=2.0, up="z")
    np.testing.assert_array_equal(read.positions, 2.0 * bvh.posed(file, up="z").positions)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1 2 3 90 0 0 90 0 0\n", "", "line 18: need frame 2 of 2, got the end"),
        ("1 2 3 90 0 0 90 0 0", "1 2 3 90 0 0 90 0", "line 19: need 9 numbers for frame 2, got 8"),
        ("1 2 3 90", "1 2 nan 90", "line 19: need finite numbers for frame 2"),
        ("1 2 3 90", "1 2 x 90", "line 19: need numbers for frame 2"),
        ("Frames: 2", "Frames: 0", "at least one frame"),
        ("Frames: 2", "Frames: two", "need 'Frames: n'"),
        ("0.025", "0", "need a frame time > 0"),
        ("OFFSET 2 0 0", "OFFSET 2 0", "line 7: need 3 numbers for OFFSET, got 2"),
        ("OFFSET 2 0 0", "", "an OFFSET for every joint"),
        ("CHANNELS 3", "CHANNELS 4", "line 8: need CHANNELS with as many names"),
        ("Xrotation Yrotation\n", "Xrotation Wrotation\n", "got 'Wrotation'"),
        ("HIERARCHY", "MOTION", "need HIERARCHY first"),
        ("MOTION", "}\nMOTION", "without a joint to close"),
        ("      OFFSET 1 0 0\n    }\n", "      OFFSET 1 0 0\n", "need '}'"),
        ("JOINT elbow", "BONE elbow", "got 'BONE'"),
    ],
)
def test_a_wrong_file_says_where_and_what(old: str, new: str, message: str) -> None:
    assert old in ARM
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        bvh.parse(ARM.replace(old, new))


def test_an_empty_file() -> None:
    with pytest.raises(ValueError, match="line 1: need HIERARCHY, got the end"):
        bvh.parse("\n\n")
