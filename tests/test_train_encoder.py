"""The encoder's training: exact geometry of its views, losses with known values, exact resume, what it learned."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor

from diffusion4d import train_encoder
from diffusion4d.config import RenderedSpec, TrainEncoder
from diffusion4d.errors import UserError
from diffusion4d.frame_pairs import draw_look, draw_views, key_pixels
from diffusion4d.scenes.pool import HELD_OUT
from diffusion4d.scenes.rendered import RenderedWorlds, draw_rendered, load_rendered
from diffusion4d.train_encoder import Objective, fit, place_loss, run
from priors.correspondence import match_points
from priors.dinov3 import load_encoder
from priors.heads import Head
from priors.pointmaps import depth_errors, load_pointmapper
from priors.tokens import TokenGrid


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[RenderedWorlds]:
    folder = tmp_path_factory.mktemp("rendered")
    spec = RenderedSpec(worlds=6, points=64, frames=8, key_frames=4, first_seed=HELD_OUT)
    return load_rendered(draw_rendered(folder, spec))


def test_warped_points_show_what_they_showed() -> None:
    """On an image whose colours are its own coordinates, the colour under a moved point is where it came from."""
    height, width = 128, 171
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    picture = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    picture = torch.cat([picture, torch.zeros(1, height, width)])
    images = (255 * picture).round().to(torch.uint8).expand(8, 2, 3, height, width).clone()
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(8, 2, 60, 2, generator=generator) * torch.tensor([width, height])
    look = draw_look(8, (height, width), generator)
    warped, moved = look.images(images), look.points(points)
    assert warped.shape[-2:] == (128, 176)
    size = torch.tensor([176.0, 128.0])
    inside = ((moved > 2) & (moved < size - 2)).all(-1)
    assert 0.3 < inside.float().mean() < 0.95
    colour = torch.nn.functional.grid_sample(
        warped.flatten(0, 1), (2 * moved / size - 1).flatten(0, 1)[:, :, None], align_corners=False
    )
    came_from = colour[:, :2, :, 0].mT.unflatten(0, (8, 2)) * torch.tensor([width, height])
    assert (came_from - points)[inside].abs().max() < 0.75
    # A depth map that holds x at half the resolution goes along: a column of it is two px wide.
    depth = (2 * torch.arange(86) + 1).half().expand(8, 2, 64, 86)
    deep = torch.nn.functional.grid_sample(
        look.depth(depth).flatten(0, 1)[:, None],
        (2 * moved / size - 1).flatten(0, 1)[:, :, None],
        mode="nearest",
        align_corners=False,
    )
    assert look.depth(depth).shape == (8, 2, 64, 88)
    deep = deep[:, 0, :, 0].unflatten(0, (8, 2))
    assert (deep - points[..., 0])[inside].abs().max() < 3


def test_place_loss_of_equal_and_of_perfect_features() -> None:
    config = TrainEncoder(temperature=0.01)
    valid = torch.ones(1, 1, dtype=torch.bool)
    equal = place_loss(
        torch.ones(1, 1, 4), torch.ones(1, 4, 2, 3), torch.full((1, 1, 2), 0.5), valid, config
    )
    assert equal.item() == pytest.approx(torch.log(torch.tensor(24.0)).item(), rel=1e-4)
    # One token looks like the point; the centre of that token lies between four refined cells that share it.
    maps = torch.zeros(1, 4, 2, 3)
    maps[:, 0] = 1
    maps[0, :2, 1, 2] = torch.tensor([0.0, 1.0])
    corner = torch.tensor([[[0.999, 0.999]]])
    feature = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
    right = place_loss(feature, maps, corner, valid, config)
    wrong = place_loss(feature, maps, 1 - corner, valid, config)
    assert right < 0.1
    assert wrong > 10
    assert place_loss(feature, maps, corner, ~valid, config) == 0


def test_views_are_a_function_of_the_step(held_out: list[RenderedWorlds]) -> None:
    config = TrainEncoder(batch=4, points=32)
    a, b, c = (draw_views(config, held_out, step) for step in (3, 3, 4))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.pixels, b.pixels)
    assert a.images.shape != c.images.shape or not torch.equal(a.images, c.images)
    assert a.images.shape[:3] == (4, 2, 3)
    assert a.pixels.shape == (4, 32, 2, 2)
    height, width = a.images.shape[-2:]
    inside = a.pixels[a.valid]
    assert ((inside > 0) & (inside < torch.tensor([width, height]))).all()
    assert a.valid.float().mean() > 0.3


def test_killed_run_ends_where_an_unbroken_one_does(
    held_out: list[RenderedWorlds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainEncoder(
        out=tmp_path / "whole", steps=4, batch=2, points=16, warmup=1, save_every=2
    )
    with Progress(disable=True) as progress:
        whole = fit(config, held_out, progress)
        broken = dataclasses.replace(config, out=tmp_path / "broken")

        def killed(config: TrainEncoder, stacks: list[RenderedWorlds], step: int) -> object:
            if step == 3:
                raise KeyboardInterrupt
            return draw_views(config, stacks, step)

        with monkeypatch.context() as patch:
            patch.setattr(train_encoder, "draw_views", killed)
            with pytest.raises(KeyboardInterrupt):
                fit(broken, held_out, progress)
        again = fit(broken, held_out, progress)
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert load_encoder(whole).fingerprint == load_encoder(again).fingerprint


def test_a_run_starts_from_an_encoder_and_its_head(
    held_out: list[RenderedWorlds], tmp_path: Path
) -> None:
    """Without a step, and with the first weights as their own average, what comes out is what went in."""
    config = TrainEncoder(out=tmp_path / "first", steps=1, batch=2, points=16, start_from="tiny")
    with Progress(disable=True) as progress:
        first = fit(config, held_out, progress)
    again = Objective(dataclasses.replace(config, start_from=str(first)))
    mapper = load_pointmapper(first)
    saved, loaded = mapper.head.state_dict(), again.head.state_dict()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    weights = again.encoder.state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in mapper.encoder.model.state_dict().items())
    # A head of another kind starts afresh.
    linear = Objective(dataclasses.replace(config, start_from=str(first), head="linear"))
    assert linear.head.kind == "linear"
    # Depth maps reach the loss: of another head, at the resolution of its cells.
    losses = linear(draw_views(config, held_out, 0))
    assert 0.01 < losses["pointmap"] < 2


def test_a_wider_head_on_a_frozen_encoder_starts_as_the_packaged_one(
    held_out: list[RenderedWorlds], tmp_path: Path
) -> None:
    """It tells the same depth, and confidence and descriptors besides; training moves the head and nothing else."""
    config = TrainEncoder(
        out=tmp_path / "dense",
        steps=2,
        batch=2,
        points=16,
        warmup=1,
        start_from="tiny",
        frozen=True,
        descriptors=6,
    )
    packaged = load_pointmapper("tiny")
    model = Objective(config)
    layers = [torch.randn(1, 6, 128) for _ in packaged.head.taps]
    wide = model.head(layers, (2, 3))
    assert wide.shape == (1, 8, 16, 24)
    torch.testing.assert_close(wide[:, :1], packaged.head(layers, (2, 3)))
    losses = model(draw_views(config, held_out, 0))
    others = sum(v for name, v in losses.items() if name != "loss")
    torch.testing.assert_close(losses["loss"], others)
    assert {"confidence", "descriptor"} < losses.keys()
    with Progress(disable=True) as progress:
        dense = load_pointmapper(fit(config, held_out, progress))
    assert dense.encoder.fingerprint == packaged.encoder.fingerprint
    assert dense.head.outputs == 8
    moved = [(a - b).abs().max() for a, b in _shared(dense.head, packaged.head)]
    assert min(moved) > 0
    told = dense.dense(held_out[0].images[0])
    assert told.log_confidence is not None
    assert told.descriptors is not None
    torch.testing.assert_close(told.descriptors.norm(dim=1), torch.ones_like(told.log_depth))
    with pytest.raises(UserError, match="need an encoder to start from"):
        run(dataclasses.replace(config, start_from=None))


def _shared(wide: Head, narrow: Head) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        yield a[: len(b)], b


def test_held_out_worlds_are_not_trained_on(tmp_path: Path) -> None:
    config = TrainEncoder(out=tmp_path, worlds=RenderedSpec(worlds=8, first_seed=HELD_OUT - 4))
    with pytest.raises(UserError, match=f"got {HELD_OUT - 4} to {HELD_OUT + 3}"):
        run(config)


def _raw(frames: Tensor, u: Tensor) -> TokenGrid:
    """Each patch's own pixels, less their mean, as its token."""
    height, width = (16 * round(side / 16) for side in frames.shape[-2:])
    resized = torch.nn.functional.interpolate(
        frames.float(), size=(height, width), mode="bilinear", antialias=True
    )
    patches = torch.nn.functional.unfold(resized, 16, stride=16).mT
    patches = patches - patches.mean(-1, keepdim=True)
    size = (frames.shape[-2], frames.shape[-1])
    return TokenGrid(patches, (height // 16, width // 16), size, u)


def test_packaged_encoder_finds_points_in_worlds_it_has_not_seen(
    held_out: list[RenderedWorlds],
) -> None:
    encoder = load_encoder("tiny")
    assert (encoder.channels, encoder.patch) == (128, 16)
    close = {"raw": [], "tiny": []}
    for clips in held_out:
        pixels = key_pixels(clips)
        seen = clips.worlds.visible[:, :, clips.frames]
        u = clips.frames / clips.frames[-1]
        for name, encode in (("raw", _raw), ("tiny", encoder.encode)):
            for b in range(len(clips)):
                tokens = encode(clips.images[b], u)
                both = seen[b, :, 0] & seen[b, :, 1]
                features = tokens.sample(pixels[b])[both, 0]
                found = match_points(features, tokens.values[1], tokens.grid, tokens.size)
                close[name].append((found - pixels[b, both, 1]).norm(dim=-1) < 8)
    raw, tiny = (torch.cat(close[name]).float().mean() for name in ("raw", "tiny"))
    assert tiny > raw + 0.1


def test_packaged_head_tells_depth_in_worlds_it_has_not_seen(
    held_out: list[RenderedWorlds],
) -> None:
    """Closer than one depth for the whole image, on average over key frames."""
    mapper = load_pointmapper("tiny")
    errors = {"head": [], "flat": []}
    for clips in held_out:
        for images, depth in zip(clips.images, clips.depth.float(), strict=True):
            truth = depth.log()
            guess = mapper.log_depth(images)
            fine = torch.nn.functional.interpolate(
                guess[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False
            )[:, 0]
            for name, found in (("head", fine), ("flat", torch.zeros_like(truth))):
                errors[name].append(depth_errors(found, truth, truth.isfinite())["abs_rel"])
    head, flat = (torch.cat(errors[name]).nanmean() for name in ("head", "flat"))
    assert head < 0.9 * flat
