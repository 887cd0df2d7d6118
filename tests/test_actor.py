"""Actors in worlds: curves through frames, stretches that splines follow, feet that stand still."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packs import BOX, box_actor, boxes, moving, small_pack

from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.pack import Pack, write_actor
from diffusion4d.scenes import actor as room
from diffusion4d.scenes.actor import between, sliding, stretch

U = np.linspace(0, 1, 32)
SPEED = 1.2


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    return float((np.cross(a, b) * c).sum() / 6)


def test_between_frames_a_parabola_is_itself() -> None:
    """Catmull and Rom's cubic has no error on parabolas; at the ends the motion goes on straight."""
    t = np.arange(6.0)
    parabola = np.stack([t, 0.5 * t**2, 1 - t], -1)[:, None].astype(np.float32)
    played = Motion("fall", parabola, 30.0, False)
    inner = np.linspace(1, 4, 13)
    expected = np.stack([inner, 0.5 * inner**2, 1 - inner], -1)
    np.testing.assert_allclose(between(played, inner)[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(between(played, t), parabola, atol=1e-6)
    beyond = between(played, np.array([-3.0, 5.0, 9.0]))
    np.testing.assert_allclose(beyond, parabola[[0, -1, -1]], atol=1e-6)
    # A straight line stays one up to its ends.
    line = Motion("line", parabola * np.float32([1, 0, 1]), 30.0, False)
    x = between(line, np.array([0.2, 4.7]))[:, 0, 0]
    np.testing.assert_allclose(x, [0.2, 4.7], atol=1e-6)


def test_loops_go_round() -> None:
    angle = np.linspace(0, 2 * np.pi, 31)
    circle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)[:, None]
    played = Motion("round", circle.astype(np.float32), 30.0, True)
    at = np.linspace(-45, 75, 50)
    expected = np.stack([np.cos(at * np.pi / 15), np.sin(at * np.pi / 15), 0 * at], -1)
    np.testing.assert_allclose(between(played, at)[:, 0], expected, atol=2e-3)


def test_what_is_too_lively_is_shown_for_less_time() -> None:
    """A wave of n periods in twelve control points: slow ones keep their span, fast ones get a shorter one."""
    actor = box_actor()

    def shaken(rate: float, frames: int = 91) -> Motion:
        return moving(actor, lambda t: np.sin(2 * np.pi * rate * t)[:, None] * [0, 0.2, 0], frames)

    rng = np.random.default_rng(0)
    vertices, span = stretch(rng, U, shaken(0.5), 2.0)
    assert span == 2.0
    assert vertices.shape == (32, 8, 3)
    _, span = stretch(rng, U, shaken(4.0), 2.0)
    assert room.SHORTEST < span < 1.2
    _, span = stretch(rng, U, shaken(12.0), 2.0)
    assert span == room.SHORTEST
    # Without an end to go round, no more than there is; and it is all of it.
    vertices, span = stretch(rng, U, shaken(0.5, 16), 2.0)
    assert span == 0.5
    np.testing.assert_allclose(vertices[[0, -1]], shaken(0.5, 16).vertices[[0, -1]], atol=1e-6)
    # The length of a clip decides what a spline can follow: one of twelve frames follows anything.
    assert stretch(rng, np.linspace(0, 1, 12), shaken(12.0), 2.0)[1] == 2.0


def walker() -> tuple[Actor, Motion]:
    """On the spot: a trunk above two feet that take turns on the floor, where they slide towards +x at 1.2 units/s."""
    frames = 30
    phase = np.arange(frames + 1) / frames
    places = np.zeros((frames + 1, 3, 3))
    places[:, 0] = [0, 0, 0.9]
    for foot, shift in ((1, 0.0), (2, 0.5)):
        at = (phase + shift) % 1
        down = at < 0.5
        back = 0.5 * SPEED * (at / 0.5 - 0.5)
        ahead = 0.5 * SPEED * (0.5 - (at - 0.5) / 0.5)
        places[:, foot, 0] = np.where(down, back, ahead)
        places[:, foot, 1] = 0.1 * (2 * foot - 3)
        places[:, foot, 2] = 0.025 + np.where(down, 0, 0.15 * np.sin(2 * np.pi * (at - 0.5)))
    vertices, faces = boxes(places, np.array([0.1, 0.05, 0.05]))
    rest = vertices[0].astype(np.float32)
    part = np.repeat(np.arange(3, dtype=np.int32), 8)
    actor = replace(box_actor("walker"), rest=rest, faces=faces, part=part)
    return actor, Motion("walk", vertices.astype(np.float32), 30.0, True)


def test_feet_say_where_the_body_wants_to_go() -> None:
    actor, walk = walker()
    vertices, span = stretch(np.random.default_rng(0), U, walk, 2.0)
    assert sliding(vertices, span) == pytest.approx([SPEED, 0], abs=0.12 * SPEED)
    # A box that hovers has no feet, wherever it goes; one on the floor that moves is all foot.
    slides = moving(box_actor(), lambda t: np.stack([0 * t, -0.5 * t, 0 * t], -1)).vertices
    assert sliding(slides.astype(float), 1.5) == pytest.approx([0, -0.5], abs=1e-4)
    rises = slides + np.linspace(0, 3, 46)[:, None, None] * [0, 0, 1]
    assert np.linalg.norm(sliding(rises.astype(float), 1.5)) < 0.51
    assert actor.grounded


def test_planted_feet_stand_still_on_the_way(tmp_path: Path) -> None:
    """Bodies that travel do so at their feet's own speed: planted feet then hardly move."""
    actor, walk = walker()
    write_actor(tmp_path, actor, [walk])
    pack = Pack.open(tmp_path)
    still, travelled = [], []
    for seed in range(24):
        body = room.actor(np.random.default_rng(seed), U, pack)
        feet = body.vertices[:, 8:].reshape(32, 2, 8, 3)
        low = feet[..., 2].min(-1)
        planted = (low[1:] < 2e-3) & (low[:-1] < 2e-3)
        step = np.linalg.norm(np.diff(feet.mean(2), axis=0)[..., :2], axis=-1)
        trunk = body.vertices[:, :8].mean(1)
        way = np.linalg.norm(np.diff(trunk, axis=0), axis=-1).sum()
        if way > 0.3:
            still.append(step[planted].mean() / (way / 31))
            travelled.append(way)
        else:
            assert step[planted].mean() > 0
    # A quarter stays on the spot.
    assert 12 <= len(still) <= 23
    assert np.median(still) < 0.25
    assert min(travelled) > 0.5


def test_a_rigid_actor_stays_what_it_is(tmp_path: Path) -> None:
    """Same shape in every frame, right side out also in the mirror, on its floor, and the same for the same seed."""
    pack = Pack.open(small_pack(tmp_path))
    handed = set()
    for seed in range(8):
        body = room.actor(np.random.default_rng(seed), U, pack)
        again = room.actor(np.random.default_rng(seed), U, pack)
        np.testing.assert_array_equal(body.vertices, again.vertices)
        edge = body.vertices[:, body.faces] - body.vertices[:, np.roll(body.faces, 1, 1)]
        at_rest = body.rest[body.faces] - body.rest[np.roll(body.faces, 1, 1)]
        lengths = np.linalg.norm(edge, axis=-1)
        np.testing.assert_allclose(
            lengths, np.tile(np.linalg.norm(at_rest, axis=-1), (32, 1, 1)), atol=1e-5
        )
        for frame in (0, 31):
            assert volume(body.vertices[frame], body.faces) == pytest.approx(0.24, abs=1e-4)
        assert body.vertices[..., 2].min() == pytest.approx(0, abs=1e-6)
        middle = 0.5 * (body.vertices[0].mean(0) + body.vertices[-1].mean(0))
        assert middle[:2] == pytest.approx([0, 0], abs=1e-6)
        assert body.grounded
        assert not body.smooth
        handed.add(bool((body.faces == BOX).all()))
    assert handed == {True, False}


def test_what_swims_goes_ahead_and_what_floats_may_hover(tmp_path: Path) -> None:
    fish = replace(box_actor("fish", group="fish"), grounded=False)
    still = moving(fish, lambda t: 0.02 * np.sin(t)[:, None] * [1, 0, 0])
    write_actor(tmp_path / "swims", fish, [replace(still, name="Swim_Fast")])
    write_actor(tmp_path / "waits", fish, [replace(still, name="Idle")])
    ways = {"swims": [], "waits": []}
    heights = []
    for name, gone in ways.items():
        pack = Pack.open(tmp_path / name)
        for seed in range(10):
            body = room.actor(np.random.default_rng(seed), U, pack)
            gone.append(np.linalg.norm(body.vertices[-1].mean(0) - body.vertices[0].mean(0)))
            heights.append(body.vertices[..., 2].min())
    assert max(ways["waits"]) < 0.05
    assert sum(way > 0.15 for way in ways["swims"]) >= 5
    assert min(heights) == pytest.approx(0, abs=1e-6)
    assert max(heights) > 0.1
