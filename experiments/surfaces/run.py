r"""How true are the surfaces that a few hundred points carry, and what do depth maps of all frames add?

Rendered worlds of held-out actors with exact depth. Their points' true ways are given as nodes, so that what is told
is the surface's error and no sampler's. Surfaces of the first frame's shape:

    all triangles         Delaunay of the image, nothing cut
    cut                   as `surfaces.delaunay` has it: without what spans depth edges or parts
    fused, exact          exact depth maps of all frames through the nodes' field (`surfaces.fusion`)
    fused, rigid          the same without the field, through the camera's true path alone
    fused, head           depth maps as the packaged encoder's head reads them off the pictures
    first map             the exact map of the first frame alone

In the first frame's picture, where there is a surface behind a pixel: *covered*, the share of pixels that the surface
covers; *error*, median |log z − log z_true| of those; *wrong*, share of those that are off by more than 10 %.
Behind it, *hidden found*: of the places that a later frame shows and the first does not, the share that the surface
passes within 2 % of the scene's depth; the same of places that the first shows.

    python experiments/surfaces/run.py --pack FOLDER
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import trimesh
import tyro
from jaxtyping import Float
from scipy.spatial import KDTree

from diffusion4d.atomic import replace_when_done
from diffusion4d.data.pack import Pack
from diffusion4d.errors import UserError
from diffusion4d.fields.motion import reference
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.scenes.casting import Caster
from diffusion4d.scenes.observe import World, pixel_rays
from diffusion4d.scenes.pool import HELD_OUT
from diffusion4d.scenes.render import depth_at, depth_maps, render
from diffusion4d.scenes.scene import Scene
from diffusion4d.scenes.world import ACTOR, compose, generate
from diffusion4d.splines import knot_vector
from diffusion4d.surfaces.delaunay import anchor_surface, triangulate
from diffusion4d.surfaces.fusion import fused_surface
from diffusion4d.surfaces.mesh import Mesh
from priors.pointmaps import load_pointmapper

FIRST = HELD_OUT + 30_000
NEAR = 0.02
WRONG = 0.1
DRAWN = 200_000
"""Points of a surface, that stand for it where distances to it are told."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure surfaces of held-out worlds."""

    pack: Path = Path("runs/pack")
    worlds: int = 32
    points: int = 256
    frames: int = 8
    side: int = 128
    """Shorter side of pictures and depth maps, px."""
    resolution: int = 96
    out: Path = Path(__file__).parent / "results.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A world with its true depth."""

    world: World
    scene: Scene
    unit: float
    """Scene units in the world's."""
    depths: Float[np.ndarray, "T h w"]
    images: Float[np.ndarray, "T 3 h w"]
    hypotheses: Hypotheses
    """The truth, as one hypothesis."""


def case(seed: int, pack: Pack, settings: Settings) -> Case:
    """A world of a held-out actor."""
    T = settings.frames
    world = generate(seed, num_points=settings.points, num_frames=T, family=ACTOR, pack=pack)
    scene = compose(world.scene_seed, num_frames=T, family=ACTOR, pack=pack)
    scale = settings.side / min(scene.size)
    size = (round(scene.size[0] * scale), round(scene.size[1] * scale))
    fx, fy, cx, cy = world.intrinsics.astype(float)
    x, y, z = world.points[:, 0].astype(float).T
    pixels = np.stack([fx * x / z + cx, fy * y / z + cy], -1)
    unit = float(np.nanmedian(depth_at(scene, 0, pixels) / z))
    points = torch.from_numpy(world.points).float()
    hypotheses = Hypotheses(
        # Of degree 1, control points are the positions in the frames.
        control_points=points[None],
        knots=knot_vector(T, 1),
        degree=1,
        times=torch.linspace(0, 1, T, dtype=torch.float64),
        query_points=torch.from_numpy(pixels).float(),
        tracks=torch.zeros(T, len(points), 2),
        visibility=torch.from_numpy(world.visible.T).float(),
        intrinsics=torch.from_numpy(world.intrinsics).float(),
        size=scene.size,
        extrinsics=torch.eye(4).expand(T, 4, 4),
        seeds=torch.zeros(1, dtype=torch.int64),
    )
    frames = range(T)
    return Case(
        world,
        scene,
        unit,
        depth_maps(scene, frames, size) / unit,
        render(scene, frames, size),
        hypotheses,
    )


def surfaces(case: Case, settings: Settings) -> dict[str, Callable[[], Mesh]]:
    """Every way to a surface."""
    hyp = case.hypotheses
    nan = np.full_like(case.depths[1:], np.nan)
    first = np.concatenate([case.depths[:1], nan]).astype(np.float32)
    mapper = load_pointmapper("tiny")

    def fusion(depths: np.ndarray, hypotheses: Hypotheses = hyp) -> Mesh:
        return fused_surface(
            hypotheses, 0, depths.astype(np.float32), resolution=settings.resolution
        )

    def everything() -> Mesh:
        rest = reference(hyp).places.numpy()
        faces = triangulate(hyp.query_points.double().numpy())
        return Mesh(rest, faces[:, ::-1].copy())

    def head() -> Mesh:
        return fusion(mapper.log_depth(torch.from_numpy(case.images)).exp().numpy())

    # Each frame as the first frame's shape would be seen if nothing but the camera had moved.
    relative = np.linalg.inv(case.scene.extrinsics[:1])
    path = torch.from_numpy(case.scene.extrinsics @ relative).float()
    path[:, :3, 3] /= case.unit
    still = dataclasses.replace(
        hyp,
        control_points=hyp.control_points[:, :, :1].expand_as(hyp.control_points).contiguous(),
        extrinsics=path,
        frame="world",
    )
    return {
        "all triangles": everything,
        "cut": lambda: anchor_surface(hyp, levels=0),
        "first map": lambda: fusion(first),
        "fused, rigid": lambda: fusion(case.depths, still),
        "fused, exact": lambda: fusion(case.depths),
        "fused, head": head,
    }


def shown(case: Case) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "m 3"]]:
    """Places at rest that the first frame shows, and those that only a later one does; in its camera's axes."""
    scene, size = case.scene, case.depths.shape[1:]
    rows = (np.arange(size[0])[::2] + 0.5) / size[0] * scene.size[0]
    columns = (np.arange(size[1])[::2] + 0.5) / size[1] * scene.size[1]
    y, x = np.meshgrid(rows, columns, indexing="ij")
    pixels = np.stack([x.ravel(), y.ravel()], -1)
    rotation, shift = scene.extrinsics[0, :3, :3], scene.extrinsics[0, :3, 3]
    found = []
    for t in range(len(scene.vertices)):
        hits = Caster(scene.vertices[t], scene.faces).first_hits(*pixel_rays(scene, t, pixels))
        face, weight = hits.face[hits.face >= 0], hits.barycentric[hits.face >= 0]
        at = np.einsum("nci,nc->ni", scene.vertices[0][scene.faces[face]], weight)
        found.append((at @ rotation.T + shift) / case.unit)
    later = np.concatenate(found[1:])
    pixel = later[:, :2] / later[:, 2:] * case.world.intrinsics[:2] + case.world.intrinsics[2:]
    inside = ((pixel > 0) & (pixel < scene.size[::-1]) & (later[:, 2:] > 0)).all(1)
    depth = np.full(len(later), np.nan)
    depth[inside] = depth_at(scene, 0, pixel[inside]) / case.unit
    # Out of the picture is not what fusion about the nodes is for.
    hidden = inside & (later[:, 2] > (1 + NEAR) * depth)
    return found[0], later[hidden]


def told(mesh: Mesh, case: Case, first: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """The measures of a surface."""
    size = case.depths.shape[1:]
    scale = np.array(size[::-1]) / np.array(case.scene.size[::-1])
    fx, fy, cx, cy = case.world.intrinsics * np.tile(scale, 2)
    row, column = (axis.ravel() + 0.5 for axis in np.mgrid[: size[0], : size[1]])
    rays = np.stack([(column - cx) / fx, (row - cy) / fy, np.ones(len(row))], -1)
    depth = Caster(mesh.vertices, mesh.faces).first_hits(np.zeros_like(rays), rays).distance
    true = case.depths[0].ravel()
    known = np.isfinite(true)
    covered = known & np.isfinite(depth)
    error = np.abs(np.log(depth[covered] / true[covered]))
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    tree = KDTree(trimesh.sample.sample_surface(shape, DRAWN, seed=0)[0])

    def passed(places: np.ndarray) -> float:
        return float((tree.query(places)[0] <= NEAR).mean())

    return {
        "covered": float(covered.sum() / known.sum()),
        "error": float(np.median(error)) if len(error) else float("nan"),
        "wrong": float((error > WRONG).mean()) if len(error) else float("nan"),
        "shown found": passed(first),
        "hidden found": passed(hidden) if len(hidden) >= 50 else float("nan"),
    }


def main(settings: Settings) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    pack = Pack.open(settings.pack, ("held-out",))
    rows: list[dict] = []
    for i in range(settings.worlds):
        one = case(FIRST + i, pack, settings)
        first, hidden = shown(one)
        row: dict = {"hidden": len(hidden)}
        for name, make in surfaces(one, settings).items():
            begun = time.perf_counter()
            try:
                mesh = make()
            except UserError as error:
                print(f"{FIRST + i}, {name}: {error}", file=sys.stderr)
                continue
            spent = time.perf_counter() - begun
            row[name] = {**told(mesh, one, first, hidden), "seconds": spent}
        rows.append(row)
        print(i, json.dumps(row), file=sys.stderr, flush=True)
    names = [name for name in rows[0] if name != "hidden"]
    keys = ("covered", "error", "wrong", "shown found", "hidden found", "seconds")
    summary = {
        name: {
            "worlds": sum(name in row for row in rows),
            **{
                key: float(np.nanmean([row[name][key] for row in rows if name in row]))
                for key in keys
            },
        }
        for name in names
    }
    content = {"worlds": len(rows), "points": settings.points, "summary": summary, "rows": rows}
    with replace_when_done(settings.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
