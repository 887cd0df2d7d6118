r"""Is sampled detail like the detail that held-out meshes have, and does it stay where it is put?

For every mesh that the recipe holds out: its base is given, and K details are sampled for it.

    spectrum     energy per wave in bands of wavelength (`detail.measures`): that of the mesh, the mean of the
                 samples', and of fields without a network; differences are root mean squares over bands, in dB
    amplitudes   Wasserstein distance of all samples' offsets to the mesh's, over the mesh's mean |offset|
    score        fair CRPS of the offset of every vertex, over the mesh's mean |offset|: what knowing the base is worth
    drift        of the first sample under two of the mesh's own motions: stored in the frames of the base, and
                 frame-less; and of the mesh's true detail in the frames of its smoothed base, as the animation has it

Without a network: "white", offsets of the training meshes drawn at random for every vertex; "Gaussian", a stationary
Gaussian field with the training meshes' mean spectrum, out of the waves of the base. Both know the training meshes and
nothing of the base. Offsets are along the normal, in units of the spacing h = √(area / points).

    python experiments/detail/run.py --meshes FOLDER [--model FOLDER]
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
import tyro
from detail_data import Pair, files, pair
from jaxtyping import Float

from diffusion4d.atomic import replace_when_done
from diffusion4d.data.animated_glb import read_animated
from diffusion4d.detail.laplacian import cotangent_laplacian
from diffusion4d.detail.measures import (
    Waves,
    amplitudes_apart,
    fair_crps,
    spectra_apart,
    waves_of,
)
from diffusion4d.detail.network import DetailNetwork
from diffusion4d.detail.offsets import drift, extract
from diffusion4d.detail.sampling import load_detail_network, sample_on_points

WAVELENGTHS = np.array([64, 32, 22.6, 16, 11.3, 8, 5.7])
"""h; the longest waves are the body's, the shortest what points at h still hold."""
MOTIONS = 2
FRAMES = 12


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure sampled detail on meshes that were not trained on."""

    meshes: Path = Path("meshes")
    model: Path | None = None
    """A trained network; the packaged one by default."""
    points: int = 1500
    samples: int = 16
    seed: int = 0
    out: Path = Path(__file__).parent / "results.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Climate:
    """What the training meshes have on average."""

    offsets: Float[np.ndarray, "n"]
    spectrum: Float[np.ndarray, "B"]


def waves(mesh: Pair) -> Waves:
    """Of the mesh in units of its spacing, so that meshes of all sizes compare."""
    return waves_of(cotangent_laplacian(mesh.full / mesh.spacing, mesh.faces), WAVELENGTHS)


def climate(settings: Settings) -> Climate:
    """Offsets, and mean energies, of the training meshes; of packs of look-alikes every fourth."""
    offsets, spectra = [], []
    chosen = files(settings.meshes, "train")
    common = [path for path in chosen if path.parent.name == "cute_fish_pack"]
    for path in chosen:
        if path in common and common.index(path) % 4:
            continue
        mesh = pair(path, settings.points)
        offsets.append(mesh.detail)
        spectra.append(waves(mesh).spectrum(mesh.detail))
        print(f"trained on: {path.stem}", file=sys.stderr, flush=True)
    even = min(len(offset) for offset in offsets)
    generator = np.random.default_rng(0)
    drawn = [generator.choice(offset, even, replace=False) for offset in offsets]
    return Climate(np.concatenate(drawn), np.nanmean(spectra, 0))


def without_network(
    known: Climate, held: Waves, count: int, generator: np.random.Generator
) -> dict[str, Float[np.ndarray, "K V"]]:
    """The two fields that know nothing of the base."""
    V = len(held.mass)
    # Waves in no band are longer than the longest: as the first.
    energy = known.spectrum[np.maximum(held.band, 0)]
    drawn = generator.normal(size=(count, len(held.numbers))) * np.sqrt(energy)
    return {
        "white": generator.choice(known.offsets, (count, V)),
        "Gaussian": drawn @ held.shapes.T,
    }


def told(
    samples: Float[np.ndarray, "K V"], truth: Float[np.ndarray, "V"], held: Waves
) -> dict[str, float | list[float]]:
    """The measures of some samples."""
    spectrum = np.mean([held.spectrum(sample) for sample in samples], 0)
    size = float(np.abs(truth).mean())
    return {
        "spectrum": spectrum.tolist(),
        "spectra apart, dB": spectra_apart(spectrum, held.spectrum(truth)),
        "amplitudes apart": amplitudes_apart(truth, samples) / size,
        "mean amplitude": float(np.abs(samples).mean()),
        "CRPS": fair_crps(samples, truth) / size,
    }


def one_mesh(path: Path, network: DetailNetwork, known: Climate, settings: Settings) -> dict:
    """All measures of a mesh."""
    mesh = pair(path, settings.points)
    held = waves(mesh)
    # Points of a seed that no training cloud has.
    cloud, on_points = mesh.cloud(settings.seed + 100)
    drawn = sample_on_points(network, cloud, range(settings.seed, settings.seed + settings.samples))
    spread = cloud.interpolation(mesh.base, mesh.normals)
    samples = drawn.double().numpy() @ spread.T
    generator = np.random.default_rng(settings.seed)
    rows = {"samples": samples, **without_network(known, held, settings.samples, generator)}
    through = spread @ on_points
    return {
        "vertices": len(mesh.full),
        "along the normal": mesh.along_normal(),
        "truth": {
            "spectrum": held.spectrum(mesh.detail).tolist(),
            "mean amplitude": float(np.abs(mesh.detail).mean()),
        },
        "truth at the points": {
            "spectra apart, dB": spectra_apart(held.spectrum(through), held.spectrum(mesh.detail)),
            "amplitudes apart": amplitudes_apart(mesh.detail, through)
            / float(np.abs(mesh.detail).mean()),
        },
        **{name: told(found, mesh.detail, held) for name, found in rows.items()},
        "drift": drifts(path, mesh, samples[0]),
    }


def drifts(path: Path, mesh: Pair, offsets: Float[np.ndarray, "V"]) -> list[dict]:
    """Of a sample under the mesh's own motions."""
    animated = read_animated(path)
    faces = torch.from_numpy(mesh.faces.astype(np.int64))
    base = torch.from_numpy(mesh.base)
    along = torch.from_numpy(mesh.spacing * offsets[:, None] * mesh.normals)
    kept = extract(base, base + along, faces)
    true = extract(base, torch.from_numpy(mesh.full), faces)
    found = []
    for animation in animated.skeleton.animations:
        seconds = min(animation.stop - animation.start, 1.6)
        if seconds <= 0:
            continue
        times = animation.start + np.linspace(0, seconds, FRAMES)
        posed = np.stack([mesh.posed(frame) for frame in animated.positions(animation, times)])
        extent = np.linalg.norm(np.ptp(posed[0], axis=0))
        if np.linalg.norm(posed - posed[:1], axis=-1).max() < 0.05 * extent:
            continue
        moved = torch.from_numpy(np.stack([mesh.smoothed(frame) for frame in posed]))

        def strayed(
            offsets: torch.Tensor, full: torch.Tensor, moved: torch.Tensor = moved
        ) -> float:
            told = drift(offsets, moved, full, faces, kept.guide)
            return float(told.square().mean().sqrt())

        found.append(
            {
                "animation": animation.name,
                "in frames": strayed(kept.offsets, kept.on(moved)),
                "frame-less": strayed(kept.offsets, moved + along),
                "true detail, in frames": strayed(true.offsets, torch.from_numpy(posed)),
            }
        )
        if len(found) == MOTIONS:
            break
    return found


def main(settings: Settings) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    network = load_detail_network(settings.model) if settings.model else load_detail_network()
    known = climate(settings)
    meshes = {}
    for path in files(settings.meshes, "held-out"):
        meshes[path.stem] = one_mesh(path, network, known, settings)
        print(path.stem, json.dumps(meshes[path.stem]), file=sys.stderr, flush=True)
    kinds = ("samples", "white", "Gaussian")
    keys = ("spectra apart, dB", "amplitudes apart", "mean amplitude", "CRPS")
    summary = {
        kind: {key: float(np.mean([row[kind][key] for row in meshes.values()])) for key in keys}
        for kind in kinds
    }
    motions = [motion for row in meshes.values() for motion in row["drift"]]
    summary["drift"] = {
        key: float(np.mean([motion[key] for motion in motions]))
        for key in ("in frames", "frame-less", "true detail, in frames")
    }
    for key in ("spectra apart, dB", "amplitudes apart"):
        found = [row["truth at the points"][key] for row in meshes.values()]
        summary.setdefault("truth at the points", {})[key] = float(np.mean(found))
    truth = [row["truth"]["mean amplitude"] for row in meshes.values()]
    summary["truth"] = {"mean amplitude": float(np.mean(truth))}
    content = {
        "points": settings.points,
        "samples": settings.samples,
        "wavelengths": WAVELENGTHS.tolist(),
        "training spectrum": known.spectrum.tolist(),
        "summary": summary,
        "meshes": meshes,
    }
    with replace_when_done(settings.out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
