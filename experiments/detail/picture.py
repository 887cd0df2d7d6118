"""Held-out meshes without their detail, with it, and with sampled ones; and the spectra, out of results.json.

python experiments/detail/picture.py --meshes FOLDER
"""

import dataclasses
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from detail_data import files, pair
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from diffusion4d.detail.sampling import load_detail_network, sample_on_points
from diffusion4d.scenes.casting import Caster
from diffusion4d.surfaces.mesh import Mesh

NAMES = ("Deer", "Trex", "ShibaInu", "Piranha")
SIDE = 420
SAMPLES = 3
LIGHT = np.array([0.4, 0.7, 0.6]) / np.linalg.norm([0.4, 0.7, 0.6])
FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Settings:
    """Draw sampled detail."""

    meshes: Path = Path("meshes")
    points: int = 1500
    out: Path = FOLDER / "detail.png"


def shaded(
    vertices: Float[np.ndarray, "V 3"], faces: np.ndarray, middle: np.ndarray, size: float
) -> Float[np.ndarray, "y x"]:
    """Grey picture from the side and a little above, parallel rays; z is up."""
    turn, tilt = np.radians(55), np.radians(12)
    ahead = np.array([-np.cos(tilt) * np.sin(turn), np.cos(tilt) * np.cos(turn), -np.sin(tilt)])
    right = np.cross(ahead, [0.0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, ahead)
    at = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    across, down = np.meshgrid(at * size, -at * size)
    origins = middle + across[..., None] * right + down[..., None] * up - 4 * size * ahead
    hits = Caster(vertices, faces).first_hits(
        origins.reshape(-1, 3), np.tile(ahead, (SIDE * SIDE, 1))
    )
    normals = Mesh(vertices.astype(np.float32), faces.astype(np.int64)).normals
    found = np.einsum("nci,nc->ni", normals[faces[hits.face]], hits.barycentric)
    found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-12
    found *= np.where(found @ ahead > 0, -1, 1)[:, None]
    light = 0.25 + 0.75 * np.clip(found @ LIGHT, 0, None)
    return np.where(hits.face >= 0, light, 1.0).reshape(SIDE, SIDE)


def main(settings: Settings) -> None:
    """Draw and write."""
    network = load_detail_network()
    told = json.loads((FOLDER / "results.json").read_text())
    columns = ["base", "its own detail", *(f"sample {i}" for i in range(1, SAMPLES + 1))]
    figure: Figure = plt.figure(figsize=(15, 9.6))
    grid = GridSpec(len(NAMES), len(columns) + 1, figure, width_ratios=[1] * len(columns) + [1.25])
    grid.update(left=0.01, right=0.985, top=0.96, bottom=0.05, wspace=0.02, hspace=0.02)
    edges = np.array(told["wavelengths"])
    middles = np.sqrt(edges[1:] * edges[:-1])
    paths = {path.stem: path for path in files(settings.meshes, "held-out")}
    for row, name in enumerate(NAMES):
        mesh = pair(paths[name], settings.points)
        cloud, _ = mesh.cloud(100)
        drawn = sample_on_points(network, cloud, range(SAMPLES)).double().numpy()
        spread = cloud.interpolation(mesh.base, mesh.normals)
        shapes = [mesh.base, mesh.full]
        for sample in drawn:
            along = mesh.spacing * (spread @ sample)
            shapes.append(mesh.base + along[:, None] * mesh.normals)
        low, high = mesh.full.min(0), mesh.full.max(0)
        size = 1.02 * float(np.linalg.norm(high - low)) * 0.86
        for column, shape in enumerate(shapes):
            axes = figure.add_subplot(grid[row, column])
            picture = shaded(shape, mesh.faces, (low + high) / 2, size)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
            if row == 0:
                axes.set_title(columns[column], fontsize=11)
        axes = figure.add_subplot(grid[row, -1])
        found = told["meshes"][name]
        for key, colour, style in (
            ("truth", "black", "-"),
            ("samples", "#0072B2", "-"),
            ("white", "#E69F00", "--"),
            ("Gaussian", "#009E73", ":"),
        ):
            level = 10 * np.log10(np.array(found[key]["spectrum"]))
            axes.plot(middles, level, style, color=colour, marker="o", ms=3, label=key)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks([45, 16, 6.7], ["45", "16", "7"])
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.set_title(f"{name}: energy a wave, dB", fontsize=9, pad=3)
        if row == 0:
            axes.legend(fontsize=8, frameon=False)
        if row == len(NAMES) - 1:
            axes.set_xlabel("wavelength, spacings", fontsize=9)
        box = axes.get_position()
        axes.set_position((box.x0 + 0.03, box.y0 + 0.025, box.width - 0.03, box.height - 0.06))
    figure.savefig(settings.out, dpi=90)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
