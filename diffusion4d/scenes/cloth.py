r"""The cloth-like family: sheets that wave, hang, fold, are lifted at a corner, billow and cover things.

A sheet is a map (a, b) ∈ [−1/2, 1/2]² → R³ at every u, in closed form: no simulation. Folding
is exactly isometric (the sheet rolls over a moving cylinder); the others keep lengths approximately, by shortening x by
the wave's mean square slope: arc length over a wave of slope A k cos(·) is 1 + A²k²/4 (leading order).
Shape letters:  T frames   V vertices.
"""

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion, shapes
from diffusion4d.scenes.bodies import Body, lifted

Array = np.ndarray


def fold(
    plane_V2: Float[Array, "V 2"],
    direction: Float[Array, "2"],
    line_T: Float[Array, "T"],
    angle_T: Float[Array, "T"],
    radius: float,
) -> Float[Array, "T V 3"]:
    """Turn up the part of a flat sheet that lies past a line, over a cylinder of that radius; lengths are kept.

    The line is {x : direction · x = line}; past it the sheet follows the cylinder for `radius · angle` and goes on
    straight, having turned by `angle` (rad) upwards.
    """
    along_V = plane_V2 @ direction
    past_TV = along_V - line_T[:, None]
    angle_T = np.maximum(angle_T, 0)
    on_arc = np.clip(past_TV, 0, (radius * angle_T)[:, None])
    beyond = np.maximum(past_TV - (radius * angle_T)[:, None], 0)
    turned = on_arc / radius
    x = np.minimum(past_TV, 0) + radius * np.sin(turned) + beyond * np.cos(turned)
    z = radius * (1 - np.cos(turned)) + beyond * np.sin(turned)
    shift_TV = x + line_T[:, None] - along_V
    return np.concatenate([plane_V2 + shift_TV[..., None] * direction, z[..., None]], -1)


def _flag(rng: np.random.Generator, u: Array, a: Array, b: Array, strength: float) -> Array:
    """Held along one edge, waves run to the free end and grow on the way."""
    count = rng.uniform(0.5, 1.8)
    run_T = motion.phase(rng, u, motion.log_uniform(rng, 0.5, 3.0))
    slant, ripple = rng.uniform(-1.5, 1.5), 0.3 * rng.random()
    grow_V = (a + 0.5) ** rng.uniform(0.7, 1.3)
    angle_TV = 2 * np.pi * count * a + slant * b - run_T[:, None]
    amplitude = 0.14 * strength / max(1.0, count)
    y = amplitude * grow_V * (np.sin(angle_TV) + ripple * np.sin(2.1 * angle_TV + 3 * b))
    shorten = 1 - min(0.4, 0.25 * (2 * np.pi * count * amplitude) ** 2)
    z = b - 0.25 * rng.random() * (a + 0.5) ** 2 + 0.3 * amplitude * grow_V * np.cos(angle_TV)
    return np.stack([np.broadcast_to(shorten * a, y.shape), y, z], -1)


def _curtain(rng: np.random.Generator, u: Array, a: Array, b: Array, strength: float) -> Array:
    """Hung along the upper edge, pleated, swaying more the lower one looks."""
    pleats, depth = rng.uniform(1, 3.5), rng.uniform(0, 0.05)
    low_V = 0.5 - b
    sway_T2 = 0.3 * strength * motion.gesture(rng, u, 2.5, 2)
    drift_TV = 0.8 * motion.gesture(rng, u, 2.0, 1) * low_V
    y = depth * (0.4 + 0.6 * low_V) * np.sin(2 * np.pi * pleats * a + 2 * drift_TV)
    y = y + sway_T2[:, :1] * low_V**1.5 + 0.05 * strength * low_V * np.sin(4 * a + 6 * drift_TV)
    x = (1 - 0.8 * depth * pleats) * a + 0.5 * sway_T2[:, 1:] * low_V**1.5
    rise = 0.5 * (sway_T2**2).sum(-1)[:, None] * low_V
    return np.stack([x, y, b + rise], -1)


def _folding(rng: np.random.Generator, u: Array, a: Array, b: Array, strength: float) -> Array:
    """Lying flat, one side or corner is lifted, folded over or peeled off."""
    heading = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(heading), np.sin(heading)])
    plane_V2 = np.stack([a, b], -1)
    reach = float((plane_V2 @ direction).max())
    turn = motion.random_transition(rng, u) if rng.random() < 0.7 else 0.5 + 0.5 * motion.gesture(
        rng, u, 1.5, 1
    )[:, 0]  # fmt: skip
    angle_T = rng.uniform(0.6, 3.0) * min(1.2, 0.4 + strength) * turn
    line = rng.uniform(-0.3, 0.6) * reach
    line_T = line - rng.choice([0.0, rng.uniform(0, 0.5)]) * reach * turn
    return fold(plane_V2, direction, line_T, angle_T, rng.uniform(0.04, 0.2))


def _blanket(rng: np.random.Generator, u: Array, a: Array, b: Array, strength: float) -> Array:
    """Something moves underneath, or air is trapped below: bumps that travel and breathe."""
    plane_V2 = np.stack([a, b], -1)
    z = np.zeros((len(u), len(a)))
    for _ in range(int(rng.integers(1, 4))):
        centre_T2 = rng.uniform(-0.3, 0.3, 2) + 0.25 * strength * motion.gesture(rng, u, 1.5, 2)
        height_T = rng.uniform(0.08, 0.25) * (
            1 + 0.5 * strength * motion.gesture(rng, u, 2.0, 1)[:, 0]
        )
        distance = ((plane_V2 - centre_T2[:, None]) ** 2).sum(-1)
        z = z + height_T[:, None] * np.exp(-0.5 * distance / rng.uniform(0.1, 0.25) ** 2)
    return np.concatenate([np.broadcast_to(plane_V2, (*z.shape, 2)), z[..., None]], -1)


def _canopy(rng: np.random.Generator, u: Array, a: Array, b: Array, strength: float) -> Array:
    """A wing of cloth in the air: arched across, billowing, rippling (parachute, paraglider, kite, umbrella)."""
    arch_T = rng.uniform(0.5, 3.0) * (1 + 0.3 * strength * motion.gesture(rng, u, 2.0, 1)[:, 0])
    angle_TV = arch_T[:, None] * b
    y = b * np.sinc(angle_TV / np.pi)
    z = -0.5 * arch_T[:, None] * b**2 * np.sinc(angle_TV / (2 * np.pi)) ** 2
    run_T = motion.phase(rng, u, motion.log_uniform(rng, 0.5, 2.5))
    ripple = 0.03 * strength * np.sin(6 * a + rng.uniform(-6, 6) * b - run_T[:, None])
    z = z + 0.12 * rng.normal() * (1 - 4 * a**2) + ripple
    return np.stack([np.broadcast_to(a, y.shape), y, z], -1)


def _held(rng: np.random.Generator, u: Array, a: Array, b: Array, strength: float) -> Array:
    """Held at two ends that come nearer and go apart: it sags as a parabola, and shakes."""
    sag_T = rng.uniform(0.05, 0.5) * (
        1 + 0.6 * np.tanh(strength * motion.gesture(rng, u, 2.0, 1)[:, 0])
    )
    run_T = motion.phase(rng, u, motion.log_uniform(rng, 0.4, 2.5))
    wave = (
        0.06
        * strength
        * np.cos(np.pi * a)
        * np.sin(2 * np.pi * rng.uniform(0.5, 1.2) * a - run_T[:, None])
    )
    z = -sag_T[:, None] * (1 - 4 * a**2) + wave + 0.15 * rng.normal() * b**2
    # A shallow parabola of sag s over the unit span is 1 + 8 s²/3 long (leading order).
    x = a / np.sqrt(1 + 16 / 3 * sag_T[:, None] ** 2)
    tilt = 0.2 * strength * motion.gesture(rng, u, 1.5, 1)
    return np.stack([x, np.broadcast_to(b, x.shape), z + tilt * a], -1)


_MAKERS = {
    "flag": _flag,
    "curtain": _curtain,
    "folding": _folding,
    "blanket": _blanket,
    "canopy": _canopy,
    "held": _held,
}


def cloth(rng: np.random.Generator, u: Float[Array, "T"], num_vertices: int) -> Body:
    """A flag, curtain, towel, page, blanket, parachute or shaken sheet."""
    aspect = motion.log_uniform(rng, 0.5, 2.0)
    rows = int(np.clip((num_vertices * aspect) ** 0.5, 8, 28))
    columns = int(np.clip(num_vertices / rows, 8, 28))
    mesh = shapes.sheet(rows, columns)
    a, b = mesh.vertices[:, 0], mesh.vertices[:, 1]
    if rng.random() < 0.4:
        # Not every sheet is a rectangle: trapezia, triangles, bowed outlines.
        taper, bow = rng.uniform(-0.9, 0.9), rng.uniform(-0.3, 0.8)
        b = b * (1 + taper * a) * (1 - bow * (2 * a) ** 2)
        b = 0.5 * b / np.abs(b).max()
    kind = rng.choice(list(_MAKERS), p=[0.22, 0.18, 0.2, 0.14, 0.14, 0.12])
    strength = motion.log_uniform(rng, 0.25, 1.4)
    size = np.array([aspect**0.5, aspect**-0.5])
    if kind in ("flag", "curtain"):
        # These hang: their second coordinate is up, so the aspect stretches x and z.
        x_TV3 = _MAKERS[kind](rng, u, a, b, strength) * [size[0], 1, size[1]]
    elif kind == "folding":
        # The fold keeps lengths, so the aspect goes in before it rather than after.
        x_TV3 = _folding(rng, u, a * size[0], b * size[1], strength)
    else:
        x_TV3 = _MAKERS[kind](rng, u, a, b, strength) * [*size, 1]
    grounded = kind in ("folding", "blanket")
    turn = motion.yaw(np.array(rng.uniform(0, 2 * np.pi)))
    if grounded:
        rotation_T33 = np.repeat(turn[None], len(u), 0)
        position_T3 = np.zeros((len(u), 3))
        if rng.random() < 0.3:
            position_T3 = 0.2 * strength * motion.gesture(rng, u, 1.5, 3) * [1, 1, 0]
    else:
        lean = motion.rotation(0.3 * rng.normal(size=3))
        reach = motion.log_uniform(rng, 0.02, 0.8 if kind == "canopy" else 0.3)
        sway_T33 = motion.rotation(reach * motion.gesture(rng, u, 1.5, 3))
        rotation_T33 = sway_T33 @ turn @ lean
        position_T3 = reach * motion.gesture(rng, u, 1.5, 3)
    x_TV3 = np.einsum("tij,tvj->tvi", rotation_T33, x_TV3) + position_T3[:, None]
    rest_V3 = np.stack([a * size[0], b * size[1], 0 * a], -1)
    parts = np.full(len(a), -1, dtype=np.int64)
    clearance = 0.005 if grounded else rng.uniform(0.0, 1.2)
    return Body(lifted(x_TV3, clearance), mesh.faces, rest_V3, parts, True, grounded)
