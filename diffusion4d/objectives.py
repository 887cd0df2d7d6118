r"""What the network is trained to say, one function an objective: example in, loss out.

velocity   ||v - (alpha_t eps - sigma_t r)||^2 with correlated eps   (Salimans & Ho 2022, appendix D)
           or, on the rectified path, ||v - (eps - r)||^2 with white eps   (Liu et al. 2023)
mean       ||mu - x||^2                                               the L2 twin
median     |mu - x|                                                   the L1 twin
gaussian   s^(2 beta) [(x - mu)^2 / 2 s^2 + log s], beta = 1/2        (beta-NLL, Seitzer et al. 2022, eq. 5)

x are control points in the coordinates of `coordinates.py`, r the residual a regressor leaves (`denoiser.py`).
Plain likelihood (beta = 0) spends little on the mean where the deviation is large; beta = 1/2 does not.

    energy     w (2 ES_scene + ES_hidden + ES_point + 2 ES_edge + ES_step + 10 ES_jerk) + ES_stretch / 2 + CRPS

trains the whole few-step sampler through its steps, with J samples a clip, on what it is judged by: the fair energy
score (Gneiting & Raftery 2007; as a training loss for samplers: Pacchiardi et al. 2024, De Bortoli et al. 2025,
Alet et al. 2025). A velocity network is right in the limit of many steps; this one at the number it was trained with.
The score of whole scenes hardly sees how points hang together, so functions of a scene are scored as well: every
point's path, differences between neighbours (edge), steps in time and their second differences (jerk), and how much
longer or shorter than in the first frame the way between neighbours is, as a logarithm (stretch). And since what
is large rules all of these, each number that is diffused is scored alone, in units of what the regressor expects of
it (CRPS). Each term is proper, hence so is the sum: w, the units, the neighbours and what counts as hidden are
functions of the evidence alone.

    progressive, consistency    ||v - V||^2, V the mean velocity over an arc, found with a teacher

train a sampler of few steps to go where a velocity network goes in many (`samplers.distillation`). The teacher's answer
stands for the truth's: what it gets wrong is learnt as well.

Shape letters:  B clips   J samples   N points   M control points   T frames   E edges.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import denoiser, splines
from diffusion4d.denoiser import Anchor, ClipDenoiser
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evidence import Evidence
from diffusion4d.noise import squared_distances
from diffusion4d.scenes.batches import Example
from samplers import grids
from samplers.distillation import consistency_target, progressive_target
from samplers.predictions import target
from samplers.solve import solve
from samplers.tables import Table

NEIGHBOURS = 4
SOFTENING = 0.05
"""Added to a clip's expected error (scene units) in its weight, so that no clip rules a batch."""

SHORTEST = 0.02
"""Added to the lengths of edges (scene units) before their logarithm, so that points that coincide do not rule."""


def mean_loss(
    network: TrajectoryDiT, evidence: Evidence, x: Float[Tensor, "B N M 3"]
) -> Float[Tensor, ""]:
    """Squared error of the conditional mean."""
    return (denoiser.regress(network, evidence).mean - x).square().mean()


def median_loss(
    network: TrajectoryDiT, evidence: Evidence, x: Float[Tensor, "B N M 3"]
) -> Float[Tensor, ""]:
    """Absolute error of the conditional median."""
    return (denoiser.regress(network, evidence).mean - x).abs().mean()


def gaussian_loss(
    network: TrajectoryDiT, evidence: Evidence, x: Float[Tensor, "B N M 3"]
) -> Float[Tensor, ""]:
    """beta-NLL with beta = 1/2."""
    answer = denoiser.regress(network, evidence)
    scaled = (x - answer.mean) / answer.log_std.exp()
    return (answer.log_std.detach().exp() * (scaled.square() / 2 + answer.log_std)).mean()


def velocity_loss(
    network: TrajectoryDiT,
    evidence: Evidence,
    x: Float[Tensor, "B N M 3"],
    generator: torch.Generator,
    *,
    anchor: Anchor | None,
    noisy_power: float,
) -> Float[Tensor, ""]:
    """Squared error of the velocity at t = uniform ** noisy_power."""
    schedule, kind = denoiser.path_of(network)
    r = (x if anchor is None else anchor.encode(x))[:, None]
    white = torch.randn(r.shape, generator=generator)
    noise = denoiser.noise_of(network).factors(evidence).correlate(white)
    t = torch.rand((len(x), 1), generator=generator) ** noisy_power
    alpha, sigma = (f(t)[..., None, None, None] for f in (schedule.alpha, schedule.sigma))
    stacked = None if anchor is None else anchor.stacked()
    conditioning = network.condition(evidence, stacked)
    velocity = network(alpha * r + sigma * noise, t, conditioning)
    return (velocity.float() - target(kind, r, noise, alpha, sigma)).square().mean()


def progressive_loss(
    student: ClipDenoiser,
    teacher: ClipDenoiser,
    example: Example,
    generator: torch.Generator,
    *,
    num_steps: int,
) -> Float[Tensor, ""]:
    """Squared distance of each of a student's steps from two of its teacher's; all steps alike."""
    step = torch.randint(num_steps, (len(example.ctrl), 1), generator=generator)
    grid = grids.uniform(2 * num_steps).to(example.ctrl)
    times = (grid[2 * step], grid[2 * step + 1], grid[2 * step + 2])
    x_t = noised(student, example, times[0], generator)
    wanted = progressive_target(denoiser.SCHEDULE, teacher.velocity, x_t, times)
    return (student.velocity(x_t, times[0]) - wanted).square().mean()


def consistency_loss(
    student: ClipDenoiser,
    teacher: ClipDenoiser,
    example: Example,
    generator: torch.Generator,
    *,
    num_intervals: int,
    noisy_power: float,
) -> Float[Tensor, ""]:
    """Squared distance of a student's way to the data from its own after one step of the teacher.

    Its own answer is taken without gradient and from the same weights: Song & Dhariwal (2024, sec. 3.2) found their
    moving average to be a hindrance. So there is nothing to keep for a later start but the weights.
    """
    place = torch.rand((len(example.ctrl), 1), generator=generator) ** noisy_power
    step = ((1 - place) * num_intervals).long().clamp(max=num_intervals - 1)
    grid = grids.uniform(num_intervals).to(example.ctrl)
    times = (grid[step], grid[step + 1])
    x_t = noised(student, example, times[0], generator)
    # Before the target: half-precision copies of weights that were first made without gradients have none later.
    said = student.velocity(x_t, times[0])
    wanted = consistency_target(denoiser.SCHEDULE, teacher.velocity, student.velocity, x_t, times)
    return (said - wanted).square().mean()


def noised(
    clip: ClipDenoiser, example: Example, t: Float[Tensor, "B 1"], generator: torch.Generator
) -> Float[Tensor, "B 1 N M 3"]:
    """The truth under correlated noise."""
    r = clip.encode(example.ctrl[:, None])
    noise = clip.factors.correlate(torch.randn(r.shape, generator=generator).to(r))
    alpha, sigma = (
        f(t)[..., None, None, None] for f in (denoiser.SCHEDULE.alpha, denoiser.SCHEDULE.sigma)
    )
    return alpha * r + sigma * noise


def energy_loss(
    clip: ClipDenoiser,
    example: Example,
    generator: torch.Generator,
    *,
    table: Table,
    num_samples: int,
) -> Float[Tensor, ""]:
    """Energy scores of what the table's steps make of noise."""
    B, N, M, _ = example.ctrl.shape
    white = torch.randn((B, num_samples, N, M, 3), generator=generator)
    normal = torch.randn((B, num_samples, 1, 1, 1), generator=generator)
    white = denoiser.noise_of(clip.network).scales(normal) * white
    residual = solve(table, clip.denoise, clip.factors.correlate(white))
    # Distances between samples lose their gradient in half precision.
    with torch.autocast(residual.device.type, enabled=False):
        basis_TM = splines.basis_matrix(example.u, M, 3, clip.network.config["multiplicity"])
        samples = basis_TM @ clip.decode(residual.float())
        near, truth = neighbours(example.evidence), example.points[:, None]
        stretched = fair_score(stretch(samples, near), stretch(truth, near))
        return (
            scene_scores(clip, example, samples, near).mean()
            + stretched.mean() / 2
            + marginal_score(clip, example, residual.float())
        )


def scene_scores(
    clip: ClipDenoiser, example: Example, samples: Float[Tensor, "B J N T 3"], near: Tensor
) -> Float[Tensor, "B"]:
    """The weighted sum of energy scores of each clip."""
    truth = example.points[:, None]
    hidden = (example.visibility == 0).to(truth)
    scores = (
        2 * fair_score(samples, truth, over_points=True)
        + fair_score(samples, truth, over_points=True, weight=hidden)
        + fair_score(samples, truth)
        + 2 * fair_score(edges(samples, near), edges(truth, near))
        + fair_score(samples.diff(dim=-2), truth.diff(dim=-2))
        + 10 * fair_score(samples.diff(n=3, dim=-2), truth.diff(n=3, dim=-2))
    )
    return weight_of(clip) * scores


def marginal_score(
    clip: ClipDenoiser, example: Example, residual: Float[Tensor, "B J N M 3"]
) -> Float[Tensor, ""]:
    """Fair CRPS of every number that is diffused."""
    truth = clip.encode(example.ctrl[:, None])
    first, second = torch.triu_indices(residual.shape[1], residual.shape[1], offset=1)
    apart = (residual[:, first] - residual[:, second]).abs().mean()
    return (residual - truth).abs().mean() - apart / 2


def fair_score(
    samples: Float[Tensor, "B J N T D"],
    truth: Float[Tensor, "B 1 N T D"],
    *,
    over_points: bool = False,
    weight: Float[Tensor, "B N T"] | None = None,
) -> Float[Tensor, "B"]:
    """Fair energy score with the root mean square over a path, or over the whole scene, as its norm."""
    axes = (-2, -1) if over_points else (-1,)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        squares = (a - b).square().sum(-1)
        if weight is None:
            mean = squares.mean(axes)
        else:
            chosen = weight[:, None]
            mean = (squares * chosen).sum(axes) / chosen.sum(axes).clamp_min(1)
        # The gradient of a root at zero is not finite.
        return (mean + 1e-10).sqrt().flatten(1).mean(1)

    first, second = torch.triu_indices(samples.shape[1], samples.shape[1], offset=1)
    return distance(samples, truth) - distance(samples[:, first], samples[:, second]) / 2


def neighbours(evidence: Evidence) -> Tensor:
    """The points nearest to each in the anchor frame, [B, N, E], E = 4 or all others."""
    place, _ = squared_distances(evidence)
    count = min(NEIGHBOURS + 1, place.shape[-1])
    return place.topk(count, largest=False).indices[..., 1:]


def edges(points: Float[Tensor, "B J N T 3"], near: Tensor) -> Float[Tensor, "B J E T 3"]:
    """Differences between points and their neighbours."""
    E = near.shape[-1]
    index = near.flatten(1)[:, None, :, None, None].expand(
        -1, points.shape[1], -1, *points.shape[3:]
    )
    return points.repeat_interleave(E, 2) - points.gather(2, index)


def stretch(points: Float[Tensor, "B J N T 3"], near: Tensor) -> Float[Tensor, "B J E T 1"]:
    """log of the length of the ways to the neighbours over that in the first frame."""
    length = (edges(points, near).square().sum(-1, keepdim=True) + 1e-10).sqrt() + SHORTEST
    return (length / length[..., :1, :]).log()


def weight_of(clip: ClipDenoiser) -> Float[Tensor, "B"]:
    """2 over the root of the error of depth that the regressor expects; one without a regressor.

    Between one over the error, with which all clips would count alike, and none, with which the hardest would rule
    the gradient as they rule a mean of scores.
    """
    if clip.anchor is None:
        return torch.ones(len(clip.evidence.ctrl))
    depth = clip.coordinates.decode(clip.anchor.mean[:, None].float(), clip.evidence)[:, 0, ..., 2]
    deviation = (
        clip.anchor.log_std[..., 2].float().exp() * clip.coordinates.scale(clip.evidence)[..., 2]
    )
    return 2 / ((depth * deviation).square().mean((1, 2)).sqrt() + SOFTENING).sqrt()
