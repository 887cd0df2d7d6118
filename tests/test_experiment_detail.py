"""Training of the network for detail: a run that was killed goes on as if it had not been, and it learns."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import trimesh
from safetensors.torch import load_file

from diffusion4d.detail.points import cloud_of

FOLDER = Path(__file__).parent.parent / "experiments" / "detail"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path; their data are two balls with waves on them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("detail_train", FOLDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    ball = trimesh.creation.icosphere(3)
    cloud = cloud_of(ball.vertices, ball.faces, 0.3, 0)
    waves = torch.from_numpy(0.5 * cloud.points[:, 0]).float()
    known = [module.Known(cloud, waves, 1.0), module.Known(cloud, -waves, 0.5)]
    monkeypatch.setattr(module, "clouds", lambda meshes: known)
    return module


def test_a_killed_run_goes_on_as_if_it_had_not_been(train: ModuleType, tmp_path: Path) -> None:
    settings = train.Settings(out=tmp_path / "one", steps=6, width=8, depth=1, save_every=3)
    train.train(settings)
    # Killed in step 5: the checkpoint of step 3 is what is left.
    other = dataclasses.replace(settings, out=tmp_path / "two")
    loss_of, calls = train.loss_of, []

    def killed(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    train.loss_of = killed
    with pytest.raises(KeyboardInterrupt):
        train.train(other)
    train.loss_of = loss_of
    train.train(other)
    name = "model/diffusion_pytorch_model.safetensors"
    whole, resumed = load_file(settings.out / name), load_file(other.out / name)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_it_learns(train: ModuleType, tmp_path: Path) -> None:
    settings = train.Settings(out=tmp_path, steps=150, width=12, depth=1, ema=0.5)
    known = train.clouds(None)
    generator = torch.Generator().manual_seed(5)
    before = train.loss_of(train.fitted(settings, known), known[0], 64, generator)
    network = train.train(settings)
    after = train.loss_of(network, known[0], 64, torch.Generator().manual_seed(5))
    assert after < 0.8 * before


def test_the_readme_has_the_results() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    content = json.loads((FOLDER / "results.json").read_text())
    for name in ("samples", "white", "Gaussian"):
        row = content["summary"][name]
        keys = ("amplitudes apart", "mean amplitude", "CRPS")
        cells = [f"{row['spectra apart, dB']:.2f}", *(f"{row[key]:.3f}" for key in keys)]
        assert f"| {name} | {' | '.join(cells)} |" in text
    for name, mesh in content["meshes"].items():
        true, mine = mesh["truth"]["mean amplitude"], mesh["samples"]["mean amplitude"]
        assert f"| {name} | {true:.2f} | {mine:.2f} |" in text
