r"""Does animated.glb show what the field says, in readers that did not write it?

For each video: `diffusion4d sample -k 4`, `diffusion4d animate` on the points' own surface, then

    frames, between   the largest distance of a vertex from `fields.blend.deform`, over hypotheses and instants: the
                      frames, and the middles between them; read by `data.animated_glb`, a reader of others' files
    rest              the same of the mesh without an animation, read by trimesh
    validator         errors and warnings of Khronos' glTF validator
    Blender           the same distances in Blender, which draws tangents of its own between keys
    placed            a mesh with a corner at every point, made in Blender beside hypotheses.glb and exported:
                      the largest distance of a corner from the reference node that it should lie on

all as shares of the diagonal of the mesh's box.

    python experiments/animate/run.py VIDEO… --blender PYTHON-WITH-BPY --validator node_modules/gltf-validator

Shape letters:  K hypotheses   V vertices   T instants
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.spatial import KDTree

from diffusion4d import cli
from diffusion4d.animate import FILE_NAME, Animated, prepare, run
from diffusion4d.atomic import replace_when_done
from diffusion4d.config import Animate
from diffusion4d.data.animated_glb import read_animated
from diffusion4d.export.gltf_mesh import read_document
from diffusion4d.fields.blend import deform
from diffusion4d.fields.motion import motion_of
from diffusion4d.surfaces.mesh import AXES

HERE = Path(__file__).parent
VALIDATE = (
    "const [lib, file] = process.argv.slice(1);"
    "require(lib).validateBytes(new Uint8Array(require('fs').readFileSync(file)))"
    ".then(r => console.log(JSON.stringify(r.issues)));"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Animate the surfaces of real clips and read them back."""

    videos: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("runs/animate")
    """Folder for what sample and animate write; clips that are sampled are not sampled again."""
    blender: Path | None = None
    """A Python that has bpy."""
    validator: Path | None = None
    """Folder of the npm package gltf-validator."""


def measure(video: Path, settings: Settings) -> dict[str, float | int | None]:
    """One row."""
    folder = settings.out / video.stem
    if not (folder / "hypotheses.npz").exists():
        assert cli.run(["sample", str(video), "-o", str(folder), "-k", "4"]) == 0
    config = Animate(source=folder, video=video)
    begin = time.perf_counter()
    run(config)
    spent = time.perf_counter() - begin
    animated, path = prepare(config), folder / FILE_NAME
    points = animated.mesh.vertices
    extent = float(np.linalg.norm(np.ptp(points, axis=0)))
    frames = animated.hypotheses.times
    between = (frames[1:] + frames[:-1]) / 2
    row: dict[str, float | int | None] = {
        "hypotheses": len(animated.numbers),
        "vertices": len(points),
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "seconds": round(spent, 1),
        "frames": _rounded(distance(animated, path, frames) / extent),
        "between": _rounded(distance(animated, path, between) / extent),
        "rest": _rounded(rest_distance(animated, path) / extent),
        "validator": None if settings.validator is None else issues(path, settings.validator),
    }
    if settings.blender is not None:
        for name, u in (("blender_frames", frames), ("blender_between", between)):
            row[name] = _rounded(in_blender(animated, path, u, settings.blender) / extent)
        row["placed"] = _rounded(placed(animated, folder, settings.blender) / extent)
    return row


def truth(animated: Animated, k: int, u: torch.Tensor) -> np.ndarray:
    """[T, V, 3] by the field, in OpenCV's axes."""
    points = torch.from_numpy(animated.mesh.vertices)
    motion = motion_of(animated.hypotheses.select(torch.tensor([k])), animated.rest, u)
    return deform(points, animated.skinning, motion)[0].numpy()


def distance(animated: Animated, path: Path, u: torch.Tensor) -> float:
    read = read_animated(path)
    worst = 0.0
    for k, animation in enumerate(read.skeleton.animations):
        z_up = read.positions(animation, animation.stop * u.numpy())
        found = z_up[..., [0, 2, 1]] * [1, -1, 1]
        worst = max(worst, float(np.linalg.norm(found - truth(animated, k, u), axis=-1).max()))
    return worst


def rest_distance(animated: Animated, path: Path) -> float:
    import trimesh

    shape = trimesh.load_scene(path, process=False).to_mesh()
    return float(np.linalg.norm(shape.vertices * AXES - animated.mesh.vertices, axis=-1).max())


def issues(path: Path, package: Path) -> int:
    command = ["node", "-e", VALIDATE, str(package.absolute()), str(path)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return told["numErrors"] + told["numWarnings"]


def in_blender(animated: Animated, path: Path, u: torch.Tensor, python: Path) -> float:
    stop = read_animated(path).skeleton.animations[0].stop
    held = {
        f"hypothesis_{n:02d}": truth(animated, k, u) * AXES for k, n in enumerate(animated.numbers)
    }
    np.savez(path.with_name("truth.npz"), allow_pickle=False, seconds=stop * u.numpy(), **held)
    found = ask_blender(python, "play", path, path.with_name("truth.npz"))
    return max(each["max"] for each in found.values())


def placed(animated: Animated, folder: Path, python: Path) -> float:
    ask_blender(python, "place", folder / "hypotheses.glb", folder / "placed.glb")
    corners = read_document(folder / "placed.glb").mesh.vertices
    return float(KDTree(animated.rest.places.numpy()).query(corners)[0].max())


def ask_blender(python: Path, task: str, source: Path, other: Path) -> dict[str, dict[str, float]]:
    command = [str(python), str(HERE / "blender.py"), task, str(source), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("answer "))
    return json.loads(line.removeprefix("answer "))


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def main(settings: Settings) -> None:
    rows = {}
    for video in settings.videos:
        rows[video.stem] = measure(video, settings)
        print(video.stem, rows[video.stem], file=sys.stderr, flush=True)
    with replace_when_done(HERE / "results.json") as path:
        path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
