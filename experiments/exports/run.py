r"""Do the files of every real clip pass their validators and hold what was sampled?

Every clip is sampled (K = 4), exported in all formats and read back by readers that did not write the files: Khronos'
glTF validator (`GLTF_VALIDATOR`: the folder of its npm package), the project's own reader of animated glTF for skins,
trimesh for PLY, USD's own validators and camera, numpy for npz; and Blender where `BLENDER` names a Python that has
bpy. Told is the largest distance to the source, in scene units (median depth 1).

    python experiments/exports/run.py --videos FOLDER
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import trimesh
import tyro

from diffusion4d import animate, cli
from diffusion4d.atomic import replace_when_done
from diffusion4d.config import Animate
from diffusion4d.data.animated_glb import read_animated
from diffusion4d.fields.blend import deform
from diffusion4d.fields.motion import motion_of
from diffusion4d.hypotheses import Hypotheses

FLIP = np.array([1, -1, -1])
FORMATS = ("ply", "gaussians", "tapvid3d", "tapip3d", "trackcraft3r")
VALIDATE = (
    "const [lib, file] = process.argv.slice(1);"
    "require(lib).validateBytes(new Uint8Array(require('fs').readFileSync(file)))"
    ".then(r => console.log(JSON.stringify(r.issues)));"
)
BLENDER = """
import bpy, json, sys, numpy as np
path, frames = sys.argv[1], int(sys.argv[2])
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=path)
scene = bpy.context.scene
body = next(o for o in bpy.data.objects if o.type == "MESH" and o.name.startswith("surface"))
bones = next(o for o in bpy.data.objects if o.type == "ARMATURE")
found = {}
for action in bpy.data.actions:
    if not action.name.startswith("hypothesis"):
        continue
    bones.animation_data_create()
    for track in bones.animation_data.nla_tracks:
        track.mute = True
    bones.animation_data.action = action
    if getattr(action, "slots", None):
        bones.animation_data.action_slot = action.slots[0]
    low, high = action.frame_range
    rows = []
    for i in range(frames):
        at = low + (high - low) * i / (frames - 1)
        scene.frame_set(int(at // 1), subframe=at % 1)
        moved = body.evaluated_get(bpy.context.evaluated_depsgraph_get())
        mesh = moved.to_mesh()
        rows.append([list(moved.matrix_world @ v.co) for v in mesh.vertices])
    found[action.name] = rows
np.savez(sys.argv[3], **{k: np.array(v) for k, v in found.items()})
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Export every clip and read it back."""

    videos: Path = Path("videos")
    """Folder of real clips, however deep."""
    out: Path = Path(__file__).parent / "results.json"
    hypotheses: int = 4
    only: tuple[str, ...] = ()
    """Clips by name; all by default."""


def validated(path: Path) -> list[str] | None:
    """What Khronos' validator says; None where it is not at hand."""
    package = os.environ.get("GLTF_VALIDATOR")
    if package is None:
        return None
    run = subprocess.run(
        ["node", "-e", VALIDATE, package, str(path)], capture_output=True, text=True, check=True
    )
    return [m["message"] for m in json.loads(run.stdout)["messages"]]


def skin_error(folder: Path, hyp: Hypotheses, video: Path) -> dict:
    """animated.glb against the field, at the frames; by our reader of other people's files, and by Blender."""
    file = folder / animate.FILE_NAME
    ready = animate.prepare(Animate(None, folder, video=video))
    points = torch.from_numpy(ready.mesh.vertices)
    expected = deform(points, ready.skinning.most(4), motion_of(hyp, ready.rest)).numpy()
    read = read_animated(file)
    seconds = read.skeleton.animations[0].stop
    worst = 0.0
    for k, animation in enumerate(read.skeleton.animations):
        moved = read.positions(animation, seconds * hyp.times.numpy())
        worst = max(worst, float(np.abs(moved[..., [0, 2, 1]] * [1, -1, 1] - expected[k]).max()))
    told: dict = {"reader": worst, "vertices": len(points)}
    python = os.environ.get("BLENDER")
    if python is not None:
        even = np.allclose(np.diff(hyp.times.numpy()), 1 / (hyp.num_frames - 1), atol=1e-4)
        with tempfile.TemporaryDirectory() as place:
            script, result = Path(place) / "read.py", Path(place) / "read.npz"
            script.write_text(BLENDER)
            subprocess.run(
                [python, str(script), str(file), str(hyp.num_frames), str(result)],
                capture_output=True,
                check=True,
            )
            back = np.load(result)
            # Blender is z up: (x, -z, y) of glTF's.
            apart = [
                np.linalg.norm(
                    back[n][..., [0, 2, 1]] * [1, -1, 1] - expected[int(n[11:13])], axis=-1
                )
                for n in sorted(back.files)
            ]
        told["blender median"] = float(np.median(apart))
        told["blender worst"] = float(np.max(apart))
        told["even frames"] = bool(even)
    return told


def usd_error(path: Path, hyp: Hypotheses) -> dict:
    """Points and validators of the USD file."""
    usd, geometry, validation = (
        import_module(f"pxr.{name}") for name in ("Usd", "UsdGeom", "UsdValidation")
    )
    stage = usd.Stage.Open(str(path))
    registry = validation.ValidationRegistry().GetOrLoadAllValidators()
    issues = validation.ValidationContext(registry).Validate(stage)
    worst = 0.0
    for k in range(hyp.num_hypotheses):
        name = f"/diffusion4d/hypothesis_{k:02d}/points"
        points = geometry.Points(stage.GetPrimAtPath(name)).GetPointsAttr()
        for t, code in enumerate(points.GetTimeSamples()):
            here = np.array(points.Get(code)) * FLIP
            worst = max(worst, float(np.abs(here - hyp.evaluate()[k, :, t].numpy()).max()))
    return {"points": worst, "issues": [issue.GetErrorAsString() for issue in issues]}


def points_of(scene: trimesh.Scene) -> np.ndarray:
    """The points of a file with one cloud."""
    (cloud,) = scene.geometry.values()
    return np.asarray(getattr(cloud, "vertices"))  # noqa: B009


def files_error(folder: Path, hyp: Hypotheses) -> dict:
    """PLY, Gaussians and npz of the first hypothesis."""
    places = hyp.evaluate()[0].numpy()
    worst, splats = 0.0, 0
    for t in range(hyp.num_frames):
        cloud = trimesh.load_scene(folder / "ply" / "hypothesis_00" / f"frame_{t:04d}.ply")
        worst = max(worst, float(np.abs(points_of(cloud) * FLIP - places[:, t]).max()))
        splat = trimesh.load_scene(folder / "gaussians" / "hypothesis_00" / f"frame_{t:04d}.ply")
        splats += int(np.isfinite(points_of(splat)).all())
    own = np.load(folder / "tapvid3d" / "hypothesis_00.npz")["tracks_XYZ"]
    world = np.load(folder / "tapip3d" / "hypothesis_00.npz")["coords"]
    first = np.load(folder / "trackcraft3r" / "hypothesis_00.npz")["tracks"]
    camera = hyp.camera_points()[0].transpose(0, 1).numpy()
    return {
        "ply": worst,
        "gaussian frames": splats,
        "tapvid3d": float(np.abs(own - camera).max()),
        "tapip3d": float(np.abs(world - places.transpose(1, 0, 2)).max()),
        "trackcraft3r, first frame": float(np.abs(first[0] - camera[0]).max()),
    }


def clip(video: Path, hypotheses: int) -> dict:
    """Everything of one clip."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / video.stem
        begun = time.perf_counter()
        commands = [
            ["sample", str(video), "-k", str(hypotheses), "-o", str(folder)],
            ["animate", "--from", str(folder), "--video", str(video)],
            ["export", str(folder), "--formats", "usd", "--hypotheses", "all"],
            ["export", str(folder), "--hypotheses", "0", "--formats", *FORMATS],
        ]
        for command in commands:
            code = cli.run(command)
            if code != 0:
                raise RuntimeError(f"{' '.join(command)} ended with {code}")
        spent = time.perf_counter() - begun
        hyp = Hypotheses.load(folder)
        return {
            "frame": hyp.frame,
            "glTF issues": {
                name: validated(folder / name) for name in ("hypotheses.glb", "animated.glb")
            },
            "skin": skin_error(folder, hyp, video),
            "usd": usd_error(folder / "hypotheses.usdc", hyp),
            "files": files_error(folder, hyp),
            "megabytes": round(
                sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 1
            ),
            "seconds": round(spent, 1),
        }


def main(settings: Settings) -> None:
    """Results are written after every clip."""
    videos = sorted(p for p in settings.videos.rglob("*") if p.suffix in (".mp4", ".avi", ".mov"))
    found = {}
    for video in videos:
        if settings.only and video.stem not in settings.only:
            continue
        found[video.stem] = clip(video, settings.hypotheses)
        print(video.stem, json.dumps(found[video.stem]), file=sys.stderr, flush=True)
        with replace_when_done(settings.out) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
