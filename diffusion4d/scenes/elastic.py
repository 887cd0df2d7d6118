r"""The elastic family: soft solids that squash, bend, twist, breathe, quiver and are poked.

Deformations act on rest positions one after the other, each a closed form in the position x and
a smooth signal in u:

    squash    z ← s z, (x, y) ← s^(-1/2) (x, y): volume is kept
    twist     rotation of (x, y) by τ z (Barr 1984)
    bend      the axis becomes a circular arc of curvature κ (Barr 1984); sections stay plane and normal to it
    breathe   the radius grows, most in the middle
    quiver    Σ_k a_k(u) d_k sin(w_k · x + φ_k): the lowest modes of a soft body
    poke      a Gaussian dent that comes and goes
Shape letters:  T frames   V vertices.
"""

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes import motion, shapes
from diffusion4d.scenes.bodies import Body, lifted

Array = np.ndarray


def squash(x_TV3: Float[Array, "T V 3"], stretch_T: Float[Array, "T"]) -> Float[Array, "T V 3"]:
    """Stretch along z about z = 0, sections shrinking so that the volume stays."""
    across = stretch_T**-0.5
    return x_TV3 * np.stack([across, across, stretch_T], -1)[:, None]


def twist(x_TV3: Float[Array, "T V 3"], rate_T: Float[Array, "T"]) -> Float[Array, "T V 3"]:
    """Turn every section about z by `rate` (rad per unit) times its height."""
    angle = rate_T[:, None] * x_TV3[..., 2]
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = np.moveaxis(x_TV3, -1, 0)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)


def bend(x_TV3: Float[Array, "T V 3"], curvature_T: Float[Array, "T"]) -> Float[Array, "T V 3"]:
    """Bend the z axis towards +x into an arc; the length along the axis itself is kept."""
    x, y, z = np.moveaxis(x_TV3, -1, 0)
    angle = curvature_T[:, None] * z
    # (1 − cos κz)/κ and sin(κz)/κ by sinc, which has no pole at κ = 0.
    arc_x = 0.5 * curvature_T[:, None] * z**2 * np.sinc(angle / (2 * np.pi)) ** 2
    arc_z = z * np.sinc(angle / np.pi)
    return np.stack([arc_x + x * np.cos(angle), y, arc_z - x * np.sin(angle)], -1)


def quiver(
    rng: np.random.Generator,
    u: Float[Array, "T"],
    rest_V3: Float[Array, "V 3"],
    amount: float,
    cycles: float,
) -> Float[Array, "T V 3"]:
    """Displacement by five random low-frequency vector modes."""
    num_modes = 5
    waves = rng.normal(size=(3, num_modes)) * rng.uniform(1.5, 5.0, num_modes)
    shape_VK = np.sin(rest_V3 @ waves + rng.uniform(0, 2 * np.pi, num_modes))
    direction_K3 = rng.normal(size=(num_modes, 3)) / np.sqrt(3 * num_modes)
    strength_TK = motion.gesture(rng, u, cycles, num_modes)
    return amount * np.einsum("tk,vk,ki->tvi", strength_TK, shape_VK, direction_K3)


def poke(
    rng: np.random.Generator, u: Float[Array, "T"], rest_V3: Float[Array, "V 3"], depth: float
) -> Float[Array, "T V 3"]:
    """A dent about a random vertex, pushed towards the middle of the body."""
    centre = rest_V3[int(rng.integers(len(rest_V3)))]
    inward = -centre / (np.linalg.norm(centre) + 1e-6)
    width = rng.uniform(0.15, 0.4)
    weight_V = np.exp(-0.5 * ((rest_V3 - centre) ** 2).sum(-1) / width**2)
    press_T = 0.5 + 0.5 * motion.gesture(rng, u, 2.0, 1)[:, 0]
    return depth * press_T[:, None, None] * weight_V[:, None] * inward


def elastic(rng: np.random.Generator, u: Float[Array, "T"], num_vertices: int) -> Body:
    """A soft body: pillow, jelly, worm, face, fruit, plush toy, leg of trousers."""
    power = rng.choice([2.0, rng.uniform(1.6, 5.0)])
    mesh = shapes.superquadric(num_vertices, float(power), axial=bool(rng.random() < 0.4))
    mesh = shapes.stretched(mesh, np.exp(rng.uniform(-0.9, 0.9, 3)))
    if rng.random() < 0.6:
        mesh = shapes.roughened(rng, mesh, rng.uniform(0.05, 0.4))
    strength = motion.log_uniform(rng, 0.2, 1.2)
    cycles = motion.log_uniform(rng, 0.5, 2.8)

    def signal() -> Array:
        return strength * motion.gesture(rng, u, cycles, 1)[:, 0]

    # Deform along a random axis of the body: z is the one that squashing, twisting and bending know.
    axes = np.eye(3)[rng.permutation(3)] if rng.random() < 0.6 else motion.random_rotation(rng)
    rest_V3 = mesh.vertices
    x_TV3 = np.repeat((rest_V3 @ axes.T)[None], len(u), 0)
    chosen = rng.choice(6, size=int(rng.integers(1, 4)), replace=False)
    if 4 in chosen:
        x_TV3 = x_TV3 + quiver(rng, u, rest_V3, 0.5 * strength, cycles) @ axes.T
    if 5 in chosen:
        x_TV3 = x_TV3 + poke(rng, u, rest_V3, 0.3 * strength) @ axes.T
    if 3 in chosen:
        middle_V = np.exp(-3 * (rest_V3**2).sum(-1))
        x_TV3 = x_TV3 * (1 + 0.25 * signal()[:, None] * middle_V)[..., None]
    if 0 in chosen:
        x_TV3 = squash(x_TV3, np.exp(0.5 * np.tanh(signal())))
    if 1 in chosen:
        x_TV3 = twist(x_TV3, 2.5 * signal())
    if 2 in chosen:
        x_TV3 = bend(x_TV3, 2.0 * signal() + rng.uniform(-1, 1))
    x_TV3 = x_TV3 @ axes
    rotation_T33, position_T3, grounded = _carriage(rng, u)
    x_TV3 = np.einsum("tij,tvj->tvi", rotation_T33, x_TV3) + position_T3[:, None]
    if grounded:
        # What squashes on a table keeps its foot on the table.
        x_TV3[..., 2] -= x_TV3[..., 2].min(1, keepdims=True) - position_T3[:, 2:]
    clearance = 0.0 if grounded else rng.uniform(0, 0.8)
    parts = np.full(len(rest_V3), -1, dtype=np.int64)
    return Body(lifted(x_TV3, clearance), mesh.faces, rest_V3, parts, True, grounded)


def _carriage(rng: np.random.Generator, u: Array) -> tuple[Array, Array, bool]:
    """How the soft body as a whole moves: rests, slides, hops or is carried."""
    kind = rng.choice(["rest", "slide", "hop", "carried"], p=[0.35, 0.2, 0.15, 0.3])
    speed = motion.log_uniform(rng, 0.1, 1.8)
    if kind == "carried":
        cycles = motion.log_uniform(rng, 0.5, 2.0)
        return *motion.wandering_pose(rng, u, 0.4 * speed, 0.6 * speed, cycles), False
    start = motion.random_rotation(rng) if rng.random() < 0.5 else np.eye(3)
    if kind == "rest":
        return np.repeat(start[None], len(u), 0), np.zeros((len(u), 3)), True
    heading_T, position_T3, _ = motion.ground_path(rng, u, speed, 0.5 * rng.normal())
    if kind == "hop":
        # A raised cosine rather than |sin|: the bounce stays smooth.
        beat_T = motion.phase(rng, u, motion.log_uniform(rng, 0.5, 2.5))
        position_T3[:, 2] += rng.uniform(0.05, 0.4) * (0.5 - 0.5 * np.cos(beat_T))
    return motion.yaw(heading_T) @ start, position_T3, True
