"""Scenes with two answers: what is seen allows both, and how often each is true is as stated."""

import numpy as np
import pytest

from diffusion4d.scenes.ambiguous import Ambiguous, ambiguous, fork, reversal, reversed_in_depth
from diffusion4d.scenes.casting import Caster
from diffusion4d.scenes.observe import observe, pixel_rays
from diffusion4d.scenes.world import AMBIGUOUS_SHARE, compose, generate


def made(family: str, count: int, num_frames: int = 8) -> list[Ambiguous]:
    return [
        ambiguous(generate(seed, num_points=32, num_frames=num_frames, family=family))
        for seed in range(count)
    ]


@pytest.fixture(scope="module")
def reversals() -> list[Ambiguous]:
    return made("reversal", 16)


@pytest.fixture(scope="module")
def forks() -> list[Ambiguous]:
    return made("fork", 16)


def test_the_homology_keeps_rays_and_planes_and_is_its_own_inverse() -> None:
    rng = np.random.default_rng(0)
    depth = np.full(40, 7.0)
    points = rng.normal(size=(40, 3)) + np.array([0, 0, 7.0])
    mirrored = reversed_in_depth(points, depth)
    np.testing.assert_allclose(reversed_in_depth(mirrored, depth), points, atol=1e-12)
    np.testing.assert_allclose(np.cross(points, mirrored), 0, atol=1e-12)
    np.testing.assert_allclose(1 / points[:, 2] + 1 / mirrored[:, 2], 2 / depth, atol=1e-12)
    plane = points.copy()
    plane[:, 2] = 7 + 0.3 * plane[:, 0] - 0.2 * plane[:, 1]
    image = reversed_in_depth(plane, depth)
    assert np.linalg.svd(image - image.mean(0))[1][2] < 1e-12
    # A long lens: the mirror image in depth.
    near = points * [1, 1, 0] + [0, 0, 7e4] + [0, 0, 1] * (points - 7)
    far = reversed_in_depth(near, np.full(40, 7e4))
    np.testing.assert_allclose(far[:, 2] - 7e4, 7e4 - near[:, 2], atol=1e-2)


def test_the_truth_is_among_the_answers(reversals: list[Ambiguous], forks: list[Ambiguous]) -> None:
    for scene in reversals + forks:
        np.testing.assert_allclose(scene.answers[scene.truth], scene.world.points, atol=2e-5)
        np.testing.assert_allclose(np.median(scene.answers[:, :, 0, 2], 1), 1, atol=1e-6)
        assert sum(scene.odds) == pytest.approx(1)


def test_both_depths_project_onto_the_same_tracks_and_are_opposite(
    reversals: list[Ambiguous],
) -> None:
    for scene in reversals:
        first, second = (
            a[..., :2] / a[..., 2:] * scene.world.intrinsics[:2] for a in scene.answers
        )
        # Weights on triangles are not those after a homology; meshes are fine enough for a tracker not to see it.
        assert np.abs(first - second).max() < 0.4
        assert np.sqrt(np.square(first - second).mean()) < 0.05
        relief = scene.answers[..., 2] - scene.answers[..., 2].mean(1, keepdims=True)
        deepest = np.square(relief[0]).mean(0).argmax()
        assert np.corrcoef(relief[0, :, deepest], relief[1, :, deepest])[0, 1] < -0.95


def test_a_sheet_hides_nothing_of_itself_in_either_depth(reversals: list[Ambiguous]) -> None:
    seen = [scene.world.visible.mean() for scene in reversals]
    assert min(seen) > 0.99
    assert {scene.truth for scene in reversals} == {0, 1}


def test_a_fork_is_one_where_it_is_seen_and_two_at_the_end(forks: list[Ambiguous]) -> None:
    for scene in forks:
        apart = np.linalg.norm(scene.answers[0] - scene.answers[1], axis=-1)
        assert apart[scene.world.visible].max() < 1e-5
        assert (apart[~scene.world.moving] < 1e-5).all()
        assert np.median(apart[scene.world.moving, -1]) > 0.02
        body = scene.world.moving
        assert scene.world.visible[body, 0].all()
        assert not scene.world.visible[body, -1].any()
        # Either way the body stays rigid.
        if scene.world.camera == "static":
            for answer in scene.answers[:, body].astype(np.float64):
                between = np.linalg.norm(answer[:, None] - answer[None], axis=-1)
                np.testing.assert_allclose(between, np.repeat(between[..., :1], 8, -1), atol=1e-5)


def test_the_wall_hides_the_way_not_taken_too(forks: list[Ambiguous]) -> None:
    for scene in forks[:12]:
        world = scene.world
        given = compose(world.scene_seed, num_frames=8, family="fork")
        everything = Caster(given.vertices[0], given.faces)
        wall = Caster(given.vertices[0], given.faces[given.is_static])

        def distances(caster: Caster, points: np.ndarray, frame: int, given=given) -> np.ndarray:
            pixels = points[:, :2] / points[:, 2:] * given.intrinsics[:2] + given.intrinsics[2:]
            return caster.first_hits(*pixel_rays(given, frame, pixels)).distance

        anchor = world.points[:, 0].astype(np.float64)
        scale = np.median(distances(everything, anchor, 0) / anchor[:, 2])
        other = scene.answers[1 - scene.truth][world.moving].astype(np.float64)
        for frame in np.flatnonzero(~world.visible[world.moving].any(0)).tolist():
            at = other[:, frame]
            assert (distances(wall, at, frame) < 0.999 * scale * at[:, 2]).all()


def test_how_often_an_answer_is_true_is_its_odds() -> None:
    rng = np.random.default_rng(0)
    held: dict[float, list[int]] = {}
    for seed in range(60):
        for make in (reversal, fork):
            scene = ambiguous(observe(make(seed, num_frames=3), 8, rng))
            held.setdefault(scene.odds[0], []).append(scene.truth)
    assert set(held) == {0.5, 0.7}
    for odds, truths in held.items():
        deviation = np.sqrt(odds * (1 - odds) / len(truths))
        assert abs(np.mean([truth == 0 for truth in truths]) - odds) < 3 * deviation


def test_a_slanted_body_goes_on_to_its_side_in_the_first_answer() -> None:
    checked = 0
    for scene in made("fork", 30, 8):
        if scene.odds[0] == 0.5 or scene.world.camera != "static":
            continue
        first = scene.answers[0][scene.world.moving, :, 0].mean(0)
        second = scene.answers[1][scene.world.moving, :, 0].mean(0)
        # Sideways in the picture: on, and back.
        came = first[2] - first[0]
        assert came * (first[-1] - second[-1]) > 0
        checked += 1
    assert checked >= 3


def test_a_small_share_of_all_worlds_is_ambiguous() -> None:
    families = [compose(seed, num_frames=2).family for seed in range(120)]
    share = np.mean([family in ("reversal", "fork") for family in families])
    assert abs(share - AMBIGUOUS_SHARE) < 3 * np.sqrt(AMBIGUOUS_SHARE / 120)
    assert {"reversal", "fork"} <= set(families)


def test_the_share_of_ambiguous_worlds_is_a_choice() -> None:
    drawn = {
        share: [compose(seed, num_frames=2, ambiguous_share=share).family for seed in range(40)]
        for share in (0.0, 0.5, 1.0)
    }
    two = {
        share: [f in ("reversal", "fork") for f in families] for share, families in drawn.items()
    }
    assert not any(two[0.0])
    assert all(two[1.0])
    assert 0 < sum(two[0.5]) < 40
    # Whoever has one answer at a larger share is who has it at a smaller one.
    assert all(
        a == b
        for a, b, doubled in zip(drawn[0.0], drawn[0.5], two[0.5], strict=True)
        if not doubled
    )
    with pytest.raises(ValueError, match=r"need ambiguous_share in \[0, 1\], got 2.0"):
        compose(0, ambiguous_share=2.0)


def test_worlds_with_one_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="'rigid'"):
        ambiguous(generate(0, num_points=8, num_frames=2, family="rigid"))
