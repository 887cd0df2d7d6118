r"""Which field carries a dense surface best: additive, linear-blend, dual quaternions, or a neural flow?

Nodes are 128 points of an animated surface with their true motion, 48 frames, the first one at rest; the rest of the
surface is what the field has to tell. Species that nothing was trained on (`bodies.HELD_OUT`).

    error       mean, and 95th percentile, of |x' − x*| over vertices and frames, % of the box diagonal at rest
    drift       RMS change of a detail offset of 1 % of the diagonal, in its surface point's local frame, over its RMS
                length. The frame of a vertex turns by the best rotation of its edges. Seen from the frames
                of the surface that the field makes ("own"), and from the true surface's ("true").
        carried     the offset is a place in space, and moves as the field does (weights of its surface point)
        framed      it is stored in the frames of the field's surface: own drift is 0 by construction, true drift is
                    what the field's surface turns otherwise than the true one
    stretch     RMS relative change of the edges' length; the true surface's own beside it
    fold-over   share of triangles that are turned over against the locally rigid motion; the true surface's beside it
    seconds     what the field takes for all frames after nodes and weights are there; its fitting or skinning apart

On the two animations of each species that bend it most (`bodies.bending`); the flow, which has to be fitted, on the
first.

    python experiments/fields/run.py --meshes FOLDER

Shape letters:  T frames   V vertices   N nodes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from bodies import HELD_OUT, Body, bodies
from jaxtyping import Float
from torch import Tensor

from diffusion4d.atomic import replace_when_done
from diffusion4d.fields import measures
from diffusion4d.fields.blend import deform
from diffusion4d.fields.graph import node_distances, surface_distances
from diffusion4d.fields.motion import node_motion
from diffusion4d.fields.skinning import skin
from diffusion4d.fields.velocity import fit_velocity, flow

DETAIL = 0.01


@dataclass(frozen=True)
class Settings:
    """Deform held-out animated surfaces by the true motion of some of their points."""

    meshes: Path
    """Folder of the animated meshes, as `experiments/pack/README.md` says."""
    out: Path = Path(__file__).parent / "results.json"
    nodes: int = 128
    frames: int = 48
    seed: int = 0
    hardest: int = 2
    """Animations of each species, by `bending`."""
    species: tuple[str, ...] = tuple(HELD_OUT)
    flow: bool = True
    """Also fit a neural flow to each species' hardest animation."""


Move = Callable[[Float[Tensor, "V 3"]], Float[Tensor, "T V 3"]]


def judged(
    body: Body, move: Move, true: Float[Tensor, "T V 3 3"], prepared: float, seed: int
) -> dict[str, float]:
    """The row of a field on a body; `move` carries places near the vertices, one for each vertex."""
    rest, truth, faces = body.vertices[0], body.vertices, body.faces
    edges = measures.edges_of(faces)
    start = time.perf_counter()
    moved = move(rest)
    seconds = time.perf_counter() - start
    offset = torch.randn(rest.shape, generator=torch.Generator().manual_seed(seed))
    offset = DETAIL * torch.nn.functional.normalize(offset, dim=-1)
    tips = move(rest + offset) - moved
    own = measures.vertex_rotations(rest, moved, edges)
    framed = (own @ offset[..., None]).squeeze(-1)
    miss = (moved - truth).norm(dim=-1)
    return {
        "error": 100 * miss.mean().item(),
        "error95": 100 * miss.flatten().kthvalue(int(0.95 * miss.numel())).values.item(),
        "carried_own": drift(tips, own, offset),
        "carried_true": drift(tips, true, offset),
        "framed_own": drift(framed, own, offset),
        "framed_true": drift(framed, true, offset),
        "stretch": measures.edge_stretch(rest, moved, edges).mean().item(),
        "fold_over": measures.fold_over(rest, moved, faces).mean().item(),
        "seconds": seconds,
        "prepared": prepared,
    }


def drift(
    offsets: Float[Tensor, "T V 3"], frames: Float[Tensor, "T V 3 3"], rest: Float[Tensor, "V 3"]
) -> float:
    """RMS change of local offsets over their RMS length."""
    local = (frames.mT @ offsets[..., None]).squeeze(-1)
    return ((local - rest).square().mean() / rest.square().mean()).sqrt().item()


def examine(body: Body, settings: Settings, with_flow: bool) -> dict[str, object]:
    """All fields on one animation."""
    rest, nodes = body.vertices[0], body.nodes
    start = time.perf_counter()
    distances = surface_distances(rest.numpy(), body.faces.numpy(), nodes[0].numpy())
    skinning = skin(torch.from_numpy(distances))
    along = node_distances(nodes[0].double().numpy(), nodes.double().numpy())
    motion = node_motion(nodes[0], nodes, torch.from_numpy(along).float())
    prepared = time.perf_counter() - start
    edges = measures.edges_of(body.faces)
    true = measures.vertex_rotations(rest, body.vertices, edges)
    fields = {
        blend: judged(
            body, lambda x, b=blend: deform(x, skinning, motion, b), true, prepared, settings.seed
        )
        for blend in ("additive", "linear", "dual_quaternion")
    }
    if with_flow:
        start = time.perf_counter()
        velocity = fit_velocity(nodes, seed=settings.seed)
        prepared = time.perf_counter() - start
        u = torch.linspace(0, 1, len(nodes))
        fields["flow"] = judged(body, lambda x: flow(velocity, x, u), true, prepared, settings.seed)
        at_nodes = flow(velocity, nodes[0], u)
        fields["flow"]["node_error"] = 100 * (at_nodes - nodes).norm(dim=-1).mean().item()
    return {
        "species": body.name,
        "animation": body.animation,
        "vertices": len(rest),
        "true_stretch": measures.edge_stretch(rest, body.vertices, edges).mean().item(),
        "true_fold_over": measures.fold_over(rest, body.vertices, body.faces).mean().item(),
        "fields": fields,
    }


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    rows = []
    for name in settings.species:
        found = bodies(
            settings.meshes, name, settings.frames, settings.nodes, settings.seed, settings.hardest
        )
        for index, body in enumerate(found):
            rows.append(examine(body, settings, settings.flow and index == 0))
            told = {"nodes": settings.nodes, "frames": settings.frames, "seed": settings.seed}
            told["hardest"] = settings.hardest
            # Written as it goes: a run that is stopped has an answer about what it saw.
            with replace_when_done(settings.out) as temporary:
                temporary.write_text(
                    json.dumps({"settings": told, "bodies": rows}, indent=1) + "\n"
                )
            print(name, body.animation, json.dumps(rows[-1]["fields"]), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
