r"""How right are the cameras, and what does a world frame cost or gain?

Held-out worlds with exact cameras (`diffusion4d.scenes`), their bodies generated or actors that were not trained on,
points through the simulated tracker, the focal length known. Three sources of 3D points go through the same
estimator (`priors.rigid`, `diffusion4d.world`):

    hypotheses   of the packaged model, snapped to the reported tracks
    lifted       one hypothesis of depth 1 everywhere: tracks alone, no model
    truth        the exact points with their exact visibility: the estimator's own bound

Worlds fall into classes by what is true: the camera moves or not, and ground is tracked or not (points that stand
still, for at least 15 % of the image's area). Only where ground is tracked can points tell the camera.

    rotation     degrees between estimated and true rotations, mean over frames and hypotheses; "none": of the identity
    direction    degrees between the ways from the first to each frame's camera, where the true way is at least 0.02
                 median depths and the estimate is not 0; median over frames
    precision, recall   of "stands still", against points that truly move less than MOVED median depths
    EPE          mean |X − X*| over points, frames and hypotheses, both with a median anchor depth of 1: in the camera
                 frame; in the world frame, both sides through their own cameras; and the camera frame taken for
                 the world's
    drift        of true still points between the first and last frame

    python experiments/world/run.py --pack runs/pack

Shape letters:  K hypotheses   N points   T frames.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import roma
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from diffusion4d import cameras, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.data.pack import Pack
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.corruption import observe_through_tracker
from diffusion4d.scenes.observe import World
from diffusion4d.scenes.pool import HELD_OUT
from diffusion4d.scenes.world import generate
from diffusion4d.world import place
from priors.rigid import area_shares

FIRST_WORLD = HELD_OUT + 800_000
MOVED = (0.001, 0.02)
"""Median depths that a point must travel to count as moving: what the generator says, and what a tracker sees."""
TRAVELS = 0.02
GROUND = 0.15


@dataclasses.dataclass(frozen=True)
class Settings:
    """Estimate cameras on held-out worlds."""

    pack: Path | None = None
    """Pack of actors; without it all bodies are generated."""
    model: str = "tiny"
    out: Path = Path(__file__).parent / "results.json"
    worlds: int = 96
    points: int = 96
    frames: int = 32
    hypotheses: int = 8
    first_world: int = FIRST_WORLD


def observed(world: World, seed: int) -> tuple[Tensor, Tensor]:
    """Tracks [N, T, 2] px and visibility [N, T], as a tracker reports them."""
    points = torch.from_numpy(world.points)
    ahead = torch.cat([points[..., :2], points[..., 2:].clamp_min(0.05)], -1)
    pixels = cameras.project(ahead, torch.from_numpy(world.intrinsics))
    limit = 4 * max(world.size)
    size = torch.tensor([world.size], dtype=torch.float32)
    tracks, visibility = observe_through_tracker(
        pixels.clamp(-limit, limit)[None],
        torch.from_numpy(world.visible)[None],
        size,
        torch.Generator().manual_seed(seed),
    )
    return tracks[0], visibility[0]


def exact(world: World) -> Hypotheses:
    """The truth as one hypothesis: a control point a frame, so that only rounding is lost."""
    points = torch.from_numpy(world.points)
    # The lower of the two middle depths of an even number is torch's median, which hypotheses are scaled by.
    points = points / points[:, 0, 2].median()
    T = points.shape[1]
    u = torch.from_numpy(world.u)
    ctrl = splines.fit(points.double(), u, T)
    ahead = torch.cat([points[..., :2], points[..., 2:].clamp_min(0.05)], -1)
    tracks = cameras.project(ahead, torch.from_numpy(world.intrinsics)).transpose(0, 1)
    return Hypotheses(
        control_points=ctrl[None].float(),
        knots=splines.knot_vector(T),
        degree=3,
        times=u,
        query_points=tracks[0].contiguous(),
        tracks=tracks.contiguous(),
        visibility=torch.from_numpy(world.visible).T.float().contiguous(),
        intrinsics=torch.from_numpy(world.intrinsics),
        size=world.size,
        extrinsics=torch.eye(4).repeat(T, 1, 1),
        seeds=torch.zeros(1, dtype=torch.int64),
    )


def lifted(hyp: Hypotheses) -> Hypotheses:
    """The same tracks at depth 1."""
    rays = cameras.normalise(hyp.tracks.transpose(0, 1).double(), hyp.intrinsics.double())
    flat = torch.cat([rays, torch.ones_like(rays[..., :1])], -1)
    weights = hyp.visibility.transpose(0, 1).double().clamp_min(1e-3)
    ctrl = splines.fit(flat, hyp.times, hyp.num_ctrl, weights=weights, ridge=1e-3, penalty_order=2)
    return dataclasses.replace(hyp, control_points=ctrl[None].float(), seeds=hyp.seeds[:1])


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Degrees between rotations [..., 3, 3]."""
    return torch.rad2deg(roma.rotmat_geodesic_distance(first, second))


def eyes(extrinsics: Tensor) -> Tensor:
    """Where cameras stand, [..., 3]."""
    return -(extrinsics[..., :3, :3].mT @ extrinsics[..., :3, 3:])[..., 0]


def into_world(extrinsics: Float[Tensor, "*K T 4 4"], points: Tensor) -> Tensor:
    """Camera-frame points [*K, N, T, 3] through their own cameras."""
    moved = points.transpose(-3, -2) - extrinsics[..., None, :3, 3]
    return (moved @ extrinsics[..., :3, :3]).transpose(-3, -2)


def distances(first: Tensor, second: Tensor, chosen: Tensor) -> float | None:
    """Mean over hypotheses, chosen points and frames; None without points."""
    if not bool(chosen.any()):
        return None
    return float((first - second).norm(dim=-1)[:, chosen].mean())


def judged(world: World, before: Hypotheses) -> dict:
    """Everything that is told of one source of points on one world."""
    placed = place(before)
    hyp = placed.hypotheses
    K = hyp.num_hypotheses
    true = torch.from_numpy(world.points).double()
    unit = true[:, 0, 2].median()
    true = true / unit
    path = torch.from_numpy(world.extrinsics).clone()
    path[:, :3, 3] /= unit
    travelled = into_world(path, true)
    travelled = (travelled - travelled[:, :1]).norm(dim=-1).amax(-1)
    found = hyp.cameras.double()
    spin = angles(found[..., :3, :3], path[:, :3, :3].expand(K, -1, -1, -1))
    row: dict = {
        "frame": hyp.frame,
        "still": placed.camera.startswith("still"),
        "rotation": float(spin.mean()),
        "refit_px": list(placed.refit),
    }
    way, true_way = eyes(found), eyes(path)
    far = true_way.norm(dim=-1) > TRAVELS
    if bool(far.any()) and hyp.frame == "world":
        cosine = torch.nn.functional.cosine_similarity(way, true_way.expand_as(way), dim=-1)
        row["direction"] = float(torch.rad2deg(cosine.clamp(-1, 1).acos())[:, far].median())
    for limit in MOVED:
        stands = travelled < limit
        if hyp.static is not None:
            both = float((hyp.static & stands).sum())
            row[f"precision_{limit}"] = both / max(1.0, float(hyp.static.sum()))
            if bool(stands.any()):
                row[f"recall_{limit}"] = both / (K * float(stands.sum()))
    stands = travelled < MOVED[0]
    old, new = before.evaluate().double(), hyp.evaluate().double()
    true_world = into_world(path, true)
    # Camera-frame results stand for the world's where nothing better was found.
    for name, chosen in (("all", stands | True), ("moving", ~stands), ("still", stands)):
        row[f"camera_{name}"] = distances(old, true, chosen)
        row[f"world_{name}"] = distances(new, true_world, chosen)
        row[f"as_world_{name}"] = distances(old, true_world, chosen)
        row[f"corrected_{name}"] = distances(hyp.camera_points().double(), true, chosen)
    if bool(stands.any()):
        row["drift_camera"] = float((old[:, stands, -1] - old[:, stands, 0]).norm(dim=-1).mean())
        row["drift_world"] = float((new[:, stands, -1] - new[:, stands, 0]).norm(dim=-1).mean())
    row["reprojection"] = [float(before.scores().mean()), float(hyp.scores().mean())]
    return row


def examine(world: World, pipe: Diffusion4DPipeline, index: int, settings: Settings) -> dict:
    """One world: what is true of it, and each source's row."""
    tracks, visibility = observed(world, index)
    hyp = pipe(
        tracks=tracks.transpose(0, 1).numpy(),
        visibility=visibility.T.numpy(),
        size=world.size,
        intrinsics=world.intrinsics.tolist(),
        num_hypotheses=settings.hypotheses,
        seed=index,
        frame="camera",
    )
    path = torch.from_numpy(world.extrinsics)
    still = torch.from_numpy(~world.moving)
    # Tracks at frame 0 are where the points were asked for.
    ground = float((area_shares(tracks[:, 0], world.size) * still).sum())
    first = torch.eye(3).double().expand(len(path), 3, 3)
    return {
        "kind": world.camera,
        "family": world.family,
        "ground": ground,
        "none": float(angles(path[:, :3, :3], first).mean()),
        "turn": float(angles(path[:, :3, :3], first).max()),
        "travel": float(eyes(path).norm(dim=-1).max()),
        "hypotheses": judged(world, hyp),
        "lifted": judged(world, lifted(hyp)),
        "truth": judged(world, exact(world)),
    }


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    pack = None if settings.pack is None else Pack.open(settings.pack, ("held-out",))
    pipe = Diffusion4DPipeline.from_pretrained(settings.model)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for index in range(settings.worlds):
        world = generate(
            settings.first_world + index,
            num_points=settings.points,
            num_frames=settings.frames,
            pack=pack,
        )
        rows.append(examine(world, pipe, index, settings))
        told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()}
        told = {k: v for k, v in told.items() if k not in ("out", "pack")}
        # Written as it goes: a run that is stopped has an answer about what it saw.
        with replace_when_done(settings.out) as temporary:
            content = {"settings": {**told, "pack": pack is not None}, "worlds": rounded(rows)}
            temporary.write_text(json.dumps(content, indent=0) + "\n")


def rounded(value: object) -> object:
    """Numbers to five digits, through lists and dictionaries."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    main(tyro.cli(Settings))
