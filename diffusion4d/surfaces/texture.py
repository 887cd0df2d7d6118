r"""The looks of a surface through the anchor frame's points: the anchor frame itself as its texture.

A vertex at x is seen at π(E x) px of the anchor camera E, so its texture coordinates are π(E x) / (W, H), whatever the
size that the picture is kept in.

Shape letters:  V vertices   H, W rows and columns of an image
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from diffusion4d.cameras import project, transform
from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.pictures import in_proportion
from diffusion4d.surfaces.mesh import Mesh

LONGEST_SIDE = 2048
"""px of the texture at most, which every viewer takes."""


def textured(mesh: Mesh, hypotheses: Hypotheses, picture: bytes) -> Mesh:
    """A mesh in the hypotheses' frame, seen as the anchor camera saw it."""
    points = torch.from_numpy(mesh.vertices)
    if hypotheses.frame == "world":
        points = transform(hypotheses.cameras[0, 0], points)
    height, width = hypotheses.size
    uv = project(points, hypotheses.intrinsics) / torch.tensor([width, height])
    return replace(mesh, uv=uv.numpy().astype(np.float32), texture=picture)


def first_picture(
    video: Path, hypotheses: Hypotheses, start: float = 0.0
) -> Float32[np.ndarray, "H W 3"]:
    """The anchor frame of a clip as sRGB in [0, 1], as large as the video has it.

    Args:
        start: s into the video, as the clip was read.

    Raises:
        UserError: the video cannot be read, or its frames have another shape than the hypotheses' clip.
    """
    from diffusion4d.clip import read_clip

    clip = read_clip(video, start=start, max_frames=2, max_size=LONGEST_SIDE)
    (height, width), (rows, columns) = clip.size, hypotheses.size
    if not in_proportion(clip.size, hypotheses.size):
        raise UserError(
            f"need the clip of the hypotheses, {columns} x {rows} px or in proportion, "
            f"got one of {width} x {height}"
        )
    return (clip.frames[0].permute(1, 2, 0).float() / 255).numpy()


def encoded(image: Float32[np.ndarray, "H W 3"]) -> bytes:
    """A JPEG file of at most `LONGEST_SIDE`."""
    from PIL import Image

    picture = Image.fromarray(np.round(255 * image).astype(np.uint8))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    held = BytesIO()
    picture.save(held, "JPEG", quality=92)
    return held.getvalue()
