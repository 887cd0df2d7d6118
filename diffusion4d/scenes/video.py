"""A generated world as a video file: `python -m diffusion4d.scenes OUTPUT.mp4 --seed 3`.

The picture spans the view of the scene's own camera, so its truth (`generate(seed, num_frames=…)`) is in
the same units; a pixel of the scene's `size` is side / min(size) pixels of the video.
"""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from diffusion4d.atomic import replace_when_done
from diffusion4d.errors import UserError
from diffusion4d.scenes.render import render
from diffusion4d.scenes.world import compose, generate

Family = Literal["rigid", "articulated", "elastic", "cloth"]


def write_video(
    output: Annotated[Path, tyro.conf.Positional],
    seed: int = 0,
    family: Family | None = None,
    frames: int = 48,
    side: int = 256,
    rate: int = 24,
) -> None:
    """Render a generated world into an mp4 file (H.264).

    Args:
        output: the file to write; its folder is made if missing.
        seed: the same seed gives the same world.
        family: of the main body; drawn from the seed if left out.
        frames: instants, evenly spaced over the clip.
        side: shorter side of the picture in px; both sides are made even.
        rate: frames a second.

    Raises:
        UserError: fewer than 2 frames, less than 16 px, no frames a second, or a negative seed.
        OSError: the file cannot be written.
    """
    import av
    from rich.progress import track

    if frames < 2 or side < 16 or rate < 1 or seed < 0:
        raise UserError(
            "need frames >= 2, side >= 16, rate >= 1 and seed >= 0, "
            f"got {frames}, {side}, {rate} and {seed}"
        )
    # Some seeds are replaced because their first composition shows too little.
    world = generate(seed, num_frames=frames, family=family)
    scene = compose(world.scene_seed, num_frames=frames, family=world.family)
    scale = side / min(scene.size)
    height, width = (2 * round(scale * length / 2) for length in scene.size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        replace_when_done(output) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "16", "preset": "veryfast"}
        silent = not sys.stderr.isatty()
        for t in track(range(frames), "rendering", transient=True, disable=silent):
            (image,) = render(scene, [t], (height, width))
            pixels = np.ascontiguousarray((255 * image + 0.5).astype(np.uint8).transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
