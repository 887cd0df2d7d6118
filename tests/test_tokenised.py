"""Worlds with tokens: what is mirrored and turned back in time, is so in points and tokens alike."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.scenes.pool import Worlds
from diffusion4d.scenes.tokenised import TokenisedWorlds, seen_otherwise

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
