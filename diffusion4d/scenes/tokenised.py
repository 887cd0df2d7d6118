"""Rendered worlds as an encoder sees them: patch tokens of the key frames beside the truth of the tracks.

Tokens are computed once, with the frozen encoder, and kept beside the rendered shards under the encoder's fingerprint:
those of the pictures and those of their mirror images, since a mirrored world is as likely as the world itself.

Shape letters:  B worlds   F key frames   L patches   C channels   N points   T frames.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float16, Int64
from safetensors.torch import save_file
from torch import Tensor

from diffusion4d.atomic import replace_when_done
from diffusion4d.config import Dropout
from diffusion4d.evidence import Tokens
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import Worlds, read_shard
from diffusion4d.scenes.rendered import RenderedWorlds, load_rendered
from priors.dinov3 import Encoder
from priors.tokens import TokenGrid


@dataclasses.dataclass(frozen=True)
class TokenisedWorlds:
    """A stack of worlds whose token grids have one shape.

    values: [B, F, L, C]; mirrored: of the mirror images; grid: (h, w), L = h w; frames: [F] places of the key
    frames in T.
    """

    worlds: Worlds
    values: Float16[Tensor, "B F L C"]
    mirrored: Float16[Tensor, "B F L C"]
    grid: tuple[int, int]
    frames: Int64[Tensor, "F"]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Int64[Tensor, "K"]) -> "TokenisedWorlds":
        """The worlds at these indices."""
        return TokenisedWorlds(
            self.worlds.take(index),
            self.values[index],
            self.mirrored[index],
            self.grid,
            self.frames,
        )


def tokenise(
    rendered: RenderedWorlds, encoder: Encoder, report: Callable[[int], None] | None = None
) -> TokenisedWorlds:
    """Encode every key frame. `report` is called with the number of worlds each step has added."""
    values, mirrored = [], []
    for images in rendered.images:
        frames = images.float() / 255
        u = torch.linspace(0, 1, len(frames))
        values.append(encoder.encode(frames, u).values.half())
        mirrored.append(encoder.encode(frames.flip(-1), u).values.half())
        if report is not None:
            report(1)
    h, w = rendered.images.shape[-2:]
    grid = encoder.preprocessing.grid((h, w), encoder.patch)
    return TokenisedWorlds(
        rendered.worlds, torch.stack(values), torch.stack(mirrored), grid, rendered.frames
    )


def tokenise_pool(
    shards: list[Path],
    folder: Path,
    encoder: Encoder,
    report: Callable[[int, int], None] | None = None,
) -> list[TokenisedWorlds]:
    """Tokens of a rendered pool, from `folder` where they are kept, computed where they are missing."""
    stacks = load_rendered(shards)
    # All that decides the pictures is in the names of the shards, so their hash tells pools in one folder apart.
    named = " ".join(path.name for path in shards).encode()
    kept_as = hashlib.blake2b(named, digest_size=6).hexdigest()
    total, done = sum(len(stack) for stack in stacks), 0
    tokenised = []
    for stack in stacks:
        h, w = stack.images.shape[-2:]
        grid = encoder.preprocessing.grid((h, w), encoder.patch)
        # Size and fit of the preprocessing change the grid and are not in the fingerprint.
        shape = f"{h}x{w}-{grid[0]}x{grid[1]}"
        path = folder / f"tokens-{encoder.fingerprint}-{shape}-{kept_as}-both.safetensors"
        if path.exists():
            both = read_shard(path)
        else:
            found = tokenise(stack, encoder)
            both = {"values": found.values, "mirrored": found.mirrored}
            with replace_when_done(path) as temporary:
                save_file(both, temporary)
        tokenised.append(TokenisedWorlds(stack.worlds, **both, grid=grid, frames=stack.frames))
        done += len(stack)
        if report is not None:
            report(done, total)
    return tokenised


def seen_otherwise(
    stack: TokenisedWorlds, generator: torch.Generator
) -> tuple[Worlds, Float16[Tensor, "B F L C"]]:
    """Half of the worlds mirrored left to right, and in half of all calls all of them backwards in time.

    Tokens cannot be turned or cropped, but they can be mirrored, and key frames lie alike from either end.
    """
    worlds, values = stack.worlds, stack.values
    mirror = torch.rand(len(stack), generator=generator) < 0.5
    sign = torch.where(mirror, -1.0, 1.0)[:, None, None]
    points = torch.cat([worlds.points[..., :1] * sign[..., None], worlds.points[..., 1:]], -1)
    values = torch.where(mirror[:, None, None, None], stack.mirrored, values)
    visible = worlds.visible
    alike = torch.equal(points.shape[2] - 1 - stack.frames.flip(0), stack.frames)
    if torch.rand((), generator=generator) < 0.5 and alike:
        points, visible, values = points.flip(2), visible.flip(2), values.flip(1)
    return dataclasses.replace(worlds, points=points, visible=visible), values


def draw_with_tokens(
    stacks: list[TokenisedWorlds],
    generator: torch.Generator,
    *,
    batch: int,
    num_ctrl: int,
    num_points: int,
    dropout: Dropout,
    augment: bool = True,
    multiplicity: int = 1,
) -> Example:
    """One batch from one stack, chosen by size; `augment` for the symmetries that tokens allow."""
    sizes = torch.tensor([float(len(stack)) for stack in stacks])
    stack = stacks[int(torch.multinomial(sizes, 1, generator=generator))]
    stack = stack.take(torch.randint(len(stack), (batch,), generator=generator))
    worlds, values = seen_otherwise(stack, generator) if augment else (stack.worlds, stack.values)
    example = draw(
        worlds,
        generator,
        num_ctrl=num_ctrl,
        num_points=num_points,
        dropout=dropout,
        augment=False,
        multiplicity=multiplicity,
    )
    if torch.rand((), generator=generator) < dropout.tokens:
        return example
    u = example.u[stack.frames]
    clips = []
    for i, tokens_of_clip in enumerate(values.float()):
        height, width = worlds.size[i].tolist()
        grid = TokenGrid(tokens_of_clip, stack.grid, (int(height), int(width)), u)
        clips.append(
            Tokens.of_clip(
                grid,
                example.tracks[i][:, stack.frames],
                example.visibility[i][:, stack.frames],
                example.intrinsics[i],
            )
        )
    tokens = Tokens(
        *(torch.cat([getattr(c, f.name) for c in clips]) for f in dataclasses.fields(Tokens))
    )
    evidence = dataclasses.replace(example.evidence, tokens=tokens)
    return dataclasses.replace(example, evidence=evidence)
