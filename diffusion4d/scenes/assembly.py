r"""Bodies, props, a camera and light put together into one scene.

Vertices and triangles of all objects are concatenated, bodies first, in the order in which they were given.
Shape letters:  T frames.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from diffusion4d.scenes.bodies import Body
from diffusion4d.scenes.camera import Lens, Viewpoint
from diffusion4d.scenes.scene import Scene
from diffusion4d.scenes.scenery import Prop
from diffusion4d.scenes.textures import BEHIND, ON_BODIES, random_light, random_texture

Array = np.ndarray


def assembled(
    rng: np.random.Generator,
    bodies: Sequence[Body],
    props: Sequence[Prop],
    view: Viewpoint,
    lens: Lens,
    u: Float[Array, "T"],
    family: str,
    seed: int,
) -> Scene:
    """Everything in one mesh, with textures and light drawn for it."""
    vertices, rest, faces, part, smooth, textures = [], [], [], [], [], []
    start, parts_used = 0, 0
    # The pattern of a floor or wall is as fine as the bodies', however far it reaches.
    largest = max(float(np.ptp(body.rest, axis=0).max()) for body in bodies)
    for body in bodies:
        vertices.append(body.vertices)
        rest.append(body.rest)
        part.append(np.where(body.parts >= 0, body.parts + parts_used, -1))
        parts_used += max(0, int(body.parts.max()) + 1)
        faces.append(body.faces + start)
        start += len(body.rest)
        smooth.append(body.smooth)
        textures.append(random_texture(rng, float(np.ptp(body.rest, axis=0).max()), 0.6, ON_BODIES))
    for prop in props:
        still = prop.mesh.vertices
        vertices.append(np.broadcast_to(still, (len(u), *still.shape)))
        rest.append(still)
        part.append(np.full(len(still), parts_used))
        parts_used += 1
        faces.append(prop.mesh.faces + start)
        start += len(still)
        smooth.append(prop.smooth)
        extent = min(float(np.ptp(still, axis=0).max()), 2.5 * largest)
        textures.append(random_texture(rng, extent, 0.2, BEHIND))
    owner = np.repeat(np.arange(len(faces)), [len(f) for f in faces])
    return Scene(
        vertices=np.concatenate(vertices, 1).astype(np.float32),
        faces=np.concatenate(faces),
        face_object=owner,
        is_static=owner >= len(bodies),
        rest=np.concatenate(rest).astype(np.float32),
        part=np.concatenate(part),
        smooth=np.array(smooth),
        textures=tuple(textures),
        light=random_light(rng),
        extrinsics=view.extrinsics,
        intrinsics=lens.intrinsics,
        size=lens.size,
        u=u,
        family=family,
        camera=view.kind,
        seed=seed,
    )
