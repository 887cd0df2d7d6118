"""Bodies around joints: exactly rigid limbs, steady frames, and the actors that a recipe makes of takes."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion4d.data import jointed, mocap, positions, skeleton
from diffusion4d.data.skeleton import Take

# A person: hips, two spines, head; arms and legs of three joints each.
PARENTS = [-1, 0, 1, 2, 2, 4, 5, 2, 7, 8, 0, 10, 11, 0, 13, 14]
OFFSETS = np.array(
    [
        [0, 0, 0.9], [0, 0, 0.2], [0, 0, 0.25], [0, 0, 0.25],
        [0, 0.18, 0], [0, 0, -0.28], [0, 0, -0.26], [0, -0.18, 0], [0, 0, -0.28], [0, 0, -0.26],
        [0, 0.1, 0], [0, 0, -0.42], [0, 0, -0.42], [0, -0.1, 0], [0, 0, -0.42], [0, 0, -0.42],
    ]
)  # fmt: skip


def person(seed: int = 0, frames: int = 45, amount: float = 0.3, rotations: bool = False) -> Take:
    """Somebody who swings every joint."""
    rng = np.random.default_rng(seed)
    phase = np.linspace(0, 4, frames)[:, None, None] + rng.uniform(0, 6, (16, 3))
    angle = amount * np.sin(phase) * rng.normal(size=(16, 3))
    local = Rotation.from_rotvec(angle.reshape(-1, 3)).as_matrix().reshape(frames, 16, 3, 3)
    offsets = np.broadcast_to(OFFSETS, (frames, 16, 3)).copy()
    offsets[:, 0, 0] += np.linspace(0, 1, frames)
    place, turn = skeleton.forward_kinematics(PARENTS, offsets, local)
    return Take(place, np.array(PARENTS), 30.0, rotations=turn if rotations else None)


@pytest.mark.parametrize("rotations", [False, True])
def test_limbs_are_rigid_and_point_from_joint_to_joint(rotations: bool) -> None:
    take = person(rotations=rotations)
    rng = np.random.default_rng(1)
    body = jointed.body(take, jointed.random_build(rng), rng)
    path = jointed.moved(body, take)
    assert len(body.faces) <= jointed.MOST_TRIANGLES
    assert set(body.part) == set(range(15))
    for bone in range(15):
        own = body.part == bone
        parent, child = body.pose.parents[bone + 1], bone + 1
        for t in (0, 20, 44):
            now, rest = path[t, own] - path[t, own].mean(0), body.rest[own] - body.rest[own].mean(0)
            turn = Rotation.align_vectors(now, rest)[0]
            np.testing.assert_allclose(turn.apply(rest), now, atol=1e-8)
            joints, pose = take.positions[t, body.joints], body.pose.positions[0]
            np.testing.assert_allclose(
                turn.apply(pose[child] - pose[parent]), joints[child] - joints[parent], atol=1e-8
            )


def test_the_rest_is_the_pose_it_was_modelled_in() -> None:
    take = person(rotations=True)
    body = jointed.body(take, jointed.Build(), np.random.default_rng(0))
    distance_TV3 = jointed.moved(body, take) - body.rest
    assert np.abs(distance_TV3).max((1, 2)).min() < 1e-9


def test_given_rotations_are_used_and_found_ones_are_near() -> None:
    take = person(amount=0.15, rotations=True)
    given = jointed.bone_frames(take, 0)
    bare = Take(take.positions, take.parents, take.fps)
    found = jointed.bone_frames(bare, 0)
    # Bone 5 (upper arm) hangs on joint 4, whose true orientation since frame 0 is known.
    assert take.rotations is not None
    true = take.rotations[:, 4] @ take.rotations[0, 4].T
    np.testing.assert_allclose(given[:, 5], true, atol=1e-10)
    # The trunk's twist comes from shoulders and hips: within the small turns of neck and collar bones.
    angle = Rotation.from_matrix(found[:, 2] @ np.swapaxes(given[:, 2], 1, 2)).magnitude()
    assert angle.max() < 0.35


def test_a_body_that_turns_as_a_whole_turns_as_a_whole() -> None:
    rest = person(frames=2, amount=0.0).positions[0]
    angle = np.linspace(0, 4 * np.pi, 80)
    turn = Rotation.from_euler("z", angle[:, None])
    take = Take(np.stack([r.apply(rest) for r in turn]), np.array(PARENTS), 30.0)
    frames = jointed.bone_frames(take, 0)
    expected = np.broadcast_to(turn.as_matrix()[:, None], frames.shape)
    np.testing.assert_allclose(frames, expected, atol=1e-7)


def test_an_arm_that_goes_all_the_way_round_never_jumps() -> None:
    # The upper arm passes the pose opposite to its rest, where the least rotation from the rest is undefined.
    take = person(frames=121, amount=0.0)
    angle = np.linspace(0, 2 * np.pi, 121)
    arm = Rotation.from_euler("y", angle[:, None])
    swung = take.positions.copy()
    for joint in (5, 6):
        reach = take.positions[0, joint] - take.positions[0, 4]
        swung[:, joint] = swung[:, 4] + arm.apply(reach)
    frames = jointed.bone_frames(Take(swung, take.parents, 30.0), 0)
    step = Rotation.from_matrix(frames[1:, 5] @ np.swapaxes(frames[:-1, 5], 1, 2)).magnitude()
    np.testing.assert_allclose(step, 2 * np.pi / 120, atol=1e-6)
    np.testing.assert_allclose(frames[:, 5], arm.as_matrix(), atol=1e-6)


def test_the_least_rotation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 3))
    b[0], b[1] = -2 * a[0], 3 * a[1]
    turn = jointed.least_rotation(a, b)
    unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b)]
    np.testing.assert_allclose(np.einsum("tij,tj->ti", turn, unit[0]), unit[1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1, atol=1e-12)
    between = np.arccos(np.clip((unit[0] * unit[1]).sum(-1), -1, 1))
    np.testing.assert_allclose(Rotation.from_matrix(turn).magnitude(), between, atol=1e-7)


def test_fingers_that_turn_over_go_with_the_arm() -> None:
    take = person()
    finger = take.positions[:, [6]] + [[0.0, 0, -0.05]]
    finger[20:25] = take.positions[20:25, [6]] + [[0.0, 0, 0.05]]
    with_finger = Take(
        np.concatenate([take.positions, finger], 1), np.array([*PARENTS, 6]), take.fps
    )
    body = jointed.body(with_finger, jointed.Build(), np.random.default_rng(0))
    assert body.joints[body.stiff].tolist() == [16]
    path = jointed.moved(body, with_finger)
    bones = [body.joints.tolist().index(joint) - 1 for joint in (6, 16)]
    both = np.isin(body.part, bones)
    # Forearm and finger are one rigid piece throughout.
    now, rest = path[:, both] - path[:, both].mean(1, keepdims=True), body.rest[both]
    for t in range(0, 45, 4):
        turn = Rotation.align_vectors(now[t], rest - rest.mean(0))[0]
        np.testing.assert_allclose(turn.apply(rest - rest.mean(0)), now[t], atol=1e-7)


def test_zero_length_bones_carry_no_limb() -> None:
    take = person()
    doubled = np.concatenate([take.positions, take.positions[:, :1]], 1)
    parents = np.array([*PARENTS, 0])
    parents[10] = 16
    body = jointed.body(Take(doubled, parents, 30.0), jointed.Build(), np.random.default_rng(0))
    assert sorted(body.joints.tolist()) == list(range(16))
    assert len(set(body.part)) == 15


def test_a_trunk_is_thicker_than_a_thigh_and_a_thigh_than_a_hand() -> None:
    radius = jointed.radii(person(), jointed.Build())
    assert radius[1] > radius[11] > radius[12] > 0
    assert radius[2] > radius[5] > radius[6]
    stout = jointed.radii(person(), jointed.Build(girth=1.5))
    np.testing.assert_allclose(stout, 1.5 * radius)


def test_too_many_bones() -> None:
    parents = np.arange(60) - 1
    line = np.arange(60)[:, None] * np.array([0.5, 0, 0.0])
    line[:, 1] = np.arange(60) % 2 * 2
    with pytest.raises(ValueError, match="need at most 40 bones"):
        jointed.body(Take(line[None], parents, 30.0), jointed.Build(), np.random.default_rng(0))


def entry(**words: object) -> mocap.MocapEntry:
    given = {"name": "people", "files": ("*.npz",), "source": "here", "licence": "CC0"} | words
    return mocap.MocapEntry(**given)  # pyright: ignore[reportArgumentType]


def test_takes_become_actors(tmp_path: Path) -> None:
    for seed in range(3):
        positions.write(tmp_path / f"walk{seed}.npz", person(seed))
    made = list(mocap.mocap_actors(tmp_path, [entry(weight=0.6, variants=2)]))
    assert [actor.name for actor, _ in made] == ["people-a", "people-b"]
    assert [actor.weight for actor, _ in made] == [0.3, 0.3]
    assert not np.array_equal(made[0][0].rest, made[1][0].rest)
    for actor, motions in made:
        assert [motion.name for motion in motions] == ["walk0", "walk1", "walk2"]
        extents = np.concatenate([np.ptp(m.vertices, axis=1).max(-1) for m in motions])
        assert np.median(extents) == pytest.approx(1, abs=1e-5)
        for motion in motions:
            assert motion.vertices.shape == (45, *actor.rest.shape)
            np.testing.assert_allclose(motion.vertices[0, :, :2].mean(0), 0, atol=1e-5)
            assert abs(motion.vertices[..., 2].min()) < 0.02
            assert not motion.loops
    again = list(mocap.mocap_actors(tmp_path, [entry(weight=0.6, variants=2)]))
    np.testing.assert_array_equal(again[1][1][2].vertices, made[1][1][2].vertices)


def test_pieces_are_dealt_out_and_skeletons_kept_apart(tmp_path: Path) -> None:
    small = person(0, 120)
    positions.write(tmp_path / "small.npz", small)
    positions.write(tmp_path / "tall.npz", Take(1.3 * small.positions, small.parents, 30.0))
    positions.write(tmp_path / "bad.npz", small)
    words = {"variants": 2, "deal": True, "longest": 1.0, "without": ("bad.npz",)}
    made = list(mocap.mocap_actors(tmp_path, [entry(**words)]))
    assert {actor.name: [m.name for m in motions] for actor, motions in made} == {
        "people-0-a": ["small-0", "small-2"],
        "people-0-b": ["small-1"],
        "people-1-a": ["tall-0", "tall-2"],
        "people-1-b": ["tall-1"],
    }
    assert sum(actor.weight for actor, _ in made) == pytest.approx(1)


def test_an_entry_without_takes_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"need files '\*.npz'"):
        list(mocap.mocap_actors(tmp_path, [entry()]))
    positions.write(tmp_path / "short.npz", person(frames=10))
    with pytest.raises(ValueError, match=r"need takes of 0.75 s, got none"):
        list(mocap.mocap_actors(tmp_path, [entry()]))
    (tmp_path / "a.obj").write_text("")
    with pytest.raises(ValueError, match=r"need .bvh, .amc, .npz or .txt, got '.obj'"):
        mocap.read(tmp_path / "a.obj")
