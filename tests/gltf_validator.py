"""What Khronos' glTF validator says of a file, where node and its npm package are at hand."""

import json
import os
import shutil
import subprocess
from pathlib import Path

_SCRIPT = (
    "const [lib, file] = process.argv.slice(1);"
    "require(lib).validateBytes(new Uint8Array(require('fs').readFileSync(file)))"
    ".then(r => console.log(JSON.stringify(r.issues)));"
)


def package() -> Path | None:
    """The folder of the npm package gltf-validator, named by the environment."""
    folder = os.environ.get("GLTF_VALIDATOR")
    return Path(folder) if folder and shutil.which("node") else None


def messages(path: Path) -> list[dict]:
    """Every error, warning and hint; none where the validator is not at hand (test_export_glb.py says so)."""
    if package() is None:
        return []
    run = subprocess.run(
        ["node", "-e", _SCRIPT, str(package()), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(run.stdout)["messages"]
