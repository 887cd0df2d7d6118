r"""The looks of a surface through the anchor frame's points: the anchor frame itself as its texture.

A vertex at x in the world is seen at π(x) px of the anchor camera, so its texture coordinates are π(x) / (W, H). The
picture already holds the light of the scene and is shown without any.

Shape letters:  V vertices   H, W rows and columns of an image
"""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from diffusion4d.cameras import project, transform
from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses

LONGEST_SIDE = 2048
"""px of the texture at most, which every viewer takes."""


def texture_coordinates(
    hypotheses: Hypotheses, number: int, vertices: Float[torch.Tensor, "V 3"]
) -> Float[np.ndarray, "V 2"]:
    """Where one hypothesis' anchor camera sees these points of its world, (0, 0) the picture's upper left corner."""
    if hypotheses.frame == "world":
        vertices = transform(hypotheses.cameras[number, 0], vertices)
    height, width = hypotheses.size
    pixels = project(vertices, hypotheses.intrinsics)
    return (pixels / torch.tensor([width, height])).numpy()


def anchor_picture(hypotheses: Hypotheses, video: Path, start: float) -> bytes:
    """The anchor frame as a JPEG file, as large as the video has it.

    Raises:
        UserError: the video cannot be read, or its frames have another shape than the hypotheses' clip.
    """
    from PIL import Image

    from diffusion4d.clip import read_clip

    clip = read_clip(video, start=start, max_frames=2, max_size=LONGEST_SIDE)
    (height, width), (rows, columns) = clip.size, hypotheses.size
    if abs(width * rows / (height * columns) - 1) > 0.02:
        raise UserError(
            f"need the video of these hypotheses, whose frames are {columns} × {rows} px, "
            f"got one of {width} × {height} px"
        )
    picture = Image.fromarray(clip.frames[0].permute(1, 2, 0).numpy())
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=92)
    return held.getvalue()
