"""A recipe and folders of sources become a pack: what is read, how it is placed, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glb import Glb
from packs import BOX, CORNERS
from safetensors.numpy import save_file

from diffusion4d.config import BuildPack
from diffusion4d.data import positions
from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.animated_glb import read_animated, read_skeleton
from diffusion4d.data.build import run
from diffusion4d.data.glb_actors import Animated, instants, reduced, skeleton_actors, take_of
from diffusion4d.data.mocap import MocapEntry
from diffusion4d.data.pack import Pack, write_actor
from diffusion4d.data.recipe import parsed, read_recipe
from diffusion4d.data.skeleton import Take
from diffusion4d.errors import UserError

RECIPE = """
[odds]
quadruped = 3.0

[[animated]]
files = "meshes/*.glb"
prefix = "made"
group = "quadruped"
grounded = true
held_out = ["Deer"]
licence = "CC0 1.0"
source = "here"

[[skeletons]]
files = "bones/*.glb"
prefix = "bones"
group = "humanoid"
species = "human"
grounded = true
bodies = 2
licence = "CC0 1.0"
source = "here"

[[mocap]]
name = "walk"
files = ["mocap/*.npz"]
without = ["wrong.npz"]
source = "here"
licence = "CC0 1.0"
weight = 0.5
variants = 2
deal = true
"""


def boxed(path: Path, scale: float = 2.0) -> Path:
    """Two boxes, a body and a head that nods, both of doubled corners; three animations, one of which is still."""
    corners = np.concatenate([scale * CORNERS, scale * CORNERS])
    faces = np.concatenate([BOX[:6], BOX[6:] + 8])
    glb = Glb()
    primitive = {
        "attributes": {"POSITION": glb.add(corners)},
        "indices": glb.add(faces.reshape(-1), "uint16"),
    }
    glb.tree |= {
        "nodes": [
            {"name": "body", "mesh": 0, "children": [1]},
            {"name": "head", "mesh": 0, "translation": [0, 3, 0], "scale": [0.5, 0.5, 0.5]},
        ],
        "scenes": [{"nodes": [0]}],
        "meshes": [{"primitives": [primitive]}],
    }
    way = np.array([[0, 5, 0], [8, 5, 0], [8, 5, 0]], float)
    glb.animation("Armature|Walk", (0, "translation", [0.5, 1.5, 2.5], way, "LINEAR"))
    nod = np.array([[0, 3, 0], [0, 3.5, 0], [0, 3, 0]], float)
    glb.animation("Nod", (1, "translation", [0.0, 0.5, 1.0], nod, "LINEAR"))
    glb.animation("Wait", (0, "translation", [0.0, 1.0], np.zeros((2, 3)), "LINEAR"))
    glb.animation("Rest_Pose", (0, "translation", [0.0, 1.0], way[:2], "LINEAR"))
    return glb.save(path)


def bones(path: Path) -> Path:
    """An armature above a trunk from which a neck and two legs go; it jumps."""
    glb = Glb()
    glb.tree |= {
        "nodes": [
            {"name": "armature", "children": [1]},
            {"name": "hips", "translation": [0, 1, 0], "children": [2, 3, 4]},
            {"name": "neck", "translation": [0, 0.6, 0]},
            {"name": "left", "translation": [0.2, -0.8, 0]},
            {"name": "right", "translation": [-0.2, -0.8, 0]},
        ],
        "scenes": [{"nodes": [0]}],
    }
    jump = np.array([[0, 1, 0], [0, 1.5, 0], [0, 1, 0]], float)
    glb.animation("Jump", (1, "translation", [0.0, 0.3, 0.6], jump, "LINEAR"))
    return glb.save(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("meshes", "bones", "mocap"):
        (folder / name).mkdir()
    (folder / "meshes" / "A folder.glb").mkdir()
    boxed(folder / "meshes" / "Cow.glb")
    boxed(folder / "meshes" / "Deer.glb", 5.0)
    bones(folder / "bones" / "Med.glb")
    rest = np.array([[0, 0, 1.0], [0, 0, 1.6], [0.3, 0, 0.2], [-0.3, 0, 0.2]])
    ahead = np.linspace(0, 1, 45)[:, None, None] * [0, 1.0, 0]
    for number in range(3):
        take = Take(rest + (1 + number) * ahead, np.array([-1, 0, 0, 0]), 30.0)
        positions.write(folder / "mocap" / f"take-{number}.npz", take)
    (folder / "mocap" / "wrong.npz").write_bytes(b"never read")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def pack(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack")
    told: list[str] = []
    paths = run(BuildPack(sources / "recipe.toml", sources, out), told.append)
    assert [path.stem for path in paths] == told
    return out


def test_every_table_makes_its_actors(pack: Path) -> None:
    trained = {actor.name: actor for actor in Pack.open(pack).actors}
    assert set(trained) == {"made-cow", "bones-med-0", "bones-med-1", "walk-a", "walk-b"}
    (held,) = Pack.open(pack, ("held-out",)).actors
    assert (held.name, held.species, held.group) == ("made-deer", "Deer", "quadruped")
    assert json.loads((pack / "odds.json").read_text()) == {"quadruped": 3.0}
    # A table's odds are shared by all that it makes.
    assert trained["bones-med-0"].weight == trained["bones-med-1"].weight == 0.5
    assert trained["walk-a"].weight == trained["walk-b"].weight == 0.25
    assert (trained["bones-med-0"].rest != trained["bones-med-1"].rest).any()
    # Takes are dealt out: each is some body's, and only one's.
    dealt = [m.name for body in "ab" for m in Pack.open(pack).motions(f"walk-{body}")]
    assert sorted(dealt) == ["take-0", "take-1", "take-2"]


def test_a_mesh_is_placed_as_actors_are(pack: Path) -> None:
    """Body 2 wide and head on top reach from -1 to 3.5 most of the time: one unit is 4.5 of the file's."""
    for name, split in (("made-cow", "train"), ("made-deer", "held-out")):
        found = Pack.open(pack, (split,))
        (actor,) = (a for a in found.actors if a.name == name)
        size = {"made-cow": 2.0, "made-deer": 5.0}[name]
        unit = 0.5 * size + 3 + 0.25 * size
        nod, walk = found.motions(name)
        assert (nod.name, walk.name) == ("Nod", "Walk")
        assert nod.loops
        assert not walk.loops
        assert (len(nod.vertices), len(walk.vertices)) == (31, 61)
        assert walk.fps == nod.fps == pytest.approx(30)
        for motion in (nod, walk):
            first = motion.vertices[0]
            assert motion.vertices[..., 2].min() == pytest.approx(0, abs=1e-6)
            middle = 0.5 * (first.min(0) + first.max(0))
            np.testing.assert_allclose(middle[:2], 0, atol=1e-6)
            assert np.ptp(first[:, 2]) == pytest.approx(1, abs=0.02)
        # Sixteen corners are left of 32, and each box is a rigid part.
        assert len(actor.rest) == 16
        assert sorted(np.bincount(actor.part)) == [8, 8]
        scale = np.ptp(nod.vertices[0, :, 2])
        along = walk.vertices[:, 0] - walk.vertices[0, 0]
        assert along[30, 0] == pytest.approx(8 * scale / unit, rel=1e-4)
        assert np.abs(along[:, 1:]).max() < 1e-6
        rise = nod.vertices[15] - nod.vertices[0]
        np.testing.assert_allclose(rise[actor.part == actor.part[0], 0], 0, atol=1e-6)
        assert sorted(set(rise[:, 2].round(4))) == pytest.approx(
            [0, round(0.5 * scale / unit, 4)], abs=2e-4
        )


def test_captured_takes_begin_at_the_origin_and_stand_on_the_floor(pack: Path) -> None:
    for body in "ab":
        for motion in Pack.open(pack).motions(f"walk-{body}"):
            assert motion.fps == 30
            np.testing.assert_allclose(motion.vertices[0].mean(0)[:2], 0, atol=1e-5)
            assert motion.vertices[..., 2].min() == pytest.approx(0, abs=1e-5)
            # It is carried along: no distance within the body changes.
            np.testing.assert_allclose(
                np.ptp(motion.vertices - motion.vertices[:, :1], axis=0), 0, atol=1e-4
            )
            number = int(motion.name[-1])
            way = motion.vertices[-1, 0, 1] - motion.vertices[0, 0, 1]
            tall = np.ptp(motion.vertices[0], axis=0).max()
            assert way / tall == pytest.approx((1 + number) / 1.5, rel=0.25)


def test_bones_jump_as_high_as_they_should(pack: Path) -> None:
    (motion,) = Pack.open(pack).motions("bones-med-0")
    assert motion.loops
    assert len(motion.vertices) == 19
    tall = np.ptp(motion.vertices[0, :, 2])
    rise = np.ptp(motion.vertices[:, 0, 2])
    # Half a metre, of a body of 1.4 m and what is around its ends.
    assert 0.5 / 1.8 < rise / tall < 0.5 / 1.3


def test_the_same_sources_make_the_same_pack(sources: Path, pack: Path, tmp_path: Path) -> None:
    run(BuildPack(sources / "recipe.toml", sources, tmp_path))
    assert Pack.open(tmp_path).fingerprint == Pack.open(pack).fingerprint


def test_some_kinds_only(sources: Path, tmp_path: Path) -> None:
    run(BuildPack(sources / "recipe.toml", sources, tmp_path, ("mocap",)))
    assert {actor.group for actor in Pack.open(tmp_path).actors} == {"mocap"}


def test_reduction_moves_as_the_whole_does(sources: Path) -> None:
    """What is left of a mesh is some of its vertices, wherever they go."""
    mesh = read_animated(sources / "meshes" / "Cow.glb")
    small = reduced(mesh, 20)
    assert len(small.faces) <= 20 < len(mesh.faces)
    walk = mesh.skeleton.animations[0]
    times = np.array([0.5, 0.9, 2.0])
    whole, left = mesh.positions(walk, times), small.positions(walk, times)
    apart = np.linalg.norm(whole[0][:, None] - left[0][None], axis=-1)
    assert apart.min(0).max() < 1e-9
    for frame in range(3):
        np.testing.assert_allclose(whole[frame][apart.argmin(0)], left[frame], atol=1e-9)


def test_instants_are_even_from_key_to_key(sources: Path) -> None:
    animations = read_animated(sources / "meshes" / "Cow.glb").skeleton.animations
    times, rate = instants(animations[0])
    np.testing.assert_allclose(times, 0.5 + np.arange(61) / 30, atol=1e-9)
    assert rate == pytest.approx(30)


def test_a_take_begins_where_limbs_part(sources: Path) -> None:
    """The armature has no limb; joints keep the file's places, with z up."""
    skeleton = read_skeleton(sources / "bones" / "Med.glb")
    take = take_of(skeleton, skeleton.animations[0])
    assert take.names == ("hips", "neck", "left", "right")
    assert take.parents.tolist() == [-1, 0, 0, 0]
    np.testing.assert_allclose(
        take.positions[9], [[0, 0, 1.5], [0, 0, 2.1], [0.2, 0, 0.7], [-0.2, 0, 0.7]], atol=1e-6
    )


def test_refusals_say_what_was_needed(sources: Path, tmp_path: Path) -> None:
    def refused(text: str, message: str, error: type[Exception] = UserError) -> None:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(text)
        with pytest.raises(error, match=message):
            run(BuildPack(recipe, sources, tmp_path / "out"))

    with pytest.raises(UserError, match="need a folder of sources, got"):
        run(BuildPack(sources / "recipe.toml", tmp_path / "none", tmp_path / "out"))
    with pytest.raises(UserError, match="need a recipe in TOML, got"):
        read_recipe(tmp_path / "none.toml")
    refused("[[animated", "need a recipe in TOML")
    refused("[[video]]\na = 1", r"need tables of .* or odds, got \['video'\]")
    refused('[[mocap]]\nfile = "a"', r"need words of .*got \['file'\]")
    refused('[[mocap]]\nname = "a"', "need more words in a recipe's table")
    refused("[odds]\nfish = 0.0", "need positive odds", ValueError)
    table = RECIPE.split("[[skeletons]]")[0]
    refused(table.replace("meshes/", "shapes/"), r"need files .shapes/\*.glb", ValueError)
    refused(table.replace('"Deer"', '"Elk"'), r"need the files \['Elk'\]", ValueError)
    still = table.replace("grounded = true", 'grounded = true\nskip = ["*"]')
    refused(still, "need an animation in which something moves, got none for Cow", ValueError)
    assert not list((tmp_path / "out").glob("*.safetensors"))


WALK = RECIPE[RECIPE.index("[[mocap]]") :]
MESHES = RECIPE[RECIPE.index("[[animated]]") : RECIPE.index("[[skeletons]]")]
FLAGS = """
[[simulated]]
kind = "flag"
seeds = [0, 2]
split = "train"

[[simulated]]
kind = "flag"
seeds = [1, 3]
split = "held-out"
"""


def test_seeds_of_two_splits_are_refused_before_anything_is_written(
    sources: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + FLAGS)
    for only in ((), ("simulated",), ("mocap",)):
        with pytest.raises(ValueError, match=r"seeds of flag overlap: \(0, 2\) and \(1, 3\)"):
            run(BuildPack(recipe, sources, tmp_path / "out", only))
    recipe.write_text(RECIPE + FLAGS.replace("[1, 3]", "[2, 3]").replace("flag", "flood", 1))
    with pytest.raises(ValueError, match="kind must be one of"):
        run(BuildPack(recipe, sources, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_actors_name_comes_once(sources: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(WALK + WALK + 'split = "held-out"\n')
    with pytest.raises(UserError, match="need actors of different names, got 'walk-a' twice"):
        run(BuildPack(recipe, sources, tmp_path / "out"))
    assert {a.split for a in Pack.open(tmp_path / "out").actors} == {"train"}


def test_what_the_recipe_no_longer_makes_goes(sources: Path, tmp_path: Path) -> None:
    """A body less, and an entry that is held out under another name: nothing of before is left to train on."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(WALK)
    run(BuildPack(recipe, sources, out))
    held = WALK.replace('"walk"', '"stroll"') + 'split = "held-out"\n'
    less = WALK.replace("variants = 2", "variants = 1")

    recipe.write_text(held + FLAGS.replace("[1, 3]", "[2, 3]"))
    told: list[str] = []
    run(BuildPack(recipe, sources, out, ("mocap",)), told.append)
    says = "stays, but no table of the recipe makes it"
    assert told[-2:] == [f"walk-a {says}", f"walk-b {says}"]
    # What another kind makes is no stranger, whichever process builds it.
    write_actor(out, *renamed(out, "walk-a", "simulated-flag-0002"))
    told.clear()
    run(BuildPack(recipe, sources, out, ("mocap",)), told.append)
    assert told == ["stroll-a", "stroll-b", f"walk-a {says}", f"walk-b {says}"]

    weights = out / "weights.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, weights)
    (out / "damaged.safetensors").write_bytes(b"somebody's")
    recipe.write_text(less + held)
    told.clear()
    run(BuildPack(recipe, sources, out), told.append)
    gone = [
        f"{name} removed: the recipe does not make it" for name in ("simulated-flag-0002", "walk-b")
    ]
    assert told == ["walk-a", "stroll-a", "stroll-b", *gone]
    # What is no actor is somebody else's.
    assert weights.exists()
    weights.unlink()
    (out / "damaged.safetensors").unlink()
    assert {a.name for a in Pack.open(out).actors} == {"walk-a"}
    assert {a.name for a in Pack.open(out, ("held-out",)).actors} == {"stroll-a", "stroll-b"}


def test_a_failed_build_removes_nothing(sources: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(WALK)
    before = run(BuildPack(recipe, sources, out))
    for text in ("", WALK.replace('"walk"', '"stroll"').replace('["wrong.npz"]', "[]")):
        recipe.write_text(text)
        with pytest.raises(ValueError, match="need"):
            run(BuildPack(recipe, sources, out))
        assert all(path.exists() for path in before)


def renamed(pack: Path, name: str, other: str) -> tuple[Actor, tuple[Motion, ...]]:
    opened = Pack.open(pack)
    (actor,) = (actor for actor in opened.actors if actor.name == name)
    return replace(actor, name=other), opened.motions(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"need tables of .*, got none"),
        ("odds = 3", "need odds by group, got 3 in"),
        ('[odds]\na = "x"', r"need positive odds, got {'a': 'x'} in"),
        ("[odds]\na = inf", "need positive odds"),
        ("[animated]\na = 1", r"need tables \[\[animated\]\], got animated = "),
        ("animated = [1]", r"need tables \[\[animated\]\], got animated = "),
        (MESHES.replace('"meshes/*.glb"', "3"), "need a text for files in .*, got 3"),
        (MESHES.replace('"meshes/*.glb"', '"/meshes/*.glb"'), "need a pattern of files within"),
        (MESHES.replace('"meshes/*.glb"', '""'), "need a pattern of files within"),
        (MESHES.replace('["Deer"]', '"Deer"'), r"need a list \[a text, …\] for held_out .*, got 'Deer'"),
        (MESHES.replace("true", "1"), "need true or false for grounded .*, got 1"),
        (MESHES + 'weight = "a"', "need a number for weight in .*, got 'a'"),
        (MESHES + "weight = true", "need a number for weight in .*, got True"),
        (MESHES + "weight = inf", r"need positive finite numbers, got {'weight': inf}"),
        (MESHES + "weight = nan", r"need positive finite numbers, got {'weight': nan}"),
        (MESHES + "triangles = 0", r"need positive finite numbers, got {'triangles': 0}"),
        (MESHES + "species = 4", "need a text for species"),
        (MESHES + 'split = "dev"', "need 'train' or 'held-out' or 'test' for split .*, got 'dev'"),
        (WALK.replace("variants = 2", "variants = 9"), "need 1 to 8 variants, got 9"),
        (WALK.replace("variants = 2", "variants = 0"), "need 1 to 8 variants, got 0"),
        (WALK + "most_pieces = 0", r"need positive finite numbers, got {'most_pieces': 0}"),
        (WALK + "longest = -1", r"need positive finite numbers, got {'longest': -1.0}"),
        (WALK + "longest = 0.5", "need shortest < longest, got 0.75 and 0.5"),
        (WALK.replace('["mocap/*.npz"]', '["/mocap/*.npz"]'), "need a pattern of files within"),
        (FLAGS.replace("[0, 2]", "3"), r"need a list \[a whole number, a whole number\] for seeds"),
        (FLAGS.replace("[0, 2]", '[0, "a"]'), "for seeds in .*, got .0, 'a'."),
        (FLAGS + "weight = inf", r"need positive finite numbers, got {'weight': inf}"),
    ],
)  # fmt: skip
def test_a_recipe_with_wrong_values_says_which(
    sources: Path, tmp_path: Path, text: str, message: str
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=message):
        run(BuildPack(recipe, sources, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_whole_number_will_do_for_a_number() -> None:
    table = {"name": "a", "files": ["b"], "source": "c", "licence": "d", "longest": 4}
    entry = parsed(MocapEntry, table)
    assert isinstance(entry.longest, float)
    assert (entry.longest, entry.files) == (4.0, ("b",))


def test_bones_that_do_not_move_are_refused(tmp_path: Path) -> None:
    glb = Glb(nodes=[{"children": [1, 2]}, {}, {}], scenes=[{"nodes": [0]}])
    glb.save(tmp_path / "still.glb")
    given = Animated("still.glb", "a", "b", "c", "d", True)
    with pytest.raises(ValueError, match=r"need an animation .*, got none in .*still\.glb"):
        list(skeleton_actors(tmp_path, given))
