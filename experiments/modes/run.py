"""Is the number of modes right where it is known, and what are the numbers on real clips?

    python experiments/modes/run.py [--clips FOLDER] [--ensembles 100]

FOLDER holds one folder of `diffusion4d sample -k 64` a clip. Without it the clips of the last run stay. Four tables:

1. white noise with r orthogonal modes of equal strength, `x` times the strength β^{1/4} below which none can be seen;
2. pure white noise: nothing is to be found, and the law is to hold (`Spectrum.holds`);
3. noise that is not white, with and without modes, under the white law and under the coloured one;
4. the clips.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np

from diffusion4d import Hypotheses
from diffusion4d.atomic import replace_when_done
from diffusion4d.deformation import modes
from priors.coloured import coloured_bulk
from priors.laws import MarchenkoPastur
from priors.spectrum import spectrum

HERE = Path(__file__).parent
SIZES = (
    (7, 500),
    (15, 300),
    (15, 4608),
    (31, 2000),
    (63, 63),
    (63, 300),
    (63, 2000),
    (63, 4608),
    (127, 63),
    (255, 100),
)
"""(K − 1, 3 N M)"""
NOISES = (1e-3, 1.0, 30.0)
STRENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0)


def ensemble(
    rng: np.random.Generator,
    shape: tuple[int, int],
    count: int,
    strength: float,
    scale: np.ndarray | float,
) -> np.ndarray:
    """Squared singular values of noise with these column scales and `count` modes of singular value `strength`."""
    n, p = shape
    rows = rng.standard_normal(shape) * scale
    if count:
        left, _ = np.linalg.qr(rng.standard_normal((n, count)))
        right, _ = np.linalg.qr(rng.standard_normal((p, count)))
        rows += strength * left @ right.T
    gram = rows @ rows.T if n <= p else rows.T @ rows
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)


def numbers_of_modes(a: int) -> tuple[int, ...]:
    """1, 3 and a quarter of the spectrum, where that is different."""
    return tuple(sorted({1, min(3, a // 4), a // 4}))


def known(rng: np.random.Generator, ensembles: int) -> list[dict]:
    """Table 1."""
    rows = []
    for shape in SIZES:
        a, b = min(shape), max(shape)
        for count in numbers_of_modes(a):
            for i, times in enumerate(STRENGTHS):
                noise = NOISES[i % len(NOISES)]
                strength = times * (a / b) ** 0.25 * noise * math.sqrt(b)
                found = [
                    spectrum(ensemble(rng, shape, count, strength, noise), shape)
                    for _ in range(ensembles)
                ]
                rows.append(
                    {
                        "shape": shape,
                        "modes": count,
                        "strength": times,
                        "noise": noise,
                        "right": float(np.mean([f.count == count for f in found])),
                        "too_many": float(np.mean([f.count > count for f in found])),
                        "noise_ratio": float(np.median([f.noise / noise for f in found])),
                    }
                )
        print("known", shape, flush=True)
    return rows


def nothing(rng: np.random.Generator, ensembles: int) -> list[dict]:
    """Table 2."""
    rows = []
    for shape in SIZES:
        found = [spectrum(ensemble(rng, shape, 0, 0, 1.0), shape) for _ in range(ensembles)]
        rows.append(
            {
                "shape": shape,
                "none": float(np.mean([f.count == 0 for f in found])),
                "holds": float(np.mean([f.holds for f in found])),
                "misfit_99": float(np.quantile([f.misfit for f in found], 0.99)),
            }
        )
        print("nothing", rows[-1], flush=True)
    return rows


def populations(p: int) -> dict[str, np.ndarray]:
    """Variances of noise that is not white, largest first."""
    i = np.arange(p)
    return {
        "white": np.ones(p),
        "first-order autoregressive, 0.9": np.linalg.eigvalsh(0.9 ** np.abs(i[:, None] - i))[::-1],
        "exponential tail exp(-i / 20)": np.exp(-i / 20.0),
        "power tail 1 / i^1.5": (1.0 + i) ** -1.5,
    }


def coloured(rng: np.random.Generator, ensembles: int) -> list[dict]:
    """Table 3: the modes have a multiple of the median largest singular value of the noise."""
    rows = []
    for shape in ((15, 500), (63, 500)):
        for name, variance in populations(shape[1]).items():
            scale = np.sqrt(variance)
            top = math.sqrt(np.median([ensemble(rng, shape, 0, 0, scale)[0] for _ in range(50)]))
            for count, times in ((0, 0.0), (2, 1.5), (2, 3.0)):
                values = [ensemble(rng, shape, count, times * top, scale) for _ in range(ensembles)]
                white = [spectrum(v, shape) for v in values]
                bulk = [coloured_bulk(v, shape, seed=i) for i, v in enumerate(values)]
                rows.append(
                    {
                        "shape": shape,
                        "noise": name,
                        "modes": count,
                        "strength": times,
                        "white_right": float(np.mean([f.count == count for f in white])),
                        "white_median": float(np.median([f.count for f in white])),
                        "white_holds": float(np.mean([f.holds for f in white])),
                        "coloured_right": float(np.mean([f.count == count for f in bulk])),
                        "coloured_median": float(np.median([f.count for f in bulk])),
                    }
                )
                print("coloured", rows[-1], flush=True)
    return rows


def clips(folder: Path) -> dict[str, dict]:
    """Table 4."""
    rows = {}
    for path in sorted(p.parent for p in folder.glob("*/hypotheses.npz")):
        hyp = Hypotheses.load(path)
        start = time.perf_counter()
        found = modes(hyp)
        white, bulk, parts = found.modes.spectrum, found.modes.bulk, found.clusters
        share = white.values / white.values.sum()
        rows[path.name] = {
            "hypotheses": hyp.num_hypotheses,
            "numbers": white.shape[1],
            "modes": found.num_modes,
            "noise": found.modes.noise,
            "share": share[: found.num_modes].sum(),
            "deviation": found.modes.deviation.tolist(),
            "depth_share": found.depth_share().tolist(),
            "common_share": found.common_share().tolist(),
            "effective": white.effective,
            "white_modes": white.count,
            "white_saturated": white.saturated,
            "white_misfit": white.misfit,
            "coloured_misfit": None if bulk is None else bulk.misfit,
            "concentration": None if bulk is None else bulk.concentration,
            "clusters": parts.weights.tolist(),
            "silhouette": parts.silhouette,
            "required": parts.required,
            "seconds": time.perf_counter() - start,
            "values": white.values.tolist(),
            "expected": None if bulk is None else bulk.expected.tolist(),
            "threshold": found.modes.threshold,
        }
        print("clip", path.name, found.num_modes, parts.count, flush=True)
    return rows


def draw(results: dict, path: Path) -> None:
    """The share that is right against strength; a bulk with its laws; the clips' spectra."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    inks = (
        "#0072b2",
        "#e69f00",
        "#009e73",
        "#cc79a7",
        "#d55e00",
        "#56b4e9",
        "#000000",
        "#999999",
        "#f0e442",
        "#882255",
    )
    for shape, ink in zip(SIZES, inks, strict=True):
        rows = [
            r
            for r in results["known"]
            if tuple(r["shape"]) == shape and r["modes"] == min(3, min(shape) // 4)
        ]
        first.plot(
            [r["strength"] for r in rows],
            [r["right"] for r in rows],
            "o-",
            color=ink,
            label=f"{shape[0]} × {shape[1]}",
        )
    first.axhline(0.95, color="grey", linestyle="--", linewidth=1)
    first.set(
        xlabel="strength of the modes, limit of detection = 1",
        ylabel="share of ensembles with the right number",
    )
    first.legend(fontsize=7, title="K − 1 × numbers", title_fontsize=7)
    shape = (400, 2000)
    values = ensemble(np.random.default_rng(1), shape, 3, 2.2 * 0.2**0.25 * math.sqrt(2000), 1.0)
    found = spectrum(values, shape)
    a, b = found.rest
    x = np.linspace(0.2, 3.2, 500)
    second.hist(values / b, 60, density=True, color="#bbbbbb", label="400 × 2000, three modes")
    second.plot(x, found.law.density(x), color="#0072b2", linewidth=2, label="Marčenko–Pastur")
    second.plot(
        x,
        MarchenkoPastur(a / b).semicircle.density(x),
        ":",
        color="#d55e00",
        linewidth=2,
        label="semicircle",
    )
    second.axvline(
        found.threshold / b, color="black", linestyle="--", linewidth=1, label="threshold"
    )
    second.set(xlabel="eigenvalue", yticks=[])
    second.legend(fontsize=8)
    for row, ink in zip(results["clips"].values(), inks, strict=False):
        observed = np.array(row["values"])
        third.plot(
            np.arange(1, len(observed) + 1),
            observed / row["threshold"],
            ".-",
            markersize=3,
            linewidth=0.8,
            color=ink,
        )
    third.axhline(1.0, color="grey", linestyle="--", linewidth=1)
    third.set(
        yscale="log", xlabel="direction", ylabel="squared singular value / coloured threshold"
    )
    third.set_title("ten real clips, 64 hypotheses each", fontsize=9)
    with replace_when_done(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--ensembles", type=int, default=100)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    file = HERE / "results.json"
    held = json.loads(file.read_text()) if file.is_file() else {"clips": {}}
    results = {
        "ensembles": options.ensembles,
        "nothing": nothing(rng, 4 * options.ensembles),
        "known": known(rng, options.ensembles),
        "coloured": coloured(rng, options.ensembles // 5),
        "clips": held["clips"] if options.clips is None else clips(options.clips),
    }
    with replace_when_done(file) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, HERE / "modes.png")


if __name__ == "__main__":
    main()
