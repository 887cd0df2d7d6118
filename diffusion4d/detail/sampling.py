r"""Detail for a surface that has none, sampled: `sample_detail(vertices, faces, seed=0, scale=0.02)`.

Points are laid over the base at the spacing h = `scale` (`points`), a small network (`network`) diffuses
one offset along the normal for each by a table of `samplers`, and the vertices get them by interpolation. What is
returned is a `offsets.Detail`: it rides on every deformation of the base, in its own frames.

The packaged network was trained on low-poly animals and people; its card says what "detail" means on them.
Shape letters:  V vertices   F faces   N points   K samples
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion4d.detail.network import DetailNetwork
from diffusion4d.detail.offsets import Detail, extract
from diffusion4d.detail.points import Cloud, cloud_of
from diffusion4d.errors import UserError
from diffusion4d.fields.frames import vertex_normals
from diffusion4d.fields.weld import weld
from diffusion4d.models import WEIGHTS
from samplers.grids import uniform
from samplers.multistep import dpmpp_2m
from samplers.noise import SeededNoise
from samplers.predictions import from_prediction
from samplers.schedules import CosineSchedule
from samplers.solve import solve

STEPS = 24
LIMIT = 6.0
"""Of the numbers that are diffused, in standard deviations."""


@cache
def load_detail_network(folder: Path = WEIGHTS / "detail") -> DetailNetwork:
    """A trained network, by default the packaged one.

    Raises:
        UserError: there is none in the folder.
    """
    try:
        network = DetailNetwork.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"need a network for detail in {folder}: {error}") from error
    return network.float().requires_grad_(False).eval()


def sample_on_points(
    network: DetailNetwork, cloud: Cloud, seeds: Sequence[int], steps: int = STEPS
) -> Float[Tensor, "K N"]:
    """Offsets along the normals in units of the spacing; sample k draws from seeds[k] alone."""
    features = network.standardised(cloud.features)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t.expand(len(x_t)), features, cloud.neighbours, cloud.edges)

    schedule = CosineSchedule()
    noise = SeededNoise(seeds, (len(cloud),)).initial()
    denoise = from_prediction(schedule, "v_prediction", LIMIT)(velocity)
    with torch.no_grad():
        return network.decode(solve(dpmpp_2m(schedule, uniform(steps)), denoise, noise))


def sample_detail(
    vertices: Float[Tensor, "V 3"],
    faces: Int64[Tensor, "F 3"],
    *,
    seed: int,
    scale: float,
    network: DetailNetwork | None = None,
) -> Detail:
    """A detail that a smooth base might have had.

    Args:
        vertices: of the base; seams that double vertices are fine.
        seed: of the detail, a non-negative integer; points are laid by it, too.
        scale: spacing h of the points, in units of the vertices. Detail is a few of them wide, so a mesh should have
            edges no longer than h.
        network: in place of the packaged one.

    Raises:
        ValueError: a scale that makes too few points or too many; vertices that are not finite, or in no triangle.
        UserError: the packaged network is missing.
    """
    if not bool(vertices.isfinite().all()):
        raise ValueError("need finite vertices, got some that are not")
    network = network or load_detail_network()
    points = vertices.double().cpu().numpy()
    triangles = faces.cpu().numpy()
    place, number = weld(points)
    corners = number[triangles]
    cloud = cloud_of(place, corners, scale, seed)
    offset = scale * sample_on_points(network, cloud, [seed])[0].double().numpy()
    normal = vertex_normals(torch.from_numpy(place), torch.from_numpy(corners)).numpy()
    along = cloud.interpolation(place, normal) @ offset
    full = (place + along[:, None] * normal)[number]
    return extract(vertices, torch.from_numpy(full).to(vertices), faces)
