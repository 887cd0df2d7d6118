"""Scores on held-out generated worlds: samples, deterministic answers bare and dressed with noise, the flat lift.

All of them see the same tracks and are snapped to them the same way; all are scaled to a median anchor depth of 1. The
dressing is fitted on other worlds than those that are scored. Every world has a seed of its own, so any
share of the evaluation can be run again alone.

Shape letters:  K samples   N points   M control points   T frames.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d import baselines, cameras, denoiser, metrics, sampling, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.baselines import Case
from diffusion4d.config import Dropout, Evaluate, PoolSpec
from diffusion4d.evidence import Evidence
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import HELD_OUT, Worlds, draw_pool, load_pool
from diffusion4d.snap import snap

NUM_POINTS = 64
NUM_SCORED = 16
"""Samples that energy score and minADE are taken over."""
NUM_DRAWN = 20
"""Samples that coverage is taken over; a 90 % interval needs 19."""
LEVEL = 0.9

Subsets = dict[str, Bool[Tensor, "N T"]]
Scores = dict[str, dict[str, dict[str, float]]]
"""method -> subset -> metric -> value of one scene."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One held-out clip: what a tracker saw of it, and the truth."""

    example: Example
    index: int

    @property
    def truth(self) -> Float[Tensor, "N T 3"]:
        return self.example.points[0]

    @property
    def subsets(self) -> Subsets:
        visible = self.example.visible[0]
        return {"all": torch.ones_like(visible), "visible": visible, "occluded": ~visible}

    def trajectories(self, ctrl: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K N T 3"]:
        """Snap control points to the tracks, scale them, and decode."""
        example = self.example
        rays = cameras.normalise(example.tracks, example.intrinsics[:, None, None])[0]
        ctrl = snap(ctrl, rays, example.visibility[0], example.u)
        ctrl = ctrl / ctrl[:, :, 0, 2].median(-1).values[:, None, None, None]
        return splines.basis_matrix(example.u, ctrl.shape[-2]) @ ctrl


def scenes(worlds: Worlds, num_ctrl: int) -> Iterator[Scene]:
    """Held-out worlds through a tracker: nothing is withheld but, in three of ten, the focal length."""
    dropout = Dropout(tracks=0.0, focal=0.3)
    for index in range(len(worlds)):
        example = draw(
            worlds.take(torch.tensor([index])),
            torch.Generator().manual_seed(index),
            num_ctrl=num_ctrl,
            num_points=NUM_POINTS,
            dropout=dropout,
            augment=False,
        )
        yield Scene(example, index)


def sampled(
    pipe: Diffusion4DPipeline, evidence: Evidence, config: Evaluate, index: int
) -> Float[Tensor, "K N M 3"]:
    """Samples of a clip."""
    clip = denoiser.prepare(pipe.transformer, evidence, pipe.regressor)
    table = sampling.table_for(config.sampler, config.steps)
    return sampling.sample(clip, sampling.seeds_from(index, NUM_DRAWN), table)


def score(samples: Float[Tensor, "K N T 3"], scene: Scene) -> dict[str, dict[str, float]]:
    """Every metric on every subset that has a point in it."""
    truth = scene.truth
    some = samples[:NUM_SCORED]
    scores = {}
    for name, mask in scene.subsets.items():
        if not mask.any():
            continue
        row = {
            "energy_score": metrics.energy_score(some, truth, mask),
            "rms": metrics.rms_error(some.mean(0), truth, mask),
            "ade": metrics.min_ade_joint(some.mean(0, keepdim=True), truth, mask),
            "min_ade_joint": metrics.min_ade_joint(some, truth, mask),
            "min_ade_marginal": metrics.min_ade_marginal(some, truth, mask),
        }
        if len(samples) == NUM_DRAWN:
            inside = metrics.covered(samples, truth, LEVEL)
            for axes, part in (
                ("", slice(0, 3)),
                ("_lateral", slice(0, 2)),
                ("_depth", slice(2, 3)),
            ):
                row[f"coverage{axes}"] = inside[..., part][mask].float().mean()
                spread, skill = metrics.spread_and_skill(samples[..., part], truth[..., part], mask)
                row[f"variance{axes}"], row[f"squared_error{axes}"] = spread, skill
        scores[name] = {metric: float(value) for metric, value in row.items()}
    return scores


def answers(
    pipe: Diffusion4DPipeline, twin: Diffusion4DPipeline, scene: Scene
) -> dict[str, Float[Tensor, "1 N T 3"]]:
    """Deterministic answers: the twin's, and the mean of the regressor that the sampler stands on."""
    evidence = scene.example.evidence
    ctrl = {"twin": sampling.answer(denoiser.prepare(twin.transformer, evidence))}
    if pipe.regressor is not None:
        mean = denoiser.regress(pipe.regressor, evidence).mean[:, None]
        coordinates = denoiser.coordinates_of(pipe.regressor)
        ctrl["regressor"] = coordinates.decode(mean, evidence).squeeze(0)
    return {name: scene.trajectories(value) for name, value in ctrl.items()}


def gaussian_head(pipe: Diffusion4DPipeline, scene: Scene) -> Float[Tensor, "K N T 3"]:
    """Independent draws from the regressor's own mean and deviation of every control point."""
    clip = denoiser.prepare(pipe.transformer, scene.example.evidence, pipe.regressor)
    shape = (NUM_DRAWN, *scene.example.ctrl.shape[1:])
    white = torch.randn(shape, generator=torch.Generator().manual_seed(scene.index))
    return scene.trajectories(clip.decode(white[None]).squeeze(0))


@torch.no_grad()
def fit_dressings(
    pipe: Diffusion4DPipeline, twin: Diffusion4DPipeline, worlds: Worlds
) -> dict[str, baselines.Dressing]:
    """Scales of the noise on each deterministic answer, on worlds that are not scored."""
    cases: dict[str, list[Case]] = {}
    for scene in scenes(worlds, twin.transformer.config["num_ctrl"]):
        for name, answer in answers(pipe, twin, scene).items():
            case = (answer[0], scene.truth, scene.subsets["all"])
            cases.setdefault(name, []).append(case)
    return {name: baselines.fit_dressing(held) for name, held in cases.items()}


def run(config: Evaluate) -> dict:
    """Score the models on held-out worlds; writes scores.json and returns what it holds."""
    from rich.progress import Progress

    pipe = Diffusion4DPipeline.from_pretrained(config.model)
    twin = Diffusion4DPipeline.from_pretrained(config.twin)
    with Progress() as bars:
        bar = bars.add_task("worlds")
        spec = PoolSpec(
            worlds=config.scenes + config.fitting_scenes,
            points=NUM_POINTS,
            first_seed=HELD_OUT + config.first_world,
        )
        paths = draw_pool(
            config.pool,
            spec,
            processes=config.processes,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
        worlds = load_pool(paths)
        order = torch.arange(len(worlds))
        fitting = worlds.take(order[config.scenes : config.scenes + config.fitting_scenes])
        dressings = fit_dressings(pipe, twin, fitting)
        bar = bars.add_task("scores", total=config.scenes)
        rows = []
        for scene in scenes(
            worlds.take(order[: config.scenes]), pipe.transformer.config["num_ctrl"]
        ):
            rows.append(score_all(pipe, twin, dressings, config, scene))
            bars.advance(bar)
    result = summarise(rows, config, dressings)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_done(config.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1))
    return result


@torch.no_grad()
def score_all(
    pipe: Diffusion4DPipeline,
    twin: Diffusion4DPipeline,
    dressings: dict[str, baselines.Dressing],
    config: Evaluate,
    scene: Scene,
) -> Scores:
    """One scene, every method."""
    evidence = scene.example.evidence
    methods = {"samples": scene.trajectories(sampled(pipe, evidence, config, scene.index))}
    for name, answer in answers(pipe, twin, scene).items():
        methods[name] = answer
        methods[f"dressed {name}"] = dressings[name].samples(answer[0], NUM_DRAWN, scene.index)
    if pipe.regressor is not None:
        methods["Gaussian head"] = gaussian_head(pipe, scene)
    methods["flat lift"] = scene.trajectories(baselines.flat_lift(evidence))
    return {name: score(samples, scene) for name, samples in methods.items()}


def summarise(
    rows: list[Scores], config: Evaluate, dressings: dict[str, baselines.Dressing]
) -> dict:
    """Means over scenes, spread-skill ratios of the pooled variances, and the ratio to the dressed twin."""
    table: dict = {}
    for method in rows[0]:
        for subset in ("all", "visible", "occluded"):
            held = [row[method][subset] for row in rows if subset in row[method]]
            mean = {key: float(np.mean([h[key] for h in held])) for key in held[0]}
            for axes in ("", "_lateral", "_depth"):
                if f"variance{axes}" in mean:
                    variance, error = mean.pop(f"variance{axes}"), mean.pop(f"squared_error{axes}")
                    mean[f"spread_skill{axes}"] = (variance / error) ** 0.5
            table.setdefault(method, {})[subset] = {"scenes": len(held), **mean}
    ratios = {
        subset: ratio_with_interval(
            [row["samples"][subset]["energy_score"] for row in rows if subset in row["samples"]],
            [
                row["dressed twin"][subset]["energy_score"]
                for row in rows
                if subset in row["samples"]
            ],
        )
        for subset in ("all", "visible", "occluded")
    }
    settings = {
        k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()
    }
    return {
        "settings": settings,
        "dressings": {name: dataclasses.asdict(d) for name, d in dressings.items()},
        "energy_score_over_dressed_twin": ratios,
        "scores": table,
    }


def ratio_with_interval(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ratio of means over scenes, with a paired bootstrap 95 % interval."""
    a, b = np.array(ours), np.array(theirs)
    draws = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    low, high = np.quantile(a[draws].mean(1) / b[draws].mean(1), [0.025, 0.975])
    return {"ratio": float(a.mean() / b.mean()), "low": float(low), "high": float(high)}


def markdown(result: dict) -> str:
    """The table as Markdown, a row a method and subset."""
    columns = (
        "energy_score",
        "rms",
        "min_ade_joint",
        "min_ade_marginal",
        "coverage",
        "spread_skill",
    )
    lines = [
        "| method | subset | " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for method, subsets in result["scores"].items():
        for subset, row in subsets.items():
            cells = [f"{row[column]:.4f}" if column in row else "–" for column in columns]
            lines.append(f"| {method} | {subset} | " + " | ".join(cells) + " |")
    for subset, ratio in result["energy_score_over_dressed_twin"].items():
        lines.append(
            f"\nEnergy score over the dressed twin's, {subset}: {ratio['ratio']:.3f} "
            f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
        )
    return "\n".join(lines)
