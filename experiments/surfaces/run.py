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

import json
import sys
import time

import numpy as np
import torch
import trimesh
import tyro
from cases import FIRST, Case, Settings, case, surfaces
from jaxtyping import Float
from scipy.spatial import KDTree

from diffusion4d.atomic import replace_when_done
from diffusion4d.data.pack import Pack
from diffusion4d.errors import UserError
from diffusion4d.scenes.casting import Caster
from diffusion4d.scenes.observe import pixel_rays
from diffusion4d.scenes.render import depth_at
from diffusion4d.surfaces.mesh import Mesh

NEAR = 0.02
WRONG = 0.1
DRAWN = 200_000
"""Points of a surface, that stand for it where distances to it are told."""


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
