"""The encoder's experiment: methods with known scores, and a README that agrees with its results."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion4d.scenes.pool import Worlds
from diffusion4d.scenes.rendered import RenderedWorlds
from priors.tokens import TokenGrid

FOLDER = Path(__file__).parent.parent / "experiments" / "encoder"


def script() -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location("encoder_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = script()


@pytest.fixture(scope="module")
def slab() -> RenderedWorlds:
    """Two worlds of points that glide 32 px to the right in a frame of 128 px, before a wall that leans back."""
    count, size = 40, 128
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(2, count, 2, generator=generator) * torch.tensor([90.0, 120.0]) + 4
    shift = torch.tensor([0.0, 16.0, 32.0])[:, None] * torch.tensor([1.0, 0.0])
    pixels = start[:, :, None] + shift
    depth = 1 + pixels[..., 1] / size
    points = torch.cat([(pixels - 64) / 100, torch.ones(2, count, 3, 1)], -1) * depth[..., None]
    y = (torch.arange(64) + 0.5) / 64
    wall = (1 + y)[:, None].expand(2, 3, 64, 64).clone()
    wall[:, :, :3] = torch.nan
    worlds = Worlds(
        points=points,
        visible=torch.ones(2, count, 3, dtype=torch.bool),
        moving=torch.arange(count).expand(2, count) % 2 == 0,
        intrinsics=torch.tensor([[100.0, 100.0, 64.0, 64.0]]).expand(2, 4),
        size=torch.full((2, 2), 128.0),
    )
    images = torch.zeros(2, 3, 3, size, size, dtype=torch.uint8)
    return RenderedWorlds(worlds, images, torch.arange(3), wall.half())


def place_code(shift: float) -> Callable[[Tensor, Tensor], TokenGrid]:
    """Tokens that tell where they are, from −1 to 1, after gliding back `shift` px a frame."""

    def encode(frames: Tensor, u: Tensor) -> TokenGrid:
        row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        place = torch.stack([column, row], -1).flatten(0, 1) * 16 + 8
        places = place[None] - shift * torch.arange(3.0)[:, None, None] * torch.tensor([1.0, 0.0])
        angles = places[..., None] / 160 * torch.tensor([1.0, 2.0])
        waves = torch.cat([angles.cos(), angles.sin()], -1).flatten(2)
        return TokenGrid(waves, (8, 8), (128, 128), u)

    return encode


def test_who_knows_the_way_is_right_and_who_stays_is_not(slab: RenderedWorlds) -> None:
    methods = {
        "encoder": place_code(16.0),
        "raw pixels": place_code(0.0),
        "random weights": place_code(0.0),
    }
    errors = run.matching_errors([slab], methods)
    wide = run.pck_table(errors["wide"], draws=20)["all"]
    assert wide["points"] == 80
    # 32 px of 128 are 64 px of 256.
    assert wide["pck16"]["same place"] == 0
    assert wide["pck16"]["raw pixels"] < 0.1
    assert wide["pck16"]["encoder"] > 0.85
    assert np.allclose(errors["wide"][0]["same place"], 64, atol=1e-3)
    assert wide["pck16"]["chance"] == pytest.approx(math.pi * 8**2 / 128**2, rel=0.1)


class Mapper:
    """A map that is a factor off everywhere, and twice as deep in the right half."""

    def log_depth(self, frames: Tensor) -> Tensor:
        y = (torch.arange(64) + 0.5) / 64
        deep = (1 + y).log()[:, None].expand(len(frames), 64, 64).clone()
        deep[..., 48:] += math.log(2)
        return deep + 0.7


def test_pointmaps_of_a_wall(slab: RenderedWorlds) -> None:
    average = run.mean_map([slab])
    scores = run.pointmap_errors([slab], Mapper(), average)
    assert scores["encoder"]["abs_rel"] == pytest.approx([0.25, 0.25], abs=2e-3)
    assert scores["encoder"]["delta"] == pytest.approx([0.75, 0.75], abs=2e-3)
    # The wall is the same in all images, so the mean map knows it, to the size of its cells.
    assert (scores["mean map"]["abs_rel"] < 0.02).all()
    assert (scores["mean map"]["moving"] < 0.03).all()
    assert (scores["flat"]["abs_rel"] > 0.1).all()
    table = run.map_table(scores, draws=20)
    assert table["encoder"]["abs_rel"]["mean"] == pytest.approx(0.25, abs=2e-3)


def test_shards_without_depth_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1-32-128x32-6x128-1.safetensors").touch()
    with pytest.raises(ValueError, match="with depth maps, got none"):
        run.shards(tmp_path)


def test_the_readme_says_what_the_results_say() -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    assert results["fingerprint"] in readme
    for pair in results["correspondence"].values():
        for group in ("all", "far"):
            for limit in ("pck8", "pck16"):
                row = pair[group][limit]
                assert f"{row['encoder']:.3f}" in readme
                assert f"{row['raw pixels']:.3f}" in readme
