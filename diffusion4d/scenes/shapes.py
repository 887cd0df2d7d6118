r"""Rest shapes as small triangle meshes, all about one unit large and centred at the origin.

Round shapes are radial functions over a Fibonacci sphere, r(d) = (|d_x|^p + |d_y|^p + |d_z|^p)^(-1/p): p = 2 is a ball,
large p a box, p near 1 an octahedron (superquadrics, Barr 1981); low-frequency noise on log r makes them irregular.
A limb is a tapered capsule with an elliptic section. Meshes stay small (a few hundred triangles), since one is built
into a ray-casting structure for every frame.
Shape letters:  V vertices   F triangles.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull

Array = np.ndarray


@dataclass(frozen=True)
class Mesh:
    """Triangles, counter-clockwise seen from outside."""

    vertices: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]


@lru_cache(maxsize=32)
def _sphere(num_vertices: int) -> tuple[Array, Array]:
    """Unit directions of the Fibonacci lattice and their Delaunay triangles (the convex hull)."""
    index = np.arange(num_vertices) + 0.5
    polar = np.arccos(1 - 2 * index / num_vertices)
    azimuth = np.pi * (1 + 5**0.5) * index
    directions = np.stack(
        [np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], -1
    )
    faces = ConvexHull(directions).simplices.astype(np.int64)
    a, b, c = (directions[faces[:, i]] for i in range(3))
    inward = np.einsum("fi,fi->f", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    return directions, faces


def superquadric(num_vertices: int, power: float, axial: bool = False) -> Mesh:
    """|x|^p + |y|^p + |z|^p = 1; with `axial`, (x² + y²)^(p/2) + |z|^p = 1, a can rather than a box."""
    directions, faces = _sphere(num_vertices)
    flat = np.abs(directions)
    if axial:
        flat = np.stack([np.hypot(flat[:, 0], flat[:, 1]), flat[:, 2]], -1)
    radius = (flat**power).sum(-1) ** (-1 / power)
    return Mesh(0.5 * radius[:, None] * directions, faces)


def roughened(rng: np.random.Generator, mesh: Mesh, amount: float) -> Mesh:
    """Scale every vertex by exp(noise), with a few low-frequency waves: stones, fruit, animals' trunks."""
    waves = rng.normal(size=(3, 6)) * rng.uniform(2, 6)
    noise = np.sin(mesh.vertices @ waves * 2 + rng.uniform(0, 2 * np.pi, 6)).mean(-1)
    return Mesh(mesh.vertices * np.exp(amount * 2.0 * noise)[:, None], mesh.faces)


def box() -> Mesh:
    """A unit cube with flat sides (every side has its own four vertices)."""
    vertices, faces = [], []
    for axis in range(3):
        for sign in (-0.5, 0.5):
            corners = np.full((4, 3), sign)
            corners[:, (axis + 1) % 3] = [-0.5, 0.5, 0.5, -0.5]
            corners[:, (axis + 2) % 3] = [-0.5, -0.5, 0.5, 0.5]
            quad = np.array([[0, 1, 2], [0, 2, 3]])
            faces.append((quad if sign > 0 else quad[:, ::-1]) + len(vertices) * 4)
            vertices.append(corners)
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def grid_faces(rows: int, columns: int, closed: bool = False) -> Int[Array, "F 3"]:
    """Two triangles for each cell of a rows × columns grid of vertices; `closed` joins the last column to the first."""
    row, column = np.meshgrid(
        np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij"
    )
    a = (row * columns + column).ravel()
    b = (row * columns + (column + 1) % columns).ravel()
    return np.concatenate(
        [np.stack([a, b, b + columns], -1), np.stack([a, b + columns, a + columns], -1)]
    )


def torus(rows: int, columns: int, thickness: float) -> Mesh:
    """A ring of outer diameter 1 lying in the plane z = 0; `thickness` is the tube's radius (< 0.25)."""
    major, minor = np.meshgrid(
        np.linspace(0, 2 * np.pi, rows),
        np.linspace(0, 2 * np.pi, columns, endpoint=False),
        indexing="ij",
    )
    distance = 0.5 - thickness + thickness * np.cos(minor)
    vertices = np.stack(
        [distance * np.cos(major), -distance * np.sin(major), thickness * np.sin(minor)], -1
    )
    return Mesh(vertices.reshape(-1, 3), grid_faces(rows, columns, closed=True))


def capsule(tip: Float[Array, "3"], radii: Float[Array, "3"], flatness: float, sides: int) -> Mesh:
    """A limb from the origin to `tip`; radii at its start, middle and end; its second section axis is scaled by
    `flatness`. That axis lies as near to the body's forward direction (+x) as the limb allows.
    """
    length = float(np.linalg.norm(tip))
    along = tip / length
    reference = np.array([1.0, 0, 0]) if abs(along[0]) < 0.8 else np.array([0.0, 0, 1.0])
    across = np.cross(along, reference)
    across /= np.linalg.norm(across)
    second = np.cross(across, along)
    start, middle, end = radii
    # The rings next to the tips lie on the spheres that cap the limb: 0.6² + 0.8² = 1.
    stations = np.array(
        [-0.6 * start, 0.1 * length, 0.45 * length, 0.9 * length, length + 0.6 * end]
    )
    profile = np.array([0.8 * start, start, middle, end, 0.8 * end])
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.cos(angle)[:, None] * across - flatness * np.sin(angle)[:, None] * second
    rings = stations[:, None, None] * along + profile[:, None, None] * ring
    tips = np.stack([-start * along, (length + end) * along])
    rows = len(stations)
    body = grid_faces(rows, sides, closed=True)
    around = np.arange(sides)
    following = (around + 1) % sides
    low, high = rows * sides, rows * sides + 1
    first = np.stack([np.full(sides, low), following, around], -1)
    top = (rows - 1) * sides
    last = np.stack([np.full(sides, high), top + around, top + following], -1)
    return Mesh(np.concatenate([rings.reshape(-1, 3), tips]), np.concatenate([body, first, last]))


def sheet(rows: int, columns: int) -> Mesh:
    """The unit square in the plane z = 0."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, rows), np.linspace(-0.5, 0.5, columns), indexing="ij")
    return Mesh(np.stack([x, y, 0 * x], -1).reshape(-1, 3), grid_faces(rows, columns))


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one (they may interpenetrate)."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
    )


def compound(rng: np.random.Generator, num_vertices: int) -> Mesh:
    """Two to four primitives stuck together: a mug, a toy, a tool."""
    count = int(rng.integers(2, 5))
    parts = []
    for index in range(count):
        part = primitive(rng, max(40, num_vertices // count), simple=True)
        size = 1.0 if index == 0 else rng.uniform(0.25, 0.7)
        stretch = size * np.exp(rng.uniform(-0.4, 0.4, 3))
        offset = np.zeros(3) if index == 0 else rng.uniform(-0.55, 0.55, 3)
        parts.append(Mesh(part.vertices * stretch + offset, part.faces))
    return joined(*parts)


def primitive(rng: np.random.Generator, num_vertices: int, simple: bool = False) -> Mesh:
    """A random rest shape about one unit large; `simple` leaves out rings and compounds."""
    kinds = ["ball", "box", "can", "octahedron", "stone"] + ([] if simple else ["ring", "compound"])
    kind = rng.choice(kinds)
    if kind == "box":
        return box() if rng.random() < 0.6 else superquadric(num_vertices, rng.uniform(4, 10))
    if kind == "can":
        return superquadric(num_vertices, rng.uniform(4, 12), axial=True)
    if kind == "octahedron":
        return superquadric(num_vertices, rng.uniform(1.1, 1.6))
    if kind == "ring":
        rows = max(12, round((num_vertices * 2) ** 0.5))
        return torus(rows, rows // 2, rng.uniform(0.06, 0.2))
    if kind == "compound":
        return compound(rng, num_vertices)
    ball = superquadric(num_vertices, rng.uniform(1.7, 3))
    return roughened(rng, ball, rng.uniform(0.05, 0.35)) if kind == "stone" else ball


def stretched(mesh: Mesh, axes: Float[Array, "3"]) -> Mesh:
    """The mesh scaled along its axes, then put to unit largest extent and centred."""
    vertices = mesh.vertices * axes
    low, high = vertices.min(0), vertices.max(0)
    return Mesh((vertices - 0.5 * (low + high)) / (high - low).max(), mesh.faces)
