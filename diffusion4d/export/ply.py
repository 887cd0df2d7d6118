r"""PLY files: a mesh or a cloud of points for every frame (Turk 1994, binary little endian).

Axes are those of hypotheses.glb (glTF: x right, y up, z back), so that files of one folder lie together.

Shape letters:  V vertices   F faces
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from diffusion4d.export.folders import replaced_folder
from diffusion4d.surfaces.mesh import AXES, Mesh


def ply(
    vertices: Float32[np.ndarray, "V 3"],
    faces: Int64[np.ndarray, "F 3"] | None = None,
    colours: Float32[np.ndarray, "V 3"] | None = None,
) -> bytes:
    """The bytes of one file, of vertices in OpenCV's axes.

    Args:
        colours: sRGB in [0, 1].
    """
    kinds = [(axis, "<f4") for axis in "xyz"]
    lines = ["ply", "format binary_little_endian 1.0", "comment diffusion4d: x right, y up, z back"]
    lines += [f"element vertex {len(vertices)}", *(f"property float {axis}" for axis in "xyz")]
    if colours is not None:
        names = ("red", "green", "blue")
        kinds += [(name, "u1") for name in names]
        lines += [f"property uchar {name}" for name in names]
    table = np.empty(len(vertices), kinds)
    for i, axis in enumerate("xyz"):
        table[axis] = vertices[:, i] * AXES[i]
    if colours is not None:
        for i, name in enumerate(("red", "green", "blue")):
            table[name] = np.round(255 * colours[:, i].clip(0, 1))
    body = table.tobytes()
    if faces is not None:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        corners = np.empty(len(faces), [("count", "u1"), ("corner", "<i4", 3)])
        corners["count"], corners["corner"] = 3, faces
        body += corners.tobytes()
    return ("\n".join([*lines, "end_header"]) + "\n").encode() + body


def write_ply_sequence(
    frames: Iterable[tuple[str, int, Mesh]],
    folder: str | os.PathLike[str],
    *,
    total: int,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write folder/NAME/frame_0000.ply … as the meshes come; the folder appears when it is complete.

    Args:
        frames: name, number and mesh of each.
        total: how many there will be, for `progress(done, total)`.

    Raises:
        UserError: the folder exists as something else, cannot be written, or the disk is full. An older one of this
            name is left as it was then, and replaced otherwise.
    """
    folder = Path(folder)
    with replaced_folder(folder) as stage:
        for done, (name, number, mesh) in enumerate(frames, 1):
            place = stage / name
            place.mkdir(exist_ok=True)
            content = ply(mesh.vertices, mesh.faces, mesh.colours)
            (place / f"frame_{number:04d}.ply").write_bytes(content)
            if progress is not None:
                progress(done, total)
    return folder
