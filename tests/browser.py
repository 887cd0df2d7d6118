"""A page in headless Chromium: the document after its scripts have run, and what the console said."""

import os
import shutil
import subprocess
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1200,800",
    "--virtual-time-budget=4000",
    "--enable-logging=stderr",
)


def chromium() -> str | None:
    """The browser, or None."""
    known = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in known if name and (found := shutil.which(name))), None)


def visit(url: str, folder: Path, *more: str) -> tuple[str, list[str]]:
    """The document, and the lines of the console."""
    browser = chromium()
    assert browser is not None
    run = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", *more, url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    # The driver remarks on the reading of pixels, which tests do and the page does not.
    return run.stdout, [line for line in said if "GPU stall due to ReadPixels" not in line]
