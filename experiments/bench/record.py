"""What results.json remembers of the runs it was measured in, and whether that is still the packaged model.

Parts may be measured in different runs: timings once on a quiet machine, scores whenever the model changes. So every
run is kept with its parts, its machine and two fingerprints of the model:

    scores      of all files: another temperature gives other samples
    costs       of the shapes of the weights and of the configuration without numbers that no cost depends on
"""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

PARTS = (
    "ladder",
    "costs",
    "decoding",
    "updating",
    "curves",
    "memory",
    "quality",
    "throughput",
    "rates",
    "budgets",
)
"""In the order in which they run; budgets take their counts from rates."""

SCORES = ("quality", "budgets")
"""Parts that depend on every number in the model."""

NUMBERS_ALONE = ("temperature", "coordinates", "noise", "encoder_fingerprint")
"""Of a configuration: they scale what is sampled, or tell an encoder's weights, at the same cost."""


def fingerprints(folder: Path) -> dict[str, str]:
    """Of a model folder."""
    scores, costs = hashlib.sha256(), hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            config = json.loads(path.read_text())
            scores.update(json.dumps([where, config], sort_keys=True).encode())
            kept = {name: value for name, value in config.items() if name not in NUMBERS_ALONE}
            costs.update(json.dumps([where, kept], sort_keys=True).encode())
        elif path.suffix == ".safetensors":
            scores.update(path.read_bytes())
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in sorted(file.keys())}
                shapes = [[name, s.get_dtype(), s.get_shape()] for name, s in slices.items()]
            costs.update(json.dumps([where, shapes]).encode())
    return {"scores": scores.hexdigest()[:16], "costs": costs.hexdigest()[:16]}


def stale(results: dict, folder: Path) -> list[str]:
    """Parts that were measured with another model than the one in the folder, or in no run at all."""
    now = fingerprints(folder)
    kinds = {part: "scores" if part in SCORES else "costs" for part in PARTS}
    sound = {
        part
        for run in results["runs"]
        for part in run["parts"]
        if run["model"][kinds[part]] == now[kinds[part]]
    }
    return [part for part in PARTS if part not in sound]


def merged(held: dict, new: dict) -> dict:
    """Results of a run of some parts put in the place of the same parts of earlier ones; everything else stays."""
    (run,) = new["runs"]
    runs = [
        earlier | {"parts": [part for part in earlier["parts"] if part not in run["parts"]]}
        for earlier in held["runs"]
    ]
    metrics = {m["key"]: m for m in held["metrics"]} | {m["key"]: m for m in new["metrics"]}
    return {
        **held,
        **new,
        "runs": [*(earlier for earlier in runs if earlier["parts"]), run],
        "metrics": list(metrics.values()),
        "seconds": held["seconds"] | new["seconds"],
    }
