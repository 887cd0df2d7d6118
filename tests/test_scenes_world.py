"""Generated worlds against independent computations of what they claim."""

from dataclasses import fields, replace

import numpy as np
import pytest

from diffusion4d.scenes.observe import EPSILON, MOVED, World
from diffusion4d.scenes.render import albedo, render
from diffusion4d.scenes.scene import Scene
from diffusion4d.scenes.world import FAMILIES, compose, generate


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [generate(seed, num_points=24, num_frames=6) for seed in range(70)]


def scene_of(world: World) -> Scene:
    return compose(world.scene_seed, num_frames=len(world.u), family=world.family)


def first_hits(origin: np.ndarray, directions: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Möller & Trumbore (1997), every ray against every triangle: distances in lengths of the direction."""
    edge_1, edge_2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = np.cross(directions[:, None], edge_2[None])
    determinant = np.einsum("fi,rfi->rf", edge_1, p)
    determinant = np.where(np.abs(determinant) < 1e-12, np.nan, determinant)
    t = origin - corners[:, 0]
    u = np.einsum("fi,rfi->rf", t, p) / determinant
    q = np.cross(t, edge_1)
    v = np.einsum("ri,fi->rf", directions, q) / determinant
    distance = np.einsum("fi,fi->f", edge_2, q) / determinant
    inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 1e-6)
    return np.where(inside, distance, np.inf).min(1)


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5])
def test_the_same_arguments_give_the_same_world(seed: int) -> None:
    first, second = (generate(seed, num_points=16, num_frames=5) for _ in range(2))
    for field in fields(World):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    other = generate(seed + 1, num_points=16, num_frames=5)
    assert not np.array_equal(first.points, other.points)


def test_naming_the_family_that_would_be_drawn_changes_nothing() -> None:
    drawn = compose(3, num_frames=4)
    named = compose(3, num_frames=4, family=drawn.family)
    np.testing.assert_array_equal(drawn.vertices, named.vertices)
    np.testing.assert_array_equal(drawn.extrinsics, named.extrinsics)


def test_the_median_anchor_depth_is_one(worlds: list[World]) -> None:
    for world in worlds:
        np.testing.assert_allclose(np.median(world.points[:, 0, 2]), 1, rtol=1e-6)


def test_what_stands_still_obeys_the_cameras(worlds: list[World]) -> None:
    """E_t X_0 = X_t for points that do not move; the anchor camera is the world."""
    checked = 0
    for world in worlds:
        np.testing.assert_allclose(world.extrinsics[0], np.eye(4), atol=1e-12)
        still = world.points[~world.moving].astype(np.float64)
        rotation, shift = world.extrinsics[:, :3, :3], world.extrinsics[:, :3, 3]
        expected = np.einsum("tij,nj->nti", rotation, still[:, 0]) + shift
        # A point that counts as still may have moved by MOVED.
        np.testing.assert_allclose(still, expected, atol=1.1 * MOVED)
        checked += len(still) > 0 and world.camera != "static"
    assert checked > 10


def test_families_cameras_formats_and_motion_all_occur(worlds: list[World]) -> None:
    assert {world.family for world in worlds} >= set(FAMILIES)
    still = [np.ptp(world.extrinsics, axis=0).max() < 1e-9 for world in worlds]
    assert [world.camera == "static" for world in worlds] == still
    assert 0.25 < np.mean(still) < 0.7
    assert len({np.sign(world.size[0] - world.size[1]) for world in worlds}) == 3
    moving = np.mean([world.moving.mean() for world in worlds])
    assert 0.5 < moving < 0.9


def test_points_start_visible_and_inside_the_image(worlds: list[World]) -> None:
    for world in worlds:
        assert world.visible[:, 0].all()
        pixels = world.points[..., :2] / world.points[..., 2:] * world.intrinsics[:2]
        pixels = pixels + world.intrinsics[2:]
        shown = pixels[world.visible]
        assert (shown >= -1e-3).all()
        assert (shown <= np.array(world.size[::-1]) + 1e-3).all()
    assert 0.5 < np.mean([world.visible.mean() for world in worlds]) < 0.98


@pytest.mark.parametrize("seed", [1, 4, 9, 12, 20])
def test_visibility_agrees_with_brute_force(seed: int) -> None:
    world = generate(seed, num_points=20, num_frames=5)
    scene = scene_of(world)
    corners_T = scene.vertices.astype(np.float64)[:, scene.faces]
    scale = None
    for frame, corners in enumerate(corners_T):
        rotation, shift = scene.extrinsics[frame, :3, :3], scene.extrinsics[frame, :3, 3]
        in_camera = corners @ rotation.T + shift
        directions = world.points[:, frame].astype(np.float64)
        distance = first_hits(np.zeros(3), directions, in_camera)
        if scale is None:
            # In the anchor frame the first hit is the point itself, so the distance is the scale, one for all.
            scale = float(np.median(distance))
            np.testing.assert_allclose(distance, scale, rtol=1e-4)
        pixels = directions[:, :2] / directions[:, 2:] * world.intrinsics[:2] + world.intrinsics[2:]
        inside = (directions[:, 2] > 0) & ((pixels >= 0) & (pixels <= world.size[::-1])).all(-1)
        free = distance > scale * (1 - EPSILON)
        sure = np.abs(distance / scale - (1 - EPSILON)) > 0.5 * EPSILON
        np.testing.assert_array_equal(world.visible[sure, frame], (inside & free)[sure])
        assert sure.mean() > 0.9
    assert scale is not None


def test_some_points_are_hidden_by_surfaces_and_some_leave_the_image(worlds: list[World]) -> None:
    left, covered = 0, 0
    for world in worlds:
        pixels = world.points[..., :2] / world.points[..., 2:] * world.intrinsics[:2]
        pixels = pixels + world.intrinsics[2:]
        inside = ((pixels > 0) & (pixels < world.size[::-1])).all(-1)
        left += int((~inside).sum())
        covered += int((inside & ~world.visible).sum())
    assert left > 50
    assert covered > 200


def test_rigid_parts_of_a_scene_keep_their_distances() -> None:
    for seed, family in enumerate(("rigid", "articulated", "rigid", "articulated")):
        scene = compose(seed, num_frames=6, family=family)
        moving = np.unique(scene.faces[~scene.is_static])
        parts = scene.part[moving]
        assert (parts >= 0).any()
        for number in np.unique(parts[parts >= 0]):
            piece = scene.vertices[:, moving[parts == number]].astype(np.float64)
            piece = piece[:, :: max(1, piece.shape[1] // 40)]
            apart = np.linalg.norm(piece[:, :, None] - piece[:, None], axis=-1)
            np.testing.assert_allclose(apart, np.repeat(apart[:1], 6, 0), atol=1e-5)


def test_motion_is_smooth_enough_for_a_spline_of_twelve_control_points() -> None:
    import torch

    from diffusion4d.splines import basis_matrix

    residuals = []
    for seed in range(15):
        world = generate(seed, num_points=24, num_frames=32)
        basis = basis_matrix(torch.from_numpy(world.u), 12).numpy()
        left_over = world.points - np.einsum(
            "ts,nsi->nti", basis @ np.linalg.pinv(basis), world.points
        )
        residuals.append(np.sqrt((left_over**2).sum(-1).mean(-1)) / world.points[..., 2].mean(-1))
    assert np.percentile(residuals, 90) < 0.01


def test_the_picture_shows_each_surface_point_where_it_projects() -> None:
    """Chromaticity at the projection of known surface points equals that of their texture, at every instant."""
    checked = 0
    for seed in (2, 5, 8):
        scene = compose(generate(seed, num_points=16, num_frames=3).scene_seed, num_frames=3)
        smooth = tuple(
            replace(
                t, pattern="noise", waves=0.15 * t.waves, grain=0.0, palette=0.2 + 0.5 * t.palette
            )
            for t in scene.textures
        )
        # Dim, so that no channel saturates and the shade cancels in ratios of channels.
        light = replace(scene.light, strength=0.2, shadows=True)
        scene = replace(scene, textures=smooth, light=light)
        faces = np.random.default_rng(seed).choice(np.flatnonzero(~scene.is_static), 40)
        weights = np.full((len(faces), 3), 1 / 3)
        truth = albedo(scene, faces, weights)
        height, width = scene.size
        pictures = render(scene, [0, 1, 2], (height, width), samples=1)
        for frame in range(3):
            at = scene.vertices[frame, scene.faces[faces]].astype(np.float64).mean(1)
            rotation, shift = scene.extrinsics[frame, :3, :3], scene.extrinsics[frame, :3, 3]
            seen = at @ rotation.T + shift
            corners = scene.vertices[frame].astype(np.float64)[scene.faces] @ rotation.T + shift
            free = first_hits(np.zeros(3), seen, corners) > 0.999
            # What is seen edge-on changes within half a pixel; a pixel need not show a triangle smaller than itself.
            first, second, third = corners[faces].transpose(1, 0, 2)
            normal = np.cross(second - first, third - first)
            size = np.linalg.norm(normal, axis=-1)
            slant = np.abs((normal * seen).sum(-1)) / (size * np.linalg.norm(seen, axis=-1))
            shown_area = size / 2 * slant * (scene.intrinsics[0] / seen[:, 2]) ** 2
            free &= (slant > 0.3) & (shown_area > 1)
            pixels = seen[:, :2] / seen[:, 2:] * scene.intrinsics[:2] + scene.intrinsics[2:]
            inside = ((pixels >= 1) & (pixels <= np.array([width, height]) - 1)).all(-1)
            for number in np.flatnonzero(free & inside):
                column, row = np.floor(pixels[number]).astype(int)
                shown = pictures[frame, :, row, column].astype(np.float64)
                np.testing.assert_allclose(
                    shown / shown.sum(), truth[number] / truth[number].sum(), atol=0.05
                )
                checked += 1
    assert checked > 60


def test_more_samples_average_the_same_picture() -> None:
    scene = compose(6, num_frames=3)
    coarse = render(scene, [1], (16, 20), samples=4)
    fine = render(scene, [1], (64, 80), samples=1)
    np.testing.assert_allclose(coarse, fine.reshape(1, 3, 16, 4, 20, 4).mean((3, 5)), atol=1e-6)


def test_refusals_say_what_was_needed() -> None:
    with pytest.raises(ValueError, match="num_frames >= 2, got 1"):
        compose(0, num_frames=1)
    with pytest.raises(ValueError, match="seed >= 0, got -1"):
        compose(-1)
    with pytest.raises(ValueError, match="'jelly'"):
        compose(0, family="jelly")
    with pytest.raises(ValueError, match="num_points >= 1, got 0"):
        generate(0, num_points=0)
    scene = compose(0, num_frames=2)
    with pytest.raises(ValueError, match=r"frames in \[0, 2\)"):
        render(scene, [2], (8, 8))
    with pytest.raises(ValueError, match="at least 1"):
        render(scene, [0], (0, 8))
