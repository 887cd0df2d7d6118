r"""A glTF 2.0 file (.glb or .gltf) opened for reading: its tree as parsed by pygltflib, and its accessors as arrays.

An accessor is `count` elements of 1–16 numbers, `stride` bytes apart in a buffer view; integers may stand for numbers
in [0, 1] or [−1, 1] (normalised), and a sparse accessor replaces some elements of that (or of zeros).
"""

import base64
import contextlib
import functools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

Array = np.ndarray
_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_HARMLESS = (
    "KHR_materials_",
    "KHR_texture_",
    "KHR_lights_",
    "EXT_texture_",
    "KHR_mesh_quantization",
)


class GltfFile:
    """Accessors of one file.

    Raises:
        ValueError: the file is not glTF 2.0, lacks a part, or needs an extension that this reader has not.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from pygltflib import GLTF2

        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"need a .glb or .gltf file, got {path}")
        try:
            tree = GLTF2.load(path)
        except Exception as error:
            # pygltflib passes on whatever struct, json or unicode decoding raised.
            raise ValueError(f"need a glTF 2.0 file, got {path}: {error}") from error
        if tree is None or not str(tree.asset.version).startswith("2."):
            raise ValueError(f"need a glTF 2.0 file, got {path}")
        self.tree: Any = tree
        self.node_weights = _node_weights(path)
        needed = [e for e in tree.extensionsRequired or [] if not e.startswith(_HARMLESS)]
        if needed:
            raise ValueError(f"need a file without {', '.join(needed)}, got {path}")

    def accessor(self, number: int | None) -> Array:
        """[count, width] float64, or the file's integers where they are not normalised."""
        what = self.item("accessors", number)
        if what.componentType not in _TYPES or what.type not in _WIDTHS:
            raise ValueError(
                f"need accessors of numbers, vectors or 4x4 matrices, got {what.type} of "
                f"component type {what.componentType} in {self.path}"
            )
        dtype, width = np.dtype(_TYPES[what.componentType]), _WIDTHS[what.type]
        if what.bufferView is None:
            values = np.zeros((what.count, width), dtype)
        else:
            values = self._view(what.bufferView, what.byteOffset or 0, what.count, width, dtype)
        if what.sparse is not None:
            some = what.sparse
            kind = np.dtype(_TYPES[some.indices.componentType])
            at = self._view(
                some.indices.bufferView, some.indices.byteOffset or 0, some.count, 1, kind
            )
            new = self._view(
                some.values.bufferView, some.values.byteOffset or 0, some.count, width, dtype
            )
            if some.count and int(at.max()) >= what.count:
                raise ValueError(
                    f"need sparse places below {what.count}, got {at.max()} in {self.path}"
                )
            values = values.copy()
            values[at[:, 0]] = new
        if dtype.kind == "f":
            return values.astype(np.float64)
        if what.normalized:
            # Signed integers reach −1 twice: the lowest counts as the one above it.
            return np.maximum(values / np.iinfo(dtype).max, -1.0)
        return values.astype(np.int64)

    def matrices(self, number: int) -> Array:
        """[count, 4, 4] float64; the file stores them by columns."""
        return self.accessor(number).reshape(-1, 4, 4).swapaxes(-1, -2).astype(np.float64)

    def _view(self, number: int, offset: int, count: int, width: int, dtype: np.dtype) -> Array:
        view = self.item("bufferViews", number)
        data = self._buffer(view.buffer)
        stride = view.byteStride or width * dtype.itemsize
        if stride < 0:
            raise ValueError(f"need a positive stride, got {stride} in {self.path}")
        start = (view.byteOffset or 0) + offset
        end = start + (count - 1) * stride + width * dtype.itemsize
        if count and (start < 0 or end > len(data)):
            raise ValueError(f"need {end} bytes of data, got {len(data)} in {self.path}")
        flat = np.frombuffer(data, np.uint8)
        if count == 0:
            return np.zeros((0, width), dtype)
        rows = np.lib.stride_tricks.as_strided(
            flat[start:], (count, width * dtype.itemsize), (stride, 1), writeable=False
        )
        return np.ascontiguousarray(rows).view(dtype)

    @functools.cache  # noqa: B019
    def _buffer(self, number: int) -> bytes:
        uri = self.item("buffers", number).uri
        try:
            if uri is None:
                data = self.tree.binary_blob()
            elif uri.startswith("data:"):
                data = base64.b64decode(uri.partition(",")[2])
            else:
                data = (self.path.parent / unquote(uri)).read_bytes()
        except (OSError, ValueError) as error:
            name = unquote(str(uri))[:80]
            raise ValueError(f"need the data {name!r} beside {self.path}: {error}") from error
        if data is None:
            raise ValueError(f"need a buffer with data, got none in {self.path}")
        return data

    def item(self, kind: str, number: int | None) -> Any:
        """One of the tree's `nodes`, `meshes`, ….

        Raises:
            ValueError: there is none of that number.
        """
        items = getattr(self.tree, kind) or []
        if number is None or not 0 <= number < len(items):
            raise ValueError(f"need one of {len(items)} {kind}, got number {number} in {self.path}")
        return items[number]


@contextlib.contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Whatever trips over a part that is missing or of another type is a ValueError that names the file."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"need a glTF 2.0 file, got {path}: {error}") from error


def _node_weights(path: Path) -> dict[int, list[float]]:
    """Morph weights of nodes, which pygltflib leaves out, by node number."""
    data = path.read_bytes()
    if data[:4] == b"glTF":
        (length,) = struct.unpack("<I", data[12:16])
        data = data[20 : 20 + length]
    nodes = json.loads(data).get("nodes", [])
    return {i: node["weights"] for i, node in enumerate(nodes) if node.get("weights")}
