"""Blender's side of run.py, which starts it with Blender's own Python: no part of diffusion4d is here.

    python blender.py play animated.glb truth.npz     largest and RMS distance of the played mesh from truth, JSON
    python blender.py place hypotheses.glb mesh.glb   a mesh with a corner at every point, the mean of all, exported

truth.npz has `seconds` [T] and, by the name of an animation, vertices [T, V, 3] in glTF's axes.
"""

import importlib
import json
import sys

import numpy as np

# Only Blender has it.
bpy = importlib.import_module("bpy")

RATE = 30


def play(path: str, truth: str) -> dict[str, dict[str, float]]:
    arm = next(o for o in bpy.data.objects if o.type == "ARMATURE")
    meshes = [o for o in bpy.data.objects if o.type == "MESH" and o.find_armature() is not None]
    found = {}
    with np.load(truth) as held:
        for name in (n for n in held.files if n != "seconds"):
            for track in arm.animation_data.nla_tracks:
                track.mute = True
            action = bpy.data.actions[name]
            arm.animation_data.action = action
            slots = [s for s in action.slots if arm.name in s.name_display]
            arm.animation_data.action_slot = slots[0]
            away = []
            for seconds, wanted in zip(held["seconds"], held[name], strict=True):
                go_to(float(seconds))
                away.append(np.linalg.norm(shown(meshes) - wanted, axis=-1))
            square = float(np.mean(np.square(away)))
            found[name] = {"max": float(np.max(away)), "rms": square**0.5}
    return found


def place(path: str, out: str) -> None:
    go_to(0.0)
    names = sorted(o.name for o in bpy.data.objects if "_point_" in o.name)
    places: dict[str, list[np.ndarray]] = {}
    for name in names:
        at = np.array(bpy.data.objects[name].matrix_world.translation)
        places.setdefault(name.rsplit("_", 1)[1], []).append(at)
    corners = [np.mean(places[number], 0) for number in sorted(places)]
    faces = [(i, i + 1, i + 2) for i in range(len(corners) - 2)]
    mesh = bpy.data.meshes.new("mine")
    mesh.from_pydata([tuple(c) for c in corners], [], faces)
    mine = bpy.data.objects.new("mine", mesh)
    bpy.context.scene.collection.objects.link(mine)
    for each in bpy.data.objects:
        each.select_set(each is mine)
    bpy.ops.export_scene.gltf(filepath=out, use_selection=True, export_animations=False)


def go_to(seconds: float) -> None:
    frame = seconds * RATE
    bpy.context.scene.frame_set(int(frame), subframe=frame - int(frame))


def shown(meshes: list) -> np.ndarray:
    """Vertices as they are played, in glTF's axes."""
    graph = bpy.context.evaluated_depsgraph_get()
    found = []
    for each in meshes:
        played = each.evaluated_get(graph)
        vertices = played.to_mesh().vertices
        own = np.empty(3 * len(vertices))
        vertices.foreach_get("co", own)
        matrix = np.array(played.matrix_world)
        found.append(own.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
    x, y, z = np.concatenate(found).T
    return np.stack([x, z, -y], -1)


if __name__ == "__main__":
    task, source, other = sys.argv[-3:]
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = RATE
    bpy.ops.import_scene.gltf(filepath=source)
    answer = play(source, other) if task == "play" else place(source, other)
    print("answer", json.dumps(answer))
