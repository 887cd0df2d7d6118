r"""Exact truth: what a perfect tracker with perfect depth would say of a scene.

Query points are first hits of random rays of the anchor frame, so they are seen there. A point is carried by the
barycentric weights of its triangle. It is visible when it lies in front of the camera and inside the image, and the
ray towards it meets no surface before it: the first hit is at least 1 − EPSILON of the way (its own surface is at 1).
Scale: lengths are divided by the median depth of the anchor frame's points.
Shape letters:  N points   T frames   V vertices   F triangles.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from diffusion4d.scenes.casting import Caster
from diffusion4d.scenes.scene import Scene

Array = np.ndarray

EPSILON = 2e-3
NEAREST = 0.1
"""Points that ever come nearer to the camera plane than this (times the median depth) are not chosen."""
FARTHEST = 12.0
MOVED = 1e-3
"""A point moves when it ever gets farther than this from where it was in the anchor frame (scene units, world)."""


class UnobservableError(ValueError):
    """The scene does not show enough of its moving bodies."""


@dataclass(frozen=True)
class World:
    """Trajectories with truth.

    points: each instant's own camera frame, OpenCV axes, median anchor depth 1. visible: seen in that frame.
    moving: moves in the world frame. extrinsics: world → camera with world = camera 0, in the same units.
    intrinsics: (fx, fy, cx, cy) px. size: (H, W) px. u: clip time. `seed` is what `generate` was called with;
    `compose(scene_seed, num_frames=T, family=family)` is the scene that was observed.
    """

    points: Float32[Array, "N T 3"]
    visible: Bool[Array, "N T"]
    moving: Bool[Array, "N"]
    intrinsics: Float32[Array, "4"]
    size: tuple[int, int]
    u: Float[Array, "T"]
    extrinsics: Float[Array, "T 4 4"]
    family: str
    camera: str
    seed: int
    scene_seed: int


@dataclass(frozen=True)
class _Attached:
    """Points on a surface: the triangle each lies on and its weights there."""

    face: Array
    barycentric: Array


def pixel_rays(
    scene: Scene, frame: int, pixels_R2: Float[Array, "R 2"]
) -> tuple[Float[Array, "R 3"], Float[Array, "R 3"]]:
    """Origins and directions in the world of rays through pixel positions; s along them is depth."""
    fx, fy, cx, cy = scene.intrinsics
    rotation, shift = scene.extrinsics[frame, :3, :3], scene.extrinsics[frame, :3, 3]
    x = (pixels_R2[:, 0] - cx) / fx
    y = (pixels_R2[:, 1] - cy) / fy
    directions = np.stack([x, y, np.ones_like(x)], -1) @ rotation
    return np.repeat((-shift @ rotation)[None], len(directions), 0), directions


def observe(scene: Scene, num_points: int, rng: np.random.Generator) -> World:
    """Choose query points in frame 0 and follow them exactly.

    In most clips 50–90 % of the points lie on bodies that move and the rest on what stands still; in some all do, as
    in motion capture, in others few. What one of the two cannot give, the other does.

    Raises:
        UnobservableError: too little of the moving bodies is in view, or they come too near or go too far.
    """
    static = Caster(scene.vertices[0], scene.faces[scene.is_static])
    faces_dynamic = scene.faces[~scene.is_static]
    moving_casters = [Caster(vertices, faces_dynamic) for vertices in scene.vertices]
    queries = _queries(scene, static, moving_casters[0], num_points, rng)
    on_static_N = scene.is_static[queries.face]
    if not len(queries.face):
        raise UnobservableError("need something in view at frame 0, got nothing")
    corners = scene.faces[queries.face]
    world_NT3 = np.einsum("tnci,nc->nti", scene.vertices[:, corners], queries.barycentric)
    rotation_T33, shift_T3 = scene.extrinsics[:, :3, :3], scene.extrinsics[:, :3, 3]
    camera_NT3 = np.einsum("tij,ntj->nti", rotation_T33, world_NT3) + shift_T3
    scale = float(np.median(camera_NT3[:, 0, 2]))

    usable_N = (camera_NT3[..., 2].min(1) > NEAREST * scale) & (
        np.abs(camera_NT3).max((1, 2)) < FARTHEST * scale
    )
    share = _share_on_bodies(rng)
    on_bodies = np.flatnonzero(usable_N & ~on_static_N)
    on_ground = np.flatnonzero(usable_N & on_static_N)
    num_bodies = min(round(share * num_points), len(on_bodies))
    num_ground = min(num_points - num_bodies, len(on_ground))
    needed = max(num_points - num_ground, round(min(share, 0.5) * num_points))
    if len(on_bodies) < needed:
        raise UnobservableError(f"need {needed} points on moving bodies, got {len(on_bodies)}")
    chosen = np.concatenate([on_bodies[: num_points - num_ground], on_ground[:num_ground]])
    chosen = rng.permutation(chosen)
    world_NT3, camera_NT3 = world_NT3[chosen], camera_NT3[chosen]

    visible_NT = _visible(scene, static, moving_casters, world_NT3, camera_NT3)
    scale = float(np.median(camera_NT3[:, 0, 2]))
    travelled_N = np.linalg.norm(world_NT3 - world_NT3[:, :1], axis=-1).max(1)
    extrinsics = scene.extrinsics @ np.linalg.inv(scene.extrinsics[0])
    extrinsics[:, :3, 3] /= scale
    return World(
        points=(camera_NT3 / scale).astype(np.float32),
        visible=visible_NT,
        moving=travelled_N > MOVED * scale,
        intrinsics=scene.intrinsics,
        size=scene.size,
        u=scene.u,
        extrinsics=extrinsics,
        family=scene.family,
        camera=scene.camera,
        seed=scene.seed,
        scene_seed=scene.seed,
    )


def _share_on_bodies(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.2:
        return 1.0
    if kind < 0.35:
        return rng.uniform(0.2, 0.5)
    return rng.uniform(0.5, 0.9)


def _queries(
    scene: Scene, static: Caster, dynamic: Caster, num_points: int, rng: np.random.Generator
) -> _Attached:
    """More hits than needed: `num_points` and a reserve on bodies, as many on what stands still."""
    height, width = scene.size
    whole = rng.uniform(0, 1, (4 * num_points, 2)) * [width, height]
    # Small bodies would catch few of the rays through the whole image, so others are aimed at their bounding box.
    body_V = np.unique(scene.faces[~scene.is_static])
    camera_V3 = (
        scene.vertices[0, body_V] @ scene.extrinsics[0, :3, :3].T + scene.extrinsics[0, :3, 3]
    )
    ahead_V3 = camera_V3[camera_V3[:, 2] > 1e-3]
    if len(ahead_V3) < len(body_V) // 2:
        raise UnobservableError("need the moving bodies in front of the camera at frame 0")
    fx, fy, cx, cy = scene.intrinsics
    pixels_V2 = ahead_V3[:, :2] / ahead_V3[:, 2:] * [fx, fy] + [cx, cy]
    low = np.clip(pixels_V2.min(0), 0, [width, height])
    high = np.clip(pixels_V2.max(0), 0, [width, height])
    aimed = low + rng.uniform(0, 1, (8 * num_points, 2)) * (high - low)
    origins, directions = pixel_rays(scene, 0, np.concatenate([whole, aimed]))
    still, moving = static.first_hits(origins, directions), dynamic.first_hits(origins, directions)
    body = moving.distance < still.distance
    ground = (still.face >= 0) & ~body
    # Background is drawn over the whole image only: the box would crowd it around the bodies.
    ground[len(whole) :] = False
    on_body = np.flatnonzero(body)
    on_body = rng.permutation(on_body)[: 2 * num_points]
    on_ground = np.flatnonzero(ground)[: 2 * num_points]
    numbers_static, numbers_dynamic = (
        np.flatnonzero(scene.is_static),
        np.flatnonzero(~scene.is_static),
    )
    return _Attached(
        np.concatenate(
            [numbers_dynamic[moving.face[on_body]], numbers_static[still.face[on_ground]]]
        ),
        np.concatenate([moving.barycentric[on_body], still.barycentric[on_ground]]),
    )


def _visible(
    scene: Scene,
    static: Caster,
    dynamic: list[Caster],
    world_NT3: Float[Array, "N T 3"],
    camera_NT3: Float[Array, "N T 3"],
) -> Bool[Array, "N T"]:
    height, width = scene.size
    fx, fy, cx, cy = scene.intrinsics
    pixels_NT2 = camera_NT3[..., :2] / camera_NT3[..., 2:] * [fx, fy] + [cx, cy]
    inside_NT = ((pixels_NT2 >= 0) & (pixels_NT2 <= [width, height])).all(-1)
    inside_NT &= camera_NT3[..., 2] > 0
    rotation_T33, shift_T3 = scene.extrinsics[:, :3, :3], scene.extrinsics[:, :3, 3]
    eyes_T3 = -np.einsum("tji,tj->ti", rotation_T33, shift_T3)
    visible_NT = inside_NT.copy()

    def clear(caster: Caster, origins: Array, towards: Array) -> Array:
        return caster.first_hits(origins, towards - origins).distance > 1 - EPSILON

    # What stands still is one mesh for all frames.
    n, t = np.nonzero(visible_NT)
    visible_NT[n, t] = clear(static, eyes_T3[t], world_NT3[n, t])
    for frame, caster in enumerate(dynamic):
        n = np.flatnonzero(visible_NT[:, frame])
        origins = np.repeat(eyes_T3[frame][None], len(n), 0)
        visible_NT[n, frame] = clear(caster, origins, world_NT3[n, frame])
    # Queries are first hits of frame 0 by construction; rounding on an edge must not deny it.
    visible_NT[:, 0] = True
    return visible_NT
