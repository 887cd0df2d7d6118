"""The experiment on cameras and the world frame: its numbers on a world known in closed form, and its README."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_rigid import INTRINSICS, SIZE, T, path, world

from diffusion4d.scenes.observe import World

FOLDER = Path(__file__).parent.parent / "experiments" / "world"


def script(name: str) -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location(f"world_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, report = script("run"), script("report")


@pytest.fixture(scope="module")
def known() -> World:
    points, static = world(path())
    # Worlds have a median anchor depth of 1.
    unit = points[0, :, 0, 2].median()
    cameras = path()
    cameras[:, :3, 3] /= unit
    return World(
        points=(points[0] / unit).float().numpy(),
        visible=np.ones(points.shape[1:3], bool),
        moving=~static.numpy(),
        intrinsics=INTRINSICS.float().numpy(),
        size=SIZE,
        u=np.linspace(0, 1, T),
        extrinsics=cameras.numpy(),
        family="made here",
        camera="dolly",
        seed=0,
        scene_seed=0,
    )


def test_exact_points_have_exact_cameras(known: World) -> None:
    row = run.judged(known, run.exact(known))
    assert (row["frame"], row["still"]) == ("world", False)
    assert row["rotation"] < 0.01
    assert row["direction"] < 1.0
    assert row["precision_0.001"] == row["recall_0.001"] == 1
    assert row["camera_all"] < 1e-4
    assert row["world_still"] < 0.01
    # In camera frames still points drift as the camera goes; in the world they do not.
    assert row["drift_camera"] > 0.1
    assert row["drift_world"] == pytest.approx(0, abs=1e-6)
    assert row["as_world_still"] > 10 * row["world_still"]


def test_into_world_undoes_the_camera(known: World) -> None:
    points, static = world(path())
    moved = run.into_world(path(), points[0])
    torch.testing.assert_close(moved[static], moved[static][:, :1].expand_as(moved[static]))
    torch.testing.assert_close(run.eyes(path()), torch.linalg.inv(path())[:, :3, 3])


def test_the_readme_is_filled_from_its_results() -> None:
    worlds = json.loads((FOLDER / "results.json").read_text())["worlds"]
    readme = (FOLDER / "README.md").read_text()
    for table in (report.verdicts, report.poses, report.errors, report.costs):
        assert table(worlds) in readme
