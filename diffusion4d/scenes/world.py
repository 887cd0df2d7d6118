r"""Worlds from seeds: one to three bodies, a camera, a stage, put together and observed.

    compose   seed → Scene        the same seed, frames, family and pack give the same scene
    generate  seed → World        compose, observe; compositions that show too little are replaced by derived seeds

With a pack (`diffusion4d.data`) more than half of the main bodies are actors with real motions (family "actor").

Shape letters:  T frames   V vertices   F triangles.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from diffusion4d.data.pack import Pack
from diffusion4d.scenes import ambiguous, motion
from diffusion4d.scenes.actor import actor
from diffusion4d.scenes.articulated import articulated
from diffusion4d.scenes.assembly import assembled
from diffusion4d.scenes.bodies import Body, rigid
from diffusion4d.scenes.camera import random_lens, random_viewpoint
from diffusion4d.scenes.cloth import cloth
from diffusion4d.scenes.elastic import elastic
from diffusion4d.scenes.observe import UnobservableError, World, observe
from diffusion4d.scenes.scene import Scene
from diffusion4d.scenes.scenery import Stage, random_scenery, random_setting

Array = np.ndarray
FAMILIES = ("rigid", "articulated", "elastic", "cloth")
_FAMILY_ODDS = (0.24, 0.36, 0.2, 0.2)
ACTOR = "actor"
"""The family of bodies from a pack."""
ACTOR_SHARE = 0.55
"""Share of main bodies that are actors, where there is a pack; the others keep their proportions."""
_MAKERS: dict[str, Callable[[np.random.Generator, Array, int], Body]] = {
    "rigid": rigid,
    "articulated": articulated,
    "elastic": elastic,
    "cloth": cloth,
}
AMBIGUOUS_SHARE = 0.08
"""Share of worlds with two distinct answers: depth reversals and forks, as many of each."""
_ATTEMPTS = 40
# Vertices for each body by the number of bodies: every frame's mesh is built anew, about 1 ms a thousand triangles.
_DETAIL = {1: 260, 2: 165, 3: 120}


def compose(
    seed: int,
    *,
    num_frames: int = 32,
    family: str | None = None,
    pack: Pack | None = None,
    ambiguous_share: float = AMBIGUOUS_SHARE,
) -> Scene:
    """Put a scene together.

    Args:
        seed: any non-negative integer; the same arguments give the same scene.
        num_frames: T ≥ 2 instants, evenly spaced over the clip.
        family: of the main body; drawn from the seed if None.
        pack: where actors come from; without it there are none.
        ambiguous_share: of scenes with two answers among those whose family is drawn, in [0, 1].

    Raises:
        ValueError: negative seed, fewer than 2 frames, no such family, "actor" without a pack, or no such share.
    """
    if num_frames < 2:
        raise ValueError(f"need num_frames >= 2, got {num_frames}")
    if seed < 0:
        raise ValueError(f"need seed >= 0, got {seed}")
    if not 0 <= ambiguous_share <= 1:
        raise ValueError(f"need ambiguous_share in [0, 1], got {ambiguous_share}")
    if family is None:
        # Its own stream, so that naming the family that would have been drawn changes nothing else.
        family = _family(_stream(seed, 0), pack)
        # A draw beside the others, so that the rest of the worlds are what they would be without these.
        drawn = float(_stream(seed, 100).random())
        if drawn < ambiguous_share:
            family = ambiguous.FAMILIES[int(drawn / ambiguous_share * len(ambiguous.FAMILIES))]
    if family in ambiguous.FAMILIES:
        return ambiguous.scene_of(seed, num_frames, family)
    if family == ACTOR and pack is None:
        raise ValueError("need a pack for the family 'actor', got none")
    if family not in (*FAMILIES, ACTOR):
        known = (*FAMILIES, ACTOR, *ambiguous.FAMILIES)
        raise ValueError(f"need a family of {known}, got {family!r}")
    rng = _stream(seed, 1)
    u = np.linspace(0, 1, num_frames)
    bodies = _cast(rng, u, family, pack)
    lens = random_lens(rng)
    setting = random_setting(rng)
    subject_T3, radius = _subject(rng, bodies)
    view = random_viewpoint(rng, u, lens, subject_T3, radius, floor=setting != "void")
    props = random_scenery(rng, setting, _stage(bodies, view.position, subject_T3))
    return assembled(rng, bodies, props, view, lens, u, family, seed)


def generate(
    seed: int,
    *,
    num_points: int = 128,
    num_frames: int = 32,
    family: str | None = None,
    pack: Pack | None = None,
    ambiguous_share: float = AMBIGUOUS_SHARE,
) -> World:
    """A world with exact truth; a pure function of its arguments.

    Raises:
        ValueError: as `compose`; or fewer than 1 point.
        UnobservableError: no composition derived from this seed shows its bodies (not seen to happen).
    """
    if num_points < 1:
        raise ValueError(f"need num_points >= 1, got {num_points}")
    scene_seed = seed
    for attempt in range(_ATTEMPTS):
        scene = compose(
            scene_seed,
            num_frames=num_frames,
            family=family,
            pack=pack,
            ambiguous_share=ambiguous_share,
        )
        # A retry keeps the family, else those that are hard to see would become rare.
        family = scene.family
        try:
            world = observe(scene, num_points, _stream(seed, 2 + attempt))
        except UnobservableError:
            world = None
        if world is not None and _worth_seeing(world):
            return replace(world, seed=seed)
        derived = np.random.SeedSequence(seed, spawn_key=(1, attempt)).generate_state(2, np.uint32)
        scene_seed = int(derived[0]) << 31 | int(derived[1]) >> 1
    raise UnobservableError(f"need a composition that shows its bodies, got none of {_ATTEMPTS}")


def _stream(seed: int, key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, key)))


def _worth_seeing(world: World) -> bool:
    """The bodies are in view for a good part of the clip, and never quite gone (a fork's are meant to be)."""
    if world.family == "fork":
        return True
    seen_T = world.visible[world.moving if world.moving.any() else slice(None)].mean(0)
    return bool(seen_T.mean() > 0.35 and seen_T.min() > 0.05)


def _family(rng: np.random.Generator, pack: Pack | None) -> str:
    if pack is None:
        return str(rng.choice(FAMILIES, p=_FAMILY_ODDS))
    odds = [ACTOR_SHARE, *((1 - ACTOR_SHARE) * share for share in _FAMILY_ODDS)]
    return str(rng.choice((ACTOR, *FAMILIES), p=odds))


def _body(
    rng: np.random.Generator, u: Array, family: str, num_vertices: int, pack: Pack | None
) -> Body:
    """An actor has the vertices that it has."""
    if family == ACTOR and pack is not None:
        return actor(rng, u, pack)
    return _MAKERS[family](rng, u, num_vertices)


def _cast(rng: np.random.Generator, u: Array, family: str, pack: Pack | None) -> list[Body]:
    """The main body at the origin and up to two others around it, often of the same family."""
    count = int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))
    bodies = [_body(rng, u, family, _DETAIL[count], pack)]
    reach = np.linalg.norm(bodies[0].vertices[..., :2], axis=-1).max()
    for _ in range(count - 1):
        others = FAMILIES if pack is None else (ACTOR, *FAMILIES)
        kind = family if rng.random() < 0.5 else str(rng.choice(others))
        body = _body(rng, u, kind, _DETAIL[count], pack)
        size = motion.log_uniform(rng, 0.35, 1.3)
        heading = rng.uniform(0, 2 * np.pi)
        gap = rng.uniform(0.7, 1.3) * (min(reach, 1.0) + 0.5 * size)
        place = gap * np.array([np.cos(heading), np.sin(heading), 0])
        bodies.append(replace(body, vertices=size * body.vertices + place, rest=size * body.rest))
    return bodies


def _subject(rng: np.random.Generator, bodies: list[Body]) -> tuple[Array, float]:
    """What the camera is about: the middle over time of the main body, or of all, and how much to frame."""
    watched = bodies[:1] if rng.random() < 0.7 else bodies
    vertices_TV3 = np.concatenate([body.vertices for body in watched], 1)
    middle_T3 = vertices_TV3.mean(1)
    radius = float(
        np.percentile(np.linalg.norm(vertices_TV3 - middle_T3[:, None], axis=-1).mean(0), 95)
    )
    # A body that travels is framed with a good part of its way, else it leaves the picture.
    way = 0.5 * float(np.linalg.norm(np.ptp(middle_T3, axis=0)))
    return middle_T3, max(radius, rng.uniform(0.5, 1.0) * (way + 0.5 * radius))


def _stage(bodies: list[Body], camera_T3: Array, subject_T3: Array) -> Stage:
    centre = subject_T3.mean(0) * [1, 1, 0]
    everything = np.concatenate([body.vertices for body in bodies], 1) - centre
    radius = float(np.linalg.norm(everything[..., :2], axis=-1).max())
    return Stage(centre, radius, float(everything[..., 2].max()), camera_T3)
