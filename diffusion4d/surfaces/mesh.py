"""Triangles with colours or a texture, and how they are read from files.

In memory a mesh has the axes of the hypotheses (OpenCV: x right, y down, z ahead). Files have those of hypotheses.glb
(glTF: x right, y up, z back), so that what is modelled in Blender beside hypotheses.glb lies where it should.

Shape letters:  V vertices   F faces
"""

import os
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from diffusion4d.errors import UserError

AXES = np.array([1.0, -1.0, -1.0], np.float32)
"""From OpenCV's axes to glTF's, and back."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles over vertices.

    Raises:
        UserError: no triangle, a corner that is no vertex, colours or uv that are not one a vertex, or numbers that
            are not finite.
    """

    vertices: Float32[np.ndarray, "V 3"]
    faces: Int64[np.ndarray, "F 3"]
    colours: Float32[np.ndarray, "V 3"] | None = None
    """sRGB in [0, 1]."""
    uv: Float32[np.ndarray, "V 2"] | None = None
    """Places in the texture, (0, 0) its upper left corner."""
    texture: bytes | None = None
    """A PNG or JPEG file."""

    def __post_init__(self) -> None:
        V = len(self.vertices)
        if len(self.faces) == 0:
            raise UserError(f"need a mesh with triangles, got {V} vertices and none")
        if self.faces.min() < 0 or self.faces.max() >= V:
            raise UserError(f"need corners among {V} vertices, got {self.faces.max()}")
        looks = {"vertices": (self.vertices, 3), "colours": (self.colours, 3), "uv": (self.uv, 2)}
        for name, (values, width) in looks.items():
            if values is None:
                continue
            if values.shape != (V, width):
                raise UserError(f"need {name} [{V}, {width}], one a vertex, got {[*values.shape]}")
            if not np.isfinite(values).all():
                raise UserError(f"need finite {name}, got some that are not")

    @property
    def normals(self) -> Float32[np.ndarray, "V 3"]:
        """Unit normals: of the faces about a vertex, weighted by area."""
        corner = self.vertices[self.faces]
        face = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        total = np.zeros_like(self.vertices)
        for i in range(3):
            np.add.at(total, self.faces[:, i], face)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        # A vertex without a face of some area has no normal; any unit vector is as good.
        return np.where(length > 0, total / np.maximum(length, 1e-30), [0, 0, -1]).astype(
            np.float32
        )

    def moved(self, vertices: Float32[np.ndarray, "V 3"]) -> "Mesh":
        """The same surface elsewhere."""
        return replace(self, vertices=vertices)


def read_mesh(path: str | os.PathLike[str]) -> Mesh:
    """A mesh file that trimesh reads (glb, obj, ply, stl, off …), all of its parts as one.

    Raises:
        UserError: no such file, or it holds no triangles that can be read.
    """
    import trimesh

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no mesh at {path}")
    try:
        scene = trimesh.load_scene(path, process=False)
        found = scene.to_mesh()
    # trimesh's readers raise whatever their formats' libraries do.
    except Exception as error:
        raise UserError(f"{path} is not a mesh that can be read: {error}") from error
    if len(found.faces) == 0:
        raise UserError(f"need a mesh with triangles, got none in {path}")
    vertices = (np.asarray(found.vertices) * AXES).astype(np.float32)
    plain = Mesh(vertices, np.asarray(found.faces, np.int64))
    visual = found.visual
    if visual.kind == "texture" and getattr(visual, "uv", None) is not None:
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None:
            file = BytesIO()
            image.convert("RGBA").save(file, "PNG")
            # trimesh counts v from the bottom, glTF from the top.
            uv = np.asarray(visual.uv, np.float32) * [1, -1] + [0, 1]
            return replace(plain, uv=uv.astype(np.float32), texture=file.getvalue())
        visual = visual.to_color()
    if visual.kind in ("vertex", "face"):
        colours = np.asarray(visual.vertex_colors, np.float32)[:, :3] / 255
        return replace(plain, colours=colours)
    return plain
