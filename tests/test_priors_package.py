"""What a new user of `priors` reads first runs as it is written, and names every module."""

import importlib
import pkgutil
import re
import textwrap
from pathlib import Path
from typing import Any

import torch

import priors

F, N, H, W = 3, 5, 64, 96


def clip() -> dict[str, Any]:
    """What the examples take as given."""
    seed = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 16, generator=seed)
    still = torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic").clamp(0, 1)
    frames = torch.cat([still.roll(2 * f, -1) for f in range(F)])
    queries = 20 + 24 * torch.rand(N, 2, generator=seed)
    intrinsics = torch.tensor([80.0, 80.0, 48.0, 32.0])
    return {
        "frames": frames,
        "queries": queries,
        "intrinsics": intrinsics,
        "u": torch.linspace(0, 1, F),
    }


def documentation() -> str:
    assert priors.__doc__ is not None
    return priors.__doc__


def test_the_packages_example_runs() -> None:
    text = documentation()
    example = textwrap.dedent(text[text.index("    import torch") : text.index("with frames [F")])
    names = clip()
    exec(example, names)
    # The packaged encoder brings the shorter side to 128 px, 8 tokens.
    assert names["tokens"].grid == (8, 12)
    assert names["matches"].tracks.shape == (F, N, 2)
    # The picture glides by two pixels a frame, and the points with it.
    moved = names["matches"].tracks - names["queries"]
    assert (moved[1:] - torch.tensor([[[2.0, 0.0]], [[4.0, 0.0]]])).norm(dim=-1).median() < 0.5
    assert names["points"].shape == (F, H, W, 3)
    assert names["paths"].shape == (N, F, 3)
    # A path is where its pointmap has it: its image is the pixel that was asked for.
    x, y, z = names["paths"][:, 0].unbind(-1)
    pixels = torch.stack([80 * x / z + 48, 80 * y / z + 32], -1)
    assert (pixels - names["queries"]).abs().max() <= 0.5 + 1e-3
    assert names["energy"].ndim == 0
    assert names["energy"] >= 0


def test_the_readmes_example_runs() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from priors.*?)```", readme, re.DOTALL)
    assert "python -m priors.describe" in readme
    names = clip()
    exec(example, names)
    shapes = [tuple(value.shape) for value in eval(example.strip().splitlines()[-1], names)]
    assert shapes == [(F, N, 2), (F, N, 2, 2), (F, N)]


def test_every_module_is_named_and_is_there() -> None:
    table = documentation().split("    images to tokens")[1].split("`python -m")[0]
    modules = {module.name for module in pkgutil.iter_modules(priors.__path__) if not module.ispkg}
    assert modules <= set(re.findall(r"\w+", table))
    for name in re.findall(r"from (priors\.\w+) import", documentation()):
        importlib.import_module(name)
