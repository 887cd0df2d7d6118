r"""Does guidance by the pictures, inside the sampler, bring hypotheses nearer to the truth?

Rendered held-out worlds, the packaged model in its usual step, the same seeds for every way. Its one step starts from
pure noise, where α = 0 and a gradient through the network (`posterior.guided`) has no length; so the estimate is
corrected (`consistency.guide`), r → r − Σ g, Σ the covariance of the noise. "joint": g is the gradient of the
weighted sum, one backward pass. "each": a pass each, every gradient brought to unit length before it is weighted, and
Σ g to a root mean square of the sum of the weights. The snap to the tracks follows in all of them, as in the pipeline.

Told of each: the fair energy score over that without guidance, all points and hidden ones, and CPU time over it.

    python experiments/consistency/guided.py FOLDER        rendered held-out worlds

Shape letters:  K hypotheses   N points   M control points   T frames   F key frames.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from pictures import true_views

from diffusion4d import consistency, denoiser, metrics, sampling, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.evaluation.cases import Case, rendered_clips
from diffusion4d.hypotheses import REFERENCE_SIDE
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.rendered import load_rendered
from diffusion4d.snap import doubted, snap
from priors.dinov3 import load_encoder


@dataclasses.dataclass(frozen=True)
class Way:
    """Weights of energies, and how their slopes are put together; no weights: nothing is done."""

    weights: Mapping[str, float]
    how: Literal["joint", "each"] = "joint"


WAYS = {
    "none": Way({}),
    "photometric, 10": Way({"photometric": 10.0}),
    "photometric, 100": Way({"photometric": 100.0}),
    "semantic, 10": Way({"semantic": 10.0}),
    "semantic, 100": Way({"semantic": 100.0}),
    "semantic, 1000": Way({"semantic": 1000.0}),
    "both, 100 and 1000, joint": Way({"photometric": 100.0, "semantic": 1000.0}),
    "both, 0.03, each": Way({"photometric": 0.03, "semantic": 0.03}, "each"),
    "both, 0.1, each": Way({"photometric": 0.1, "semantic": 0.1}, "each"),
    "occlusion, 10": Way({"occlusion": 10.0}),
    "occlusion, 100": Way({"occlusion": 100.0}),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure guidance by consistency energies."""

    rendered: tyro.conf.Positional[Path]
    """Folder of rendered held-out worlds."""
    model: str = "tiny"
    encoder: str = "tiny"
    out: Path = Path(__file__).parent / "guided.json"
    worlds: int = 48
    points: int = 64
    hypotheses: int = 16


def scored(
    pipe: Diffusion4DPipeline, case: Case, views: consistency.Views, way: Way, K: int
) -> dict:
    """Energy scores of all and of hidden points, and CPU seconds."""
    evidence = case.evidence(pipe.transformer.config["num_ctrl"])
    with torch.no_grad():
        clip = denoiser.prepare(pipe.transformer, evidence, pipe.regressor)
    table = sampling.table_for(*sampling.usual(pipe.transformer))
    seeds = sampling.seeds_from(case.seed, K)
    begun = time.process_time()
    guide = consistency.guide(views, way.weights, way.how)(clip) if way.weights else None
    ctrl = sampling.sample(clip, seeds, table, guide=guide)
    spent = time.process_time() - begun
    pixel = min(case.clip.size) / REFERENCE_SIDE / case.intrinsics[:2].mean().item()
    ctrl = snap(ctrl, doubted(case.rays, pixel, seeds), case.clip.visibility, case.clip.u)
    ctrl = ctrl / ctrl[:, :, 0, 2].median(-1).values[:, None, None, None]
    points = splines.basis_matrix(case.clip.u, ctrl.shape[-2]) @ ctrl
    known_points = case.masks[0]
    masks = torch.stack([known_points, known_points & ~case.clip.visible])
    score = metrics.energy_score(points, case.truth.to(points), masks)
    hidden = float(score[1])
    return {
        "all": float(score[0]),
        "hidden": hidden if math.isfinite(hidden) else None,
        "cpu_seconds": spent,
    }


def summary(rows: Sequence[dict], draws: int = 1000) -> dict:
    """Ratios of means to "none", with 95 % bootstrap intervals over worlds."""
    generator = np.random.default_rng(0)
    told: dict = {}
    for name in WAYS:
        told[name] = {}
        for key in ("all", "hidden", "cpu_seconds"):
            held = [r for r in rows if r["none"][key] is not None]
            pairs = np.array([[r[name][key], r["none"][key]] for r in held])
            picks = generator.integers(0, len(pairs), (draws, len(pairs)))
            spread = pairs[picks].mean(1)
            low, high = np.quantile(spread[:, 0] / spread[:, 1], (0.025, 0.975))
            ratio = pairs[:, 0].mean() / pairs[:, 1].mean()
            told[name][key] = [round(float(x), 4) for x in (ratio, low, high)]
    return told


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    shards = sorted(settings.rendered.glob("[0-9]*.safetensors"))
    if not shards:
        raise SystemExit(f"need shards of rendered worlds, found none in {settings.rendered}")
    pipe = Diffusion4DPipeline.from_pretrained(settings.model)
    encoder = load_encoder(settings.encoder)
    clips = rendered_clips(load_rendered(shards), num_points=settings.points)
    rows = []
    for index, clip in enumerate(itertools.islice(clips, settings.worlds)):
        assert clip.images is not None
        case = Case.of(dataclasses.replace(clip, focal_known=True), index)
        views, _ = true_views(case, encoder, clip.images.float() / 255)
        rows.append({n: scored(pipe, case, views, w, settings.hypotheses) for n, w in WAYS.items()})
        told = {"model": settings.model, "encoder": settings.encoder, "worlds": len(rows)}
        with replace_when_done(settings.out) as temporary:
            found = {"settings": told, "summary": summary(rows), "clips": rows}
            temporary.write_text(json.dumps(found, indent=0) + "\n")
    for name, values in summary(rows).items():
        print(name, values)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
