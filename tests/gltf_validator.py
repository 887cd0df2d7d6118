"""Khronos' own glTF validator (npm gltf-validator), where node and the package are there."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REASON = (
    "needs node, and the npm package gltf-validator: in node_modules, or named by GLTF_VALIDATOR"
)
_SCRIPT = (
    "const [lib, file] = process.argv.slice(1);"
    "require(lib).validateBytes(new Uint8Array(require('fs').readFileSync(file)), {maxIssues: 100})"
    ".then(r => console.log(JSON.stringify(r.issues)));"
)


def package() -> Path | None:
    """The folder of the npm package; None where it or node is missing."""
    if shutil.which("node") is None:
        return None
    named = os.environ.get("GLTF_VALIDATOR")
    folder = Path(named) if named else ROOT / "node_modules" / "gltf-validator"
    return folder if folder.is_dir() else None


def validate(path: Path) -> list[dict[str, Any]]:
    """What the validator has to say: errors, warnings and hints, none of them for a faultless file."""
    run = subprocess.run(
        ["node", "-e", _SCRIPT, str(package()), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(run.stdout)["messages"]
