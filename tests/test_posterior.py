"""Posterior guidance: energies of control points, the snap inside the loop, gradients through the network."""

import dataclasses

import pytest
import torch
from observed import M, seeded, some_evidence, some_network
from torch.utils.flop_counter import FlopCounterMode

from diffusion4d import denoiser, posterior, sampling, splines
from diffusion4d.denoiser import ClipDenoiser
from diffusion4d.noise import PointNoise
from diffusion4d.snap import snap
from samplers.guidance import corrected

F64 = torch.float64
K, N, T = 3, 6, 9
U = torch.linspace(0, 1, T, dtype=F64)
SEEN = torch.ones(N, T, dtype=F64)


def some_clip(*, trained: bool = True) -> ClipDenoiser:
    over_time = tuple(tuple(0.8 ** abs(i - j) for j in range(M)) for i in range(M))
    noise = PointNoise((0.3, 0.5), (0.4, 0.3), (0.5, 0.5), (0.5, 0.5), (over_time, over_time))
    network = some_network(trained=trained, token_channels=0, noise=dataclasses.asdict(noise))
    return denoiser.prepare(network.requires_grad_(False), some_evidence(N=N))


def some_residual(scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn((K, N, M, 3), generator=seeded(), dtype=F64)


def rays_of(ctrl: torch.Tensor) -> torch.Tensor:
    points = splines.basis_matrix(U, M) @ ctrl
    return points[..., :2] / points[..., 2:]


def test_reprojection_of_a_known_offset() -> None:
    clip = some_clip()
    ctrl = clip.decode(some_residual()[None])[0]
    rays = rays_of(ctrl)
    energy = posterior.reprojection(rays, SEEN, U, tolerance=0.01)
    torch.testing.assert_close(energy(ctrl), torch.zeros(K, dtype=F64), atol=1e-6, rtol=0)
    # Off by three and four hundredths, five tolerances, at every instant; half of which were seen.
    half = torch.zeros(N, T, dtype=F64)
    half[: N // 2] = 1
    off = posterior.reprojection(rays + torch.tensor([0.03, 0.04]), half, U, tolerance=0.01)
    expected = torch.full((K,), N // 2 * T * (26**0.5 - 1), dtype=F64)
    torch.testing.assert_close(off(ctrl), expected)
    # What a camera cannot know changes nothing: the scale of the scene.
    torch.testing.assert_close(off(2 * ctrl), expected)


def test_what_is_diffused_comes_back_from_control_points() -> None:
    clip = some_clip()
    r = some_residual()
    torch.testing.assert_close(clip.encode(clip.decode(r[None])), r[None])


def test_the_snap_as_a_correction_meets_the_tracks_and_leaves_the_unseen() -> None:
    clip = some_clip()
    rays = rays_of(clip.decode(some_residual(0.3)[None])[0])[0]
    seen = SEEN.clone()
    seen[0] = 0
    before = some_residual()
    after = posterior.snapping(clip, rays, seen, U)(before)
    snapped = snap(clip.decode(before[None])[0], rays, seen, U)
    torch.testing.assert_close(clip.decode(after[None])[0], snapped)
    apart = [(rays_of(clip.decode(r[None])[0]) - rays).norm(dim=-1) for r in (before, after)]
    assert apart[1][:, 1:].mean() < 0.25 * apart[0][:, 1:].mean()
    torch.testing.assert_close(after[:, 0], before[:, 0])
    # Depths are as they were.
    torch.testing.assert_close(after[..., 2], before[..., 2])


def test_a_gradient_moves_estimates_by_the_formula() -> None:
    """An untrained network says α x_t, so that −σ²/α Σ ∇ is −σ² Σ times the energy's own gradient."""
    clip = some_clip(trained=False)
    x_t, t = some_residual(), torch.tensor(0.4, dtype=F64)
    rays = rays_of(clip.decode(some_residual(0.1)[None])[0])[0]
    energy = posterior.reprojection(rays, SEEN, U, tolerance=0.05)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return clip.denoise(x[None], t)[0]

    guide = posterior.guided(clip, denoise, [(0.25, energy), (0.5, energy)])
    alpha, sigma = denoiser.SCHEDULE.alpha(t), denoiser.SCHEDULE.sigma(t)
    x_0 = (alpha * x_t).requires_grad_()
    (slope,) = torch.autograd.grad(energy(clip.decode(x_0[None])[0]).sum(), x_0)
    moved = clip.factors.covary(slope[None])[0]
    expected = alpha * x_t - 0.75 * sigma**2 * moved
    torch.testing.assert_close(guide(x_t, t), expected.detach())
    with torch.no_grad():
        torch.testing.assert_close(guide(x_t, t), expected.detach())


@pytest.mark.parametrize("how", ["snap", "gradient"])
def test_guided_samples_fit_better_and_stay_reproducible(how: str) -> None:
    clip = some_clip(trained=False)
    rays = rays_of(clip.decode(some_residual(0.1)[None])[0])[0]
    energy = posterior.reprojection(rays, SEEN, U, tolerance=0.05)

    def guide(denoise, seeds):
        if how == "snap":
            return corrected(denoise, posterior.snapping(clip, rays, SEEN, U))
        return posterior.guided(clip, denoise, [(0.3, energy)])

    table = sampling.table_for("ancestral", 6)
    free = sampling.sample(clip, [1, 2, 3], table)
    held = sampling.sample(clip, [1, 2, 3], table, guide=guide)
    assert (energy(held) < 0.7 * energy(free)).all()
    alone = sampling.sample(clip, [2], table, guide=guide)
    torch.testing.assert_close(alone[0], held[1], rtol=1e-5, atol=1e-5)


def test_a_gradient_costs_about_one_more_evaluation() -> None:
    clip = some_clip()
    x_t, t = some_residual(), torch.tensor(0.4, dtype=F64)
    energy = posterior.reprojection(rays_of(clip.decode(x_t[None])[0]), SEEN, U, tolerance=0.05)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return clip.denoise(x[None], t)[0]

    with FlopCounterMode(display=False) as plain:
        denoise(x_t, t)
    with FlopCounterMode(display=False) as through:
        posterior.guided(clip, denoise, [(1.0, energy)])(x_t, t)
    assert 1.7 < through.get_total_flops() / plain.get_total_flops() < 2.4


def test_a_bad_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="positive tolerance, got 0"):
        posterior.reprojection(torch.zeros(N, T, 2), SEEN, U, tolerance=0.0)
