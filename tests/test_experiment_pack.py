"""The pack's recipe, its converter of motion capture, and the pages that describe both."""

import importlib.util
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion4d.data import positions
from diffusion4d.data.glb_actors import Animated
from diffusion4d.data.mocap import MocapEntry
from diffusion4d.data.recipe import parsed
from diffusion4d.data.simulated import KINDS, read_batches
from diffusion4d.data.skeleton import Take

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments" / "pack"
RECIPE = tomllib.loads((FOLDER / "recipe.toml").read_text())


def script() -> ModuleType:
    """Experiments are not installed, so they are loaded by their path."""
    spec = importlib.util.spec_from_file_location("pack_convert", FOLDER / "convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


convert = script()


def test_the_recipe_is_one() -> None:
    """Every table has the words of its kind, every group its odds; what is held out whole is not trained on."""
    for kind, entry in (("animated", Animated), ("skeletons", Animated), ("mocap", MocapEntry)):
        for table in RECIPE[kind]:
            group = parsed(entry, table).group
            assert group in RECIPE["odds"] or table.get("split", "train") != "train"
    batches = read_batches(RECIPE["simulated"])
    assert {b.kind for b in batches} == set(KINDS)
    assert sum(b.seeds[1] - b.seeds[0] for b in batches if b.split == "train") == 150


def test_all_that_is_held_out_or_owed_is_on_the_page() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    names = [kind for kind, about in KINDS.items() if about.held_out]
    for table in RECIPE["animated"] + RECIPE["skeletons"]:
        names += table.get("held_out", [])
        if table.get("split") == "held-out":
            names.append(table.get("species", "mech_pack"))
    names += [t["name"] for t in RECIPE["mocap"] if t.get("split") == "held-out"]
    assert len(names) == 22
    assert [name for name in names if name not in page] == []
    tables = RECIPE["animated"] + RECIPE["skeletons"] + RECIPE["mocap"]
    said = " ".join(table["source"] for table in tables)
    sources = set(re.findall(r"github\.com/[\w-]+/[\w-]+(?: @ \w+)?|pybullet [\d.]+", said))
    assert len(sources) == 10
    assert [source for source in sources if source not in page] == []
    licences = {table["licence"].split()[-1].strip("()") for table in tables}
    assert [licence for licence in licences if licence not in page] == []
    owed = "The data used in this project was obtained from mocap.cs.cmu.edu."
    assert f"{owed} The database was created with funding from NSF EIA-0196217." in page


def test_turns_of_a_captured_row_are_those_of_scipy() -> None:
    """Eq. (1), by hand for one arm: root, back, shoulder and elbow turned, positions in metres with z up."""
    names = [name for name, _, _ in convert.CMU_JOINTS]
    place = {name: np.array(at) * 0.0254 / 0.45 for name, _, at in convert.CMU_JOINTS}
    rng = np.random.default_rng(0)
    rows = np.zeros((3, 117))
    rows[:, :3] = rng.normal(size=(3, 3))
    turned = ("Hips", "Spine", "LeftArm", "LeftForeArm")
    for name in turned:
        column = 3 + 3 * names.index(name)
        rows[:, column : column + 3] = rng.normal(size=(3, 3))
    take = convert.cmu_take(rows)
    assert take.parents.tolist().count(-1) == 1
    for frame in range(3):
        turn = {
            name: Rotation.from_rotvec(rows[frame, 3 + 3 * names.index(name) :][:3]).inv()
            for name in turned
        }
        at, along = rows[frame, :3] * 0.0254 / 0.45, turn["Hips"]
        for name in ("LowerBack", "Spine", "Spine1", "LeftShoulder", "LeftArm", "LeftForeArm"):
            at = at + along.apply(place[name])
            along = along * turn[name] if name in turn else along
        at = at + along.apply(place["LeftHand"])
        x, y, z = at
        hand = take.positions[frame, names.index("LeftHand")]
        np.testing.assert_allclose(hand, [x, -z, y], atol=1e-12)


def test_archives_leave_out_the_first_frame() -> None:
    path = np.arange(9.0)[:, None, None] * np.array([[0.123456, 0, 0], [0, 1, 0]])
    take = Take(path, np.array([-1, 0]), 119.99, rotations=np.tile(np.eye(3), (9, 2, 1, 1)))
    halved = convert.archived(take, 2, 4)
    np.testing.assert_array_equal(halved.positions[:, 0, 0], [0.1235, 0.3704, 0.6173, 0.8642])
    assert halved.fps == 60
    assert halved.rotations is None
    whole = convert.archived(take, 1, None)
    np.testing.assert_array_equal(whole.positions, path[1:])
    assert whole.fps == 119.99


BVH = """HIERARCHY
ROOT hips
{
 OFFSET 0 0 0
 CHANNELS 3 Xposition Yposition Zposition
 End Site
 {
  OFFSET 0 2 0
 }
}
MOTION
Frames: 4
Frame Time: 0.0083333
0 0 0
1 10 0
2 20 0
3 30 5
"""


def test_the_archives_are_those_that_the_recipe_wants(tmp_path: Path) -> None:
    """Written from files as downloads have them; every pattern of the recipe for them finds something."""
    for action, numbers in convert.CMU_TAKES.items():
        folder = tmp_path / "cmu" / "data" / "cmu_mocap" / "train" / action
        folder.mkdir(parents=True)
        for number in numbers:
            np.savetxt(folder / f"{action}_{number}.txt", np.zeros((5, 117)), "%g", ",")
    (tmp_path / "idle" / "acted").mkdir(parents=True)
    for name in convert.REACTIDLE_TAKES:
        (tmp_path / "idle" / "acted" / f"{name}.bvh").write_text(BVH)
    single = tmp_path / "idle" / "acted" / "001_acted.bvh"
    given = convert.Settings(tmp_path / "s", tmp_path / "cmu", tmp_path / "idle", single)
    written = convert.main(given)
    assert len(written) == 53 + 4 + 1
    names = [str(path.relative_to(tmp_path / "s")) for path in written]
    ours = [t for t in RECIPE["mocap"] if t["name"].startswith(("cmu", "reactidle"))]
    patterns = [pattern for table in ours for pattern in table["files"]]
    assert all(any(fnmatch(name, pattern) for name in names) for pattern in patterns)
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in names)
    single = positions.read(written[-1])
    # Metres of CMU's units, every second frame from the second on, z up.
    expected = np.array([[1, 0, 10], [3, -5, 30]]) * 0.0254 / 0.45
    np.testing.assert_allclose(single.positions[:, 0], expected, atol=1e-6)
    (tmp_path / "cmu" / "data" / "cmu_mocap" / "train" / "running" / "running_3.txt").unlink()
    with pytest.raises(ValueError, match=r"need one file running_3\.txt in .*, got 0"):
        convert.main(given)
