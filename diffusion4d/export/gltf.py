r"""A GLB container: arrays in, one binary glTF 2.0 file out.

    GLB = header (magic, version, length) · JSON chunk · BIN chunk, each padded to 4 bytes
    (Khronos, glTF 2.0 specification, sections 3.6 and 4.4).

Only packing lives here; what nodes, meshes and animations mean is `export.glb`.
"""

import json
import struct
from typing import Any

import numpy as np

_COMPONENT = {np.dtype(np.float32): 5126, np.dtype(np.uint16): 5123, np.dtype(np.uint32): 5125}
_TYPE = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
VERTICES, INDICES = 34962, 34963
"""Buffer-view targets; None for animation data, which no GPU buffer holds."""


class Buffer:
    """The binary chunk as it grows, with its buffer views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, array: np.ndarray, target: int | None = None) -> int:
        """Append an array's bytes as one buffer view; returns its index."""
        self.data.extend(b"\0" * (-len(self.data) % 4))
        view: dict[str, Any] = {
            "buffer": 0,
            "byteOffset": len(self.data),
            "byteLength": array.nbytes,
        }
        if target is not None:
            view["target"] = target
        self.data.extend(
            np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        )
        self.views.append(view)
        return len(self.views) - 1

    def bytes(self, content: bytes) -> int:
        """Append a file as it is, such as an image; returns the index of its view."""
        return self.view(np.frombuffer(content, np.uint8))

    def accessor(
        self, view: int, array: np.ndarray, byte_offset: int = 0, *, bounds: bool = False
    ) -> int:
        """Describe `array` (items along axis 0) within a view; returns the accessor's index.

        Args:
            bounds: write the minimum and maximum, which positions and key times must have.
        """
        accessor: dict[str, Any] = {
            "bufferView": view,
            "byteOffset": byte_offset,
            "componentType": _COMPONENT[array.dtype],
            "count": len(array),
            "type": _TYPE[array.shape[1:]],
        }
        if bounds:
            accessor["min"] = np.atleast_1d(array.min(0)).tolist()
            accessor["max"] = np.atleast_1d(array.max(0)).tolist()
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add(self, array: np.ndarray, target: int | None = None, *, bounds: bool = False) -> int:
        """One array in a view of its own; returns the accessor's index."""
        return self.accessor(self.view(array, target), array, bounds=bounds)

    def add_each(self, arrays: np.ndarray) -> list[int]:
        """One view for `arrays` and an accessor for every item of axis 0."""
        view = self.view(arrays)
        return [self.accessor(view, a, i * a.nbytes) for i, a in enumerate(arrays)]


def pack(document: dict[str, Any], buffer: Buffer) -> bytes:
    """The bytes of the GLB file: `document` with the buffer's views and accessors filled in."""
    document = {
        **document,
        "buffers": [{"byteLength": len(buffer.data)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    # JSON has no NaN; refusing here beats a file that no viewer opens.
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    binary = bytes(buffer.data) + b"\0" * (-len(buffer.data) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def linear_light(srgb: np.ndarray) -> np.ndarray:
    """Colours as glTF's factors and vertices have them (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
