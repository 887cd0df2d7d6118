"""ASF/AMC files against a leg worked out by hand, scipy's rotations, a round trip, and files that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion4d.config import BuildPack
from diffusion4d.data import amc, build, mocap
from diffusion4d.data.pack import Pack

ASF = """# a leg
:version 1.10
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name thigh
     direction 0 -1 0
     length 4
     axis 0 0 20  XYZ
     dof rx ry rz
     limits (-160.0 20.0)
            (-70.0 70.0)
            (-60.0 70.0)
  end
  begin
     id 2
     name shin
     direction 0 -1 0
     length 3
     axis 10 20 30  XYZ
     dof rx
     limits (-10.0 170.0)
  end
  begin
     id 3
     name foot
     direction 0 0 1
     length 1
     axis 0 0 0  XYZ
  end
:hierarchy
  begin
    root thigh
    thigh shin
    shin foot
  end
"""
AMC = """#!OML:ASF
:FULLY-SPECIFIED
:DEGREES
1
root 0 0 0 0 0 0
thigh 0 0 0
shin 0
2
root 1 2 3 10 20 30
thigh 40 50 60
shin 70
"""
UNIT = 0.0254 / 0.45


def test_the_rest_pose_has_the_files_bones() -> None:
    skeleton = amc.parse_skeleton(ASF)
    take = amc.posed(skeleton, amc.parse_motion(AMC, skeleton))
    assert take.names == ("root", "thigh", "shin", "foot")
    assert take.parents.tolist() == [-1, 0, 1, 2]
    assert take.fps == 120
    expected = UNIT * np.array([[0, 0, 0], [0, 0, -4], [0, 0, -7], [0, -1, -7]])
    np.testing.assert_allclose(take.positions[0], expected, atol=1e-15)


def test_a_knee_bent_by_a_right_angle() -> None:
    # With axis frames that agree with the world's, a knee turned by +90° about x sends the shin from −y to −z.
    skeleton = amc.parse_skeleton(ASF.replace("axis 10 20 30", "axis 0 0 0"))
    text = AMC.replace("shin 0\n", "shin 90\n")
    take = amc.posed(skeleton, amc.parse_motion(text, skeleton), up="z")
    np.testing.assert_allclose(take.positions[0, 2] / UNIT, [0, -4, -3], atol=1e-14)
    np.testing.assert_allclose(take.positions[0, 3] / UNIT, [0, -5, -3], atol=1e-14)


def test_axis_frames_agree_with_scipy() -> None:
    skeleton = amc.parse_skeleton(ASF)
    take = amc.posed(skeleton, amc.parse_motion(AMC, skeleton), up="z")

    def turn(*angles: float) -> Rotation:
        # Small letters: extrinsic, about fixed axes.
        return Rotation.from_euler("xyz", angles, degrees=True)

    root = turn(10, 20, 30)
    thigh = root * turn(0, 0, 20) * turn(40, 50, 60) * turn(0, 0, 20).inv()
    shin = thigh * turn(10, 20, 30) * turn(70, 0, 0) * turn(10, 20, 30).inv()
    hip = np.array([1.0, 2, 3])
    knee = hip + thigh.apply([0, -4, 0])
    ankle = knee + shin.apply([0, -3, 0])
    toe = ankle + shin.apply([0, 0, 1])
    np.testing.assert_allclose(take.positions[1] / UNIT, [hip, knee, ankle, toe], atol=1e-12)
    assert take.rotations is not None
    np.testing.assert_allclose(take.rotations[1, 2], shin.as_matrix(), atol=1e-12)


def test_another_order_of_angles() -> None:
    angles = np.random.default_rng(0).uniform(-180, 180, (5, 3))
    expected = Rotation.from_euler("zxy", angles[:, [2, 0, 1]], degrees=True).as_matrix()
    np.testing.assert_allclose(amc.euler(angles, "ZXY"), expected, atol=1e-12)


def test_bones_may_come_in_any_order() -> None:
    start, end = ASF.index("  begin\n     id 1"), ASF.index("  begin\n     id 2")
    stop = ASF.index(":hierarchy")
    shuffled = ASF[:start] + ASF[end:stop] + ASF[start:end] + ASF[stop:]
    one, other = amc.parse_skeleton(ASF), amc.parse_skeleton(shuffled)
    takes = [amc.posed(skeleton, amc.parse_motion(AMC, skeleton)) for skeleton in (one, other)]
    assert takes[0].names == takes[1].names
    np.testing.assert_array_equal(takes[0].positions, takes[1].positions)


def test_motion_capture_takes_the_skeleton_beside_it(tmp_path: Path) -> None:
    (tmp_path / "walk.amc").write_text(AMC)
    with pytest.raises(ValueError, match=r"walk.amc: need one .asf beside it, got \[\]"):
        mocap.read(tmp_path / "walk.amc")
    (tmp_path / "leg.asf").write_text(ASF)
    skeleton = amc.parse_skeleton(ASF)
    for words in ({}, {"fps": 60.0, "up": "z"}):
        take = mocap.read(tmp_path / "walk.amc", **words)
        expected = amc.posed(skeleton, amc.parse_motion(AMC, skeleton), **words)
        np.testing.assert_array_equal(take.positions, expected.positions)
        assert take.fps == words.get("fps", 120)
    (tmp_path / "other.asf").write_text(ASF)
    with pytest.raises(ValueError, match=r"need one .asf .*'leg.asf', 'other.asf'"):
        mocap.read(tmp_path / "walk.amc")


def test_a_pack_is_built_of_it(tmp_path: Path) -> None:
    """A hundred frames at 60 a second, with z up in the file: every second one is taken, and the leg stands along y."""
    (tmp_path / "leg.asf").write_text(ASF)
    frames = [f"{n}\nroot 0 0 {n / 100} 0 0 0\nthigh 0 0 0\nshin 0\n" for n in range(1, 101)]
    (tmp_path / "rise.amc").write_text(":DEGREES\n" + "".join(frames))
    recipe = tmp_path / "recipe.toml"
    words = 'name = "leg"\nfiles = ["*.amc"]\nsource = "here"\nlicence = "CC0"\nvariants = 1\n'
    recipe.write_text(f'[[mocap]]\n{words}fps = 60\nup = "z"\n')
    build.run(BuildPack(recipe, tmp_path, tmp_path / "pack"))
    (motion,) = Pack.open(tmp_path / "pack").motions("leg-a")
    assert (motion.name, motion.fps, len(motion.vertices)) == ("rise", 30, 50)
    way = motion.vertices[-1] - motion.vertices[0]
    np.testing.assert_allclose(way[:, :2], 0, atol=1e-5)
    assert np.ptp(motion.vertices[0], axis=0).argmax() == 1
    # From 0.01 to 0.99 units, of a leg of seven and what is around its ends.
    tall = np.ptp(motion.vertices[0], axis=0).max()
    assert 0.98 / 9 < way[0, 2] / tall < 0.98 / 7


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    skeleton = amc.parse_skeleton(ASF)
    rng = np.random.default_rng(1)
    motion = [rng.normal(size=(3, len(bone.dofs))) for bone in skeleton.bones]
    (tmp_path / "a.asf").write_text(ASF)
    (tmp_path / "a.amc").write_text(amc.written(skeleton, motion))
    for one, other in zip(
        amc.parse_motion(amc.written(skeleton, motion), skeleton), motion, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    read = amc.read(tmp_path / "a.asf", tmp_path / "a.amc", fps=60.0)
    np.testing.assert_array_equal(read.positions, amc.posed(skeleton, motion).positions)
    assert read.fps == 60


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("thigh 40 50 60", "thigh 40 50", "line 10: need 3 numbers, got 2"),
        ("thigh 40 50 60", "thigh 40 50 inf", "line 10: need finite numbers"),
        ("thigh 40 50 60\n", "", "need bone 'thigh' once in frame 2, got it 0 times"),
        ("shin 0\n", "shin 0\nshin 0\n", "need bone 'shin' once in frame 1, got it 2 times"),
        ("shin 70", "wing 70", "line 11: need a bone of the skeleton, got 'wing'"),
        (":DEGREES", ":RADIANS", "line 3: need :DEGREES"),
        (":DEGREES\n1\n", ":DEGREES\n", "line 4: need a frame number"),
        (AMC, ":DEGREES\n", "need at least one frame"),
    ],
)
def test_a_wrong_motion_says_where_and_what(old: str, new: str, message: str) -> None:
    assert old in AMC
    with pytest.raises(ValueError, match=message):
        amc.parse_motion(AMC.replace(old, new), amc.parse_skeleton(ASF))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("     length 3\n", "", "line 31: need length in the bone that ends here"),
        ("direction 0 0 1", "direction 0 0 0", "need a direction for a bone of length 1"),
        ("    shin foot\n", "", r"need a place in :hierarchy for every bone, got none: \['foot'\]"),
        ("thigh shin", "thigh fin", "need a bone of :bonedata, got 'fin'"),
        ("root thigh", "foot thigh", "cycle"),
        ("dof rx\n", "dof wx\n", "need degrees of freedom among"),
        ("angle deg", "angle rad", "need angles in degrees"),
        ("10 20 30  XYZ", "10 20 30  XYY", "need an axis order"),
        (":hierarchy", ":tree", "need a section :hierarchy"),
        ("length 0.45", "length 0", "need a unit of length > 0"),
    ],
)
def test_a_wrong_skeleton_says_where_and_what(old: str, new: str, message: str) -> None:
    assert old in ASF
    with pytest.raises(ValueError, match=message):
        amc.parse_skeleton(ASF.replace(old, new))
