r"""Should samples be brought onto the tracks after the loop, in each of its steps, or by gradients through the network?

    end        the closed-form snap after the last step: what the pipeline does
    inside     the snap as a correction of every step's estimate (`posterior.snapping`), and at the end
    gradient   every estimate goes down the gradient of the reprojection energy (`posterior.guided`); then the end

All hypotheses take the tracks with doubts of their own, as in the pipeline. Same seeds for all ways.

    PYTHONPATH=experiments/trials python experiments/guidance/run.py        models in results.json are skipped

Shape letters:  K samples   N points   M control points   T frames.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from clips import scenes_of, shards_of
from jaxtyping import Float
from records import mean, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion4d import (
    Diffusion4DPipeline,
    cameras,
    denoiser,
    metrics,
    posterior,
    sampling,
    splines,
)
from diffusion4d.denoiser import ClipDenoiser
from diffusion4d.hypotheses import REFERENCE_SIDE
from diffusion4d.scenes.batches import Example
from diffusion4d.scenes.pool import load_pool
from diffusion4d.snap import doubted, snap
from samplers.guidance import corrected
from samplers.solve import Denoise

SUBSETS = ("all", "visible", "occluded")
LEVEL = 0.9
SAMPLES = 19
"""So that 90 % is the interval from the least to the greatest."""
NEAREST = 0.05
TOLERANCE = 2.0
"""Of the reprojection energy, px of an image whose shorter side is 256."""


@dataclasses.dataclass(frozen=True)
class Way:
    """What is done in the loop, and whether the snap comes after it."""

    inside: Literal["nothing", "snap", "gradient"] = "nothing"
    weight: float = 0.0
    end: bool = True


WAYS = {
    "none": Way(end=False),
    "end": Way(),
    "inside": Way("snap"),
    "gradient 0.003, no end": Way("gradient", 0.003, end=False),
    "gradient 0.003": Way("gradient", 0.003),
    "gradient 0.01": Way("gradient", 0.01),
    "gradient 0.03": Way("gradient", 0.03),
    "gradient 0.1": Way("gradient", 0.1),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compare ways of bringing samples onto the tracks."""

    out: Path = Path(__file__).parent / "results.json"
    choosing: Path = Path("runs/choosing")
    """Folder of worlds to score, not among those that any table of results is made from."""
    models: tuple[str, ...] = ("tiny", "runs/velocity/pipeline")
    """Samplers: packaged models or folders. Each takes its usual steps."""
    names: tuple[str, ...] = ("tiny", "velocity")
    """What they are called in results.json."""
    ways: tuple[str, ...] = ()
    """Ways to run; all by default."""
    scored: int = 32
    points: int = 32

    def recorded(self) -> dict:
        """What the numbers depend on: no folders."""
        told = {"scored": self.scored, "points": self.points}
        return {**told, "samples": SAMPLES, "tolerance": TOLERANCE}


@dataclasses.dataclass(frozen=True)
class Observed:
    """One clip, as guidance takes it."""

    example: Example
    rays: Float[Tensor, "N T 2"]
    pixel: float
    """Size in normalised image coordinates of a px of an image whose shorter side is 256."""

    @classmethod
    def of(cls, example: Example) -> "Observed":
        rays = cameras.normalise(example.tracks, example.intrinsics[:, None, None])[0]
        focal, side = example.intrinsics[0, :2].mean(), 2 * example.intrinsics[0, 2:].min()
        return cls(example, rays, float(side / REFERENCE_SIDE / focal))


def alone(example: Example) -> Iterator[Example]:
    """Every clip of a batch as a batch of its own."""
    fields = ("ctrl", "points", "visible", "moving", "tracks", "visibility", "intrinsics")
    told = ("ctrl", "weight", "log_focal", "focal_known")
    for i in range(len(example.ctrl)):
        evidence = dataclasses.replace(
            example.evidence, **{f: getattr(example.evidence, f)[i : i + 1] for f in told}
        )
        chosen = {f: getattr(example, f)[i : i + 1] for f in fields}
        yield dataclasses.replace(example, evidence=evidence, **chosen)


def sampled(
    clip: ClipDenoiser, way: Way, seen: Observed, seeds: Sequence[int]
) -> Float[Tensor, "K N T 3"]:
    """Hypotheses, scaled to a median anchor depth of 1."""
    visibility, u = seen.example.visibility[0], seen.example.u

    def guide(denoise: Denoise, chosen: Sequence[int]) -> Denoise:
        rays = doubted(seen.rays, seen.pixel, chosen)
        if way.inside == "snap":
            return corrected(denoise, posterior.snapping(clip, rays, visibility, u))
        if way.inside == "gradient":
            energy = posterior.reprojection(rays, visibility, u, tolerance=TOLERANCE * seen.pixel)
            return posterior.guided(clip, denoise, [(way.weight, energy)])
        return denoise

    table = sampling.table_for(*sampling.usual(clip.network))
    ctrl = sampling.sample(clip, seeds, table, guide=guide)
    if way.end:
        ctrl = snap(ctrl, doubted(seen.rays, seen.pixel, seeds), visibility, u)
    scale = ctrl[:, :, 0, 2].median(-1).values.clamp_min(NEAREST)
    return splines.basis_matrix(u, ctrl.shape[-2]) @ (ctrl / scale[:, None, None, None])


def score(samples: Float[Tensor, "K N T 3"], seen: Observed) -> dict[str, dict[str, float | None]]:
    """Of one clip, by subset; None where that holds nothing."""
    truth, visible = seen.example.points[0], seen.example.visible[0]
    masks = torch.stack([torch.ones_like(visible), visible, ~visible])
    inside = metrics.covered(samples, truth, LEVEL).float().mean(-1)
    spread, skill = metrics.spread_and_skill(samples, truth, masks)
    rows = {
        "energy": metrics.energy_score(samples, truth, masks),
        "coverage": (inside * masks).sum((-2, -1)) / masks.sum((-2, -1)),
        "variance": spread,
        "squared_error": skill,
    }
    image = samples[..., :2] / samples[..., 2:].clamp_min(NEAREST)
    apart = (image - seen.rays).norm(dim=-1)[:, seen.example.visibility[0] > 0.5] / seen.pixel
    found = {
        subset: {
            name: round(value, 6) if math.isfinite(value := float(row[i])) else None
            for name, row in rows.items()
        }
        for i, subset in enumerate(SUBSETS)
    }
    return {**found, "tracks": {"reprojection": round(float(apart.median()), 4)}}


def run(pipe: Diffusion4DPipeline, scenes: Sequence[Observed], ways: dict[str, Way] = WAYS) -> dict:
    """Every way on every clip: scores, multiply-adds of the network over those of one evaluation, CPU seconds."""
    held: dict = {name: {"scores": {}, "nfe": 0.0, "cpu_seconds": []} for name in ways}
    for number, seen in enumerate(scenes):
        seeds = sampling.seeds_from(number, SAMPLES)
        with torch.no_grad():
            clip = denoiser.prepare(pipe.transformer, seen.example.evidence, pipe.regressor)
        for name, way in ways.items():
            begun = time.process_time()
            drawn = sampled(clip, way, seen, seeds)
            held[name]["cpu_seconds"].append(round(time.process_time() - begun, 4))
            for subset, values in score(drawn, seen).items():
                for metric, value in values.items():
                    rows = held[name]["scores"].setdefault(subset, {})
                    rows.setdefault(metric, []).append(value)
    with torch.no_grad():
        clip = denoiser.prepare(pipe.transformer, scenes[0].example.evidence, pipe.regressor)
        single = torch.zeros(1, 1, *clip.evidence.ctrl.shape[1:3], 3)
        with FlopCounterMode(display=False) as one:
            clip.denoise(single, torch.tensor(0.5))
    for name, way in ways.items():
        with FlopCounterMode(display=False) as counter:
            sampled(clip, way, scenes[0], [0])
        # The snap's own products are counted too; its solves are not.
        held[name]["nfe"] = round(counter.get_total_flops() / one.get_total_flops(), 2)
    return held


def main(settings: Settings) -> dict:
    """Run what is missing; results.json is replaced after every model.

    Raises:
        ValueError: results.json was made with other settings.
    """
    results: dict = {"settings": settings.recorded(), "models": {}}
    if settings.out.exists():
        results = json.loads(settings.out.read_text())
        if results["settings"] != settings.recorded():
            raise ValueError(f"need the settings of {settings.out}, or another --out")
    worlds = load_pool(shards_of(settings.choosing))
    batches = scenes_of(worlds, settings.scored, settings.points)
    scenes = [Observed.of(example) for batch in batches for example in alone(batch)]
    for name, model in zip(settings.names, settings.models, strict=True):
        if name in results["models"]:
            continue
        pipe = Diffusion4DPipeline.from_pretrained(model)
        # Half precision for the network alone; splines, snap and energies stay in single.
        pipe.transformer.forward = torch.autocast("cpu", torch.bfloat16)(pipe.transformer.forward)
        sampler, steps = sampling.usual(pipe.transformer)
        ways = {n: way for n, way in WAYS.items() if not settings.ways or n in settings.ways}
        rows = run(pipe, scenes, ways)
        results["models"][name] = {"sampler": sampler, "steps": steps, "ways": rows}
        write(results, settings.out)
        for way, row in rows.items():
            told = {
                s: round(mean(v["energy"]), 4) for s, v in row["scores"].items() if "energy" in v
            }
            print(name, way, told, mean(row["scores"]["tracks"]["reprojection"]), flush=True)
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
