r"""Actors of a pack as bodies: a stretch of a real motion, somewhere, on a way.

A clip shows `span` seconds of a motion, τ(u) = start + span u; motions that loop are entered anywhere and go round,
others are entered where the stretch fits. Positions between the pack's frames are cubic (Catmull & Rom 1974). A
stretch that is too lively for a spline of twelve control points is shortened, as one would film it at a higher rate.

Game clips run on the spot: planted feet slide backwards. Their own speed says how fast and where to the body means
to go: with the mean horizontal velocity v of the vertices that touch the floor, the body travels with −v, along a
straight or curved path, and its feet stand still. What swims or flies on the spot travels along its own front.
Shape letters:  T frames   V vertices   K frames of the pack's motion.
"""

import fnmatch

import numpy as np
from jaxtyping import Float
from scipy.interpolate import BSpline

from diffusion4d.data.actors import Actor, Motion
from diffusion4d.data.pack import Pack
from diffusion4d.scenes import motion
from diffusion4d.scenes.bodies import Body, lifted

Array = np.ndarray
SPAN = (0.7, 3.0)
"""Seconds of a motion that a clip shows."""
SHORTEST = 0.25
"""Seconds below which no stretch is shortened."""
NUM_CTRL = 12
FAITHFUL = 0.015
"""Root-mean-square distance, in units, by which nine tenths of the vertices may miss their spline."""
STRIDING = 0.35
"""Feet that slide faster than this (units a second) belong to a body that wants to get ahead."""
_AFLOAT = ("fish", "bird")
_AHEAD = ("*swim*", "*flap*", "*glide*", "*fly*")
# glTF's front is +z, which is −y once z points up.
_FRONT = -np.pi / 2


def actor(rng: np.random.Generator, u: Float[Array, "T"], pack: Pack) -> Body:
    """A random actor in a random stretch of one of its motions, from 0.7 to 3 s of it."""
    who, played = pack.draw(rng)
    vertices_TV3, span = stretch(rng, u, played, motion.log_uniform(rng, *SPAN))
    rest_V3, faces = who.rest.astype(np.float64), who.faces.astype(np.int64)
    if rng.random() < 0.5:
        vertices_TV3, rest_V3, faces = _mirrored(vertices_TV3, rest_V3, faces)
    start_3 = vertices_TV3[0].mean(0) * [1, 1, 0]
    vertices_TV3 = _on_its_way(rng, u, vertices_TV3 - start_3, span, who, played)
    turn_33 = motion.yaw(np.array(rng.uniform(0, 2 * np.pi)))
    vertices_TV3 = vertices_TV3 @ turn_33.T
    # A body that travels does so about the origin, where the camera will look for it.
    middle_3 = 0.5 * (vertices_TV3[0].mean(0) + vertices_TV3[-1].mean(0)) * [1, 1, 0]
    vertices_TV3 = vertices_TV3 - middle_3
    if not who.grounded:
        vertices_TV3 = lifted(vertices_TV3, float(rng.choice([0.0, rng.uniform(0, 1.0)])))
    part = who.part.astype(np.int64)
    return Body(vertices_TV3, faces, rest_V3, part, who.smooth, who.grounded)


def stretch(
    rng: np.random.Generator, u: Float[Array, "T"], played: Motion, span: float
) -> tuple[Float[Array, "T V 3"], float]:
    """A stretch of `span` seconds, or of as many as can be; returns its positions and its length."""
    if not played.loops:
        span = min(span, played.seconds)
    start = rng.uniform(0, played.seconds if played.loops else played.seconds - span)
    middle = start + 0.5 * span
    while True:
        vertices_TV3 = between(played, (middle + span * (u - 0.5)) * played.fps)
        if span <= SHORTEST or _followed(u, vertices_TV3[:, ::4]):
            return vertices_TV3, span
        span = max(SHORTEST, 0.75 * span)


def _followed(u: Float[Array, "T"], vertices_TV3: Float[Array, "T V 3"]) -> bool:
    """Clamped cubic splines of NUM_CTRL control points, fitted to the vertices, come near enough."""
    if len(u) <= NUM_CTRL:
        return True
    knots = np.concatenate([np.zeros(3), np.linspace(0, 1, NUM_CTRL - 2), np.ones(3)])
    basis_TM, _ = np.linalg.qr(BSpline.design_matrix(u, knots, 3).toarray())
    flat_TD = vertices_TV3.reshape(len(u), -1)
    missed_TV3 = (flat_TD - basis_TM @ (basis_TM.T @ flat_TD)).reshape(vertices_TV3.shape)
    missed_V = np.sqrt((missed_TV3**2).sum(-1).mean(0))
    return bool(np.quantile(missed_V, 0.9) < FAITHFUL)


def between(played: Motion, frame_T: Float[Array, "T"]) -> Float[Array, "T V 3"]:
    """Positions at fractional frames, by the cubic through two frames on either side of each.

    Where the motion loops, frames go round; else they end at the first and the last.
    """
    last = len(played.vertices) - 1
    if not played.loops:
        frame_T = np.clip(frame_T, 0, last)
    low_T = np.minimum(np.floor(frame_T), np.inf if played.loops else last - 1).astype(np.int64)
    s = (frame_T - low_T)[:, None, None]

    def at(index_T: Array) -> Array:
        if played.loops:
            return played.vertices[index_T % last].astype(np.float64)
        inside = played.vertices[np.clip(index_T, 0, last)].astype(np.float64)
        # Beyond an end the motion goes on as a straight line.
        for end, inner, outside in ((0, 1, index_T < 0), (last, last - 1, index_T > last)):
            if outside.any():
                line = 2.0 * played.vertices[end] - played.vertices[inner]
                inside[outside] = line
        return inside

    a, b, c, d = (at(low_T + step) for step in (-1, 0, 1, 2))
    return b + 0.5 * s * ((c - a) + s * ((2 * a - 5 * b + 4 * c - d) + s * (3 * (b - c) + d - a)))


def _mirrored(vertices_TV3: Array, rest_V3: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Left and right exchanged; triangles still face outwards."""
    return vertices_TV3 * [-1, 1, 1], rest_V3 * [-1, 1, 1], faces[:, ::-1]


def _on_its_way(
    rng: np.random.Generator,
    u: Array,
    vertices_TV3: Array,
    span: float,
    who: Actor,
    played: Motion,
) -> Array:
    """Travel for most of the bodies that go on the spot, as their feet or fins say."""
    gone = np.linalg.norm(np.ptp(vertices_TV3.mean(1)[:, :2], axis=0))
    if gone > 0.4 or rng.random() < 0.25:
        return vertices_TV3
    if who.grounded:
        slide_2 = sliding(vertices_TV3, span)
        speed, front = float(np.linalg.norm(slide_2)), float(np.arctan2(-slide_2[1], -slide_2[0]))
        if speed < STRIDING:
            return vertices_TV3
    elif who.group in _AFLOAT and _named(played.name, _AHEAD):
        speed, front = motion.log_uniform(rng, 0.3, 1.5), _FRONT
    else:
        return vertices_TV3
    turn = rng.normal() * 0.6 if rng.random() < 0.6 else 0.0
    heading_T, position_T3, _ = motion.ground_path(rng, u, speed * span, turn)
    if not who.grounded:
        position_T3[:, 2] += 0.3 * rng.normal() * speed * span * (u - 0.5)
    turned = np.einsum("tij,tvj->tvi", motion.yaw(heading_T - front), vertices_TV3)
    return turned + position_T3[:, None]


def sliding(vertices_TV3: Float[Array, "T V 3"], span: float) -> Float[Array, "2"]:
    """Mean horizontal velocity (units a second) of the lowest vertices of every frame, near the floor alone.

    A foot counts while it is among the lowest hundredth of the body and as low as a foot on the floor is.
    """
    dt = span / (len(vertices_TV3) - 1)
    velocity_TV3 = np.diff(vertices_TV3, axis=0) / dt
    height_TV = 0.5 * (vertices_TV3[1:, :, 2] + vertices_TV3[:-1, :, 2])
    lowest_T1 = np.quantile(height_TV, 0.01, axis=1, keepdims=True)
    floor = float(np.quantile(lowest_T1, 0.2))
    planted = (height_TV <= lowest_T1 + 1e-3) & (height_TV < floor + 0.04)
    if not planted.any():
        return np.zeros(2)
    return velocity_TV3[planted][:, :2].mean(0)


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)
