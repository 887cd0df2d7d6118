"""Rendered worlds: images and truth belong together, and a pool is a function of its seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion4d.cameras import project
from diffusion4d.config import RenderedSpec
from diffusion4d.errors import UserError
from diffusion4d.scenes import rendered
from diffusion4d.scenes.render import render
from diffusion4d.scenes.rendered import (
    draw_rendered,
    draw_world,
    image_size,
    load_rendered,
    pictured,
)
from diffusion4d.scenes.world import compose

SPEC = RenderedSpec(worlds=3, points=48, frames=12, key_frames=4, side=24, first_seed=40)


def test_a_world_has_a_frame_for_every_picture() -> None:
    assert pictured(RenderedSpec(frames=10)).tolist() == [0, 1, 3, 6, 8, 9]
    with pytest.raises(ValueError, match=r"need at least 6 frames.*got 5"):
        pictured(RenderedSpec(frames=5))


def test_images_keep_the_aspect() -> None:
    assert image_size((256, 486), 128) == (128, 243)
    assert image_size((342, 256), 64) == (86, 64)


def test_pool_is_a_function_of_its_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two and of three hold the same worlds, in any number of processes, and are not drawn twice."""
    whole = load_rendered(draw_rendered(tmp_path / "whole", SPEC))
    monkeypatch.setattr(rendered, "SHARD", 2)
    calls = []
    paths = draw_rendered(
        tmp_path / "parts", SPEC, processes=2, progress=lambda *at: calls.append(at)
    )
    assert calls == [(0, 2), (1, 2), (2, 2)]
    before = [path.stat().st_mtime_ns for path in paths]
    assert draw_rendered(tmp_path / "parts", SPEC) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    parts = load_rendered(paths)
    assert sum(len(stack) for stack in whole) == 3
    assert len(whole) == len(parts)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.depth.nan_to_num(), b.depth.nan_to_num())
        assert torch.equal(a.worlds.points, b.worlds.points)
        assert torch.equal(a.worlds.visible, b.worlds.visible)
        assert torch.equal(a.frames, b.frames)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    worlds = torch.zeros(1, 5, 9, 3)
    fields = dict.fromkeys(("points", "visible", "moving", "intrinsics", "size"), worlds)
    images = torch.zeros(1, 4, 3, 24, 24, dtype=torch.uint8)
    pictures = {"images": images, "depth": torch.zeros(1, 4, 12, 12).half()}
    stack = fields | pictures | {"frames": torch.arange(4)}

    def written(name: str, prefix: str, tensors: dict[str, torch.Tensor]) -> Path:
        path = tmp_path / name
        save_file({prefix + key: tensor.clone() for key, tensor in tensors.items()}, path)
        return path

    whole = written("1", "24x24/", stack)
    assert len(load_rendered([whole])) == 1
    pool = written("2", "", fields)
    with pytest.raises(UserError, match=f"{pool} is no shard of rendered worlds: need .*/depth"):
        load_rendered([whole, pool])
    part = written("3", "24x24/", fields | pictures)
    with pytest.raises(UserError, match=f"{part} is no shard.*need 24x24/frames"):
        load_rendered([whole, part])
    fewer = written("4", "24x24/", stack | {"points": worlds[:, :3]})
    with pytest.raises(UserError, match=r"\[N, T\], got \[\(3, 9\), \(5, 9\)\]"):
        load_rendered([whole, fewer])
    other = written("5", "24x24/", stack | {"frames": torch.arange(3)})
    with pytest.raises(UserError, match="same key frames"):
        load_rendered([whole, other])


def test_a_stack_has_the_truth_of_its_images() -> None:
    """Each world of a shard is the one that its seed stands for, picture and points."""
    shard = rendered.draw_shard(SPEC, 40, 3)
    for seed in (40, 41, 42):
        world, images, _ = draw_world(seed, SPEC)
        shape = f"{images.shape[-2]}x{images.shape[-1]}"
        same = [
            i for i, p in enumerate(shard[f"{shape}/points"]) if np.array_equal(p, world.points)
        ]
        assert len(same) == 1
        np.testing.assert_array_equal(shard[f"{shape}/images"][same[0]], images)
        assert shard[f"{shape}/size"][same[0]].tolist() == list(world.size)


def test_a_point_looks_the_same_in_all_its_frames() -> None:
    """A fine picture of the scene, at the points' places, varies less between frames than between points."""
    spec = RenderedSpec(points=96, frames=8, key_frames=4, side=160, samples=1)
    seed = next(s for s in range(40, 60) if _shadowless(s, spec))
    world, images, _ = draw_world(seed, spec)
    frames = pictured(spec)
    points = torch.from_numpy(world.points)[:, frames]
    pixels = project(points, torch.from_numpy(world.intrinsics)).numpy()
    height, width = images.shape[-2:]
    place = pixels * [width / world.size[1], height / world.size[0]]
    seen = world.visible[:, frames.numpy()].all(1) & (place > 0).all((1, 2))
    column = np.clip(place[seen][..., 0], 0, width - 1).astype(int)
    row = np.clip(place[seen][..., 1], 0, height - 1).astype(int)
    colour = images[np.arange(4), :, row, column].astype(float)
    assert len(colour) > 20
    # The median, since a few points lie on an edge of the pattern.
    along_time = np.median(np.abs(colour - colour[:, :1])[:, 1:])
    shuffled = np.median(np.abs(colour - np.roll(colour, 1, 0)[:, :1])[:, 1:])
    assert along_time < 0.5 * shuffled


def _shadowless(seed: int, spec: RenderedSpec) -> bool:
    return not compose(seed, num_frames=spec.frames).light.shadows


def test_picture_is_of_the_scene_that_was_observed() -> None:
    world, images, _ = draw_world(41, SPEC)
    scene = compose(world.scene_seed, num_frames=12, family=world.family)
    again = render(scene, pictured(SPEC).tolist(), images.shape[-2:], samples=1)
    assert np.abs(images / 255 - again).max() <= 0.5 / 255 + 1e-6


def test_depth_maps_are_as_deep_as_the_points() -> None:
    """Where a visible point's pixel and its neighbours are flat, the map is as deep as the point, in its unit."""
    missed = []
    for seed in range(40, 44):
        spec = RenderedSpec(points=96, frames=8, key_frames=4, side=96)
        world, images, depth = draw_world(seed, spec)
        assert depth.shape == (4, -(-images.shape[-2] // 2), -(-images.shape[-1] // 2))
        frames = pictured(spec)
        points = torch.from_numpy(world.points)[:, frames]
        pixels = project(points, torch.from_numpy(world.intrinsics)).numpy()
        place = pixels * [depth.shape[2] / world.size[1], depth.shape[1] / world.size[0]]
        n, f = np.nonzero(world.visible[:, frames.numpy()])
        column, row = (place[n, f, i].clip(1, depth.shape[2 - i] - 2).astype(int) for i in (0, 1))
        around = np.stack(
            [depth[f, row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)], -1
        ).astype(float)
        flat = np.ptp(around, axis=-1) < 0.05 * around[:, 4]
        assert flat.mean() > 0.1
        missed.append(np.abs(np.log(around[:, 4] / points.numpy()[n, f, 2]))[flat])
    missed = np.concatenate(missed)
    # Half a pixel is a quarter of the window that is flat to 5 %.
    assert np.percentile(missed, 95) < 0.0125
    assert np.median(missed) < 5e-3
