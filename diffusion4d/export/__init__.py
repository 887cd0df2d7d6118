"""Files a user can open: all of them, or none.

    hypotheses.npz   the answer, for numpy
    hypotheses.glb   every hypothesis moving, for Blender, three.js and any glTF viewer
    overlay.mp4      tracks and reprojected hypotheses over the video
    summary.png      the fan from several sides, and where it opens
    summary.json     what was assumed, timings, reprojection, spread

They are written into a hidden folder inside the output folder, one file system with it, and moved to
their names when the last is complete: a run that is stopped or fails leaves what was there before.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion4d.clip import Clip
from diffusion4d.errors import UserError
from diffusion4d.export.recorded import REPORT, clock, length
from diffusion4d.hypotheses import FILE_NAME, Hypotheses

FILES = (FILE_NAME, "hypotheses.glb", "overlay.mp4", "summary.png", REPORT)

__all__ = ["FILES", "require_writable", "staged", "write_all"]


def write_all(
    hypotheses: Hypotheses,
    out_dir: str | os.PathLike[str],
    clip: Clip | None = None,
    *,
    assumptions: Mapping[str, Any] | None = None,
    timings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Write the five `FILES` into `out_dir`, made if missing; older ones are replaced.

    Args:
        clip: the video, for the pictures and the clock; the tracks alone are drawn without.
        assumptions: for summary.json, with the names of model and encoder.
        timings: seconds by stage, for summary.json; the export adds its own as `export`.
        progress: called as `progress(done, total)`; a unit is a frame of the overlay or a file.

    Returns:
        The path of each file by its name.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full. Nothing new is left.
        ValueError: the clip is not the one the hypotheses are of.
    """
    from diffusion4d.export.glb import write_glb
    from diffusion4d.export.overlay import write_overlay
    from diffusion4d.export.report import report, write_report
    from diffusion4d.export.summary import write_summary

    hyp = hypotheses.to("cpu")
    seconds = clock(hyp, clip)
    total = hyp.num_frames + len(FILES) - 1
    advance = (lambda done: None) if progress is None else (lambda done: progress(done, total))
    spent: dict[str, float] = {}
    with staged(Path(out_dir), FILES) as stage:
        with _timed(spent, "npz"):
            hyp.save(stage)
        advance(1)
        with _timed(spent, "glb"):
            write_glb(hyp, stage / FILES[1], seconds=length(hyp, clip))
        advance(2)
        with _timed(spent, "overlay"):
            write_overlay(
                hyp,
                stage / FILES[2],
                seconds=seconds,
                clip=clip,
                progress=lambda done, _: advance(2 + done),
            )
        with _timed(spent, "summary"):
            title = "" if clip is None else Path(clip.name).stem
            write_summary(hyp, stage / FILES[3], seconds=seconds, clip=clip, title=title)
        advance(total - 1)
        content = report(
            hyp,
            seconds=seconds,
            assumptions=assumptions or {},
            timings={**(timings or {}), "export": spent},
        )
        write_report(content, stage / FILES[4])
    advance(total)
    return {name: Path(out_dir) / name for name in FILES}


def require_writable(out_dir: str | os.PathLike[str]) -> None:
    """Fail before the work rather than after it: can `out_dir` be made and written? Leaves no trace.

    Raises:
        UserError: it cannot; the message says why.
    """
    with staged(Path(out_dir), FILES, keep=False):
        pass


@contextlib.contextmanager
def staged(folder: Path, names: Sequence[str], *, keep: bool = True) -> Iterator[Path]:
    """A hidden folder inside `folder`, whose files move to `folder` at the end, if it is a good one.

    Args:
        names: of the files that will be written there.
        keep: whether folders that had to be made stay.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full. Nothing new is left.
    """
    made: list[Path] = []
    stage: Path | None = None
    done = False
    try:
        for parent in [*reversed(folder.absolute().parents), folder.absolute()]:
            if not parent.is_dir():
                if parent.exists():
                    raise _error(errno.ENOTDIR, parent)
                parent.mkdir()
                made.append(parent)
        stage = Path(tempfile.mkdtemp(prefix=".diffusion4d-", dir=folder))
        for name in names:
            if (folder / name).is_dir():
                raise _error(errno.EISDIR, folder / name)
        yield stage
        for path in sorted(stage.iterdir()):
            path.replace(folder / path.name)
        done = keep
    except OSError as error:
        raise UserError(f"cannot write results to {folder}: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for parent in () if done else reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def _error(number: int, path: Path) -> OSError:
    return OSError(number, f"{path}: {os.strerror(number)}")


@contextlib.contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    spent[name] = time.perf_counter() - begin
