"""Takes: trees found from motion, rates, glitches, pieces; position archives and DeepMimic files."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion4d.data import deepmimic, positions, skeleton
from diffusion4d.data.skeleton import Take

CHAIN = np.array([-1, 0, 1])


def walker(frames: int = 60, fps: float = 30.0) -> Take:
    """A chain of three joints that moves at 1 m/s."""
    path = np.arange(frames)[:, None, None] / fps * np.array([1.0, 0, 0])
    rest = np.array([[0, 0, 1.0], [0, 0, 0.5], [0, 0, 0.0]])
    return Take(path + rest, CHAIN, fps)


def test_the_tree_of_markers_is_that_of_the_rigid_pieces() -> None:
    rng = np.random.default_rng(0)
    # Joints that hang on the same one keep their distance too: a chain has no such pairs.
    parents = [-1, 0, 1, 2, 3, 4, 5, 6]
    offsets = rng.normal(size=(8, 3)) + 1
    local = Rotation.from_rotvec(rng.normal(size=(400, 3))).as_matrix().reshape(50, 8, 3, 3)
    moving = np.broadcast_to(offsets, (50, 8, 3)).copy()
    place, _ = skeleton.forward_kinematics(parents, moving, local)
    shuffle = rng.permutation(8)
    found = skeleton.spanning_parents(place[:, shuffle])
    links = {frozenset((shuffle[j], shuffle[p])) for j, p in enumerate(found) if p >= 0}
    assert links == {frozenset((j, p)) for j, p in enumerate(parents) if p >= 0}
    assert (found < 0).sum() == 1


def test_a_tree_is_one_tree() -> None:
    assert skeleton.topological(np.array([2, 0, -1, 1])) == [2, 0, 1, 3]
    for parents, message in [
        ([-1, -1, 0], "exactly one joint without a parent, got 2"),
        ([1, 0, -1], r"cycle among joints \[0, 1\]"),
        ([-1, 5, 0], "got joint 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            skeleton.topological(np.array(parents))


def test_frame_rates_are_divided_or_interpolated() -> None:
    take = walker(121, 120.0)
    thinned = skeleton.resampled(take, 30.0)
    np.testing.assert_array_equal(thinned.positions, take.positions[::4])
    assert (thinned.fps, len(thinned)) == (30.0, 31)
    # At 50 Hz there is no such frame, but a uniform motion stays what it was.
    odd = skeleton.resampled(walker(51, 50.0), 30.0)
    np.testing.assert_allclose(odd.positions[:, 0, 0], np.arange(31) / 30, atol=1e-12)
    assert skeleton.resampled(walker(), 60.0).fps == 30.0


def test_rotations_between_frames_stay_rotations() -> None:
    angle = np.linspace(0, 2, 51)[:, None] * [[0, 0, 1.0]]
    turn = np.repeat(Rotation.from_rotvec(angle).as_matrix()[:, None], 3, 1)
    take = Take(walker(51, 50.0).positions, CHAIN, 50.0, rotations=turn)
    found = skeleton.resampled(take, 30.0).rotations
    assert found is not None
    expected = Rotation.from_rotvec(np.linspace(0, 2, 31)[:, None] * [[0, 0, 1.0]]).as_matrix()
    np.testing.assert_allclose(found[:, 1], expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-12)


def test_a_glitch_splits_a_take() -> None:
    take = walker(90)
    take.positions[40, 2] += 1.0
    found = list(skeleton.steady(take))
    assert [len(piece) for piece in found] == [40, 49]
    np.testing.assert_array_equal(found[1].positions, take.positions[41:])
    assert list(skeleton.steady(walker(20))) == []


def test_pieces_are_spread_and_do_not_overlap() -> None:
    take = walker(100)
    found = skeleton.pieces(take, 1.0, 3)
    assert [round(float(piece.positions[0, 0, 0] * 30)) for piece in found] == [0, 35, 70]
    assert all(len(piece) == 30 for piece in found)
    assert [len(piece) for piece in skeleton.pieces(take, 2.0, 5)] == [50, 50]
    assert len(skeleton.pieces(take, 9.0, 3)[0]) == 100


def test_an_archive_is_read_in_metres_with_z_up(tmp_path: Path) -> None:
    take = walker()
    y_up = take.positions @ skeleton.Y_UP_TO_Z_UP * 100
    np.savez(tmp_path / "a.npz", positions=y_up, fps=30, units="cm", up="y")
    read = positions.read(tmp_path / "a.npz")
    np.testing.assert_allclose(read.positions, take.positions, atol=1e-12)
    # The chain's own tree: the middle joint is the root.
    assert read.parents.tolist() == [1, -1, 1]
    positions.write(tmp_path / "b.npz", take)
    again = positions.read(tmp_path / "b.npz")
    np.testing.assert_allclose(again.positions, take.positions, atol=1e-6)
    assert again.parents.tolist() == take.parents.tolist()


def test_a_joint_that_is_missing_for_a_moment_is_filled(tmp_path: Path) -> None:
    take = walker()
    holed = take.positions.copy()
    holed[10:13, 1] = np.nan
    np.savez(tmp_path / "a.npz", positions=holed, fps=30, parents=CHAIN)
    np.testing.assert_allclose(
        positions.read(tmp_path / "a.npz").positions, take.positions, atol=1e-12
    )
    holed[:30, 1] = np.nan
    np.savez(tmp_path / "a.npz", positions=holed, fps=30, parents=CHAIN)
    with pytest.raises(
        ValueError, match="need every joint in 80 % of the frames, got joint 1 in 5"
    ):
        positions.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((5, 3))}, "need positions"),
        ({"positions": np.zeros((0, 3, 3))}, "need at least 1 frame"),
        ({"positions": np.full((4, 3, 3), np.inf)}, "got NaN or infinity in frame 0"),
        ({"positions": walker().positions + 0j}, "need real numbers as positions, got complex"),
        ({"positions": np.array("a")}, "need real numbers as positions, got <U1"),
        ({"fps": np.array([30, 30])}, "size 1"),
        ({"names": np.array("a")}, "0-d array"),
        ({"fps": 0}, "need frames per second > 0"),
        ({"units": "inch"}, "need units m, cm or mm, got 'inch'"),
        ({"up": "x"}, "need an up axis"),
        ({"parents": np.array([-1, 0])}, "need one parent a joint, got .2,. for 3"),
        ({"names": np.array(["a"])}, "need one name a joint, got 1 for 3"),
    ],
)
def test_a_wrong_archive_says_what(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **({"positions": walker().positions, "fps": 30, "parents": CHAIN} | change))
    with pytest.raises(ValueError, match=f"bad.npz: .*{message}"):
        positions.read(path)


def test_no_archive_at_all(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04 broken", b"not an archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz: need a NumPy archive"):
            positions.read(path)
    with path.open("wb") as file:
        np.save(file, walker().positions)
    with pytest.raises(ValueError, match=r"bad.npz: need a NumPy archive"):
        positions.read(path)
    np.savez(path, fps=30)
    with pytest.raises(ValueError, match="need a key 'positions'"):
        positions.read(path)


def humanoid(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Frames of random poses."""
    rows = np.zeros((frames, 44))
    rows[:, 0] = 0.02
    rows[:, 1:4] = rng.normal(size=(frames, 3))
    column = 4
    for width in (4, 4, 4, 4, 1, 4, 4, 1, 4, 1, 4, 4, 1):
        rows[:, column : column + width] = rng.normal(size=(frames, width))
        column += width
    assert column == 44
    return rows


def test_a_humanoid_agrees_with_scipy(tmp_path: Path) -> None:
    rows = humanoid(np.random.default_rng(3), 4)
    (tmp_path / "a.txt").write_text(json.dumps({"Loop": "wrap", "Frames": rows.tolist()}))
    take = deepmimic.read(tmp_path / "a.txt")
    assert take.fps == pytest.approx(50)

    def ball(column: int) -> Rotation:
        w, x, y, z = rows[:, column : column + 4].T
        return Rotation.from_quat(np.stack([x, y, z, w], -1))

    # Columns: root 4, chest 8, neck 12, right hip 16, knee 20, ankle 21, right shoulder 25, elbow 29.
    root, hip, shoulder = ball(4), ball(4) * ball(16), ball(4) * ball(8) * ball(25)
    knee = rows[:, 1:4] + root.apply([0, 0, 0.339548 / 4]) + hip.apply([0, -1.686184 / 4, 0])
    shin = hip * Rotation.from_euler("z", rows[:, 20:21])
    ankle = knee + shin.apply([0, -1.63948 / 4, 0])
    chest = rows[:, 1:4] + root.apply([0, 0.944604 / 4, 0])
    socket = chest + (root * ball(8)).apply(np.array([-0.0962, 0.974, 0.73244]) / 4)
    elbow = socket + shoulder.apply([0, -1.099152 / 4, 0])
    forearm = shoulder * Rotation.from_euler("z", rows[:, 29:30])
    wrist = elbow + forearm.apply([0, -1.035788 / 4, 0])
    for name, place in [("right ankle", ankle), ("right elbow", elbow), ("right wrist", wrist)]:
        found = take.positions[:, take.names.index(name)] @ skeleton.Y_UP_TO_Z_UP
        np.testing.assert_allclose(found, place, atol=1e-12)


def test_a_wrong_humanoid_says_which_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    good = humanoid(np.random.default_rng(0), 3).tolist()
    for frames, message in [
        ([], "need at least one frame"),
        ([*good, good[0][:-1]], "frame 3: need 44 numbers, got 43"),
        ([good[0], [float("nan")] * 44], "frame 1: need finite numbers"),
        (
            [good[0], good[1][:16] + [0.0] * 4 + good[1][20:]],
            "frame 1: need a quaternion for right hip",
        ),
        ([[0.0, *good[0][1:]]], "need a first frame that lasts > 0 s"),
    ]:
        path.write_text(json.dumps({"Frames": frames}))
        with pytest.raises(ValueError, match=f"a.txt.*{message}"):
            deepmimic.read(path)
    for text, message in [
        ("{", "line 1: need JSON"),
        ("[]", "need an object with a list 'Frames'"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            deepmimic.read(path)
