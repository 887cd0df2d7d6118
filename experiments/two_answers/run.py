r"""Does the sampler find both answers where there are two, as often as each is true?

Held-out scenes of `diffusion4d.scenes.ambiguous`: a sheet whose mirror image in depth has the same tracks, and a body
that takes one of two ways behind a wall. Observations allow exactly two answers a_0, a_1 [N, T, 3], with known odds.
A hypothesis h is scaled as the answers are (median anchor depth 1) and placed on the line through them,

    place = <h − a_0, a_1 − a_0> / |a_1 − a_0|²          0 at a_0, 1 at a_1, ½ where a mean would be.

It counts for the answer that it is nearer to (place below or above ½), and as *between* when ¼ < place < ¾.
Reports how often both answers hold a tenth of the samples or more; the mean share of samples at the truth, beside
Σ odds², which is what a perfect sampler has; Brier score of the share as a forecast, beside odds (1 − odds); distance
to the nearest answer over the distance between them. The same of a Gaussian (the regressor's mean and deviations with
the fitted correlations), which is what a sampler that learnt nothing more would give, and the twin's place.

    .venv/bin/python experiments/two_answers/run.py --model runs/sampler --twin runs/twin

Shape letters:  K samples   N points   M control points   T frames.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion4d import cameras, denoiser, sampling, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.config import Dropout, SamplerName
from diffusion4d.pipeline import Diffusion4DPipeline
from diffusion4d.scenes.ambiguous import FAMILIES, ambiguous
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import HELD_OUT, Worlds, stacked
from diffusion4d.scenes.world import generate
from diffusion4d.snap import snap

FIRST_WORLD = HELD_OUT + 300_000
HOLDS = 0.1
"""An answer is found when this share of the samples is at it."""
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sample scenes with two answers, and say which answer each sample gives."""

    model: str = "tiny"
    """The sampler: a packaged model or a folder."""
    twin: str = "tiny-l2"
    """The deterministic twin: a packaged model or a folder."""
    out: Path = Path(__file__).parent / "results.json"
    scenes: int = 64
    """Scenes of each kind."""
    points: int = 24
    frames: int = 32
    samples: int = 32
    steps: int | None = None
    """Denoiser evaluations a sample; the model's own number by default."""
    sampler: SamplerName | None = None
    """How the steps are taken; the model's own way by default."""
    first_world: int = FIRST_WORLD


def scaled(points: Float[Tensor, "K N T 3"]) -> Float[Tensor, "K N T 3"]:
    """To a median depth of 1 at the first instant (or control point, where the curve starts)."""
    return points / points[:, :, 0, 2].median(-1).values[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Case:
    """What a tracker saw of a scene, and all that it allows; answers are in the order of the example's points."""

    kind: str
    example: Example
    answers: Float[Tensor, "2 N T 3"]
    odds: tuple[float, ...]
    truth: int

    @property
    def apart(self) -> Bool[Tensor, "N T"]:
        """Where the answers differ by at least a tenth of what they differ by at most."""
        distance = (self.answers[1] - self.answers[0]).norm(dim=-1)
        return distance > 0.1 * distance.max()

    def trajectories(self, ctrl: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K N T 3"]:
        """Snap control points to the tracks, scale them to a median anchor depth of 1, and decode."""
        example = self.example
        rays = cameras.normalise(example.tracks, example.intrinsics[:, None, None])[0]
        ctrl = snap(ctrl, rays, example.visibility[0], example.u)
        return splines.basis_matrix(example.u, ctrl.shape[-2]) @ scaled(ctrl)


def cases(kind: str, settings: Settings, num_ctrl: int) -> Iterator[Case]:
    """Held-out scenes of a kind through a tracker; the focal length is known, as the answers depend on it."""
    for index in range(settings.scenes):
        world = generate(
            settings.first_world + index,
            num_points=settings.points,
            num_frames=settings.frames,
            family=kind,
        )
        scene = ambiguous(world)
        example = draw(
            Worlds(**stacked([world])),
            torch.Generator().manual_seed(index),
            num_ctrl=num_ctrl,
            num_points=settings.points,
            dropout=Dropout(tracks=0.0, focal=0.0),
            augment=False,
        )
        # Scaled as batches and samples are: torch's median of an even number is the lower of the two in the middle.
        answers = scaled(torch.from_numpy(scene.answers))
        # A batch has the points in an order of its own.
        distance = torch.cdist(example.points[0].flatten(1), answers[scene.truth].flatten(1))
        order = distance.argmin(1)
        assert len(order.unique()) == settings.points
        answers = answers[:, order]
        yield Case(kind, example, answers, scene.odds, scene.truth)


def place(
    points: Float[Tensor, "K N T 3"], answers: Float[Tensor, "2 N T 3"]
) -> Float[Tensor, "K"]:
    """Where on the line through both answers: 0 at the first, 1 at the second."""
    along = answers[1] - answers[0]
    return ((points - answers[0]) * along).sum((1, 2, 3)) / along.square().sum()


def distance_to_nearest(
    points: Float[Tensor, "K N T 3"], answers: Float[Tensor, "2 N T 3"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, "K"]:
    """RMS to the nearer answer over RMS between the answers, where these differ."""
    squared = (points[:, None] - answers).square().sum(-1)[..., mask].mean(-1)
    between = (answers[1] - answers[0]).square().sum(-1)[mask].mean()
    return (squared.min(1).values / between).sqrt()


def shares(places: Float[Tensor, "K"]) -> dict[str, float]:
    """Shares of samples nearer to the first answer, nearer to the second, and between the two."""
    return {
        "first": float((places < 0.5).float().mean()),
        "second": float((places >= 0.5).float().mean()),
        "between": float(((places - 0.5).abs() < 0.25).float().mean()),
    }


def judge(points: Float[Tensor, "K N T 3"], case: Case) -> dict[str, float]:
    """One scene's samples."""
    found = shares(place(points, case.answers))
    far = distance_to_nearest(points, case.answers, case.apart)
    return {**found, "distance": float(far.median())}


def forecast(
    rows: Sequence[dict], outcomes: Sequence[int], odds: Sequence[Sequence[float]]
) -> dict:
    """How often both are found, and the shares as forecasts of which answer is true.

    A forecast is the share at the first answer; its Brier score is (share − [the first is true])².
    """
    first = np.array([row["first"] for row in rows])
    true = np.array([outcome == 0 for outcome in outcomes], dtype=float)
    known = np.array([odd[0] for odd in odds])
    counts = np.clip(np.digitize(first, BINS) - 1, 0, len(BINS) - 2)
    reliability = [
        {
            "said": round(float(first[counts == b].mean()), 4),
            "was": round(float(true[counts == b].mean()), 4),
            "scenes": int((counts == b).sum()),
        }
        for b in np.unique(counts)
    ]
    numbers = {
        "both_found": np.mean([min(row["first"], row["second"]) >= HOLDS for row in rows]),
        "between": np.mean([row["between"] for row in rows]),
        "distance": np.mean([row["distance"] for row in rows]),
        "share_at_truth": np.mean(true * first + (1 - true) * (1 - first)),
        "perfect_share_at_truth": np.mean(known**2 + (1 - known) ** 2),
        "brier": np.mean((first - true) ** 2),
        "perfect_brier": np.mean(known * (1 - known)),
        "error_of_share": np.mean(np.abs(first - known)),
    }
    return {**{k: round(float(v), 4) for k, v in numbers.items()}, "reliability": reliability}


def shown(points: Float[Tensor, "K N T 3"], case: Case) -> list[float]:
    """For the picture: where samples put the point and instant that differ most, along the line between the answers.

    Scene units; 0 halfway.
    """
    along = case.answers[1] - case.answers[0]
    n, t = divmod(int(along.norm(dim=-1).argmax()), along.shape[1])
    middle, line = case.answers[:, n, t].mean(0), along[n, t] / along[n, t].norm()
    return [round(float(v), 4) for v in (points[:, n, t] - middle) @ line]


@torch.no_grad()
def examine(
    pipe: Diffusion4DPipeline, twin: Diffusion4DPipeline, case: Case, index: int, settings: Settings
) -> tuple[dict[str, dict], dict[str, list[float]]]:
    """All methods on one scene, and what a picture of it shows."""
    clip = denoiser.prepare(pipe.transformer, case.example.evidence, pipe.regressor)
    assert settings.sampler is not None
    assert settings.steps is not None
    table = sampling.table_for(settings.sampler, settings.steps)
    ctrl = {"samples": sampling.sample(clip, sampling.seeds_from(index, settings.samples), table)}
    white = torch.randn(
        (1, settings.samples, *case.example.ctrl.shape[1:]),
        generator=torch.Generator().manual_seed(index),
    )
    ctrl["Gaussian"] = clip.decode(clip.factors.correlate(white)).squeeze(0)
    ctrl["twin"] = sampling.answer(denoiser.prepare(twin.transformer, case.example.evidence))
    points = {name: case.trajectories(value) for name, value in ctrl.items()}
    rows: dict[str, dict] = {name: judge(points[name], case) for name in ("samples", "Gaussian")}
    rows["twin"] = {"place": float(place(points["twin"], case.answers))}
    picture = {name: shown(value, case) for name, value in points.items()}
    return rows, {**picture, "answers": shown(case.answers, case)}


def main(settings: Settings) -> dict:
    """Run all scenes; writes results.json and returns what it holds."""
    begun = time.process_time()
    pipe = Diffusion4DPipeline.from_pretrained(settings.model)
    twin = Diffusion4DPipeline.from_pretrained(settings.twin)
    sampler, steps = sampling.usual(pipe.transformer)
    settings = dataclasses.replace(
        settings, sampler=settings.sampler or sampler, steps=settings.steps or steps
    )
    results: dict = {"settings": {}, "kinds": {}, "pictures": {}}
    for kind in FAMILIES:
        rows, outcomes, odds, pictures = [], [], [], []
        for index, case in enumerate(cases(kind, settings, pipe.transformer.config["num_ctrl"])):
            row, picture = examine(pipe, twin, case, index, settings)
            rows.append(row)
            outcomes.append(case.truth)
            odds.append(case.odds)
            pictures.append({**picture, "truth": case.truth})
        places = np.array([row["twin"]["place"] for row in rows])
        results["kinds"][kind] = {
            name: forecast([row[name] for row in rows], outcomes, odds)
            for name in ("samples", "Gaussian")
        }
        results["kinds"][kind]["twin"] = {
            "place": round(float(np.median(places)), 4),
            "between": round(float((np.abs(places - 0.5) < 0.25).mean()), 4),
        }
        results["pictures"][kind] = pictures[:4]
    kept = dataclasses.asdict(settings)
    # A folder's name is enough: results are read on other machines.
    kept = {k: Path(v).name if k in ("model", "twin") else v for k, v in kept.items() if k != "out"}
    results["settings"] = {**kept, "cpu_seconds": round(time.process_time() - begun)}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_done(settings.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
