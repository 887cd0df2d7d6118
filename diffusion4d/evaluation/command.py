"""The evaluation from a configuration to files.

Baselines are fitted on clips other than those that are scored: on further worlds of the pool, or, where there are not
enough, on the other half of what there is (two folds, so that every clip is scored once). Every clip has a seed of its
own, so any share of the evaluation can be run again alone.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion4d.atomic import replace_when_done
from diffusion4d.bounds import require_at_least
from diffusion4d.config import Evaluate, PoolSpec
from diffusion4d.errors import UserError
from diffusion4d.evaluation import plots, summary
from diffusion4d.evaluation.cases import Case, rendered_clips, world_clips
from diffusion4d.evaluation.clips import TrueClip, clip_files, read_clips, write_clips
from diffusion4d.evaluation.fits import Fits, fit
from diffusion4d.evaluation.methods import Answers, Models, dressed
from diffusion4d.evaluation.report import markdown
from diffusion4d.evaluation.scores import Scored, score
from diffusion4d.scenes.pool import HELD_OUT, draw_pool, load_pool
from diffusion4d.scenes.rendered import load_rendered
from diffusion4d.stages import bars_with_notes

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Clips to fit the dressings on, and clips to score; functions, so that a clip is read when it is its turn."""

    fitting: Callable[[], Iterator[TrueClip]]
    scored: Callable[[], Iterator[TrueClip]]
    num_fitting: int
    num_scored: int


def run(config: Evaluate) -> dict[str, Any]:
    """Score the models; writes scores.json, scores.md and pictures, and returns what scores.json holds.

    Raises:
        UserError: a model or a clip cannot be used.
    """
    check(config)
    models = Models.load(config)
    with bars_with_notes() as bars:
        folds = folds_of(config, bars)
        config.out.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Scored]] = []
        fits: list[Fits] = []
        total = sum(fold.num_fitting + fold.num_scored for fold in folds)
        bar = bars.add_task("clips", total=total, note="")
        for fold in folds:
            fits.append(fit(models, fold.fitting(), lambda: bars.advance(bar)))
            for clip in fold.scored():
                swept = len(rows) < config.sweep_clips
                rows.append(score_all(models, fits[-1], Case.of(clip), swept=swept))
                bars.advance(bar)
    result = summarise(rows, config, fits, models.steps)
    with replace_when_done(config.out / "scores.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
    with replace_when_done(config.out / "scores.md") as temporary:
        temporary.write_text(markdown(result))
    plots.write_all(result, config.out)
    return result


def check(config: Evaluate) -> None:
    """Refuse what would else be found out after everything was scored.

    Raises:
        UserError: a number is too small, or there is a file where the folder should be.
    """
    counts = ("scenes", "fitting_scenes", "sweep", "sweep_clips", "steps", "processes")
    require_at_least(config, {"points": 2, "max_frames": 2, **dict.fromkeys(counts, 1)})
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"need a folder to write scores into, got the file {config.out}")


def folds_of(config: Evaluate, bars: Any) -> list[Fold]:
    """Where the clips come from.

    Raises:
        UserError: two sources at once, or fewer than two clips.
    """
    if config.clips is not None and config.rendered is not None:
        raise UserError("need a folder of clips or of rendered worlds, got both")
    if config.clips is not None:
        files = clip_files(config.clips)

        def take(chosen: Sequence[int]) -> Iterator[TrueClip]:
            return read_clips(
                [files[i] for i in chosen],
                num_points=config.points,
                max_frames=config.max_frames,
                with_images=config.tokens != "none",
            )

        # A user's clips are few: all of them are scored.
        return halves(min(len(files), config.scenes), take)
    if config.rendered is not None:
        return rendered_folds(config, config.rendered)
    return [pool_fold(config, bars)]


def halves(count: int, take: Callable[[Sequence[int]], Iterator[TrueClip]]) -> list[Fold]:
    """Every clip is scored, with dressings fitted on the half it is not in.

    Raises:
        UserError: fewer than two clips.
    """
    if count < 2:
        raise UserError(f"need at least two clips, to fit on one and score the other, got {count}")
    even, odd = range(0, count, 2), range(1, count, 2)
    return [
        Fold(functools.partial(take, other), functools.partial(take, half), len(other), len(half))
        for half, other in ((even, odd), (odd, even))
    ]


def rendered_folds(config: Evaluate, folder: Path) -> list[Fold]:
    """The rendered worlds of a folder, in a fixed random order: shards keep worlds of one image shape together.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    # Beside the shards, which are named by their seeds, there may be the tokens of an encoder.
    shards = sorted(folder.glob("[0-9]*.safetensors"))
    if not shards:
        raise UserError(f"need a folder of rendered worlds, found none in {folder}")
    try:
        stacks = load_rendered(shards)
    except UserError as error:
        raise UserError(f"need rendered worlds that can be read in {folder}: {error}") from error
    places = [(stack, i) for stack in stacks for i in range(len(stack))]
    order = np.random.default_rng(0).permutation(len(places))

    def take(chosen: Sequence[int]) -> Iterator[TrueClip]:
        for i in chosen:
            stack, place = places[order[i]]
            yield from rendered_clips([stack.take(torch.tensor([place]))], config.points, first=i)

    wanted = config.scenes + config.fitting_scenes
    if len(places) < wanted:
        return halves(min(len(places), config.scenes), take)
    scored, fitting = range(config.scenes), range(config.scenes, wanted)
    return [
        Fold(
            functools.partial(take, fitting),
            functools.partial(take, scored),
            len(fitting),
            len(scored),
        )
    ]


def pool_fold(config: Evaluate, bars: Any) -> Fold:
    """Generated worlds, drawn where they are missing; written as clips too where that is asked for."""
    bar = bars.add_task("worlds", note="")
    spec = PoolSpec(
        worlds=config.scenes + config.fitting_scenes,
        points=config.pool_points,
        first_seed=HELD_OUT + config.first_world,
        pack=config.pack,
        splits=config.splits,
        actors_only=config.actors_only,
    )
    paths = draw_pool(
        config.pool,
        spec,
        processes=config.processes,
        progress=lambda done, total: bars.update(bar, completed=done, total=total),
    )
    worlds = load_pool(paths)
    order = torch.arange(len(worlds))
    scored = worlds.take(order[: config.scenes])
    fitting = worlds.take(order[config.scenes : config.scenes + config.fitting_scenes])
    fold = Fold(
        lambda: world_clips(fitting, config.points, config.scenes),
        lambda: world_clips(scored, config.points),
        len(fitting),
        len(scored),
    )
    if config.write_clips is not None:
        bar = bars.add_task("writing clips", total=len(scored), note="")
        write_clips(fold.scored(), config.write_clips, lambda done: bars.advance(bar, done))
    return fold


def score_all(models: Models, fits: Fits, case: Case, *, swept: bool) -> dict[str, Scored]:
    """One clip, every method."""
    grids = models.grids(case)
    answers = models.answers(case, grids)
    found: Answers = {
        **models.samples(case, grids, swept=swept),
        **models.heads(case, grids, fits.temperatures),
        **answers,
        **dressed(answers, fits.dressings, list(answers), case.seed),
        "truth": case.truth[None],
    }
    return {name: score(points, case) for name, points in found.items()}


def summarise(
    rows: list[dict[str, Scored]], config: Evaluate, fits: list[Fits], steps: int
) -> dict[str, Any]:
    """All that is written. `steps` is what the sampler took."""
    # Paths and tuples as JSON has them, so that what is returned is what is read back.
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    names = summary.stand_ins(rows)
    return {
        "settings": settings,
        "clips": len(rows),
        "steps_taken": steps,
        "stands_for": {name: names[name] for name in ("twin", "dressed twin") if name in names},
        "fits": [fit.json() for fit in fits],
        "ratios": summary.ratios(rows),
        "steps": summary.steps_curve(rows, steps),
        "scores": summary.table(rows),
        "spread_against_error": summary.spread_against_error(rows),
    }
