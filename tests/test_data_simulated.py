"""The simulated actors against mechanics: falling, pins, volume, energy, air; and the recipe's rules."""

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest

from diffusion4d.data import simulated
from diffusion4d.data.simulation import cloth, soft, stage
from diffusion4d.scenes import shapes

GRAVITY = 9.81


def volume(vertices_TV3, faces_F3):
    """Of closed surfaces, by the divergence theorem: Σ a · (b × c) / 6."""
    a, b, c = (vertices_TV3[..., faces_F3[:, i], :] for i in range(3))
    return (a * np.cross(b, c)).sum((-1, -2)) / 6


def dropped_ball(height, seconds):
    """A soft ball of 1 m, let go with its centre at `height`."""
    rng = np.random.default_rng(5)
    ball = shapes.superquadric(120, 2.0)
    world = soft.FLOOR + soft.jelly(rng, ball, f'pos="0 0 {height}"', fall=height)
    return stage.film(
        stage.Scene(
            world=f"<worldbody>{world}</worldbody>",
            pieces=lambda model: [stage.flex_piece(model)],
            seconds=seconds,
        )
    )


def test_a_body_in_the_air_falls_half_g_t_squared_and_keeps_its_shape():
    take = dropped_ball(height=5.0, seconds=0.8)
    time_T = np.arange(len(take.vertices)) / 30
    fallen_TV = 5.0 + take.rest[:, 2] - 5.0 - take.vertices[..., 2]
    # A semi-implicit step h is early by g t h / 2.
    bound_T = 0.5 * GRAVITY * time_T / 240 + 1e-4
    assert (
        np.abs(fallen_TV - 0.5 * GRAVITY * time_T[:, None] ** 2) < 1.05 * bound_T[:, None]
    ).all()
    np.testing.assert_allclose(take.vertices[..., :2] - take.rest[:, :2], 0, atol=1e-6)


def test_a_soft_ball_bounces_without_gaining_energy_and_keeps_its_volume():
    take = dropped_ball(height=1.2, seconds=2.0)
    kept_T = volume(take.vertices, take.faces) / volume(take.rest, take.faces)
    assert kept_T.min() > 0.8
    assert kept_T.max() < 1.02
    centre_T = take.vertices[..., 2].mean(1)
    energy_T = GRAVITY * centre_T[1:-1] + 0.5 * ((centre_T[2:] - centre_T[:-2]) * 15) ** 2
    assert energy_T.max() < 1.01 * GRAVITY * 1.2
    # It has landed, is not pushed through the floor, and has come up again.
    lowest = centre_T.argmin()
    assert centre_T[lowest] < 0.5
    assert centre_T[lowest:].max() > centre_T[lowest] + 0.05
    assert take.vertices[..., 2].min() > -0.03


def test_pinned_vertices_stay_and_the_cloth_keeps_its_lengths():
    scene = cloth.flag(np.random.default_rng(2))
    take = stage.film(dataclasses.replace(scene, seconds=0.5))
    still_V = (take.vertices == take.rest).all((0, 2))
    assert 2 <= still_V.sum() <= 20
    assert not still_V.all()
    stretch_TE = simulated.edge_stretch(take)
    assert stretch_TE.max() < 1.25
    assert (take.part == -1).all()


def test_hanging_cloth_without_wind_loses_energy_until_it_rests():
    rng = np.random.default_rng(1)
    sheet = cloth.Sheet(rng, (9, 7), 1.0)
    # It starts flat and level, held at one side, and swings down as a loose pendulum.
    hanging = sheet.element('pos="0 0 0"', pins='<pin gridrange="0 0 0 6"/>')
    world = f"<worldbody>{hanging}</worldbody>"
    scene = stage.Scene(world, lambda model: [stage.flex_piece(model)], seconds=1.5)
    take = stage.film(scene)
    speed_TV3 = (take.vertices[2:] - take.vertices[:-2]) * 15
    energy_T = 0.5 * (speed_TV3**2).sum(-1).mean(1) + GRAVITY * take.vertices[1:-1, :, 2].mean(1)
    assert energy_T.max() < 0.02
    assert take.vertices[..., 2].min() < -0.8


def test_air_pushes_a_plate_by_its_area_and_the_square_of_the_wind():
    corners_V3 = np.array([[0, 0, 0], [0, 2, 0], [0, 0, 3], [0, 2, 3.0]])
    faces_F3 = np.array([[0, 1, 2], [1, 3, 2]])
    rest = np.zeros((4, 3))
    wind = np.array([5.0, 0, 0])
    force_3 = cloth.air_force(corners_V3, rest, faces_F3, wind).sum(0)
    np.testing.assert_allclose(force_3, [0.5 * cloth.AIR * cloth.DRAG * 6 * 25, 0, 0], atol=1e-12)
    # Along the plate only friction is left, and with the wind nothing.
    along_3 = cloth.air_force(corners_V3, rest, faces_F3, np.array([0, 5.0, 0])).sum(0)
    np.testing.assert_allclose(along_3, [0, 0.5 * cloth.AIR * cloth.SKIN * 6 * 25, 0], atol=1e-12)
    carried = cloth.air_force(corners_V3, np.tile(wind, (4, 1)), faces_F3, wind)
    np.testing.assert_allclose(carried, 0, atol=1e-12)


def test_surfaces_are_closed_and_look_outwards():
    half = np.array([0.5, 1.0, 2.0])
    solid = stage.box(half)
    assert volume(solid.vertices, solid.faces) == pytest.approx(8 * half.prod())
    can = stage.turned(np.array([[0, -1], [0.5, -1], [0.5, 2], [0, 2.0]]), around=12)
    polygon = 0.5 * 12 * 0.25 * np.sin(2 * np.pi / 12)
    assert volume(can.vertices, can.faces) == pytest.approx(3 * polygon)
    # Every edge is used once in each direction.
    edges = {(int(f[i]), int(f[(i + 1) % 3])) for f in can.faces for i in range(3)}
    assert len(edges) == 3 * len(can.faces)
    assert all((b, a) in edges for a, b in edges)


def test_the_same_seed_is_the_same_actor_and_another_seed_another():
    first, first_motion = simulated.simulated_actor("pile", 3, "train")
    again, again_motion = simulated.simulated_actor("pile", 3, "train")
    other, other_motion = simulated.simulated_actor("pile", 4, "train")
    np.testing.assert_array_equal(first_motion.vertices, again_motion.vertices)
    np.testing.assert_array_equal(first.faces, again.faces)
    assert first_motion.vertices.shape != other_motion.vertices.shape
    assert (first.name, first.group, first.split) == ("simulated-pile-0003", "simulated", "train")
    assert other.name == "simulated-pile-0004"
    assert first_motion.fps == 30


@pytest.mark.parametrize("kind", list(simulated.KINDS))
def test_every_kind_gives_a_unit_sized_actor_that_moves(kind):
    entry = {"kind": kind, "seeds": [0, 1], "split": "held-out", "weight": 2.0}
    ((actor, (motion,)),) = simulated.simulated_actors(simulated.read_batches([entry]))
    assert actor.weight == 2.0
    size_T = np.ptp(motion.vertices, axis=1).max(-1)
    assert np.median(size_T) == pytest.approx(1.0, abs=1e-5)
    middle = 0.5 * (motion.vertices[0].min(0) + motion.vertices[0].max(0))
    np.testing.assert_allclose(middle[:2], 0, atol=1e-5)
    assert abs(motion.vertices[..., 2].min()) < 0.06 or not actor.grounded
    assert 0.8 < motion.seconds <= 3.1
    assert len(actor.faces) <= simulated.MAX_TRIANGLES
    # Rigid pieces stay rigid: distances to the piece's mean are those at rest.
    for number in range(actor.part.max() + 1):
        solid = actor.part == number
        rest_V = np.linalg.norm(actor.rest[solid] - actor.rest[solid].mean(0), axis=-1)
        now_TV3 = motion.vertices[:, solid]
        now_TV = np.linalg.norm(now_TV3 - now_TV3.mean(1, keepdims=True), axis=-1)
        np.testing.assert_allclose(now_TV, np.broadcast_to(rest_V, now_TV.shape), atol=1e-5)


def test_accidents_are_told_from_motions():
    take = simulated.unit_sized(dropped_ball(height=1.0, seconds=1.0))
    assert simulated.unfit(take) is None
    burst = take.vertices.copy()
    burst[5, 0, 2] += 5
    frozen = np.repeat(take.vertices[:1], 4, axis=0)
    lost = take.vertices.copy()
    lost[3, 1, 1] = np.nan
    fast = take.vertices + 0.5 * np.arange(len(take.vertices))[:, None, None]
    wide = take.vertices + 0.3 * np.arange(len(take.vertices))[:, None, None] * [1.0, 0, 0]
    for vertices, words in [
        (burst, "edges change"),
        (frozen, "nothing travels"),
        (lost, "not finite"),
        (fast, "in one frame"),
        (wide, "spreads"),
    ]:
        reason = simulated.unfit(dataclasses.replace(take, vertices=vertices))
        assert reason is not None
        assert words in reason


def test_a_seed_of_which_no_attempt_is_fit_is_an_error_of_input(monkeypatch):
    monkeypatch.setattr(simulated, "ATTEMPTS", 0)
    with pytest.raises(ValueError, match="no attempt at pile, seed 3, was fit"):
        simulated.simulated_actor("pile", 3, "train")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"kind": "flood", "seeds": [0, 1], "split": "train"}], "kind must be one of"),
        ([{"kind": "flag", "seeds": [0, 1]}], "needs kind, seeds and split"),
        ([{"kind": "flag", "seeds": [0, 1], "split": "train", "fps": 3}], "needs kind"),
        ([{"kind": "flag", "seeds": [3, 3], "split": "train"}], "0 <= first < stop"),
        ([{"kind": "flag", "seeds": [0, 1], "split": "all"}], "split must be one of"),
        ([{"kind": "towel", "seeds": [0, 1], "split": "train"}], "towel is held out"),
        (
            [
                {"kind": "flag", "seeds": [0, 5], "split": "train"},
                {"kind": "flag", "seeds": [4, 6], "split": "held-out"},
            ],
            "overlap",
        ),
    ],
)
def test_a_recipe_that_would_leak_or_cannot_be_read_is_refused(entries, words):
    with pytest.raises(ValueError, match=words):
        simulated.read_batches(entries)


def test_the_pack_s_recipe_is_sound_as_a_whole_and_holds_out_a_kind_of_every_family():
    recipe = Path(__file__).parents[1] / "experiments/pack/recipe.toml"
    batches = simulated.read_batches(tomllib.loads(recipe.read_text())["simulated"])
    for family in {kind.family for kind in simulated.KINDS.values()}:
        of_family = {
            batch.kind for batch in batches if simulated.KINDS[batch.kind].family == family
        }
        trained = {batch.kind for batch in batches if batch.split == "train"} & of_family
        assert trained
        assert of_family - trained
