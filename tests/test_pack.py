"""A pack gives back what was written, draws by its odds, and refuses what a world could not take."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.pack import Pack, others, write_actor, write_odds
from diffusion4d.errors import UserError


def an_actor(name: str, **changes: object) -> Actor:
    rest = np.random.default_rng(len(name)).uniform(-0.5, 0.5, (5, 3)).astype(np.float32)
    faces = np.array([[0, 1, 2], [2, 3, 4]], np.int32)
    part = np.array([0, 0, 0, -1, -1], np.int32)
    actor = Actor(
        *(name, "fish", "carp", "somewhere", "CC0", "train"), rest, faces, part, True, False, 1.0
    )
    return replace(actor, **changes)


def a_motion(actor: Actor, name: str = "swim", frames: int = 4, scale: float = 1.0) -> Motion:
    # Its box is exactly `scale` large along x.
    span = np.ptp(actor.rest, axis=0).max()
    path = np.linspace(0, 1, frames, dtype=np.float32)[:, None, None]
    return Motion(name, (scale * actor.rest / span + path).astype(np.float32), 30.0, False)


def test_a_pack_gives_back_what_was_written(tmp_path: Path) -> None:
    actor = an_actor("carp")
    motions = [a_motion(actor, "b|swim fast", 5), replace(a_motion(actor, "a"), loops=True)]
    write_actor(tmp_path, actor, motions)
    pack = Pack.open(tmp_path)
    (read,) = pack.actors
    for field in ("rest", "faces", "part"):
        np.testing.assert_array_equal(getattr(read, field), getattr(actor, field))
    for field in ("name", "group", "species", "source", "licence", "split", "smooth", "weight"):
        assert getattr(read, field) == getattr(actor, field)
    again = pack.motions("carp")
    for written, found in zip(sorted(motions, key=lambda m: m.name), again, strict=True):
        np.testing.assert_array_equal(written.vertices, found.vertices)
        assert (written.name, written.fps, written.loops) == (found.name, found.fps, found.loops)
    assert [path.name for path in tmp_path.iterdir()] == ["carp.safetensors"]


def test_draws_follow_the_odds(tmp_path: Path) -> None:
    """Groups 3 : 1; within the first, actors 1 : 3; each draw is a function of the generator alone."""
    for name, group, weight in (("a", "fish", 1.0), ("b", "fish", 3.0), ("c", "bird", 7.0)):
        actor = an_actor(name, group=group, weight=weight)
        write_actor(tmp_path, actor, [a_motion(actor, "x"), a_motion(actor, "y")])
    write_odds(tmp_path, {"fish": 3.0})
    pack = Pack.open(tmp_path)
    rng = np.random.default_rng(0)
    drawn = [(actor.name, motion.name) for actor, motion in (pack.draw(rng) for _ in range(2000))]
    counts = Counter(drawn)
    expected = {"a": 3 / 32, "b": 9 / 32, "c": 1 / 8}
    for (actor, _), count in counts.items():
        # Five standard deviations of a binomial.
        spread = 5 * np.sqrt(2000 * expected[actor])
        assert abs(count - 2000 * expected[actor]) < spread
    assert len(counts) == 6
    rng = np.random.default_rng(0)
    assert drawn[:20] == [(a.name, m.name) for a, m in (pack.draw(rng) for _ in range(20))]


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    for name, split in (("a", "train"), ("b", "held-out"), ("c", "test")):
        actor = an_actor(name, split=split)
        write_actor(tmp_path, actor, [a_motion(actor)])
    assert [actor.name for actor in Pack.open(tmp_path).actors] == ["a"]
    assert [a.name for a in Pack.open(tmp_path, ("held-out", "test")).actors] == ["b", "c"]
    with pytest.raises(ValueError, match=r"need splits of .* got \['dev'\]"):
        Pack.open(tmp_path, ("dev",))


def test_the_fingerprint_tells_contents_apart(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return Pack.open(tmp_path).fingerprint

    actor = an_actor("carp")
    motion = a_motion(actor)
    write_actor(tmp_path, actor, [motion])
    first = fingerprint()
    assert fingerprint() == first
    write_actor(tmp_path, replace(actor, weight=2.0), [motion])
    second = fingerprint()
    moved = motion.vertices.copy()
    moved[1, 2, 0] += 1e-4
    write_actor(tmp_path, actor, [replace(motion, vertices=moved)])
    third = fingerprint()
    write_actor(tmp_path, actor, [motion])
    assert fingerprint() == first
    write_odds(tmp_path, {"fish": 2.0})
    fourth = fingerprint()
    # Actors of another split take no part in the draw.
    other = an_actor("other", split="test")
    write_actor(tmp_path, other, [a_motion(other)])
    assert fingerprint() == fourth
    assert len({first, second, third, fourth}) == 4


def test_damaged_files_are_named(tmp_path: Path) -> None:
    actor = an_actor("carp")
    path = write_actor(tmp_path, actor, [a_motion(actor)])
    whole = path.read_bytes()
    nothing = {"actor": "{}"}
    for damaged in (b"", whole[:-9], b"\xff" * 9 + whole[9:], save({"rest": actor.rest}, nothing)):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"need a file written by write_actor, got .*carp\.safe"
        ):
            Pack.open(tmp_path)
        assert others(tmp_path, ()) == []
    path.write_bytes(whole)
    for odds in ("{", "3", '{"fish": "x"}', '{"fish": -1}', '{"fish": Infinity}'):
        (tmp_path / "odds.json").write_text(odds)
        with pytest.raises(UserError, match=r"need odds of groups in .*odds\.json: "):
            Pack.open(tmp_path)


def test_refusals_say_what_was_needed(tmp_path: Path) -> None:
    actor = an_actor("carp")
    motion = a_motion(actor)
    holes = motion.vertices.copy()
    holes[0, 0, 0] = np.nan
    wrong = [
        (replace(actor, name="a/b"), [motion], "need a name of letters"),
        (actor, [], "need one or more motions"),
        (actor, [motion, motion], "different names"),
        (actor, [replace(motion, vertices=holes)], "need finite positions"),
        (actor, [replace(motion, vertices=motion.vertices[:1])], "2 or more, 5, 3"),
        (actor, [a_motion(actor, scale=30)], "largest extent of about 1, got 30"),
        (actor, [replace(motion, fps=0.0)], "positive frame rate"),
        (replace(actor, weight=np.inf), [motion], "positive weight, got inf"),
        (replace(actor, weight=0.0), [motion], "positive weight"),
        (replace(actor, faces=actor.faces + 1), [motion], "triangles of vertices 0 to 4"),
    ]
    for who, motions, message in wrong:
        with pytest.raises(ValueError, match=message):
            write_actor(tmp_path, who, motions)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="got none"):
        Pack.open(tmp_path)
    with pytest.raises(UserError, match="need a folder"):
        Pack.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="positive odds"):
        write_odds(tmp_path, {"fish": 0.0})
