r"""Chains: hair, ropes, tails and whips on something that moves (`strands` is what they are made of).

Springs are relative to the strand's weight (m g L), dampers to m L² √(g/L): so a strand of any size swings alike.
A tail has muscles: torques k θ_j(t), which move the springs' rest angles like a wave that runs to the tip.
Shape letters:  T samples of a path   L rods.
"""

import numpy as np

from diffusion4d.data.simulation.stage import (
    STIFF,
    Drive,
    Model,
    Scene,
    State,
    numbers,
    solid_pieces,
)
from diffusion4d.data.simulation.strands import Handle, Strand, rooted
from diffusion4d.scenes import motion

Array = np.ndarray
GRAVITY = 9.81


def swing(
    rng: np.random.Generator, seconds: float, reach: Array, turn: Array, rate: float
) -> Handle:
    """A handle that starts at rest and is moved about: `reach` (m), `turn` (rad), a few times `rate` (1/s)."""
    times = np.linspace(0, 1, 240)
    path_T6 = motion.oscillation(rng, times, max(0.6, rate * seconds), 6)
    path_T6 += 0.5 * motion.drift(rng, times, 6, 6)
    path_T6 = (path_T6 - path_T6[:1]) * np.concatenate([reach, turn])
    return Handle(path_T6 * motion.transition(times, -0.05, 0.2)[:, None], seconds)


def _scene(
    world: str,
    strands: list[Strand],
    around: int,
    seconds: float,
    drive: Drive,
    lead: float,
) -> Scene:
    hidden = [name for strand in strands for name in strand.geoms]
    return Scene(
        world=world,
        pieces=lambda model: [
            *(strand.skin(model, around) for strand in strands),
            *solid_pieces(model, hidden=hidden),
        ],
        seconds=seconds,
        drive=drive,
        lead=lead,
        # A thin rod's tip turns fast; at 240 steps a second a cracking whip breaks the integrator.
        substeps=16,
        grounded=False,
    )


def hair(rng: np.random.Generator) -> Scene:
    """Strands or ribbons on a head that nods, shakes and moves about."""
    half = rng.uniform([0.09, 0.08, 0.1], [0.12, 0.11, 0.15])
    count = int(rng.integers(4, 8))
    length = rng.uniform(0.2, 0.55)
    mass = rng.uniform(0.01, 0.04)
    stiffness = motion.log_uniform(rng, 0.003, 0.1) * mass * GRAVITY * length
    damping = motion.log_uniform(rng, 0.005, 0.05) * mass * length**2 * (GRAVITY / length) ** 0.5
    radius = rng.uniform(0.008, 0.018)
    flat = float(rng.choice([1.0, 0.3]))
    tip = rng.uniform(0.3, 1.0)
    strands = []
    for index in range(count):
        # Over the back half of the head, from ear to ear; they leave it outwards and fall.
        azimuth = np.pi * (0.5 + (index + rng.uniform(0.3, 0.7)) / count)
        height = rng.uniform(0.1, 0.7)
        flank = (1 - height**2) ** 0.5
        out = np.array([flank * np.cos(azimuth), flank * np.sin(azimuth), height])
        strands.append(
            Strand(
                name=f"lock{index}",
                start=out * half,
                direction=out * [1, 1, 0.3],
                links=int(rng.integers(8, 12)),
                length=length * rng.uniform(0.8, 1.1),
                radius=radius,
                mass=mass,
                stiffness=stiffness,
                damping=damping,
                tip=tip,
                flat=flat,
                touches=True,
            )
        )
    head = f'<geom type="ellipsoid" size="{numbers(half)}" mass="0" {STIFF}/>'
    seconds, lead = float(rng.uniform(1.2, 2.4)), 0.6
    drive = swing(
        rng,
        seconds + lead,
        rng.uniform(0.02, 0.2) * np.array([1, 1, 0.4]),
        rng.uniform(0.2, 0.9, 3) * [0.6, 1.0, 1.3],
        rate=rng.uniform(0.5, 1.5),
    )
    world = rooted(head, strands, mass * count)
    return _scene(world, strands, 4 if flat < 1 else 5, seconds, drive, lead)


def rope(rng: np.random.Generator) -> Scene:
    """One to four ropes on a bar that is moved; things may hang on their ends."""
    count = int(rng.integers(1, 5))
    length = motion.log_uniform(rng, 0.4, 1.5)
    radius = length * rng.uniform(0.012, 0.035)
    mass = 800 * np.pi * radius**2 * length
    stiffness = motion.log_uniform(rng, 0.002, 0.05) * mass * GRAVITY * length
    damping = motion.log_uniform(rng, 0.005, 0.05) * mass * length**2 * (GRAVITY / length) ** 0.5
    width = length * rng.uniform(0.1, 0.25) * count
    strands = []
    for index in range(count):
        size = length * rng.uniform(0.04, 0.09)
        weight = str(
            rng.choice(
                [
                    "",
                    f'type="sphere" size="{size}"',
                    f'type="box" size="{size} {size} {0.7 * size}"',
                ]
            )
        )
        if weight:
            weight += f' pos="0 0 {size}" mass="{mass * rng.uniform(0.3, 2.0):.6g}"'
            weight += f' contype="2" conaffinity="1" {STIFF}'
        y = 0.0 if count == 1 else width * (index / (count - 1) - 0.5)
        strands.append(
            Strand(
                name=f"rope{index}",
                start=np.array([0, y, 0]),
                direction=np.array([0, 0, -1.0]) + 0.25 * rng.normal(size=3),
                links=int(rng.integers(10, 15)),
                length=length * rng.uniform(0.7, 1.0),
                radius=radius,
                mass=mass,
                stiffness=stiffness,
                damping=damping,
                tip=1.0,
                touches=False,
                weight=weight,
            )
        )
    reach = 0.5 * width + 2 * radius
    bar = f'<geom type="capsule" size="{1.6 * radius}" fromto="0 {-reach} 0 0 {reach} 0" mass="0"/>'
    seconds, lead = float(rng.uniform(1.5, 3.0)), 0.3
    drive = swing(
        rng,
        seconds + lead,
        length * rng.uniform(0.05, 0.4) * np.array([1, 1, 0.4]),
        rng.uniform(0.1, 0.6, 3),
        rate=rng.uniform(0.3, 1.0) / length**0.5,
    )
    # Bobs add to what the root has to hold.
    world = rooted(bar, strands, 4 * mass * count)
    return _scene(world, strands, 6, seconds, drive, lead)


def tail(rng: np.random.Generator) -> Scene:
    """A tail, trunk or tentacle on a rump: springs hold it up, muscles send waves along it."""
    length = motion.log_uniform(rng, 0.4, 1.2)
    radius = length * rng.uniform(0.04, 0.1)
    links = int(rng.integers(10, 15))
    mass = 400 * np.pi * radius**2 * length
    # Held out level, it would sag by about this angle (rad) over its whole length.
    stiffness = links * mass * GRAVITY * length / 3 / rng.uniform(0.4, 1.2)
    damping = stiffness * rng.uniform(0.02, 0.08)
    direction = motion.about(np.array([0, 1.0, 0]), np.array(rng.uniform(-1.0, 1.2))) @ [1.0, 0, 0]
    rump = rng.uniform(0.14, 0.25, 3) * length
    strand = Strand(
        name="tail",
        start=0.7 * float(rump.min()) * direction,
        direction=direction,
        links=links,
        length=length,
        radius=radius,
        mass=mass,
        stiffness=stiffness,
        damping=damping,
        tip=rng.uniform(0.15, 0.7),
        flat=rng.uniform(0.6, 1.0),
    )
    seconds, lead = float(rng.uniform(1.3, 2.8)), 0.3
    handle = swing(
        rng,
        seconds + lead,
        length * rng.uniform(0.0, 0.15) * np.ones(3),
        rng.uniform(0.05, 0.35, 3),
        rate=rng.uniform(0.4, 1.2),
    )
    rate, waves = rng.uniform(0.5, 2.2), rng.uniform(0.2, 1.3)
    bend_2 = rng.uniform(0.3, 1.6) / links * 2 * motion.unit_vector(rng)[:2]
    start = rng.uniform(0, 2 * np.pi)
    phase_L = start - 2 * np.pi * waves * np.arange(links) / links
    grow_L = np.linspace(rng.uniform(0.2, 1.0), 1.0, links)

    def drive(model: Model, state: State) -> None:
        handle(model, state)
        wave_L = grow_L * np.sin(2 * np.pi * rate * state.time + phase_L)
        first = int(model.joint(int(model.body("tail_0").jntadr[0])).dofadr[0])
        torque_L3 = state.qfrc_applied[first : first + 3 * links].reshape(-1, 3)
        torque_L3[:, :2] = stiffness * wave_L[:, None] * bend_2

    geom = f'<geom type="ellipsoid" size="{numbers(rump)}" mass="0" contype="0" conaffinity="0"/>'
    return _scene(rooted(geom, [strand], mass), [strand], 8, seconds, drive, lead)


def whip(rng: np.random.Generator) -> Scene:
    """A long thin whip or ribbon on a stick that strikes to and fro."""
    length = motion.log_uniform(rng, 0.6, 1.6)
    radius = length * rng.uniform(0.012, 0.025)
    mass = 600 * np.pi * radius**2 * length
    strand = Strand(
        name="lash",
        start=np.array([0.3 * length, 0, 0]),
        direction=np.array([1.0, 0, 0]),
        links=int(rng.integers(14, 19)),
        length=length,
        radius=radius,
        mass=mass,
        stiffness=motion.log_uniform(rng, 0.005, 0.05) * mass * GRAVITY * length,
        damping=motion.log_uniform(rng, 0.004, 0.03) * mass * length**2 * (GRAVITY / length) ** 0.5,
        tip=rng.uniform(0.25, 0.7),
        flat=float(rng.choice([1.0, 0.25])),
    )
    seconds, lead = float(rng.uniform(1.3, 2.4)), 0.4
    times = np.linspace(0, 1, 240)
    beat = motion.phase(rng, times, rng.uniform(0.5, 1.0) * (0.85 * seconds) / length**0.5)
    ease = motion.transition(times, 0.0, 0.3)
    tilt_T = rng.uniform(0.5, 1.0) * np.sin(beat) * ease
    yaw_T = rng.uniform(0.0, 0.8) * np.sin(0.5 * beat + rng.uniform(0, 6)) * ease
    lift_T3 = 0.15 * length * np.stack([np.cos(beat), np.sin(0.5 * beat), np.sin(beat)], -1)
    zero_T = np.zeros_like(tilt_T)
    path_T6 = np.concatenate([lift_T3 * ease[:, None], np.stack([zero_T, tilt_T, yaw_T], -1)], -1)
    stick = (
        f'<geom type="capsule" size="{1.8 * radius}" fromto="0 0 0 {0.3 * length} 0 0" mass="0" '
        'contype="0" conaffinity="0"/>'
    )
    world = rooted(stick, [strand], mass)
    return _scene(world, [strand], 6, seconds, Handle(path_T6, seconds + lead), lead)
