"""Khronos' own glTF validator (npm gltf-validator), where node and the package are there."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_SCRIPT = (
    "const [lib, file] = process.argv.slice(1);"
    "require(lib).validateBytes(new Uint8Array(require('fs').readFileSync(file)), {maxIssues: 100})"
    ".then(r => console.log(JSON.stringify(r.issues)));"
)
_WARNING = 1


def validate(path: Path) -> list[str]:
    """Errors and warnings, none for a good file; hints are left out. Skips the test where there is no validator."""
    named = [os.environ.get("GLTF_VALIDATOR"), os.environ.get("NODE_PATH")]
    folders = [Path(p) for p in named if p] + [ROOT / "node_modules"]
    found = [f for p in folders for f in (p, p / "gltf-validator") if (f / "index.js").is_file()]
    if shutil.which("node") is None or not found:
        pytest.skip("needs node, and the npm package gltf-validator: in node_modules or NODE_PATH")
    run = subprocess.run(
        ["node", "-e", _SCRIPT, str(found[0]), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    messages = json.loads(run.stdout)["messages"]
    return [f"{m['code']} {m['pointer']}" for m in messages if m["severity"] <= _WARNING]
