r"""Scenes with two answers of known odds: depth reversal, and a fork behind an occluder.

**Reversal** (family "reversal"). A sheet turns in front of a long lens. In camera axes with the sheet's pivot at depth
D, the harmonic homology

    X' = X D / (2 Z − D),   that is   1/Z' = 2/D − 1/Z,

keeps every ray and so every track exactly, keeps planes planes, and to first order in 1/D is the mirror in depth
(Z − D → D − Z) with the opposite rotation: Necker's reversal. A surface that covers every pixel at most once hides
nothing of itself either way, so the same points are seen. A fair coin decides which of the two a scene is; since both
give the same observations, the posterior is ½ : ½ whatever the lens, and a weak perspective makes both natural.

**Fork** (family "fork"). A body goes behind a wall and is not seen again. After it has vanished it takes one of two
ways: it turns left or right, or it goes on or stops. The wall covers what either way needs, so it tells nothing. The
odds are even, but for bodies that come slantwise, which go on to their side with probability 0.7: the slant can be
seen.

A tracker's noise does not depend on the answer.
Shape letters:  A answers   N points   T frames   V vertices   F triangles.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32

from diffusion4d.scenes import motion, shapes
from diffusion4d.scenes.assembly import assembled
from diffusion4d.scenes.bodies import Body, lifted
from diffusion4d.scenes.camera import Lens, Viewpoint, look_at, random_lens
from diffusion4d.scenes.casting import Caster
from diffusion4d.scenes.observe import World, pixel_rays
from diffusion4d.scenes.scene import Scene
from diffusion4d.scenes.scenery import Prop

Array = np.ndarray
FAMILIES = ("reversal", "fork")
SLANTED = 0.7
"""Probability that a body which comes slantwise to the wall goes on to that side."""
_ATTEMPTS = 60


@dataclass(frozen=True)
class Ambiguous:
    """A world and everything that its observations allow.

    answers: scaled as the world is, each to a median anchor depth of 1. odds: of each, given what can be seen.
    `answers[truth]` is `world.points` up to rounding.
    """

    world: World
    answers: Float32[Array, "A N T 3"]
    odds: tuple[float, ...]
    truth: int


@dataclass(frozen=True)
class _Arrangement:
    """The same scene, once an answer; bodies differ in where their vertices are, and in nothing else."""

    answers: tuple[Body, Body]
    odds: tuple[float, float]
    props: list[Prop]
    view: Viewpoint
    lens: Lens


def reversal(seed: int, *, num_frames: int = 32) -> Scene:
    """A turning sheet, or its mirror image in depth."""
    return scene_of(seed, num_frames, "reversal")


def fork(seed: int, *, num_frames: int = 32) -> Scene:
    """A body that goes one of two ways behind a wall."""
    return scene_of(seed, num_frames, "fork")


def scene_of(seed: int, num_frames: int, family: str) -> Scene:
    """The scene of a seed, of one of these families."""
    return _scenes(seed, num_frames, family)[0]


def ambiguous(world: World) -> Ambiguous:
    """All answers to a world that was made from a scene of these families.

    Raises:
        ValueError: a world of another family.
    """
    if world.family not in FAMILIES:
        raise ValueError(f"need a world of the families {FAMILIES}, got {world.family!r}")
    scene, others, odds, truth = _scenes(world.scene_seed, len(world.u), world.family)
    face_N, weights_N3 = _attached(world, scene)
    corners_N3 = scene.faces[face_N]
    answers = []
    for other in others:
        at_NT3 = np.einsum("tnci,nc->nti", other.vertices[:, corners_N3], weights_N3)
        at_NT3 = np.einsum("tij,ntj->nti", scene.extrinsics[:, :3, :3], at_NT3)
        at_NT3 = at_NT3 + scene.extrinsics[:, :3, 3]
        answers.append(at_NT3 / np.median(at_NT3[:, 0, 2]))
    return Ambiguous(world, np.stack(answers).astype(np.float32), odds, truth)


def _scenes(
    seed: int, num_frames: int, family: str
) -> tuple[Scene, tuple[Scene, ...], tuple[float, float], int]:
    """The scene that is, the scenes that might be, their odds, and which of them is."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, FAMILIES.index(family))))
    arrangement = _ARRANGE[family](rng, np.linspace(0, 1, num_frames))
    truth = int(rng.random() >= arrangement.odds[0])
    body = arrangement.answers[truth]
    view, u = arrangement.view, np.linspace(0, 1, num_frames)
    scene = assembled(rng, [body], arrangement.props, view, arrangement.lens, u, family, seed)
    # Lit from the camera and without shadows, so that a picture tells no more than tracks do.
    light = view.position.mean(0) - view.target.mean(0)
    light = replace(scene.light, direction=light / np.linalg.norm(light), shadows=False)
    scene = replace(scene, light=light)
    others = []
    for answer in arrangement.answers:
        vertices = scene.vertices.copy()
        vertices[:, : len(answer.rest)] = answer.vertices
        others.append(replace(scene, vertices=vertices))
    return scene, tuple(others), arrangement.odds, truth


def _attached(world: World, scene: Scene) -> tuple[Array, Array]:
    """The triangles and weights of the world's points: those nearest to where they are in the anchor frame."""
    fx, fy, cx, cy = scene.intrinsics
    anchor_N3 = world.points[:, 0].astype(np.float64)
    pixels_N2 = anchor_N3[:, :2] / anchor_N3[:, 2:] * [fx, fy] + [cx, cy]
    origins, directions = pixel_rays(scene, 0, pixels_N2)
    hits = Caster(scene.vertices[0], scene.faces).first_hits(origins, directions)
    # Along a ray the distance is depth. A ray at an edge may miss by rounding, so the hits only tell the scale.
    scale = np.median(hits.distance / anchor_N3[:, 2])
    at_N3 = origins + scale * anchor_N3[:, 2:] * directions
    a, b, c = (scene.vertices[0, scene.faces[:, i]].astype(np.float64) for i in range(3))
    edges_F32 = np.stack([b - a, c - a], -1)
    weights = np.einsum("fdi,nfi->nfd", np.linalg.pinv(edges_F32), at_N3[:, None] - a)
    weights = np.clip(weights, 0, 1)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1)
    nearest = a + np.einsum("fid,nfd->nfi", edges_F32, weights)
    face_N = np.linalg.norm(nearest - at_N3[:, None], axis=-1).argmin(1)
    vw_N2 = weights[np.arange(len(face_N)), face_N]
    return face_N, np.concatenate([1 - vw_N2.sum(-1, keepdims=True), vw_N2], -1)


# Reversal


def reversed_in_depth(
    points: Float[Array, "*batch 3"], pivot_depth: Float[Array, "*batch"]
) -> Float[Array, "*batch 3"]:
    """The harmonic homology X D / (2 Z − D) in camera axes; its own inverse."""
    return points * (pivot_depth / (2 * points[..., 2] - pivot_depth))[..., None]


def _arrange_reversal(rng: np.random.Generator, u: Array) -> _Arrangement:
    lens = random_lens(rng)
    fov = np.radians(rng.uniform(15, 25))
    lens = Lens(lens.size, float(0.5 * min(lens.size) / np.tan(0.5 * fov)))
    fill = rng.uniform(0.6, 0.95)
    for _ in range(_ATTEMPTS):
        mesh = _sheet(rng)
        radius = float(np.linalg.norm(mesh.vertices, axis=-1).max())
        distance = radius / np.tan(fill * lens.half_angle)
        # Camera axes: x right, y down, z away from the camera; the pivot is the origin of the sheet's own axes.
        local_TV3 = _turning(rng, u, mesh)
        wander = rng.choice([0.0, 0.1 * radius])
        pivot_T3 = wander * motion.gesture(rng, u, 1.0, 3) * [1, 1, 0.5] + [0, 0, distance]
        points_TV3 = local_TV3 + pivot_T3[:, None]
        depth_TV = np.broadcast_to(pivot_T3[:, None, 2], points_TV3.shape[:2])
        if _covers_pixels_once(points_TV3, mesh.faces) and _turns_away(local_TV3, radius):
            break
    else:
        raise AssertionError(
            f"need a sheet that does not fold over itself, got none of {_ATTEMPTS}"
        )
    view = _still_camera(rng, distance, len(u))
    rotation_T33, shift_T3 = view.extrinsics[:, :3, :3], view.extrinsics[:, :3, 3]
    parts = np.full(len(mesh.vertices), -1)
    answers = []
    for camera_TV3 in (points_TV3, reversed_in_depth(points_TV3, depth_TV)):
        vertices = np.einsum("tji,tvj->tvi", rotation_T33, camera_TV3 - shift_T3[:, None])
        answers.append(Body(vertices, mesh.faces, mesh.vertices, parts, True, False))
    return _Arrangement((answers[0], answers[1]), (0.5, 0.5), [], view, lens)


def _sheet(rng: np.random.Generator) -> shapes.Mesh:
    """A card, a bent shell, or an outline between a rectangle and an ellipse with a waist; in the plane z = 0."""
    mesh = shapes.sheet(17, 17)
    flat = 2 * mesh.vertices[:, :2]
    # From the square to the disc: (x, y) → (x √(1 − y²/2), y √(1 − x²/2)).
    disc = flat * np.sqrt(1 - 0.5 * flat[:, ::-1] ** 2)
    flat = flat + rng.choice([0.0, rng.random()]) * (disc - flat)
    flat = flat * (1 + rng.uniform(-0.3, 0.3) * flat[:, ::-1] ** 2)
    flat = flat * np.exp(rng.uniform(-0.5, 0.5, 2))
    return shapes.Mesh(np.concatenate([flat, 0 * flat[:, :1]], -1), mesh.faces)


def _turning(rng: np.random.Generator, u: Array, mesh: shapes.Mesh) -> Array:
    """The sheet, flat, bent or jointed, turning about an axis near the image plane."""
    kind = rng.choice(["card", "shell", "jointed"], p=[0.4, 0.25, 0.35])
    flat_V3 = mesh.vertices
    local_TV3 = np.repeat(flat_V3[None], len(u), 0)
    if kind == "shell":
        bend = rng.uniform(-0.5, 0.5, 3)
        x, y = flat_V3[:, 0], flat_V3[:, 1]
        relief = bend[0] * x**2 + bend[1] * y**2 + bend[2] * x * y
        local_TV3[..., 2] = relief - relief.mean()
    if kind == "jointed":
        local_TV3 = _hinged(rng, u, flat_V3)
    lean = np.array([*rng.uniform(-0.25, 0.25, 2), rng.uniform(0, 2 * np.pi)])
    heading = rng.uniform(0, 2 * np.pi)
    axis = np.array([np.cos(heading), np.sin(heading), 0.25 * rng.normal()])
    axis = axis / np.linalg.norm(axis)
    if kind == "card" and rng.random() < 0.4:
        # Past the edge and round: a card hides nothing of itself at any angle.
        angle_T = rng.uniform(-0.9, 0.9) + rng.choice([-1, 1]) * rng.uniform(1.5, 5.0) * u
    else:
        angle_T = rng.uniform(0.4, 1.1) * np.sin(motion.phase(rng, u, rng.uniform(0.35, 1.3)))
    turn_T33 = motion.about(axis, angle_T) @ motion.rotation(lean)
    return np.einsum("tij,tvj->tvi", turn_T33, local_TV3)


def _hinged(rng: np.random.Generator, u: Array, flat_V3: Array) -> Array:
    """Two to four stiff strips with parallel hinges between them, that fold and unfold."""
    count = int(rng.integers(2, 5))
    along = int(rng.integers(2))
    edges = np.linspace(flat_V3[:, along].min(), flat_V3[:, along].max(), count + 1)
    zigzag = (-1.0) ** np.arange(count) * rng.choice([-1, 1])
    signs = zigzag if rng.random() < 0.5 else rng.choice([-1, 1], count)
    swing_TC = rng.uniform(0.1, 0.5) * motion.gesture(rng, u, 1.2, count)
    angle_TC = np.clip(rng.uniform(0.1, 0.7) * signs + swing_TC, -1.1, 1.1)
    # Every strip goes on where the one before it ends.
    width = edges[1] - edges[0]
    along_TC, up_TC = width * np.cos(angle_TC), width * np.sin(angle_TC)
    strip_V = np.clip(np.searchsorted(edges, flat_V3[:, along], "right") - 1, 0, count - 1)
    into_V = (flat_V3[:, along] - edges[strip_V]) / width
    local_TV3 = np.repeat(flat_V3[None], len(u), 0)
    for axis, step_TC in ((along, along_TC), (2, up_TC)):
        start_TC = np.cumsum(step_TC, 1) - step_TC
        local_TV3[..., axis] = start_TC[:, strip_V] + into_V * step_TC[:, strip_V]
    return local_TV3 - local_TV3.mean(1, keepdims=True)


def _covers_pixels_once(camera_TV3: Array, faces_F3: Array) -> bool:
    """In every frame all triangles are seen from one side: an outline that folds over itself has both."""
    image_TV2 = camera_TV3[..., :2] / camera_TV3[..., 2:]
    a, b, c = (image_TV2[:, faces_F3[:, i]] for i in range(3))
    area_TF = (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]
    return bool(((area_TF > 0).all(1) | (area_TF < 0).all(1)).all())


def _turns_away(local_TV3: Array, radius: float) -> bool:
    """Not edge-on at first, and at some time deep enough for its mirror image to be another thing."""
    deep_T = local_TV3[..., 2].std(1)
    return bool(deep_T[0] < 0.35 * radius and deep_T.max() > 0.15 * radius)


def _still_camera(rng: np.random.Generator, distance: float, num_frames: int) -> Viewpoint:
    """A camera that looks at the origin."""
    azimuth, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.8)
    away = [np.cos(tilt) * np.cos(azimuth), np.cos(tilt) * np.sin(azimuth), np.sin(tilt)]
    position_T3 = np.repeat(distance * np.array([away]), num_frames, 0)
    target_T3 = np.zeros((num_frames, 3))
    return Viewpoint(
        "static", position_T3, target_T3, look_at(position_T3, target_T3, np.zeros(num_frames))
    )


# Fork


def _arrange_fork(rng: np.random.Generator, u: Array) -> _Arrangement:
    for _ in range(_ATTEMPTS):
        found = _attempt_fork(rng, u)
        if found is not None:
            return found
    raise AssertionError(f"need a way that is seen first and hidden later, got none of {_ATTEMPTS}")


def _attempt_fork(rng: np.random.Generator, u: Array) -> _Arrangement | None:
    """The wall stands in the plane x = 0; the camera is at x < 0, and the body stays at x > 0."""
    kind = str(rng.choice(["straight", "slanted", "across", "halt"], p=[0.35, 0.3, 0.15, 0.2]))
    # It comes towards the wall, or along it from one side.
    across = kind == "across" or (kind == "halt" and rng.random() < 0.5)
    side = float(rng.choice([-1, 1]))
    slant = rng.uniform(0.3, 0.6) if kind == "slanted" else 0.0
    vanishes = rng.uniform(0.35, 0.6)
    pace = rng.uniform(1.1, 2.4) / vanishes
    heading = side * (0.5 * np.pi if across else np.pi - slant)
    # The first way goes on to the side that the slant points to.
    turns = (-side * (0.5 * np.pi - slant), side * (0.5 * np.pi + slant))
    turns = (0.0, 0.0) if kind == "halt" else turns
    stops = (False, kind == "halt")
    keeps = rng.uniform(0.3, 1.0)
    ways = [
        _way(u, heading, pace, vanishes + 0.02, keeps * (not stop), turn)
        for turn, stop in zip(turns, stops, strict=True)
    ]
    mesh = shapes.stretched(shapes.primitive(rng, 200), np.exp(rng.uniform(-0.4, 0.4, 3)))
    footprint = float(np.linalg.norm(mesh.vertices[:, :2], axis=-1).max())
    nearest = min(position_T3[:, 0].min() for position_T3, _ in ways)
    aside = np.array([footprint + rng.uniform(0.1, 0.5) - nearest, 0.0, 0.0])
    parts, smooth = np.zeros(len(mesh.vertices), dtype=np.int64), len(mesh.vertices) != 24
    bodies = []
    for position_T3, heading_T in ways:
        vertices_TV3 = motion.moved(motion.yaw(heading_T), position_T3 + aside, mesh.vertices)
        bodies.append(Body(lifted(vertices_TV3), mesh.faces, mesh.vertices, parts, smooth, True))
    lens = random_lens(rng)
    view = _watching(rng, u, lens, bodies, 0.15 if across else 0.45)
    panel = _panel(rng, bodies, view, u >= vanishes)
    if panel is None or not _in_view(bodies[0].vertices[0], view, lens):
        return None
    odds = (SLANTED, 1 - SLANTED) if kind == "slanted" else (0.5, 0.5)
    props = [panel, *_surroundings(rng, bodies, view)]
    return _Arrangement((bodies[0], bodies[1]), odds, props, view, lens)


def _way(
    u: Array, heading: float, pace: float, junction: float, keeps: float, turn: float
) -> tuple[Array, Array]:
    """Position and heading over time: straight on, from `junction` on with a bend and at that share of the pace."""
    # Finer than frames, so that the way does not depend on their number.
    fine = np.linspace(0, 1, 1025)
    speed = pace * (1 - (1 - keeps) * motion.transition(fine, junction, junction + 0.15))
    direction = heading + turn * motion.transition(fine, junction, junction + 0.3)
    velocity = speed[:, None] * np.stack([np.cos(direction), np.sin(direction)], -1)
    step = 0.5 * (velocity[1:] + velocity[:-1]) / (len(fine) - 1)
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(step, 0)])
    position_T3 = np.stack([np.interp(u, fine, path[:, i]) for i in range(2)] + [0 * u], -1)
    return position_T3, np.interp(u, fine, direction)


def _watching(
    rng: np.random.Generator, u: Array, lens: Lens, bodies: list[Body], tilt: float
) -> Viewpoint:
    """From before the wall, about `tilt` (rad) above it; still, or held by hand."""
    everything = np.concatenate([body.vertices.reshape(-1, 3) for body in bodies])
    low, high = everything.min(0), everything.max(0)
    # The wall is part of the picture.
    low[0] = 0.0
    middle, radius = 0.5 * (low + high), 0.5 * float(np.linalg.norm(high - low))
    distance = radius / np.sin(rng.uniform(0.85, 1.25) * lens.half_angle)
    tilt, turn = tilt + rng.uniform(-0.1, 0.35), rng.uniform(-0.3, 0.3)
    towards = [-np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)]
    position_T3 = np.repeat((middle + distance * np.array(towards))[None], len(u), 0)
    target_T3 = np.repeat(middle[None], len(u), 0)
    held = rng.random() < 0.3
    if held:
        position_T3 = position_T3 + 0.01 * distance * motion.drift(rng, u, 6, 3)
        target_T3 = target_T3 + 0.01 * distance * motion.drift(rng, u, 6, 3)
    extrinsics = look_at(position_T3, target_T3, np.full(len(u), 0.03 * rng.normal()))
    return Viewpoint("handheld" if held else "static", position_T3, target_T3, extrinsics)


def _panel(
    rng: np.random.Generator, bodies: list[Body], view: Viewpoint, hidden_T: Array
) -> Prop | None:
    """The wall that hides either way at these times; None where it would hide the body from the start."""
    thickness = rng.uniform(0.05, 0.3)
    if view.position[:, 0].max() > -2 * thickness - 0.3:
        return None
    # Where rays from the camera to the vertices pass the plane of the wall.
    through = []
    for body in bodies:
        eye_T13 = view.position[:, None]
        share_TV = eye_T13[..., 0] / (eye_T13[..., 0] - body.vertices[..., 0])
        through.append((eye_T13 + share_TV[..., None] * (body.vertices - eye_T13))[..., 1:])
    behind = np.concatenate([at_TV2[hidden_T].reshape(-1, 2) for at_TV2 in through])
    margin = rng.uniform(0.03, 0.2, 3)
    low, high = behind.min(0) - margin[:2], behind.max(0) + margin[1:]
    low[1] = 0.0
    covered_TV = ((through[0] > low) & (through[0] < high)).all(-1)
    if covered_TV[0].any() or covered_TV[~hidden_T].mean() > 0.6:
        return None
    corners = shapes.box().vertices + np.array([-0.5, 0.5, 0.5])
    size = np.array([thickness, *(high - low)])
    return Prop(shapes.Mesh(corners * size + [0, low[0], low[1]], shapes.box().faces), False)


def _in_view(vertices_V3: Array, view: Viewpoint, lens: Lens) -> bool:
    """All of it inside the first picture."""
    camera_V3 = vertices_V3 @ view.extrinsics[0, :3, :3].T + view.extrinsics[0, :3, 3]
    half = 0.5 * np.array(lens.size[::-1]) / lens.focal
    image_V2 = camera_V3[:, :2] / camera_V3[:, 2:]
    return bool((camera_V3[:, 2] > 0).all() and (np.abs(image_V2) < half).all())


def _surroundings(rng: np.random.Generator, bodies: list[Body], view: Viewpoint) -> list[Prop]:
    """A floor, and often a wall beyond everything."""
    everything = np.concatenate([body.vertices.reshape(-1, 3) for body in bodies])
    reach = float(np.linalg.norm(view.position - view.target, axis=-1).max())
    sheet = shapes.sheet(13, 13)
    middle = everything.mean(0) * [1, 1, 0]
    floor = sheet.vertices * 8 * reach + middle - [0, 0, 0.002]
    props = [Prop(shapes.Mesh(floor, sheet.faces), True)]
    if rng.random() < 0.6:
        away = everything[:, 0].max() + rng.uniform(0.2, 1.0) * reach
        upright = sheet.vertices[:, [2, 0, 1]] * 8 * reach
        props.append(
            Prop(shapes.Mesh(upright + middle * [0, 1, 0] + [away, 0, 0], sheet.faces), False)
        )
    return props


_ARRANGE: dict[str, Callable[[np.random.Generator, Array], _Arrangement]] = {
    "reversal": _arrange_reversal,
    "fork": _arrange_fork,
}
