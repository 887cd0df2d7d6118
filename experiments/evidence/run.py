r"""What does each kind of evidence tell? The same scenes with and without it.

    python experiments/evidence/run.py RENDERED --model MODEL

RENDERED is a folder of rendered held-out worlds. Every world is asked about eight times: with all tracks or with
their anchor frame alone, with tokens or without, with its focal length or with a default one. Only the evidence
changes: points, tracker, seeds and truth are the same. Where the focal length is withheld the truth is the scene that
a camera of the default one would see, so errors of the two are in slightly different units.
Shape letters:  K samples   N points   T frames.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from diffusion4d import sampling
from diffusion4d.atomic import replace_when_done
from diffusion4d.evaluation.cases import SUBSETS, Case, rendered_clips
from diffusion4d.evaluation.clips import TrueClip
from diffusion4d.evaluation.methods import Model, encode
from diffusion4d.evaluation.scores import score
from diffusion4d.scenes.rendered import load_rendered
from diffusion4d.stages import bars_with_notes

HERE = Path(__file__).parent
NUM_SAMPLES = 16
METRICS = ("energy_score", "energy_score_depth", "rms", "min_ade_joint")


@dataclasses.dataclass(frozen=True)
class Given:
    """Which kinds of evidence there are."""

    tracks: bool
    tokens: bool
    focal: bool

    @property
    def name(self) -> str:
        return ", ".join(
            word if has else f"no {word}"
            for word, has in (
                ("tracks", self.tracks),
                ("tokens", self.tokens),
                ("focal", self.focal),
            )
        )


KINDS = tuple(Given(*has) for has in itertools.product((True, False), repeat=3))


def withheld(clip: TrueClip, given: Given) -> TrueClip:
    """The clip without the evidence that is not given."""
    visibility = clip.visibility.clone()
    if not given.tracks:
        visibility[:, 1:] = 0
    images, frames = (clip.images, clip.frames) if given.tokens else (None, None)
    return dataclasses.replace(
        clip, visibility=visibility, images=images, frames=frames, focal_known=given.focal
    )


@torch.no_grad()
def scores(model: Model, clip: TrueClip, seed: int) -> dict[str, dict[str, list[float]]]:
    """Every kind's scores of one clip: kind -> metric -> one value a subset."""
    table = sampling.table_for(*sampling.usual(model.pipe.transformer))
    found = {}
    for given in KINDS:
        case = Case.of(withheld(clip, given), seed)
        prepared = model.prepared(case, encode(case, model.encoder))
        ctrl = sampling.sample(prepared, sampling.seeds_from(seed, NUM_SAMPLES), table)
        values = score(case.trajectories(ctrl), case).values
        found[given.name] = {metric: np.asarray(values[metric]).tolist() for metric in METRICS}
    return found


def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """Ratio of means over clips, with a paired bootstrap 95 % interval."""
    kept = np.isfinite(above) & np.isfinite(below)
    above, below = above[kept], below[kept]
    drawn = np.random.default_rng(0).integers(len(above), size=(2000, len(above)))
    low, high = np.quantile(above[drawn].mean(1) / below[drawn].mean(1), [0.025, 0.975])
    return {"ratio": above.mean() / below.mean(), "low": float(low), "high": float(high)}


def summarise(rows: list[dict[str, dict[str, list[float]]]]) -> dict:
    """Means over clips, and what each kind of evidence is worth beside the others."""

    def column(given: Given, metric: str, subset: str) -> np.ndarray:
        index = SUBSETS.index(subset)
        return np.array([row[given.name][metric][index] for row in rows])

    table = {
        given.name: {
            metric: {s: float(np.nanmean(column(given, metric, s))) for s in SUBSETS}
            for metric in METRICS
        }
        for given in KINDS
    }
    worth = {}
    for kind in ("tracks", "tokens", "focal"):
        for given in KINDS:
            if getattr(given, kind):
                less = dataclasses.replace(given, **{kind: False})
                name = f"{given.name} / {less.name}"
                worth[name] = {
                    subset: ratio(
                        column(given, "energy_score", subset), column(less, "energy_score", subset)
                    )
                    for subset in SUBSETS
                }
    return {"clips": len(rows), "scores": table, "ratios": worth}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rendered", type=Path, help="folder of rendered held-out worlds")
    parser.add_argument("--model", default="tiny", help="packaged model or folder")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    shards = sorted(options.rendered.glob("[0-9]*.safetensors"))
    if not shards:
        parser.error(f"need shards of rendered worlds, found none in {options.rendered}")
    model = Model.load(options.model, with_tokens=True)
    clips = itertools.islice(rendered_clips(load_rendered(shards), num_points=64), options.clips)
    rows = []
    with bars_with_notes() as bars:
        bar = bars.add_task("clips", total=options.clips, note="")
        for seed, clip in enumerate(clips):
            rows.append(scores(model, clip, seed))
            bars.advance(bar)
    with replace_when_done(options.out) as temporary:
        temporary.write_text(json.dumps(summarise(rows), indent=1))


if __name__ == "__main__":
    main()
