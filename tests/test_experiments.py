"""The experiments: their numbers' definitions on cases with known answers, one in miniature, and READMEs that agree
with their results."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from diffusion4d.config import Dropout, PoolSpec
from diffusion4d.scenes.batches import draw
from diffusion4d.scenes.pool import HELD_OUT, Worlds, draw_shard

FOLDER = Path(__file__).parent.parent / "experiments" / "parametrisation"


def script(name: str) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location(f"parametrisation_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, report = script("run"), script("report")
SMALL = PoolSpec(worlds=4, points=8, frames=13)


@pytest.fixture(scope="module")
def shard() -> dict[str, torch.Tensor]:
    return draw_shard(SMALL, HELD_OUT, 4)


def test_every_basis_gives_back_what_it_spans(shard: dict[str, torch.Tensor]) -> None:
    """A cubic is in all four; encoding and decoding it must lose nothing but float32's rounding."""
    example = draw(
        Worlds(**shard),
        torch.Generator().manual_seed(0),
        num_ctrl=8,
        num_points=8,
        dropout=Dropout(0.0, 0.0),
        augment=False,
    )
    clips = run.Clips.of(example)
    u = example.u[:, None]
    cubic = torch.cat([0.1 * u, 0.2 - u**2 / 4, u**3 / 2 - 0.1 * u], -1).expand(4, 8, 13, 3)
    truth = torch.cat(
        [(cubic[..., :2] + clips.curve) * cubic[..., 2:].exp(), cubic[..., 2:].exp()], -1
    )
    for name in run.ARMS:
        basis = run.Basis.fit(name, 8, clips)
        found = basis.decode(basis.encode(cubic), clips.curve)
        assert (found - truth).abs().max() < 1e-4, name
        x = basis.encode(clips.residual)
        assert x.flatten(0, 1).mean(0).abs().max() < 1e-4
        assert torch.allclose(x.flatten(0, 1).std(0), torch.ones(x.shape[2:]), atol=1e-3)
    facts = run.Basis.fit("per-frame", 8, clips).describe([clips])
    assert facts["condition"] == pytest.approx(1)
    assert facts["fit_rms"] < 1e-5


def test_noise_scale_of_a_known_gaussian() -> None:
    """Gradients of mean g and variance s^2 in each of P numbers have the scale  batch P s^2 / |g|^2."""
    generator = torch.Generator().manual_seed(0)
    gradients = 0.5 + 2 * torch.randn(400, 300, generator=generator)
    assert run.simple_noise_scale(gradients, 16) == pytest.approx(16 * 4 / 0.25, rel=0.1)
    # No mean at all: the most that 400 batches can show.
    centred = gradients - gradients.mean(0)
    assert run.simple_noise_scale(centred, 16) == pytest.approx(16 * 400 * 10, rel=1e-4)


def test_spikes_are_counted_against_the_steps_before() -> None:
    values = torch.ones(150)
    values[[20, 100, 120]] = 10.0
    values[130] = float("nan")
    assert run.spikes(values, 50) == pytest.approx(3 / 100)
    assert run.spikes(values[:40], 0) == 0.0


def test_in_miniature_and_resumed(tmp_path: Path, shard: dict[str, torch.Tensor]) -> None:
    pool, held_out = tmp_path / "pool", tmp_path / "held-out"
    pool.mkdir()
    held_out.mkdir()
    save_file(shard, pool / "0-8x13.safetensors")
    for seed in (HELD_OUT, run.CHOOSING):
        save_file(shard, held_out / f"{seed}-8x13.safetensors")
    settings = run.Settings(
        out=tmp_path / "results.json", pool=pool, held_out=held_out, worlds=4, pool_points=8, scored=2,
        choosing=1, frames=13, points=8, num_ctrl=6, width=16, depth=1, num_heads=1, learning_rates=(1e-3,),
        steps=10, warmup=2, batch=2, noise_batches=2, sampling_steps=2, samples=3,
    )  # fmt: skip
    first = run.main(settings)
    assert set(first["summary"]) == set(run.ARMS)
    assert all(r["training"]["not_finite"] == 0 for r in first["runs"].values())
    assert first["summary"]["bspline"]["all_ratio"]["ratio"] == 1.0
    # An arm that is missing is run again, with the same numbers; the others are left alone.
    held = json.loads(settings.out.read_text())
    lost = held["runs"].pop("bezier 0.001")
    run.write(held, settings.out)
    again = run.main(settings)
    assert again["runs"]["bezier 0.001"]["scores"] == lost["scores"]
    assert again["runs"]["bezier 0.001"]["training"]["noise_scale"].keys() == {1, 5, 10}
    (tmp_path / "README.md").write_text(
        "Before\n<!-- scores -->\nold\n<!-- end -->\n<!-- training -->\n<!-- end -->\nAfter\n"
    )
    report.main(tmp_path)
    assert report.scores_table(again) in (tmp_path / "README.md").read_text()
    assert (tmp_path / "parametrisation.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="need the settings"):
        run.main(dataclasses.replace(settings, steps=11))


def test_the_readme_says_what_the_results_say() -> None:
    results = json.loads((FOLDER / "results.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    assert report.scores_table(results) in readme
    assert report.training_table(results) in readme
