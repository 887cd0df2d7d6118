"""Jointed and rigid scenes against mechanics: a hanging chain's period, friction, impact, a grip that holds."""

import numpy as np
import pytest
from scipy.special import j0, jn_zeros

from diffusion4d.data import simulated
from diffusion4d.data.simulation import hands, piles, stage, strands

GRAVITY = 9.81


def still_handle():
    return strands.Handle(np.zeros((2, 6)), seconds=1.0)


def hanging(links, length, tilt):
    """A limp chain without friction under a root that is held still, let go from a straight slant."""
    strand = strands.Strand(
        name="chain",
        start=np.zeros(3),
        direction=np.array([np.sin(tilt), 0, -np.cos(tilt)]),
        links=links,
        length=length,
        radius=0.01,
        mass=1.0,
        stiffness=0.0,
        damping=0.0,
        tip=1.0,
    )
    return strand, strands.rooted("", [strand], 1.0)


def test_a_limp_chain_swings_with_bernoullis_period():
    links, length = 15, 0.8
    strand, world = hanging(links, length, tilt=0.04)
    scene = stage.Scene(
        world, lambda model: [strand.skin(model, 4)], 2.0, drive=still_handle(), substeps=16
    )
    take = stage.film(scene)
    # Four corners a ring, then the two ends; the amplitude of the first mode is its projection on J₀.
    sway_TJ = take.vertices[:, :-2].reshape(len(take.vertices), links + 1, 4, 3).mean(2)[..., 0]
    zero = jn_zeros(0, 1)[0]
    mode_J = j0(zero * (np.linspace(1, 0, links + 1) ** 0.5))
    amplitude_T = np.trapezoid(sway_TJ * mode_J, axis=1)
    time_T = np.arange(len(amplitude_T)) / 30
    rate = 0.5 * zero * (GRAVITY / length) ** 0.5
    np.testing.assert_allclose(amplitude_T / amplitude_T[0], np.cos(rate * time_T), atol=0.08)


def test_rods_keep_their_lengths_and_the_root_follows_its_handle():
    strand, world = hanging(8, 0.5, tilt=0.3)
    time_T = np.linspace(0, 1, 100)
    path_T6 = np.zeros((100, 6))
    path_T6[:, 0] = 0.3 * np.sin(3 * time_T)
    handle = strands.Handle(path_T6, seconds=1.0)
    take = stage.film(
        stage.Scene(world, lambda model: [strand.skin(model, 4)], 1.0, drive=handle, substeps=16)
    )
    joint_TJ3 = take.vertices[:, :-2].reshape(len(take.vertices), 9, 4, 3).mean(2)
    rod_TL = np.linalg.norm(np.diff(joint_TJ3, axis=1), axis=-1)
    np.testing.assert_allclose(rod_TL, 0.5 / 8, rtol=1e-5)
    asked_T = 0.3 * np.sin(3 * np.linspace(0, 1, len(take.vertices)))
    np.testing.assert_allclose(joint_TJ3[:, 0, 0], asked_T, atol=0.02)


def rigid(bodies, seconds, velocity_N6, friction=0.4):
    """Centres of free bodies over time, from the corners of their surfaces."""
    touch = f'friction="{friction}" solref="0.01 1" solimp="0.95 0.99 0.002"'
    floor = f'<geom type="plane" size="0 0 1" {touch}/>'
    text = "".join(
        f"<body {place}><freejoint/><geom {geom} {touch}/></body>" for place, geom in bodies
    )
    scene = stage.Scene(
        f"<worldbody>{floor}{text}</worldbody>",
        lambda model: stage.solid_pieces(model),
        seconds,
        drive=piles.Throw(velocity_N6),
        option=hands.GRIP,
    )
    take = stage.film(scene)
    return np.stack([take.vertices[:, take.part == n].mean(1) for n in range(len(bodies))], 1)


def test_a_sliding_box_stops_after_v_squared_over_two_mu_g():
    speed, friction = 2.0, 0.4
    velocity_N6 = np.array([[speed, 0, 0, 0, 0, 0.0]])
    centre_TN3 = rigid(
        [('pos="0 0 0.05"', 'type="box" size="0.2 0.2 0.05" density="500"')],
        1.0,
        velocity_N6,
        friction,
    )
    way = centre_TN3[-1, 0, 0] - centre_TN3[0, 0, 0]
    assert way == pytest.approx(speed**2 / (2 * friction * GRAVITY), rel=0.05)
    np.testing.assert_allclose(centre_TN3[-5:, 0], centre_TN3[-1:, 0].repeat(5, 0), atol=2e-3)


def test_a_collision_in_the_air_keeps_momentum():
    balls = [
        ('pos="0 0 2"', 'type="sphere" size="0.1" density="1000"'),
        ('pos="0.6 0.03 2"', 'type="sphere" size="0.1" density="3000"'),
    ]
    velocity_N6 = np.zeros((2, 6))
    velocity_N6[0, 0], velocity_N6[1, 0] = 3.0, -1.0
    centre_TN3 = rigid(balls, 0.4, velocity_N6)
    # Masses are as densities; the centre of mass moves along the parabola that it started.
    mass_centre_T3 = (centre_TN3[:, 0] + 3 * centre_TN3[:, 1]) / 4
    np.testing.assert_allclose(mass_centre_T3[:, 0], 0.45, atol=1e-3)
    np.testing.assert_allclose(mass_centre_T3[:, 1], 0.0225, atol=1e-3)
    parting_T = centre_TN3[:, 1, 0] - centre_TN3[:, 0, 0]
    assert parting_T[-1] > parting_T.min()
    assert parting_T.min() > 0.15


def test_fingers_lift_what_they_close_on_and_leave_what_they_do_not():
    def lifted(grip):
        """How far the thing is off the floor 0.3 s before the end of a lift."""
        rng = np.random.default_rng(3)
        held = hands.Thing(('type="box" size="0.05 0.05 0.06"',), 0.06, 0.05, 0.36)
        hand = hands.hand(rng, 0.12, hold=30 * held.mass * GRAVITY)
        palm_T6 = np.zeros((len(hands.TIMES), 6))
        palm_T6[:, 2] = 0.95 * hand.length + 0.2 * np.clip(2 * hands.TIMES - 1, 0, 1)
        script = hands.Script(palm_T6, grip * np.clip(4 * hands.TIMES, 0, 1), 1.5)
        scene = hands.scene(hand, held.body(np.zeros(2), 0.0), script, lead=0.1)
        take = stage.film(scene)
        thing = take.part == take.part.max()
        return take.vertices[-10, thing, 2].min()

    assert lifted(grip=1.0) > 0.08
    assert abs(lifted(grip=0.0)) < 2e-3


def test_no_scene_outgrows_its_triangles_and_all_parts_are_numbered():
    actor, motion = simulated.simulated_actor("grasp", 1, "held-out")
    assert actor.part.min() == 0
    assert set(actor.part) == set(range(actor.part.max() + 1))
    # A palm, three fingers of two phalanges at least, and the thing.
    assert actor.part.max() + 1 >= 1 + 6 + 1
    assert motion.vertices.dtype == np.float32
