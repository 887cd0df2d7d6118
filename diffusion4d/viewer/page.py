"""The page as one HTML file: styles, scripts and data inside it, no server and no request."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffusion4d.atomic import replace_when_done
from diffusion4d.errors import UserError
from diffusion4d.viewer.content import as_json

_SCRIPTS = ("motion.js", "scene.js", "panels.js", "app.js")


def page(content: dict[str, Any], *, can_save: bool = False) -> str:
    """The HTML.

    Args:
        content: of `content.content`.
        can_save: whether a server takes the choice of hypotheses; else the page hands it out as a file.
    """
    folder = files("diffusion4d.viewer") / "page"
    text = (folder / "index.html").read_text("utf-8")
    scripts = "\n".join((folder / name).read_text("utf-8") for name in _SCRIPTS)
    parts = {
        "/*STYLE*/": (folder / "style.css").read_text("utf-8"),
        "/*DATA*/": as_json({**content, "canSave": can_save}),
        "/*SCRIPT*/": scripts,
    }
    for place, value in parts.items():
        before, after = text.split(place)
        text = before + value + after
    return text


def write_page(content: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the file, all of it or nothing.

    Raises:
        UserError: there is a folder, it cannot be written, or the disk is full. An older file is left.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"need a file to write, got a folder at {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_done(path) as temporary:
            temporary.write_text(page(content), "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path
