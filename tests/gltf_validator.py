"""What Khronos' glTF validator says of a file, where node and its npm package are at hand."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SCRIPT = (
    "const [lib, file] = process.argv.slice(1);"
    "require(lib).validateBytes(new Uint8Array(require('fs').readFileSync(file)))"
    ".then(r => console.log(JSON.stringify(r.issues)));"
)


def package() -> Path | None:
    """The folder of the npm package gltf-validator, named by the environment."""
    folder = os.environ.get("GLTF_VALIDATOR")
    return Path(folder) if folder and shutil.which("node") else None


needs_validator = pytest.mark.skipif(
    package() is None, reason="needs node, and GLTF_VALIDATOR: the folder of its npm package"
)


def messages(path: Path, most: int = 3) -> list[dict]:
    """What it says of severity 0 (errors), 1 (warnings), 2 (information), 3 (hints), up to `most`.

    Only for tests that are marked `needs_validator`: to say nothing without the validator would be to agree.
    """
    assert package() is not None, "mark the test with needs_validator"
    run = subprocess.run(
        ["node", "-e", _SCRIPT, str(package()), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [m for m in json.loads(run.stdout)["messages"] if m["severity"] <= most]
