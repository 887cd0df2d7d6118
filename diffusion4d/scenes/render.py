r"""Images of a scene, and how deep each pixel is, by the same ray caster that tells the truth about it.

A pixel is the mean of s × s rays. Its linear shade is ambient + strength · max(0, n·l) · lit, n the (interpolated)
normal towards the viewer, l towards the light, lit = 0 in a cast shadow. Textures are sRGB, so they are multiplied by
shade^(1/2.2). What no ray meets is sky.
A depth map is the pointmap of a picture (for each pixel its surface point): the ray of pixel (x, y) has the direction
d = ((x − cx) / fx, (y − cy) / fy, 1) in camera axes and meets its first surface at s d, so that s is its depth.
Shape letters:  F frames   R rays   V vertices.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from diffusion4d.scenes.casting import Caster, Hits
from diffusion4d.scenes.observe import pixel_rays
from diffusion4d.scenes.scene import Scene

Array = np.ndarray


def render(
    scene: Scene, frames: Sequence[int], size: tuple[int, int], *, samples: int = 2
) -> Float32[Array, "F 3 h w"]:
    """Render frames of a scene.

    Args:
        frames: indices into the scene's T instants.
        size: (h, w) px; the picture spans the same view as `scene.size`, so pixels are square only for the same aspect.
        samples: rays along each side of a pixel.

    Returns:
        sRGB-like values in [0, 1].

    Raises:
        ValueError: a frame outside the scene, an empty picture, fewer than 1 sample.
    """
    num_frames = len(scene.vertices)
    if any(not 0 <= frame < num_frames for frame in frames):
        raise ValueError(f"need frames in [0, {num_frames}), got {list(frames)}")
    if min(size) < 1 or samples < 1:
        raise ValueError(f"need a size and samples of at least 1, got {size} and {samples}")
    casters = _still_and_moving(scene)
    pictures = [_picture(scene, frame, size, samples, casters) for frame in frames]
    return np.stack(pictures).astype(np.float32)


def depth_maps(
    scene: Scene, frames: Sequence[int], size: tuple[int, int]
) -> Float32[Array, "F h w"]:
    """Depth of the first surface behind the middle of each pixel, in units of the scene; NaN where there is none.

    Args:
        frames: indices into the scene's T instants.
        size: (h, w) px; as in `render`, the map spans the same view as `scene.size`.

    Raises:
        ValueError: a frame outside the scene, an empty map.
    """
    num_frames = len(scene.vertices)
    if any(not 0 <= frame < num_frames for frame in frames):
        raise ValueError(f"need frames in [0, {num_frames}), got {list(frames)}")
    if min(size) < 1:
        raise ValueError(f"need a size of at least 1, got {size}")
    casters = _still_and_moving(scene)
    pixels_R2 = _pixels(scene, size)
    depth = [_depth(scene, frame, pixels_R2, casters).reshape(size) for frame in frames]
    return np.stack(depth).astype(np.float32)


def depth_at(scene: Scene, frame: int, pixels_R2: Float[Array, "R 2"]) -> Float[Array, "R"]:
    """Depth of the first surface behind places of the view, px of `scene.size`; NaN where there is none."""
    return _depth(scene, frame, pixels_R2, _still_and_moving(scene))


def _depth(
    scene: Scene, frame: int, pixels_R2: Array, casters: tuple[Caster, Array, Array]
) -> Float[Array, "R"]:
    origins, directions = pixel_rays(scene, frame, pixels_R2)
    distance_R = _Frame(scene, frame, casters).first_hits(origins, directions).distance
    return np.where(np.isfinite(distance_R), distance_R, np.nan)


def _pixels(scene: Scene, size: tuple[int, int]) -> Float[Array, "R 2"]:
    """The middles of the pixels of a picture of the whole view, row by row, px of `scene.size`."""
    rows = (np.arange(size[0]) + 0.5) / size[0] * scene.size[0]
    columns = (np.arange(size[1]) + 0.5) / size[1] * scene.size[1]
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], -1)


def _still_and_moving(scene: Scene) -> tuple[Caster, Array, Array]:
    """The caster of what stands still, and the triangle numbers of what does and what does not."""
    still = np.flatnonzero(scene.is_static)
    return (
        Caster(scene.vertices[0], scene.faces[still]),
        still,
        np.flatnonzero(~scene.is_static),
    )


class _Frame:
    """The whole scene at one instant: first hits among all triangles, numbered as the scene numbers them."""

    def __init__(self, scene: Scene, frame: int, casters: tuple[Caster, Array, Array]) -> None:
        self._still, self._still_faces, self._moving_faces = casters
        self._moving = Caster(scene.vertices[frame], scene.faces[self._moving_faces])

    def first_hits(self, origins: Float[Array, "R 3"], directions: Float[Array, "R 3"]) -> Hits:
        still = self._still.first_hits(origins, directions)
        moving = self._moving.first_hits(origins, directions)
        nearer = moving.distance < still.distance
        face = np.where(
            nearer,
            self._moving_faces[moving.face],
            self._still_faces[still.face] if len(self._still_faces) else -1,
        )
        distance = np.where(nearer, moving.distance, still.distance)
        face = np.where(np.isfinite(distance), face, -1)
        weights = np.where(nearer[:, None], moving.barycentric, still.barycentric)
        return Hits(distance, face, weights)


def _picture(
    scene: Scene,
    frame: int,
    size: tuple[int, int],
    samples: int,
    casters: tuple[Caster, Array, Array],
) -> Float[Array, "3 h w"]:
    height, width = size
    fine = (height * samples, width * samples)
    origins, directions = pixel_rays(scene, frame, _pixels(scene, fine))
    world = _Frame(scene, frame, casters)
    hits = world.first_hits(origins, directions)
    colour_R3 = _sky(scene, directions)
    met = np.flatnonzero(hits.face >= 0)
    hit = Hits(hits.distance[met], hits.face[met], hits.barycentric[met])
    at_R3 = origins[met] + hit.distance[:, None] * directions[met]
    normal_R3 = _normals(scene, frame, hit)
    away = np.einsum("ri,ri->r", normal_R3, directions[met]) > 0
    normal_R3[away] *= -1
    lit_R = np.clip(normal_R3 @ scene.light.direction, 0, None)
    if scene.light.shadows:
        facing = np.flatnonzero(lit_R > 0)
        lift = 2e-3 * hit.distance[facing, None] * normal_R3[facing]
        towards = np.repeat(scene.light.direction[None], len(facing), 0)
        lit_R[facing[world.first_hits(at_R3[facing] + lift, towards).face >= 0]] = 0
    # The sky lights what faces up more than what faces down.
    ambient_R = (1 - scene.light.strength) * (0.75 + 0.25 * normal_R3[:, 2])
    shade_R = 1.3 * ambient_R + 1.25 * scene.light.strength * lit_R
    colour_R3[met] = albedo(scene, hit.face, hit.barycentric) * shade_R[:, None] ** (1 / 2.2)
    picture = np.clip(colour_R3, 0, 1).reshape(height, samples, width, samples, 3)
    return picture.mean((1, 3)).transpose(2, 0, 1)


def albedo(
    scene: Scene, face_R: Int[Array, "R"], barycentric_R3: Float[Array, "R 3"]
) -> Float[Array, "R 3"]:
    """Texture colour of surface points, the same at every instant."""
    rest_R3 = np.einsum("rci,rc->ri", scene.rest[scene.faces[face_R]], barycentric_R3)
    # Single precision is plenty for a colour, and sines in it are several times faster.
    rest_R3 = rest_R3.astype(np.float32)
    colour_R3 = np.zeros((len(face_R), 3))
    owner_R = scene.face_object[face_R]
    for number in np.unique(owner_R):
        mine: Bool[Array, "R"] = owner_R == number
        colour_R3[mine] = scene.textures[number].colour(rest_R3[mine])
    return colour_R3


def _normals(scene: Scene, frame: int, hit: Hits) -> Float[Array, "R 3"]:
    """Normals of the triangles, or interpolated between those of the vertices where the object is smooth."""
    corners = scene.vertices[frame][scene.faces].astype(np.float64)
    face_F3 = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # Area-weighted sums over the triangles that share a vertex.
    vertex_V3 = np.stack(
        [
            np.bincount(scene.faces.ravel(), np.repeat(face_F3[:, i], 3), scene.rest.shape[0])
            for i in range(3)
        ],
        -1,
    )
    vertex_V3 /= np.linalg.norm(vertex_V3, axis=-1, keepdims=True) + 1e-12
    interpolated = np.einsum("rci,rc->ri", vertex_V3[scene.faces[hit.face]], hit.barycentric)
    smooth_R = scene.smooth[scene.face_object[hit.face]]
    normal_R3 = np.where(smooth_R[:, None], interpolated, face_F3[hit.face])
    return normal_R3 / (np.linalg.norm(normal_R3, axis=-1, keepdims=True) + 1e-12)


def _sky(scene: Scene, directions_R3: Float[Array, "R 3"]) -> Float[Array, "R 3"]:
    """From horizon to zenith by the height of the ray."""
    rise = directions_R3[:, 2] / np.linalg.norm(directions_R3, axis=-1)
    share = np.clip(0.5 + 0.9 * rise, 0, 1)[:, None]
    return (1 - share) * scene.light.horizon + share * scene.light.zenith
