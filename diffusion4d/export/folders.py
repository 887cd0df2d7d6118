"""A folder of many files that appears when it is complete."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diffusion4d.errors import UserError


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes its name at the end, if it is a good one.

    Raises:
        UserError: `folder` is a file, cannot be made or written, or the disk is full. What was there before is left.
    """
    stage: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"need a folder to write, got a file at {folder}")
        stage = Path(tempfile.mkdtemp(prefix=".diffusion4d-", dir=folder.parent))
        yield stage
        stage.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        stage.replace(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
