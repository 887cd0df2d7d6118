r"""Biovision hierarchy (.bvh): a tree of joints with Euler channels, and one line of numbers a frame.

A joint's rotation channels act in the order in which they are written, each in the axes left by the one before:
"Zrotation Yrotation Xrotation" is R = R_z R_y R_x (degrees). Position channels take the place of the joint's OFFSET,
as every exporter writes them for the root and Blender's for every joint. An End Site is a joint that never turns.
Units are the exporter's (`metres` scales them) and so is the axis that points up (almost always y).
Source: Meredith & Maddock, "Motion Capture File Formats Explained" (2001).
Shape letters:  T frames   J joints   C channels.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffusion4d.data.skeleton import Take, forward_kinematics, z_up

Array = np.ndarray

_CHANNEL = re.compile(r"[XYZ](position|rotation)", re.IGNORECASE)


@dataclass(frozen=True)
class Bvh:
    """The file as written: lengths in its own units, angles in degrees, channels joint by joint."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: Float[Array, "J 3"]
    channels: tuple[tuple[str, ...], ...]
    values: Float[Array, "T C"]
    frame_time: float


class _Lines:
    """The lines that hold something, with their numbers for the messages."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        # A brace may share its line with a name; it counts as a line of its own.
        self.rows = [
            (number, part.split())
            for number, line in enumerate(text.splitlines(), 1)
            for part in re.split(r"([{}])", line)
            if part.strip()
        ]
        self.at = 0

    def error(self, what: str) -> ValueError:
        number = self.rows[min(self.at, len(self.rows)) - 1][0] if self.rows else 1
        return ValueError(f"{self.source}, line {number}: {what}")

    def next(self, wanted: str) -> list[str]:
        if self.at >= len(self.rows):
            raise self.error(f"need {wanted}, got the end of the file")
        self.at += 1
        return self.rows[self.at - 1][1]

    def numbers(self, words: list[str], count: int, what: str) -> list[float]:
        if len(words) != count:
            raise self.error(f"need {count} numbers for {what}, got {len(words)}")
        try:
            values = [float(word) for word in words]
        except ValueError as error:
            raise self.error(f"need numbers for {what}, got {' '.join(words)[:60]!r}") from error
        if not np.isfinite(values).all():
            raise self.error(f"need finite numbers for {what}, got {' '.join(words)[:60]!r}")
        return values


def parse(text: str, source: str = "bvh") -> Bvh:
    """The file's contents; ValueError with the line where they are not what the format asks for."""
    lines = _Lines(text, source)
    if [word.upper() for word in lines.next("HIERARCHY")] != ["HIERARCHY"]:
        raise lines.error("need HIERARCHY first")
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[tuple[str, ...]] = []
    open_joints: list[int] = []
    while True:
        words = lines.next("a joint, '}' or MOTION")
        head = words[0].upper()
        if head == "MOTION":
            break
        if head == "}":
            if not open_joints:
                raise lines.error("got '}' without a joint to close")
            open_joints.pop()
        elif head in ("ROOT", "JOINT", "END"):
            if head == "ROOT" and names:
                raise lines.error("need one ROOT, got a second one")
            if head != "ROOT" and not open_joints:
                raise lines.error(f"need a ROOT around every joint, got {' '.join(words)!r}")
            parent = open_joints[-1] if open_joints else -1
            names.append(f"{names[parent]}_end" if head == "END" else " ".join(words[1:]))
            parents.append(parent)
            offsets.append([])
            channels.append(())
            if lines.next("'{'") != ["{"]:
                raise lines.error(f"need '{{' after {names[-1]!r}")
            open_joints.append(len(names) - 1)
        elif head == "OFFSET" and open_joints:
            offsets[open_joints[-1]] = lines.numbers(words[1:], 3, "OFFSET")
        elif head == "CHANNELS" and open_joints:
            channels[open_joints[-1]] = _channels(lines, words[1:])
        else:
            raise lines.error(
                f"need ROOT, JOINT, End Site, OFFSET, CHANNELS or MOTION, got {words[0]!r}"
            )
    if open_joints:
        raise lines.error(f"need '}}' for {names[open_joints[-1]]!r} before MOTION")
    if not names or not all(offsets):
        raise lines.error("need a ROOT and an OFFSET for every joint before MOTION")
    frames, frame_time = _header(lines)
    width = sum(map(len, channels))
    values = np.empty((frames, width))
    for frame in range(frames):
        words = lines.next(f"frame {frame + 1} of {frames}")
        values[frame] = lines.numbers(words, width, f"frame {frame + 1}")
    return Bvh(tuple(names), tuple(parents), np.array(offsets), tuple(channels), values, frame_time)


def _channels(lines: _Lines, words: list[str]) -> tuple[str, ...]:
    """The channel names after their count."""
    names = tuple(words[1:])
    if not words or not words[0].isdigit() or int(words[0]) != len(names):
        raise lines.error(f"need CHANNELS with as many names as it says, got {' '.join(words)!r}")
    for name in names:
        if not _CHANNEL.fullmatch(name):
            raise lines.error(f"need channels such as Xposition or Zrotation, got {name!r}")
    return names


def _header(lines: _Lines) -> tuple[int, float]:
    """`Frames: n` and `Frame Time: s`."""
    words = lines.next("'Frames: n'")
    if words[0].lower() != "frames:" or len(words) != 2 or not words[1].isdigit():
        raise lines.error(f"need 'Frames: n', got {' '.join(words)!r}")
    frames = int(words[1])
    if frames < 1:
        raise lines.error("need at least one frame, got 0")
    words = lines.next("'Frame Time: s'")
    if [word.lower() for word in words[:2]] != ["frame", "time:"]:
        raise lines.error(f"need 'Frame Time: s', got {' '.join(words)!r}")
    (frame_time,) = lines.numbers(words[2:], 1, "the frame time")
    if frame_time <= 0:
        raise lines.error(f"need a frame time > 0, got {frame_time}")
    return frames, frame_time


def written(bvh: Bvh) -> str:
    """The text of a file with these contents."""
    lines = ["HIERARCHY"]

    def write(joint: int, indent: str) -> None:
        children = [child for child, parent in enumerate(bvh.parents) if parent == joint]
        ends = not children and not bvh.channels[joint] and bvh.parents[joint] >= 0
        kind = "ROOT" if bvh.parents[joint] < 0 else "JOINT"
        lines.append(f"{indent}End Site" if ends else f"{indent}{kind} {bvh.names[joint]}")
        lines.append(f"{indent}{{")
        lines.append(f"{indent}\tOFFSET " + " ".join(repr(float(x)) for x in bvh.offsets[joint]))
        if not ends:
            names = bvh.channels[joint]
            lines.append(f"{indent}\tCHANNELS {len(names)} {' '.join(names)}".rstrip())
        for child in children:
            write(child, indent + "\t")
        lines.append(f"{indent}}}")

    write(0, "")
    lines += ["MOTION", f"Frames: {len(bvh.values)}", f"Frame Time: {bvh.frame_time!r}"]
    lines += [" ".join(repr(float(x)) for x in row) for row in bvh.values]
    return "\n".join(lines) + "\n"


def posed(bvh: Bvh, metres: float = 1.0, up: str = "y") -> Take:
    """Forward kinematics in float64: joints in metres with z up; one unit of the file is `metres`."""
    frames, joints = len(bvh.values), len(bvh.names)
    offsets_TJ3 = np.broadcast_to(bvh.offsets, (frames, joints, 3)).copy()
    local_TJ33 = np.broadcast_to(np.eye(3), (frames, joints, 3, 3)).copy()
    column = 0
    for joint, names in enumerate(bvh.channels):
        for name in names:
            axis = "xyz".index(name[0].lower())
            value_T = bvh.values[:, column]
            column += 1
            if name[1:].lower() == "position":
                offsets_TJ3[:, joint, axis] = value_T
            else:
                local_TJ33[:, joint] = local_TJ33[:, joint] @ about_axis(axis, np.radians(value_T))
    positions, rotations = forward_kinematics(bvh.parents, offsets_TJ3 * metres, local_TJ33)
    take = Take(positions, np.array(bvh.parents), 1 / bvh.frame_time, bvh.names, rotations)
    return z_up(take, up)


def about_axis(axis: int, angle_T: Float[Array, "T"]) -> Float[Array, "T 3 3"]:
    """Right-handed rotation by `angle_T` (rad) about coordinate axis 0, 1 or 2."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn_T33 = np.broadcast_to(np.eye(3), (len(angle_T), 3, 3)).copy()
    turn_T33[:, i, i] = turn_T33[:, j, j] = np.cos(angle_T)
    turn_T33[:, j, i] = np.sin(angle_T)
    turn_T33[:, i, j] = -turn_T33[:, j, i]
    return turn_T33


def read(path: Path, metres: float = 1.0, up: str = "y") -> Take:
    """A .bvh file as a take."""
    return posed(parse(path.read_text(errors="replace"), path.name), metres, up)
