"""What the baselines are fitted to: clips with truth, other than those that are scored.

    dressings       scales of the noise on each deterministic answer (`baselines`)
    temperatures    factor on each Gaussian head's deviations, the best of a few in energy score

The sampler's own temperature is part of its configuration, so without this its nearest rival would be the only one
whose spread nobody had looked at.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from diffusion4d import baselines, metrics
from diffusion4d.baselines import Dressing
from diffusion4d.evaluation.cases import Case
from diffusion4d.evaluation.clips import TrueClip
from diffusion4d.evaluation.methods import HEADS, NUM_SCORED, Models

TEMPERATURES = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8)


@dataclasses.dataclass(frozen=True)
class Fits:
    """By the names of `methods`: of deterministic answers and of Gaussian heads."""

    dressings: dict[str, Dressing]
    temperatures: dict[str, float]

    def json(self) -> dict[str, Any]:
        """As it is kept in scores.json."""
        return dataclasses.asdict(self)


def fit(models: Models, clips: Iterator[TrueClip], advance: Callable[[], None]) -> Fits:
    """Fit everything that is fitted, on these clips; `advance` is called after each of them."""
    cases: dict[str, list[baselines.Case]] = {}
    scores = {name: defaultdict(float) for name in HEADS}
    for clip in clips:
        case = Case.of(clip)
        grids = models.grids(case)
        for name, answer in models.answers(case, grids).items():
            cases.setdefault(name, []).append((answer[0], case.truth, case.masks[0]))
        for temperature in TEMPERATURES:
            heads = models.heads(case, grids, dict.fromkeys(HEADS, temperature))
            for name, drawn in heads.items():
                some = drawn[:NUM_SCORED]
                found = metrics.energy_score(some, case.truth, case.masks[0]).item()
                scores[name][temperature] += found
        advance()
    return Fits(
        {name: baselines.fit_dressing(held) for name, held in cases.items()},
        {name: min(sums, key=sums.__getitem__) for name, sums in scores.items() if sums},
    )
