"""glTF files written by hand, for tests of the reader: nothing of the package takes part."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

_COMPONENTS = {
    "float32": 5126,
    "uint8": 5121,
    "uint16": 5123,
    "uint32": 5125,
    "int16": 5122,
    "int8": 5120,
}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Glb:
    """Collects accessors; `tree` is the JSON to fill in."""

    def __init__(self, **tree: Any) -> None:
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, **tree}
        self.tree.setdefault("accessors", [])
        self.tree.setdefault("bufferViews", [])
        self.data = b""

    def view(self, data: bytes, **more: Any) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        entry = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **more}
        self.tree["bufferViews"].append(entry)
        self.data += data
        return len(self.tree["bufferViews"]) - 1

    def add(self, values: Any, dtype: str = "float32", **more: Any) -> int:
        """An accessor of [count] or [count, width] numbers; matrices [count, 4, 4] go by columns."""
        values = np.asarray(values, dtype)
        if values.ndim == 3:
            values = values.swapaxes(1, 2).reshape(len(values), 16)
        width = 1 if values.ndim == 1 else values.shape[1]
        entry = {
            "bufferView": self.view(values.tobytes()),
            "componentType": _COMPONENTS[dtype],
            "count": len(values),
            "type": _TYPES[width],
            **more,
        }
        self.tree["accessors"].append(entry)
        return len(self.tree["accessors"]) - 1

    def animation(self, name: str, *channels: tuple[int, str, Any, Any, str]) -> None:
        """Channels are (node, path, times, values, interpolation)."""
        samplers = [
            {"input": self.add(times), "output": self.add(values), "interpolation": kind}
            for _, _, times, values, kind in channels
        ]
        targets = [
            {"sampler": i, "target": {"node": node, "path": path}}
            for i, (node, path, *_) in enumerate(channels)
        ]
        self.tree.setdefault("animations", []).append(
            {"name": name, "samplers": samplers, "channels": targets}
        )

    def save(self, path: Path) -> Path:
        self.tree["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        data = self.data + b"\0" * (-len(self.data) % 4)
        total = 12 + 8 + len(text) + 8 + len(data)
        path.write_bytes(
            struct.pack("<4sII", b"glTF", 2, total)
            + struct.pack("<I4s", len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(data), b"BIN\0")
            + data
        )
        return path


def snake(rng: np.random.Generator, path: Path) -> Path:
    """A skinned tube on a chain of three joints below a turned armature, with one animation of all kinds of keys."""
    bind = rng.normal(size=(12, 3))
    faces = np.arange(12).reshape(4, 3)
    weights = rng.uniform(size=(12, 4))
    weights[:, 3] = 0
    weights /= weights.sum(1, keepdims=True)
    joints = np.tile([0, 1, 2, 0], (12, 1))
    glb = Glb()
    inverse = np.tile(np.eye(4), (3, 1, 1))
    inverse[:, :3, 3] = rng.normal(size=(3, 3))
    quaternions = rng.normal(size=(8, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    # The middle joint comes before its parent in the file, and the mesh's own node is far away.
    glb.tree |= {
        "scene": 0,
        "scenes": [{"nodes": [4, 3]}],
        "nodes": [
            {"name": "tip", "translation": [0.1, 1.0, 0.2]},
            {"name": "middle", "children": [0], "translation": [0, 1, 0], "scale": [1, 2, 0.5]},
            {"name": "base", "children": [1], "rotation": quaternions[0].tolist()},
            {"name": "body", "mesh": 0, "skin": 0, "translation": [100, 0, 0]},
            {"name": "armature", "children": [2], "translation": [0, 0, 3]},
        ],
        "skins": [{"joints": [2, 1, 0], "inverseBindMatrices": glb.add(inverse)}],
        "meshes": [
            {
                "primitives": [
                    {
                        "attributes": {
                            "POSITION": glb.add(bind),
                            "JOINTS_0": glb.add(joints, "uint8"),
                            "WEIGHTS_0": glb.add(weights),
                        },
                        "indices": glb.add(faces.reshape(-1), "uint16"),
                    }
                ]
            }
        ],
    }
    glb.animation(
        "wag",
        (1, "rotation", [0.0, 0.5, 2.0], quaternions[1:4], "LINEAR"),
        (0, "translation", [0.0, 1.0], rng.normal(size=(2, 3)), "STEP"),
        (2, "translation", [0.25, 1.5], rng.normal(size=(6, 3)), "CUBICSPLINE"),
    )
    return glb.save(path)
