r"""Acclaim skeletons (.asf) and motion (.amc), as the CMU motion capture database publishes them.

The skeleton gives every bone a direction d and a length l in the axes of the rest pose, an axis frame C and the
degrees of freedom that move; the motion gives the angles M in that frame. For bone b with parent a

    G_b = G_a C_b M_b C_b⁻¹        end_b = end_a + G_b l_b d_b

where C and M are Euler rotations in the order written, about fixed axes: "XYZ" is R_z R_y R_x. A joint of the take
is the root, or the end of a bone. Limits of the degrees of freedom are ignored: they are not enforced in recordings.
CMU's `:units length 0.45` means that a file's 0.45 is an inch, so one unit is 0.0254 / 0.45 m.
Sources: Schafer, "ASF/AMC file format" (1994); mocap.cs.cmu.edu/info.php.
Shape letters:  T frames   J joints (the root and one a bone).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffusion4d.data.bvh import about_axis
from diffusion4d.data.skeleton import Take, z_up

Array = np.ndarray

_INCH = 0.0254
_DOFS = ("tx", "ty", "tz", "rx", "ry", "rz", "l")


@dataclass(frozen=True)
class Bone:
    """One bone of the skeleton; for the root, direction × length is its position at rest."""

    name: str
    direction: Float[Array, "3"]
    length: float
    axis: Float[Array, "3"]
    order: str
    dofs: tuple[str, ...]


@dataclass(frozen=True)
class Asf:
    """The skeleton file: bone 0 is the root; angles in degrees, lengths in units of `metres`."""

    bones: tuple[Bone, ...]
    parents: tuple[int, ...]
    metres: float


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Lines with a content, numbered; '#' starts a comment."""
    rows = [(n, line.split("#")[0].split()) for n, line in enumerate(text.splitlines(), 1)]
    return [(n, words) for n, words in rows if words]


def _numbers(words: list[str], count: int, where: str) -> list[float]:
    if len(words) != count:
        raise ValueError(f"{where}: need {count} numbers, got {len(words)}")
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{where}: need numbers, got {' '.join(words)[:60]!r}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: need finite numbers, got {' '.join(words)[:60]!r}")
    return values


def _dofs(words: list[str], where: str) -> tuple[str, ...]:
    dofs = tuple(word.lower() for word in words)
    unknown = [dof for dof in dofs if dof not in _DOFS]
    if unknown:
        raise ValueError(f"{where}: need degrees of freedom among {' '.join(_DOFS)}, got {unknown}")
    return dofs


def _order(word: str, where: str) -> str:
    if sorted(word.upper()) != ["X", "Y", "Z"]:
        raise ValueError(f"{where}: need an axis order such as XYZ, got {word!r}")
    return word.upper()


def parse_skeleton(text: str, source: str = "asf") -> Asf:
    """The skeleton; ValueError with the line where it is not what the format asks for."""
    sections: dict[str, list[tuple[int, list[str]]]] = {}
    current: list[tuple[int, list[str]]] = []
    for number, words in _rows(text):
        if words[0].startswith(":"):
            current = sections.setdefault(words[0].lower(), [])
            words = words[1:]
        if words:
            current.append((number, words))
    for needed in (":root", ":bonedata", ":hierarchy"):
        if not sections.get(needed):
            raise ValueError(f"{source}: need a section {needed}, got {sorted(sections)}")
    units = {words[0].lower(): words[1] for _, words in sections.get(":units", []) if words[1:]}
    if units.get("angle", "deg").lower() not in ("deg", "degrees"):
        raise ValueError(f"{source}: need angles in degrees, got {units['angle']!r}")
    (length,) = _numbers([units.get("length", "1.0")], 1, f"{source}: units length")
    if length <= 0:
        raise ValueError(f"{source}: need a unit of length > 0, got {length}")
    bones = [_root(sections[":root"], source), *_bones(sections[":bonedata"], source)]
    parents = _parents(sections[":hierarchy"], [bone.name for bone in bones], source)
    order = sorted(range(len(bones)), key=lambda bone: _depth(parents, bone, source))
    place = {bone: index for index, bone in enumerate(order)}
    ordered_parents = tuple(place.get(parents[bone], -1) for bone in order)
    return Asf(tuple(bones[bone] for bone in order), ordered_parents, _INCH / length)


def _root(rows: list[tuple[int, list[str]]], source: str) -> Bone:
    place, axis = np.zeros(3), np.zeros(3)
    order, dofs = "XYZ", ("tx", "ty", "tz", "rx", "ry", "rz")
    for number, (key, *words) in rows:
        where = f"{source}, line {number}"
        if key.lower() == "order":
            dofs = _dofs(words, where)
        elif key.lower() == "axis":
            order = _order("".join(words), where)
        elif key.lower() == "position":
            place = np.array(_numbers(words, 3, where))
        elif key.lower() == "orientation":
            axis = np.array(_numbers(words, 3, where))
    return Bone("root", place, 1.0, axis, order, dofs)


def _bones(rows: list[tuple[int, list[str]]], source: str) -> list[Bone]:
    bones: list[Bone] = []
    fields: dict[str, list[str]] = {}
    for number, (key, *words) in rows:
        where = f"{source}, line {number}"
        if key.lower() == "begin":
            fields = {}
        elif key.lower() != "end":
            fields[key.lower()] = words
        else:
            missing = [
                name for name in ("name", "direction", "length", "axis") if name not in fields
            ]
            if missing:
                raise ValueError(f"{where}: need {', '.join(missing)} in the bone that ends here")
            direction = np.array(_numbers(fields["direction"], 3, where))
            (length,) = _numbers(fields["length"], 1, where)
            axis = np.array(_numbers(fields["axis"][:3], 3, where))
            order = _order("".join(fields["axis"][3:]) or "XYZ", where)
            dofs = _dofs(fields.get("dof", []), where)
            # The format asks for a direction of unit length; six digits leave it nearly so.
            norm = float(np.linalg.norm(direction))
            if norm == 0 and length > 0:
                raise ValueError(f"{where}: need a direction for a bone of length {length}, got 0")
            direction = direction / norm if norm > 0 else direction
            bones.append(Bone(" ".join(fields["name"]), direction, length, axis, order, dofs))
    if not bones:
        raise ValueError(f"{source}: need at least one bone (begin … end), got none")
    return bones


def _parents(rows: list[tuple[int, list[str]]], names: list[str], source: str) -> list[int]:
    index = {name: number for number, name in enumerate(names)}
    parents = [-1] * len(names)
    for number, (parent, *children) in rows:
        if parent.lower() in ("begin", "end"):
            continue
        for name in (parent, *children):
            if name not in index:
                raise ValueError(f"{source}, line {number}: need a bone of :bonedata, got {name!r}")
        for child in children:
            parents[index[child]] = index[parent]
    orphans = [name for name, parent in zip(names[1:], parents[1:], strict=True) if parent < 0]
    if orphans:
        raise ValueError(
            f"{source}: need a place in :hierarchy for every bone, got none: {orphans}"
        )
    return parents


def _depth(parents: list[int], bone: int, source: str) -> int:
    depth = 0
    while parents[bone] >= 0:
        bone, depth = parents[bone], depth + 1
        if depth > len(parents):
            raise ValueError(f"{source}: need a tree, got a cycle in :hierarchy")
    return depth


def parse_motion(text: str, skeleton: Asf, source: str = "amc") -> list[Float[Array, "T _"]]:
    """For every bone its degrees of freedom over time, in the order of the skeleton file (degrees)."""
    index = {bone.name: number for number, bone in enumerate(skeleton.bones)}
    values: list[list[list[float]]] = [[] for _ in skeleton.bones]
    frames = 0

    def close(number: int) -> None:
        for bone, rows in zip(skeleton.bones, values, strict=True):
            if bone.dofs and len(rows) != frames:
                raise ValueError(
                    f"{source}, line {number}: need bone {bone.name!r} once in frame {frames}, "
                    f"got it {len(rows) - frames + 1} times"
                )

    number = 0
    for number, words in _rows(text):
        where = f"{source}, line {number}"
        if words[0].startswith(":"):
            if words[0].upper() == ":RADIANS":
                raise ValueError(f"{where}: need :DEGREES, got :RADIANS")
        elif len(words) == 1 and words[0].isdigit():
            close(number)
            frames += 1
        elif words[0] not in index:
            raise ValueError(f"{where}: need a bone of the skeleton, got {words[0]!r}")
        elif frames == 0:
            raise ValueError(f"{where}: need a frame number before bone {words[0]!r}")
        else:
            bone = index[words[0]]
            values[bone].append(_numbers(words[1:], len(skeleton.bones[bone].dofs), where))
    close(number)
    if frames == 0:
        raise ValueError(f"{source}: need at least one frame, got none")
    return [
        np.array(rows).reshape(frames, len(bone.dofs)) if bone.dofs else np.zeros((frames, 0))
        for rows, bone in zip(values, skeleton.bones, strict=True)
    ]


def written(skeleton: Asf, motion: list[Float[Array, "T _"]]) -> str:
    """The text of an .amc file with this motion."""
    lines = [":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(len(motion[0])):
        lines.append(str(frame + 1))
        for bone, values_TD in zip(skeleton.bones, motion, strict=True):
            if bone.dofs:
                row = " ".join(repr(float(value)) for value in values_TD[frame])
                lines.append(f"{bone.name} {row}")
    return "\n".join(lines) + "\n"


def euler(angles_T3: Float[Array, "T 3"], order: str) -> Float[Array, "T 3 3"]:
    """Rotations about the fixed axes x, y, z by these angles (degrees), one after the other in `order`."""
    turn_T33 = np.broadcast_to(np.eye(3), (len(angles_T3), 3, 3))
    for axis in ("XYZ".index(letter) for letter in order):
        turn_T33 = about_axis(axis, np.radians(angles_T3[:, axis])) @ turn_T33
    return turn_T33


def posed(
    skeleton: Asf, motion: list[Float[Array, "T _"]], fps: float = 120.0, up: str = "y"
) -> Take:
    """Forward kinematics in float64: joints in metres with z up. The files do not tell their rate; CMU's is 120."""
    frames, joints = len(motion[0]), len(skeleton.bones)
    ends_TJ3, turns_TJ33 = np.zeros((frames, joints, 3)), np.zeros((frames, joints, 3, 3))
    for number, (bone, parent) in enumerate(zip(skeleton.bones, skeleton.parents, strict=True)):
        moves = dict(zip(bone.dofs, motion[number].T, strict=True))
        angles_T3 = np.stack([moves.get(f"r{x}", np.zeros(frames)) for x in "xyz"], -1)
        frame_33 = euler(bone.axis[None], bone.order)[0]
        local_T33 = frame_33 @ euler(angles_T3, bone.order) @ frame_33.T
        if parent < 0:
            shift_T3 = np.stack([moves.get(f"t{x}", np.zeros(frames)) for x in "xyz"], -1)
            turns_TJ33[:, number] = local_T33
            ends_TJ3[:, number] = bone.direction * bone.length + shift_T3
            continue
        turns_TJ33[:, number] = turns_TJ33[:, parent] @ local_T33
        length_T1 = (bone.length + moves.get("l", np.zeros(frames)))[:, None]
        reach_T3 = np.einsum("tij,tj->ti", turns_TJ33[:, number], length_T1 * bone.direction)
        ends_TJ3[:, number] = ends_TJ3[:, parent] + reach_T3
    names = tuple(bone.name for bone in skeleton.bones)
    parents = np.array(skeleton.parents)
    return z_up(Take(ends_TJ3 * skeleton.metres, parents, fps, names, turns_TJ33), up)


def read(skeleton_path: Path, motion_path: Path, fps: float = 120.0, up: str = "y") -> Take:
    """An .asf and an .amc file as a take."""
    skeleton = parse_skeleton(skeleton_path.read_text(errors="replace"), skeleton_path.name)
    text = motion_path.read_text(errors="replace")
    return posed(skeleton, parse_motion(text, skeleton, motion_path.name), fps, up)
