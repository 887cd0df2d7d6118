r"""A deforming world, before anybody looks at it.

World axes of a scene: z up, about one unit to a body, the floor (if any) at z = 0. What a camera sees of it is
`observe` (exact trajectories) and `render` (images).
Shape letters:  T frames   V vertices   F triangles   O objects.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from diffusion4d.scenes.textures import Light, Texture

Array = np.ndarray


@dataclass(frozen=True)
class Scene:
    """Triangles that move, a camera that watches, and how it all looks.

    vertices: world coordinates, z up. rest: where each vertex is in its object's own axes at rest; textures are
    attached there. face_object: index into `textures`. is_static: the triangle never moves.
    part: the number, unique in the scene, of the rigid piece a vertex belongs to; −1 where the surface deforms.
    smooth: objects shaded with interpolated normals. extrinsics: world → camera, OpenCV axes.
    intrinsics: (fx, fy, cx, cy) px. size: (H, W) px. u: clip time in [0, 1].
    """

    vertices: Float32[Array, "T V 3"]
    faces: Int[Array, "F 3"]
    face_object: Int[Array, "F"]
    is_static: Bool[Array, "F"]
    rest: Float32[Array, "V 3"]
    part: Int[Array, "V"]
    smooth: Bool[Array, "O"]
    textures: tuple[Texture, ...]
    light: Light
    extrinsics: Float[Array, "T 4 4"]
    intrinsics: Float32[Array, "4"]
    size: tuple[int, int]
    u: Float[Array, "T"]
    family: str
    camera: str
    seed: int
