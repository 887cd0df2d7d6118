"""Rendered worlds of held-out actors with exact depth, and the ways to a surface over their true nodes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from diffusion4d.data.pack import Pack
from diffusion4d.fields.motion import reference
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.scenes.observe import World
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
