"""A folder of many files that appears when it is complete, in place of an earlier one and of nothing else."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diffusion4d.errors import UserError

_OURS = re.compile(r"(hypothesis_\d+|mean)(\.npz|/frame_\d+\.ply)")
"""Files that such a folder holds."""


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes its name at the end, if it is a good one.

    Raises:
        UserError: `folder` is a file or holds files that are none of ours, cannot be made or written, or the disk is
            full. What was there before is left.
    """
    stage: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_ours(folder)
        stage = Path(tempfile.mkdtemp(prefix=".diffusion4d-", dir=folder.parent))
        yield stage
        stage.chmod(0o755)
        # Work takes its time: somebody may have put something there.
        _require_ours(folder)
        if folder.exists():
            earlier = Path(tempfile.mkdtemp(prefix=".diffusion4d-", dir=folder.parent))
            folder.replace(earlier)
            try:
                stage.replace(folder)
            except OSError:
                earlier.replace(folder)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            stage.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _require_ours(folder: Path) -> None:
    """Raises UserError if there is something at `folder` that must not be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"need a folder to write, got a file or a link at {folder}")
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder).as_posix()
        if not (path.is_dir() and not path.is_symlink()) and not _OURS.fullmatch(within):
            raise UserError(f"need {folder} to hold earlier results and nothing else, got {within}")
