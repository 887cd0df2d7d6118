"""Surfaces from the front and from the side: of a held-out world, beside its truth, and of sampled real clips.

python experiments/surfaces/picture.py --pack FOLDER --clips out/cat:cat.mp4 out/pillow:pillow.mp4
"""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro
from cases import FIRST, Settings, case, surfaces
from jaxtyping import Float

from diffusion4d.animate import first_frame
from diffusion4d.data.pack import Pack
from diffusion4d.fields.motion import reference
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.scenes.casting import Caster
from diffusion4d.surfaces.delaunay import anchor_surface
from diffusion4d.surfaces.fusion import fused_surface
from diffusion4d.surfaces.mesh import Mesh

SIDE = 300
ANGLES = (0.0, 50.0)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Draw surfaces."""

    pack: Path = Path("runs/pack")
    world: int = 3
    """Number of the world among those that run.py measures."""
    clips: tuple[str, ...] = ()
    """Folder of hypotheses and video, with a colon between."""
    out: Path = Path(__file__).parent / "surfaces.png"


def view(mesh: Mesh, hypotheses: Hypotheses, angle: float) -> Float[np.ndarray, "y x 3"]:
    """The mesh in its colours, lit from the first camera, which has gone round the nodes by an angle in degrees."""
    fx, fy, cx, cy = hypotheses.intrinsics.tolist()
    size = hypotheses.size
    scale = SIDE / max(size)
    rows, columns = round(size[0] * scale), round(size[1] * scale)
    y, x = (np.mgrid[:rows, :columns] + 0.5) / scale
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1).reshape(-1, 3)
    middle = reference(hypotheses).places.median(0).values.numpy()
    turn = np.radians(angle)
    about = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
    origin = middle - about @ middle
    hits = Caster(mesh.vertices, mesh.faces).first_hits(
        np.tile(origin, (len(rays), 1)), rays @ about.T
    )
    corners = mesh.faces[hits.face]
    colours = np.full_like(mesh.vertices, 0.7) if mesh.colours is None else mesh.colours
    colour = np.einsum("nci,nc->ni", colours[corners], hits.barycentric)
    normal = np.einsum("nci,nc->ni", mesh.normals[corners], hits.barycentric)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    toward = np.abs((normal * rays).sum(1) / np.linalg.norm(rays, axis=1))
    lit = colour * (0.45 + 0.55 * toward[:, None])
    picture = np.where(hits.face[:, None] >= 0, lit, 1.0)
    return picture.reshape(rows, columns, 3).clip(0, 1)


def main(settings: Drawn) -> None:
    """Draw and write."""
    told = Settings(pack=settings.pack)
    pack = Pack.open(settings.pack, ("held-out",))
    one = case(FIRST + settings.world, pack, told)
    ways = surfaces(one, told)
    hyp = one.hypotheses
    image = np.ascontiguousarray(one.images[0].transpose(1, 2, 0), np.float32)
    exact = fused_surface(hyp, 0, one.depths.astype(np.float32), one.images, resolution=160)
    rows = [
        ("Delaunay, nothing cut", ways["all triangles"]()),
        ("Delaunay, cut", anchor_surface(hyp)),
        ("fused, exact depth", exact),
        ("fused, the head's depth", ways["fused, head"]()),
    ]
    figure = plt.figure(figsize=(14, 8.2))
    count = len(rows) + 1
    grid = figure.add_gridspec(4, count, left=0.02, right=0.99, top=0.95, bottom=0.01)
    grid.update(hspace=0.08, wspace=0.03)
    axes = figure.add_subplot(grid[:2, 0])
    axes.imshow(image)
    axes.set_title("first frame", fontsize=10)
    axes.axis("off")
    for i, (name, mesh) in enumerate(rows, 1):
        for j, angle in enumerate(ANGLES):
            axes = figure.add_subplot(grid[j, i])
            axes.imshow(view(mesh, hyp, angle))
            axes.axis("off")
            if j == 0:
                axes.set_title(name, fontsize=10)
    for i, clip in enumerate(settings.clips[:count]):
        folder, video = clip.split(":")
        sampled = Hypotheses.load(folder)
        mesh = anchor_surface(sampled, first_frame(Path(video), sampled, 0.0))
        for j, angle in enumerate(ANGLES):
            axes = figure.add_subplot(grid[2 + j, i])
            axes.imshow(view(mesh, sampled, angle))
            axes.axis("off")
            if j == 0:
                axes.set_title(f"{Path(video).stem}: sampled, cut", fontsize=10)
    figure.savefig(settings.out, dpi=90)


if __name__ == "__main__":
    main(tyro.cli(Drawn, description=__doc__))
