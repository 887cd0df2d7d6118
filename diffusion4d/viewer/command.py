"""What `diffusion4d view` does: hypotheses and their clip, to the page."""

from collections.abc import Callable
from pathlib import Path

from diffusion4d.clip import Clip, read_clip
from diffusion4d.config import View
from diffusion4d.errors import UserError
from diffusion4d.export.recorded import reading
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.pictures import in_proportion
from diffusion4d.viewer import serve
from diffusion4d.viewer.content import content
from diffusion4d.viewer.page import page, write_page


def run(config: View, say: Callable[[str], None]) -> None:
    """Write the page to `config.html`, or serve it until Ctrl-C.

    Raises:
        UserError: hypotheses or video cannot be used, the page cannot be written, or the port is taken.
    """
    folder = config.folder if config.folder.is_dir() else config.folder.parent
    hypotheses = Hypotheses.load(config.folder)
    clip = clip_of(hypotheses, folder, config.video, say)
    title = Path(clip.name).stem if clip is not None else folder.resolve().name
    value = content(hypotheses, clip, title=title, source=config.folder)
    if config.html is not None:
        say(str(write_page(value, config.html)))
        return

    def save(body: bytes) -> str:
        return serve.save_choice(hypotheses, body, folder)

    running = serve.server(page(value, can_save=True), save, config.port)
    serve.serve(running, browse=config.browse, say=say)


def clip_of(
    hypotheses: Hypotheses, folder: Path, video: Path | None, say: Callable[[str], None]
) -> Clip | None:
    """The clip that was sampled: the video that is given, or the one summary.json names if it is still there.

    Raises:
        UserError: a video that is given cannot be read, or has not the frames of the hypotheses.
    """
    recorded = reading(folder)
    options = {
        k: recorded[k]
        for k in ("start", "end", "stride", "max_frames", "max_size")
        if k in recorded
    }
    if video is not None:
        return read_clip(video, **options)
    known = recorded.get("video")
    if not isinstance(known, str):
        say("without the video: summary.json does not name it; --video does")
        return None
    try:
        clip = read_clip(known, **options)
    except UserError as error:
        say(f"without the video: {error}")
        return None
    if hypotheses.num_frames != clip.T:
        say(
            f"without the video: {known} has {clip.T} frames, the hypotheses {hypotheses.num_frames}"
        )
        return None
    if not in_proportion(clip.size, hypotheses.size):
        say(f"without the video: {known} is out of proportion with the hypotheses' clip")
        return None
    return clip
