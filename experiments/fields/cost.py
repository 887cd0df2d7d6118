r"""What does a dense surface under every hypothesis cost: 100,000 vertices, 48 frames, 16 hypotheses?

    stream        `diffusion4d.fields.stream`, every frame of every hypothesis once, and let go
    everything    one `deform` for all of it: the answer alone is 12 K T V bytes
    loop          for every vertex its nodes, one after the other, as it is written on paper; a share of the vertices of
                  one frame, the time extrapolated to all of them

Each in a process of its own; peak memory is the process' largest resident size (ru_maxrss), imports and all. The nodes'
motions are true ones of a held-out body, each hypothesis with a smooth sideways sway of its own.

    python experiments/fields/cost.py --meshes FOLDER

Shape letters:  K hypotheses   T frames   V vertices   N nodes   M control points.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from bodies import bodies
from jaxtyping import Float
from torch import Tensor

from diffusion4d import cameras, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.fields.blend import Blend, deform
from diffusion4d.fields.motion import NodeMotion, motion_of, reference
from diffusion4d.fields.skinning import Skinning, skin_by_graph
from diffusion4d.fields.stream import stream
from diffusion4d.hypotheses import Hypotheses

Way = Literal["all", "nothing", "stream", "everything", "loop"]
AWAY = 4.0


@dataclass(frozen=True)
class Settings:
    """Time and memory of dense surfaces."""

    meshes: Path
    out: Path = Path(__file__).parent / "cost.json"
    way: Way = "all"
    blend: Blend = "linear"
    vertices: int = 100_000
    frames: int = 48
    hypotheses: int = 16
    nodes: int = 128
    looped: int = 2_000
    """Vertices of one frame that the plain loop is timed on."""
    seed: int = 0


def case(settings: Settings) -> tuple[Tensor, Skinning, Hypotheses]:
    """Vertices on a held-out body, what carries them, and hypotheses of its nodes."""
    import trimesh

    found = bodies(
        settings.meshes, "deer", settings.frames, settings.nodes, settings.seed, hardest=1
    )
    body = next(iter(found))
    surface = trimesh.Trimesh(body.vertices[0].numpy(), body.faces.numpy(), process=False)
    points = trimesh.sample.sample_surface(surface, settings.vertices, seed=settings.seed)[0]
    points = torch.from_numpy(np.asarray(points)).float()
    K, T = settings.hypotheses, settings.frames
    generator = torch.Generator().manual_seed(settings.seed)
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    sway = 0.1 * torch.randn(K, 1, 1, 3, generator=generator) * (3 * u).sin()[:, None]
    paths = body.nodes.transpose(0, 1)[None] + sway.float()
    lifted = paths + torch.tensor([0.0, 0.0, AWAY])
    ctrl = splines.fit(lifted.double(), u, 12).float()
    intrinsics = torch.tensor([256.0, 256.0, 128.0, 128.0])
    tracks = cameras.project(lifted[0], intrinsics).transpose(0, 1).contiguous()
    hyp = Hypotheses(
        control_points=ctrl,
        knots=splines.knot_vector(12),
        degree=3,
        times=u,
        query_points=tracks[0].contiguous(),
        tracks=tracks,
        visibility=torch.ones(T, settings.nodes),
        intrinsics=intrinsics,
        size=(256, 256),
        extrinsics=torch.eye(4).repeat(T, 1, 1),
        seeds=torch.arange(K),
    )
    points = points + torch.tensor([0.0, 0.0, AWAY])
    rest = reference(hyp)
    held = [skin_by_graph(part, rest, torch.cdist(rest, rest)) for part in points.split(4096)]
    skinning = Skinning(torch.cat([h.indices for h in held]), torch.cat([h.weights for h in held]))
    return points, skinning, hyp


def loop(points: Float[Tensor, "V 3"], skinning: Skinning, motion: NodeMotion) -> list[list[float]]:
    """Linear-blend skinning of one frame, plainly."""
    rest, places = motion.rest.numpy(), motion.positions.numpy()
    turned = motion.rotations.numpy()
    moved = []
    for x, nodes, weights in zip(
        points.numpy(), skinning.indices.tolist(), skinning.weights.tolist(), strict=True
    ):
        place = 0.0
        for j, w in zip(nodes, weights, strict=True):
            place = place + w * (turned[j] @ (x - rest[j]) + places[j])
        moved.append(place)
    return moved


def measured(settings: Settings) -> dict[str, float]:
    """Seconds and peak MiB of one way, in this process."""
    torch.set_num_threads(1)
    points, skinning, hyp = case(settings)
    total = settings.hypotheses * settings.frames * len(points)
    before = _peak()
    start = time.perf_counter()
    if settings.way == "stream":
        seen = sum(
            part.shape[0] * part.shape[1]
            for _, _, part in stream(points, skinning, hyp, settings.blend)
        )
        assert seen == total
    elif settings.way == "everything":
        moved = deform(points, skinning, motion_of(hyp), settings.blend)
        assert moved.shape[:-1].numel() == total
    elif settings.way == "loop":
        motion = motion_of(hyp, hyp.times[-1:], [0])
        one = NodeMotion(motion.rest, motion.positions[0, 0], motion.rotations[0, 0])
        some = Skinning(skinning.indices[: settings.looped], skinning.weights[: settings.looped])
        start = time.perf_counter()
        slow = torch.tensor(loop(points[: settings.looped], some, one))
        seconds = (time.perf_counter() - start) * total / settings.looped
        fast = deform(points[: settings.looped], some, one)
        assert (slow - fast).abs().max() < 1e-4
        return {"seconds": seconds, "measured_share": settings.looped / total}
    return {"seconds": time.perf_counter() - start, "peak_mib": _peak(), "before_mib": before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(settings: Settings) -> None:
    if settings.way != "all":
        print(json.dumps(measured(settings)))
        return
    rows = {}
    for way, blend in (
        ("nothing", "linear"),
        ("stream", "additive"),
        ("stream", "linear"),
        ("stream", "dual_quaternion"),
        ("everything", "linear"),
        ("loop", "linear"),
    ):
        command = [sys.executable, __file__, "--meshes", str(settings.meshes), "--way", way]
        command += ["--blend", blend, "--vertices", str(settings.vertices)]
        command += ["--frames", str(settings.frames), "--hypotheses", str(settings.hypotheses)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[f"{way} {blend}"] = json.loads(done.stdout.splitlines()[-1])
        print(way, blend, rows[f"{way} {blend}"], flush=True)
    told = {k: getattr(settings, k) for k in ("vertices", "frames", "hypotheses", "nodes")}
    with replace_when_done(settings.out) as temporary:
        temporary.write_text(json.dumps({"settings": told, "ways": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
