r"""A simulated scene on film: MJCF text in, moving vertices out.

MuJoCo (Todorov, Erez & Tassa 2012) integrates  M(q) dv = (τ(q, v) + Jᵀ f) dt  with contact and equality
forces f from a convex problem; cloth and soft bodies are finite elements with a Saint Venant–Kirchhoff
energy. Its `discrete` integrator treats stiffness and damping implicitly, so that soft matter is stable
at 240 steps a second. Everything is in SI units, z up; the floor is the plane z = 0.

A scene is drawn by *pieces*: triangles and a function that reads their corners from the state.
Only this file steps the simulator, and imports it: MuJoCo comes with the `train` extra.
Shape letters:  T frames   V vertices   F triangles   P points of a profile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffusion4d.errors import UserError
from diffusion4d.scenes import motion, shapes

Array = np.ndarray
# mujoco.MjModel and mujoco.MjData: the package is imported where it is needed, and ships no types.
Model = Any
State = Any
Drive = Callable[[Model, State], None]

FPS = 30.0
# Contacts and pins settle within this time (s); larger is softer and sinks deeper.
STIFF = 'solref="0.008 1" solimp="0.95 0.99 0.002"'
OPTIONS = 'integrator="discrete" solver="Newton" iterations="50" tolerance="1e-6"'


class Unstable(RuntimeError):
    """The simulator met a value that is not finite, or ran out of memory."""


@dataclass(frozen=True)
class Take:
    """What was filmed, in metres. `part` numbers the rigid pieces from 0; −1 deforms."""

    vertices: Float[Array, "T V 3"]
    rest: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    part: Int[Array, "V"]
    smooth: bool
    grounded: bool


@dataclass(frozen=True)
class Piece:
    """Triangles, whose corners `place` reads from the state; pieces of equal `label` ≥ 0 move as one solid."""

    faces: Int[Array, "F 3"]
    place: Callable[[State], Float[Array, "V 3"]]
    label: int


@dataclass(frozen=True)
class Scene:
    """All that a scenario decides. `drive` acts before every step: forces, targets, moving handles.

    `lead` seconds pass before the camera runs; the shape at rest is the one before them.
    """

    world: str
    pieces: Callable[[Model], Sequence[Piece]]
    seconds: float
    drive: Drive | None = None
    lead: float = 0.0
    substeps: int = 8
    smooth: bool = True
    grounded: bool = True
    option: str = ""


def engine() -> Any:
    """The module `mujoco`, which ships no types; a user without it is told where it comes from."""
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise UserError("simulated actors need MuJoCo: pip install 'diffusion4d[train]'") from error
    return mujoco


def mjcf(scene: Scene) -> str:
    """The scene as a whole model: what is written in `world`, with the time step and the solver's settings."""
    return (
        f'<mujoco><option timestep="{1 / (FPS * scene.substeps)}" {OPTIONS} {scene.option}/>'
        f'<size memory="64M"/>{scene.world}</mujoco>'
    )


def film(scene: Scene) -> Take:
    """Run the scene and photograph it 30 times a second; raises Unstable where the simulation breaks down."""
    mujoco = engine()
    model = mujoco.MjModel.from_xml_string(mjcf(scene))
    state = mujoco.MjData(model)
    pieces = scene.pieces(model)
    rest_V3 = _photograph(model, state, pieces)
    shots = []
    for frame in range(round((scene.lead + scene.seconds) * FPS) + 1):
        if frame > 0:
            _advance(model, state, scene, frame)
        if frame >= round(scene.lead * FPS):
            shots.append(_photograph(model, state, pieces))
    return Take(
        vertices=np.stack(shots),
        rest=rest_V3,
        faces=_joined(pieces, rest_V3),
        part=_parts(pieces, state),
        smooth=scene.smooth,
        grounded=scene.grounded,
    )


def _advance(model: Model, state: State, scene: Scene, frame: int) -> None:
    """One frame's steps. A broken state would be reset by the simulator and go on; here it ends the take."""
    mujoco = engine()
    # The default handler prints, and writes a log file into the working folder.
    mujoco.set_mju_user_warning(_ignored)
    try:
        for _ in range(scene.substeps):
            if scene.drive is not None:
                scene.drive(model, state)
            mujoco.mj_step(model, state)
    except mujoco.FatalError as error:
        raise Unstable(str(error)) from error
    finally:
        mujoco.set_mju_user_warning(None)
    if any(warning.number for warning in state.warning):
        raise Unstable(f"the simulation broke down {frame / FPS:.2f} s after its start")


def _ignored(message: str) -> None:
    """Warnings are counted in the state, where `_advance` looks for them."""


def _photograph(model: Model, state: State, pieces: Sequence[Piece]) -> Float[Array, "V 3"]:
    """Every piece's corners at the present state (a step leaves positions of its beginning behind)."""
    mujoco = engine()
    mujoco.mj_kinematics(model, state)
    mujoco.mj_comPos(model, state)
    mujoco.mj_flex(model, state)
    return np.concatenate([piece.place(state) for piece in pieces])


def _joined(pieces: Sequence[Piece], rest_V3: Array) -> Int[Array, "F 3"]:
    """All triangles, numbered over all pieces; a piece has as many corners as its largest index says."""
    sizes = [piece.faces.max() + 1 for piece in pieces]
    assert sum(sizes) == len(rest_V3), "a piece has corners that no triangle uses"
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate([p.faces + start for p, start in zip(pieces, starts, strict=True)])


def _parts(pieces: Sequence[Piece], state: State) -> Int[Array, "V"]:
    """Labels in use, renumbered 0, 1, …; −1 stays."""
    label_V = np.concatenate([np.full(p.faces.max() + 1, p.label) for p in pieces])
    solid_V = label_V >= 0
    part_V = np.full(len(label_V), -1)
    part_V[solid_V] = np.unique(label_V[solid_V], return_inverse=True)[1]
    return part_V


# Pieces ----------------------------------------------------------------------------------------------


def flex_piece(model: Model) -> Piece:
    """The triangles of the scene's one flex: the sheet's, or the outer ones of a soft body."""
    assert model.nflex == 1, "a scene has one cloth or soft body"
    corners = model.flex_elem if model.flex_dim[0] == 2 else model.flex_shell
    outer, faces = np.unique(corners, return_inverse=True)
    return Piece(faces.reshape(-1, 3), lambda state: state.flexvert_xpos[outer], -1)


def solid_pieces(model: Model, fineness: float = 1.0, hidden: Sequence[str] = ()) -> list[Piece]:
    """Every geom but planes and the hidden ones; those of one body are one solid."""
    pieces = []
    for index in range(model.ngeom):
        mesh = _surface(model, index, fineness)
        if mesh is None or model.geom(index).name in hidden:
            continue

        def place(state: State, index: int = index, corners_V3: Array = mesh.vertices) -> Array:
            return corners_V3 @ state.geom_xmat[index].reshape(3, 3).T + state.geom_xpos[index]

        pieces.append(Piece(mesh.faces, place, int(model.geom_bodyid[index])))
    return pieces


def _surface(model: Model, index: int, fineness: float) -> shapes.Mesh | None:
    """The geom's surface in its own axes, about 100 · fineness corners where it is round; None for a plane."""
    shape = engine().mjtGeom
    kind, size = model.geom_type[index], model.geom_size[index]
    around = max(6, round(14 * fineness**0.5))
    if kind == shape.mjGEOM_BOX:
        return box(size)
    if kind == shape.mjGEOM_SPHERE:
        return _scaled(shapes.superquadric(round(100 * fineness), 2.0), 2 * size[0])
    if kind == shape.mjGEOM_ELLIPSOID:
        return _scaled(shapes.superquadric(round(100 * fineness), 2.0), 2 * size)
    if kind == shape.mjGEOM_CYLINDER:
        radius, half = size[:2]
        # The rims stand twice: shading does not run over a sharp edge.
        rims = [(0, -half), (radius, -half), (radius, -half), (radius, half), (radius, half)]
        return turned(np.array([*rims, (0, half)]), around)
    if kind == shape.mjGEOM_CAPSULE:
        radius, half = size[:2]
        slope = np.linspace(0, np.pi / 2, max(3, around // 3))
        cap = np.stack([radius * np.cos(slope), half + radius * np.sin(slope)], -1)
        cap[-1, 0] = 0.0
        return turned(np.concatenate([(cap * [1, -1])[::-1], cap]), around)
    assert kind == shape.mjGEOM_PLANE, f"no surface for geoms of type {kind}"
    return None


def _scaled(mesh: shapes.Mesh, size: Float[Array, "3"] | float) -> shapes.Mesh:
    return shapes.Mesh(mesh.vertices * size, mesh.faces)


def box(half: Float[Array, "3"]) -> shapes.Mesh:
    """A box of these half sizes with its own four corners on every side, so that its edges stay sharp."""
    vertices, faces = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            # The two other axes, ordered so that their cross product points outwards.
            b, c = ((axis + 1) % 3, (axis + 2) % 3)[:: int(sign)]
            corner = np.zeros((4, 3))
            corner[:, axis] = sign
            corner[:, b], corner[:, c] = [-1, 1, 1, -1], [-1, -1, 1, 1]
            faces += [
                np.array([0, 1, 2]) + 4 * len(vertices),
                np.array([0, 2, 3]) + 4 * len(vertices),
            ]
            vertices.append(corner * half)
    return shapes.Mesh(np.concatenate(vertices), np.stack(faces))


def turned(profile_P2: Float[Array, "P 2"], around: int) -> shapes.Mesh:
    """The surface that (radius, height), from bottom to top, sweeps about z; the ends lie on the axis."""
    angle = 2 * np.pi * np.arange(around) / around
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(around)], -1)
    inner_P2 = profile_P2[1:-1]
    rings = inner_P2[:, None, :1] * ring + inner_P2[:, None, 1:] * np.array([0, 0, 1.0])
    ends = np.array([[0, 0, profile_P2[0, 1]], [0, 0, profile_P2[-1, 1]]])
    return shapes.Mesh(
        np.concatenate([rings.reshape(-1, 3), ends]), tube_faces(len(inner_P2), around)
    )


def tube_faces(rings: int, around: int) -> Int[Array, "F 3"]:
    """Triangles of `rings` rings of `around` corners each, then one corner at the bottom, one at the top."""
    here = np.arange(around)
    there = (here + 1) % around
    bottom, top = rings * around, rings * around + 1
    first = np.full(around, bottom)
    faces = [np.stack([first, there, here], -1)]
    for ring in range(rings - 1):
        low, high = ring * around, (ring + 1) * around
        faces.append(np.stack([low + here, low + there, high + there], -1))
        faces.append(np.stack([low + here, high + there, high + here], -1))
    last = (rings - 1) * around
    faces.append(np.stack([last + here, last + there, np.full(around, top)], -1))
    return np.concatenate(faces)


# Driving ---------------------------------------------------------------------------------------------


def along(path_TD: Float[Array, "T D"], done: float) -> Float[Array, "D"]:
    """The point of an evenly sampled path when the share `done` of it is over; its ends last for ever."""
    place = min(max(done, 0.0), 1.0) * (len(path_TD) - 1)
    low = min(int(place), len(path_TD) - 2)
    return path_TD[low] + (place - low) * (path_TD[low + 1] - path_TD[low])


# Words of MJCF ---------------------------------------------------------------------------------------


def numbers(values: Any) -> str:
    """An attribute's numbers."""
    return " ".join(f"{value:.7g}" for value in np.ravel(values))


def quaternion(rng: np.random.Generator, tilt: float = np.pi) -> str:
    """A random orientation: any yaw, and up to `tilt` (rad) about a random axis."""
    from scipy.spatial.transform import Rotation

    lean = Rotation.from_rotvec(rng.uniform(0, tilt) * motion.unit_vector(rng))
    turn = Rotation.from_rotvec([0, 0, rng.uniform(0, 2 * np.pi)])
    return numbers((turn * lean).as_quat(scalar_first=True))
