r"""Do the files of every real clip pass their validators and hold what was sampled?

Every clip is sampled (K = 4), exported in all formats and read back by readers that did not write the files: Khronos'
glTF validator (`GLTF_VALIDATOR`: the folder of its npm package), the project's own reader of animated glTF for skins,
trimesh for PLY and the means of Gaussians, which are compared with the surface as the field carries it, USD's own
validators and camera, numpy for npz; and Blender where `BLENDER` names a Python that has bpy. Told is the largest
distance to the source over all hypotheses and frames, in scene units (median depth 1).

    python experiments/exports/run.py --videos FOLDER
"""

import dataclasses
import json
import os
import shutil
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
from diffusion4d.export.glb import write_glb
from diffusion4d.export.recorded import REPORT, length, start_of
from diffusion4d.fields.blend import deform
from diffusion4d.fields.graph import surface_distances
from diffusion4d.fields.motion import motion_of, reference
from diffusion4d.fields.skinning import skin
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.delaunay import anchor_surface

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
    sampled: Path | None = None
    """Folder of folders that `diffusion4d sample` wrote, by the clips' names: their first hypotheses are taken."""
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


def files_error(folder: Path, hyp: Hypotheses, video: Path) -> dict:
    """PLY, Gaussians and npz of every hypothesis and frame: the largest distance from what was sampled."""
    places = hyp.evaluate().transpose(1, 2).numpy()
    camera = hyp.camera_points().transpose(1, 2).numpy()
    first = places
    if hyp.frame == "world":
        # TrackCraft3R's axes are those of the first frame's camera, in all frames.
        anchor = hyp.cameras[:, 0].numpy()
        first = (
            np.einsum("kij,ktnj->ktni", anchor[:, :3, :3], places) + anchor[:, None, None, :3, 3]
        )
    surface = carried_surface(folder, hyp, video)
    kinds = ("ply", "gaussians", "tapvid3d", "tapip3d", "trackcraft3r")
    worst: dict[str, float] = dict.fromkeys(kinds, 0.0)
    frames = 0

    def compare(kind: str, found: np.ndarray, expected: np.ndarray) -> None:
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise RuntimeError(f"need {list(expected.shape)} numbers, got {found} in {kind}")
        worst[kind] = max(worst[kind], float(np.abs(found - expected).max()))

    for k in range(hyp.num_hypotheses):
        name = f"hypothesis_{k:02d}"
        for t in range(hyp.num_frames):
            cloud, splat = (
                points_of(trimesh.load_scene(folder / kind / name / f"frame_{t:04d}.ply"))
                for kind in ("ply", "gaussians")
            )
            compare("ply", cloud * FLIP, places[k, t])
            compare("gaussians", splat, surface[k, t])
            frames += 1
        arrays = {
            "tapvid3d": ("tracks_XYZ", camera),
            "tapip3d": ("coords", places),
            "trackcraft3r": ("tracks", first),
        }
        for kind, (key, expected) in arrays.items():
            compare(kind, np.load(folder / kind / f"{name}.npz")[key], expected[k])
    return {"hypotheses": hyp.num_hypotheses, "frames": frames, **worst}


def carried_surface(folder: Path, hyp: Hypotheses, video: Path) -> np.ndarray:
    """[K, T, V, 3]: the points' surface, finer by two levels, where the field carries it: the means of Gaussians."""
    picture = animate.first_frame(video, hyp, start_of(None, folder))
    mesh, rest = anchor_surface(hyp, picture, levels=2), reference(hyp)
    distances = surface_distances(mesh.vertices, mesh.faces, rest.places.numpy())
    points, skinning = torch.from_numpy(mesh.vertices), skin(torch.from_numpy(distances))
    return deform(points, skinning, motion_of(hyp, rest)).numpy()


def sampled(folder: Path, source: Path, count: int) -> None:
    """The first hypotheses of a folder that `diffusion4d sample` wrote, as if they alone had been sampled."""
    hyp = Hypotheses.load(source)
    hyp = hyp.select(torch.arange(min(count, hyp.num_hypotheses)))
    hyp.save(folder)
    shutil.copy(source / REPORT, folder)
    write_glb(hyp, folder / "hypotheses.glb", seconds=length(hyp, source=folder))


def clip(video: Path, hypotheses: int, source: Path | None = None) -> dict:
    """Everything of one clip, sampled here or in the folder `source`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / video.stem
        begun = time.perf_counter()
        commands = [
            ["sample", str(video), "-k", str(hypotheses), "-o", str(folder)],
        ]
        if source is not None:
            sampled(folder, source, hypotheses)
            commands = []
        kinds = ["--formats", "usd", *FORMATS]
        commands += [
            ["animate", "--from", str(folder), "--video", str(video)],
            ["export", str(folder), "--video", str(video), "--hypotheses", "all", *kinds],
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
            "files": files_error(folder, hyp, video),
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
        source = None if settings.sampled is None else settings.sampled / video.stem
        found[video.stem] = clip(video, settings.hypotheses, source)
        print(video.stem, json.dumps(found[video.stem]), file=sys.stderr, flush=True)
        with replace_when_done(settings.out) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
