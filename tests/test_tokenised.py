"""Worlds with tokens: what is mirrored and turned back in time, is so in points and tokens alike."""

from types import SimpleNamespace

import pytest
import torch
from jaxtyping import Float, Int64
from models import simple_worlds
from torch import Tensor
from torch.nn import functional

from diffusion4d import cameras
from diffusion4d.scenes import tokenised
from diffusion4d.scenes.pool import Worlds
from diffusion4d.scenes.rendered import RenderedWorlds
from diffusion4d.scenes.tokenised import TokenisedWorlds, seen_otherwise, tokenise, tokenise_pool
from priors.dinov3 import Encoder, load_encoder

WORLDS, FRAMES, PATCHES = 64, 32, 8
KEY_FRAMES = torch.tensor([0, 3, 10, 21, 28, 31])


def some_worlds(frames: Tensor = KEY_FRAMES) -> TokenisedWorlds:
    """One point a world; a token's first number is the place of its patch left to right, its second the frame."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand((WORLDS, 1, FRAMES, 3), generator=generator) + 0.5
    visible = torch.rand((WORLDS, 1, FRAMES), generator=generator) < 0.5
    moving = torch.ones((WORLDS, 1), dtype=torch.bool)
    worlds = Worlds(points, visible, moving, torch.ones(WORLDS, 4), torch.ones(WORLDS, 2))
    place, frame = torch.meshgrid(torch.linspace(-1, 1, PATCHES), frames.float(), indexing="xy")
    values = torch.stack([place, frame], -1).expand(WORLDS, -1, -1, -1).half()
    return TokenisedWorlds(worlds, values, values.flip(2), (1, PATCHES), frames)


def backwards(tokens: Float[Tensor, "B F L C"]) -> bool:
    return bool(tokens[0, 0, 0, 1] > tokens[0, -1, 0, 1])


@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_mirrored_where_points_are(seed: int) -> None:
    stack = some_worlds()
    worlds, tokens = seen_otherwise(stack, torch.Generator().manual_seed(seed))
    mirrored = worlds.points[:, 0, 0, 0] < 0
    assert 10 < mirrored.sum() < WORLDS - 10
    assert torch.equal(tokens[:, 0, 0, 0] > 0, mirrored)
    wanted = stack.worlds.points.flip(2) if backwards(tokens) else stack.worlds.points
    assert torch.equal(worlds.points.abs(), wanted)


def test_time_runs_backwards_for_points_visibility_and_tokens() -> None:
    stack, ways = some_worlds(), set()
    for seed in range(12):
        worlds, tokens = seen_otherwise(stack, torch.Generator().manual_seed(seed))
        turned = backwards(tokens)
        ways.add(turned)
        visible = stack.worlds.visible.flip(2) if turned else stack.worlds.visible
        assert torch.equal(worlds.visible, visible)
    assert ways == {True, False}


def test_key_frames_that_lie_otherwise_from_the_end_keep_their_order() -> None:
    stack = some_worlds(torch.tensor([0, 3, 10, 20]))
    for seed in range(12):
        _, tokens = seen_otherwise(stack, torch.Generator().manual_seed(seed))
        assert not backwards(tokens)


CELL, ROWS, COLUMNS = 4, 8, 12


@pytest.fixture
def mean_colours(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """The packaged encoder, but its tokens are the mean colours of cells of a 32 x 48 picture."""

    def encode(
        encoder: Encoder, frames: Float[Tensor, "F 3 H W"], u: Float[Tensor, "F"]
    ) -> SimpleNamespace:
        return SimpleNamespace(values=functional.avg_pool2d(frames, CELL).flatten(2).mT)

    encoder = load_encoder("tiny")
    assert encoder.preprocessing.grid((32, 48), encoder.patch) == (ROWS, COLUMNS)
    monkeypatch.setattr(Encoder, "encode", encode)
    return encoder


def cells(worlds: Worlds) -> Int64[Tensor, "B 2 2"]:
    """Column and row of the cell that each world's first point is in, first and last frame."""
    ends = worlds.points[:, 0][:, [0, 8]]
    shares = cameras.project(ends, worlds.intrinsics[:, None]) / worlds.size.flip(-1)[:, None]
    return (shares * torch.tensor([COLUMNS, ROWS])).long()


def rendered(shade: float, count: int = 4) -> RenderedWorlds:
    """Pictures of one shade with a bright patch where a world's first point is; 32 x 48 px, key frames at both ends."""
    worlds = simple_worlds(count, frames=9)
    images = torch.full((count, 2, 3, CELL * ROWS, CELL * COLUMNS), shade)
    for b, ends in enumerate(cells(worlds).tolist()):
        for f, (x, y) in enumerate(ends):
            images[b, f, :, CELL * y :, CELL * x :][:, :CELL, :CELL] = 1.0
    depth = torch.ones(count, 2, 16, 24).half()
    return RenderedWorlds(worlds, (255 * images).byte(), torch.tensor([0, 8]), depth)


def test_two_pools_in_one_folder_have_tokens_of_their_own(tmp_path, monkeypatch, mean_colours):
    found = {}
    for name, shade in (("dark", 0.0), ("light", 0.5), ("dark", None)):
        stack = rendered(shade) if shade is not None else rendered(0.9)
        monkeypatch.setattr(tokenised, "load_rendered", lambda _, stack=stack: [stack])
        (kept,) = tokenise_pool([tmp_path / f"{name}.safetensors"], tmp_path, mean_colours)
        if name in found:
            # From the file, whatever the pictures are by now.
            assert torch.equal(kept.values, found[name])
        found[name] = kept.values
    assert found["light"].mean() > found["dark"].mean() + 0.3


def test_tokens_of_mirrored_pictures_lie_at_mirrored_tracks(mean_colours):
    stack = tokenise(rendered(0.0), mean_colours)
    assert len({tuple(c) for c in cells(stack.worlds).flatten(0, 1).tolist()}) > 2
    for seed in range(8):
        worlds, values = seen_otherwise(stack, torch.Generator().manual_seed(seed))
        column, row = cells(worlds).unbind(-1)
        bright = values[..., 0].gather(2, (row * COLUMNS + column)[..., None])
        assert (bright > 0.99).all()
