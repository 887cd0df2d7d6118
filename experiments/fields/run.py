r"""What carries a dense surface best when only a few of its points are known to move?

Animated meshes that no training saw (whole species, rigs; their true motion). 128 vertices, chosen far apart, are the
nodes, and their true ways are given; every other vertex is carried by

    additive             displacements, blended
    linear               linear-blend skinning with rotations
    dual quaternion      the same nodes and weights, rigid at every point
    velocity             a neural velocity field fitted to each motion, integrated

Told: error of the vertices as a share of the diagonal of the box at rest (mean, and the 95th percentile); drift of a
detail, offsets of 2 % of the diagonal that are carried by the map's own derivative, against the true local frame;
share of triangles folded over; edge stretch beside the truth's; seconds. `detail` of a vertex is a random direction
in the tangent frame.

`cost`: 100,000 vertices, 48 frames, 16 hypotheses of 128 nodes, streamed; a process of its own, so that its peak is
its own. Beside it, materialising all at once, and a plain loop over the nodes for every vertex (timed on 200 vertices
and scaled up).

    python experiments/fields/run.py accuracy --meshes FOLDER
    python experiments/fields/run.py cost
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from diffusion4d.atomic import replace_when_done
from diffusion4d.data.animated_glb import read_animated
from diffusion4d.data.decimation import merged
from diffusion4d.detail.offsets import drift, extract
from diffusion4d.fields.blend import Blend, deform
from diffusion4d.fields.frames import frames, guides
from diffusion4d.fields.graph import node_distances, surface_distances
from diffusion4d.fields.measures import edge_stretch, edges_of, fold_over, vertex_rotations
from diffusion4d.fields.motion import Rest, node_motion, reference
from diffusion4d.fields.skinning import skin
from diffusion4d.fields.stream import stream
from diffusion4d.fields.velocity import fit_velocity, flow
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import knot_vector

HELD_OUT = (
    "Deer",
    "ShibaInu",
    "Trex",
    "Piranha",
    "MoorishIdol",
    "George",
    "shark-animations",
    "snake-animations",
)
FRAMES = 48
DETAIL = 0.02


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure deformable fields."""

    parts: Annotated[tuple[Literal["accuracy", "cost", "one"], ...], tyro.conf.Positional]
    meshes: Path = Path("meshes")
    nodes: int = 128
    motions: int = 2
    """Of each mesh: the first ones, and those with the largest motion are not picked."""
    most_vertices: int = 6000
    out: Path = Path(__file__).parent / "results.json"
    way: Literal["stream", "whole", "quaternions"] = "stream"
    """For `one`: how the surface is made in this process."""


def farthest(points: np.ndarray, count: int) -> np.ndarray:
    """Vertices that are far from each other, by turns; the first is the one farthest from the middle."""
    away = np.linalg.norm(points - points.mean(0), axis=1)
    chosen = [int(away.argmax())]
    least = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(least.argmax()))
        least = np.minimum(least, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def motions(path: Path, count: int) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
    """Name, vertices [T, V, 3], faces and seconds of some animations that move at all."""
    mesh = read_animated(path)
    found = []
    for animation in mesh.skeleton.animations:
        seconds = animation.stop - animation.start
        if seconds <= 0:
            continue
        # A second and a half, as a clip has.
        times = animation.start + np.linspace(0, min(seconds, 1.6), FRAMES)
        moved = mesh.positions(animation, times).astype(np.float32)
        extent = np.linalg.norm(np.ptp(moved[0], axis=0))
        if np.linalg.norm(moved - moved[:1], axis=-1).max() > 0.05 * extent:
            found.append((animation.name, moved, mesh.faces, float(times[-1] - times[0])))
        if len(found) == count:
            break
    return found


def welded(moved: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices that are one all the time as one, for files that repeat them beyond the limit."""
    extent = float(np.ptp(moved[0], axis=0).max())
    first, faces = merged(
        np.round(moved.swapaxes(0, 1).reshape(moved.shape[1], -1) / (1e-5 * extent)), faces
    )
    corners = moved[0][first][faces]
    double = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1
    )
    used, number = np.unique(faces[double > 1e-10 * extent**2], return_inverse=True)
    return moved[:, first[used]], number.reshape(-1, 3)


def one_motion(moved: np.ndarray, faces: np.ndarray, settings: Settings) -> dict:
    """Every field on one motion."""
    truth = torch.from_numpy(moved)
    corners = torch.from_numpy(faces.astype(np.int64))
    rest = truth[0]
    extent = float((rest.amax(0) - rest.amin(0)).norm())
    chosen = farthest(moved[0], settings.nodes)
    positions = truth[:, chosen]
    edges = edges_of(corners)
    along = node_distances(moved[0][chosen].astype(float), moved[:, chosen].astype(float))
    over = surface_distances(moved[0], faces, moved[0][chosen])
    # The nodes' own graph goes along the surface, too.
    between = torch.from_numpy(np.minimum(along, over[chosen]).astype(np.float32))
    begun = time.perf_counter()
    motion = node_motion(rest[chosen], positions, between)
    held = skin(torch.from_numpy(over))
    prepared = time.perf_counter() - begun
    turned = vertex_rotations(rest, truth, edges)
    guide = guides(rest, corners)
    at_rest = frames(rest, corners, guide)
    generator = torch.Generator().manual_seed(0)
    offset = torch.nn.functional.normalize(torch.randn(rest.shape, generator=generator), dim=-1)
    offset = DETAIL * extent * offset

    def told(surface: torch.Tensor, detailed: torch.Tensor, seconds: float) -> dict:
        error = (surface - truth)[1:].norm(dim=-1)
        # Against how the true surface turns about the vertex; and in the frames of the surface that carries it.
        local = (turned.mT @ (detailed - surface)[..., None]).squeeze(-1)
        strayed = (local - offset)[1:].square().mean().sqrt() / offset.square().mean().sqrt()
        stored = (at_rest.mT @ offset[..., None]).squeeze(-1)
        own = drift(stored, surface[1:], detailed[1:], corners, guide).square().mean().sqrt()
        return {
            "error": float(error.mean()) / extent,
            "error 95": float(error.flatten().kthvalue(int(0.95 * error.numel())).values) / extent,
            "drift": float(own),
            "drift from the truth": float(strayed),
            "fold-over": float(fold_over(rest, surface, corners).mean()),
            "stretch": float(edge_stretch(rest, surface, edges).mean()),
            "seconds": seconds,
        }

    rows = {}
    blends: dict[str, Blend] = {
        "additive": "additive",
        "linear": "linear",
        "dual quaternion": "dual_quaternion",
    }
    for name, blend in blends.items():
        begun = time.perf_counter()
        surface = deform(rest, held, motion, blend)
        spent = prepared + time.perf_counter() - begun
        detailed = deform(rest + offset, held, motion, blend)
        rows[name] = told(surface, detailed, spent)
        if name == "linear":
            kept = extract(rest, rest + offset, corners)
            rows["linear, detail in frames"] = told(surface, kept.on(surface), spent)
    instants = torch.linspace(0, 1, FRAMES)
    speed = torch.from_numpy(np.gradient(moved[:, chosen], 1 / (FRAMES - 1), axis=0))
    begun = time.perf_counter()
    field = fit_velocity(positions, speed, instants, seed=0)
    surface = flow(field, rest, instants)
    spent = time.perf_counter() - begun
    rows["velocity"] = told(surface, flow(field, rest + offset, instants), spent)
    rows["truth"] = {
        "stretch": float(edge_stretch(rest, truth, edges).mean()),
        "fold-over": float(fold_over(rest, truth, corners).mean()),
    }
    return rows


def accuracy(settings: Settings) -> dict:
    """Every held-out mesh."""
    found: dict = {}
    for name in HELD_OUT:
        (path,) = list(settings.meshes.rglob(f"{name}.glb"))
        for animation, moved, faces, seconds in motions(path, settings.motions):
            if moved.shape[1] > settings.most_vertices:
                moved, faces = welded(moved, faces)
            if moved.shape[1] > settings.most_vertices:
                print(f"{name}: {moved.shape[1]} vertices are too many", file=sys.stderr)
                continue
            rows = one_motion(moved, faces, settings)
            found[f"{name}, {animation}"] = {
                "vertices": moved.shape[1],
                "clip seconds": seconds,
                **rows,
            }
            print(name, animation, json.dumps(rows), file=sys.stderr, flush=True)
    kinds = ("additive", "linear", "linear, detail in frames", "dual quaternion", "velocity")
    summary = {
        kind: {
            key: float(np.mean([row[kind][key] for row in found.values()]))
            for key in (
                "error",
                "error 95",
                "drift",
                "drift from the truth",
                "fold-over",
                "stretch",
                "seconds",
            )
        }
        for kind in kinds
    }
    summary["truth"] = {
        key: float(np.mean([row["truth"][key] for row in found.values()]))
        for key in ("stretch", "fold-over")
    }
    return {"summary": summary, "motions": found}


def crowd() -> tuple[Hypotheses, torch.Tensor, Rest]:
    """16 hypotheses of 128 nodes over 48 frames, and 100,000 points among them."""
    generator = torch.Generator().manual_seed(0)
    N, M, K = 128, 12, 16
    rest = torch.rand(N, 3, generator=generator) + torch.tensor([0.0, 0, 1])
    ctrl = rest[None, :, None] + 0.1 * torch.randn(K, N, M, 3, generator=generator)
    hyp = Hypotheses(
        control_points=ctrl,
        knots=knot_vector(M),
        degree=3,
        times=torch.linspace(0, 1, FRAMES, dtype=torch.float64),
        query_points=torch.zeros(N, 2),
        tracks=torch.zeros(FRAMES, N, 2),
        visibility=torch.ones(FRAMES, N),
        intrinsics=torch.tensor([256.0, 256, 128, 128]),
        size=(256, 256),
        extrinsics=torch.eye(4).repeat(FRAMES, 1, 1),
        seeds=torch.arange(K),
    )
    points = torch.rand(100_000, 3, generator=generator) + torch.tensor([0.0, 0, 1])
    return hyp, points, reference(hyp)


def one(settings: Settings) -> None:
    """One way in this process; prints seconds and the peak."""
    hyp, points, rest = crowd()
    held = skin(torch.cdist(points, rest.places))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begun = time.perf_counter()
    kept, checksum = [], 0.0
    blend: Blend = "dual_quaternion" if settings.way == "quaternions" else "linear"
    for _, _, part in stream(points, held, hyp, rest, blend):
        checksum += float(part[:, ::1000].sum())
        if settings.way == "whole":
            kept.append(part.clone())
    whole = torch.cat(kept) if kept else None
    spent = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    del whole
    print(json.dumps({"seconds": spent, "peak GiB": peak, "before GiB": base, "sum": checksum}))


def plain_loop(count: int = 200) -> float:
    """Seconds that a loop over vertices, frames, hypotheses and their nodes would take, by a share of it."""
    from diffusion4d.fields.motion import motion_of

    hyp, points, rest = crowd()
    held = skin(torch.cdist(points[:count], rest.places))
    motion = motion_of(hyp.select(torch.tensor([0])), rest)
    turned, offsets = motion.rotations[0].numpy(), motion.offsets[0].numpy()
    places, indices, weights = points[:count].numpy(), held.indices.numpy(), held.weights.numpy()
    begun = time.perf_counter()
    for t in range(4):
        for v in range(count):
            total = np.zeros(3, np.float32)
            for j, w in zip(indices[v], weights[v], strict=True):
                total += w * (turned[t, j] @ places[v] + offsets[t, j])
    spent = time.perf_counter() - begun
    return spent / (4 * count) * 100_000 * FRAMES * 16


def cost() -> dict:
    """Every way in a process of its own."""
    found: dict = {}
    for way in ("stream", "whole", "quaternions"):
        run = subprocess.run(
            [sys.executable, __file__, "one", "--way", way],
            capture_output=True,
            text=True,
            check=True,
        )
        found[way] = json.loads(run.stdout.splitlines()[-1])
    found["plain loop, scaled up, seconds"] = plain_loop()
    found["loop over stream"] = found["plain loop, scaled up, seconds"] / found["stream"]["seconds"]
    return found


def main(settings: Settings) -> None:
    """Results of a part replace those in results.json; other parts stay."""
    if "one" in settings.parts:
        return one(settings)
    results = json.loads(settings.out.read_text()) if settings.out.exists() else {}
    for part in settings.parts:
        results[part] = accuracy(settings) if part == "accuracy" else cost()
        with replace_when_done(settings.out) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results.get("accuracy", {}).get("summary", {}), indent=1))
    print(json.dumps(results.get("cost", {}), indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
