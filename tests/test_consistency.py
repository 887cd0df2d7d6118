"""Consistency energies: exact where the picture is known in closed form, and right gradients."""

import dataclasses
from typing import Literal

import pytest
import torch
from fans import fan
from models import flowing_tracks, small_pipeline, textured_frames
from torch import Tensor

from diffusion4d import Diffusion4DPipeline
from diffusion4d import consistency as composed
from diffusion4d.clip import key_frames
from diffusion4d.denoiser import prepare
from diffusion4d.errors import UserError
from diffusion4d.observation import Given, Observation, observe
from diffusion4d.pipeline import Settings
from diffusion4d.splines import BSpline
from priors import consistency
from priors.dinov3 import load_encoder

SIZE = (40, 60)
F = 4


def ramp(h: int = 40, w: int = 60) -> Tensor:
    """A picture whose red is x / W and whose green is y / H, at every pixel's centre; blue a wave."""
    y, x = torch.meshgrid(
        (torch.arange(h).double() + 0.5) / h, (torch.arange(w).double() + 0.5) / w, indexing="ij"
    )
    return torch.stack([x, y, (x * y * 3).sin()])[None].repeat(F, 1, 1, 1)


def places(*batch: int, points: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(points)
    inner = torch.rand(*batch, points, F, 2, generator=g, dtype=torch.float64)
    return 6 + inner * torch.tensor([48.0, 28.0], dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_pixels_are_read_where_their_centres_are(batch: tuple[int, ...]) -> None:
    pixels = places(*batch)
    values = consistency.read(ramp(), pixels, SIZE)
    # Bilinear interpolation of a linear ramp is the ramp, whatever the resolution of the map.
    torch.testing.assert_close(values[..., 0], pixels[..., 0] / 60)
    torch.testing.assert_close(values[..., 1], pixels[..., 1] / 40)
    torch.testing.assert_close(
        consistency.read(ramp(20, 15), pixels, SIZE)[..., 0], pixels[..., 0] / 60
    )
    centre = torch.tensor([2.5, 3.5], dtype=torch.float64).expand(1, F, 2)
    torch.testing.assert_close(consistency.read(ramp(), centre, SIZE)[0, 0], ramp()[0, :, 3, 2])


def test_photometric_in_closed_form() -> None:
    """One unit of red over a third of the channels: ρ = √(1 + (Δ² / 3) / τ²) − 1."""
    images = torch.zeros(F, 3, 40, 60).double()
    images[1:, 0] = 0.3
    energy = consistency.photometric(
        images, places(), torch.ones(5, F).double(), SIZE, tolerance=0.1
    )
    assert energy == pytest.approx((1 + 0.09 / 3 / 0.01) ** 0.5 - 1)
    # What has no weight does not count.
    weights = torch.zeros(5, F).double()
    assert consistency.photometric(images, places(), weights, SIZE) == 0


def test_patches_forgive_light_and_not_other_places() -> None:
    g = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 40, 60, generator=g, dtype=torch.float64)
    images = texture.repeat(F, 1, 1, 1)
    pixels = places()[..., :1, :].expand(-1, F, -1)
    weights = torch.ones(5, F).double()
    assert consistency.patch(images, pixels, weights, SIZE) == pytest.approx(0, abs=1e-12)
    # Colours are in [0, 1], brighter ones too.
    brighter = 0.8 * images
    brighter[1:] += 0.2
    assert consistency.patch(brighter, pixels, weights, SIZE) == pytest.approx(0, abs=1e-9)
    dimmed = images.clone()
    dimmed[1:] = 0.6 * images[1:]
    # SSIM of a gain g is 2 g / (1 + g²).
    assert consistency.patch(dimmed, pixels, weights, SIZE) == pytest.approx(
        0.5 * (1 - 1.2 / 1.36), abs=5e-3
    )
    moved = pixels.clone()
    moved[:, 1:] += 5
    assert consistency.patch(images, moved, weights, SIZE) > 0.3
    assert consistency.photometric(brighter, pixels, weights, SIZE) > 1


def test_patches_turn_with_their_neighbours() -> None:
    """A picture turned by 30° about its middle: patches carried by the affine map fit, shifted ones do not."""
    angle = torch.tensor(0.5236, dtype=torch.float64)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )

    def picture(xy: Tensor) -> Tensor:
        wave = (0.35 * xy[..., 0]).sin() + (0.5 * xy[..., 1] + 0.2 * xy[..., 0]).cos()
        return wave[None].repeat(3, 1, 1) / 4 + 0.5

    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    grid = torch.stack([x, y], -1).double() - 40
    images = torch.stack([picture(grid), picture(grid @ turn)])
    start = 40 + 24 * (
        torch.rand(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    )
    pixels = torch.stack([start, (start - 40) @ turn.T + 40], 1)
    neighbours = consistency.nearest(start, 6)
    maps = consistency.affine_maps(pixels, neighbours)
    torch.testing.assert_close(maps[:, 0], torch.eye(2).double().expand(12, 2, 2))
    assert (maps[:, 1] - turn).norm(dim=(1, 2)).max() < (torch.eye(2) - turn).norm()
    weights = torch.ones(12, 2).double()
    carried = consistency.patch(images, pixels, weights, (80, 80), neighbours)
    shifted = consistency.patch(images, pixels, weights, (80, 80))
    assert carried < 0.5 * shifted


def test_semantic_compares_directions() -> None:
    features = torch.zeros(F, 2, 4, 6).double()
    features[0, 0] = 1
    features[1:, 1] = 5
    weights = torch.ones(5, F).double()
    assert consistency.semantic(features, places(), weights, SIZE) == pytest.approx(1)
    features[1:, 0] = 5
    assert consistency.semantic(features, places(), weights, SIZE) == pytest.approx(1 - 0.5**0.5)


def test_the_nearer_point_hides_the_farther() -> None:
    pixels = torch.tensor([[10.0, 10.0], [10.5, 10.0], [40.0, 10.0]]).double()[:, None]
    depth = torch.tensor([[1.0], [2.0], [3.0]]).double()
    shown = consistency.own_visibility(pixels, depth, 2.0)
    assert shown[0, 0] > 0.99
    assert shown[1, 0] < 0.05
    assert shown[2, 0] > 0.99
    # Points of one surface, a percent of depth apart, hardly hide each other.
    flat = consistency.own_visibility(pixels, torch.tensor([[1.0], [1.01], [1.0]]).double(), 2.0)
    assert flat.min() > 0.75
    seen = torch.tensor([[1.0], [0.0], [1.0]]).double()
    right = consistency.occlusion(shown, seen)
    wrong = consistency.occlusion(shown, 1 - seen)
    assert right < 0.35 < wrong


def test_gradients_are_right() -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(F, 3, 40, 60, generator=g, dtype=torch.float64)
    pixels = places(2, points=3).requires_grad_()
    depth = (1 + torch.rand(2, 3, F, generator=g, dtype=torch.float64)).requires_grad_()
    weights = torch.rand(3, F, generator=g, dtype=torch.float64)
    neighbours = torch.tensor([[1, 2], [0, 2], [0, 1]])
    near = (places(2, points=3) / 10).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda p: consistency.photometric(images, p, weights, SIZE), pixels)
    assert check(lambda p: consistency.semantic(images, p, weights, SIZE), pixels)
    assert check(
        lambda p: consistency.patch(images, p, weights, SIZE, neighbours, radius=1), pixels
    )
    assert check(
        lambda p, z: consistency.occlusion(consistency.own_visibility(p, z, 2.0), weights),
        (near, depth),
    )


def views(
    shown: float = 0.0, features: bool = True
) -> tuple[composed.Views, "composed.Hypotheses"]:
    """Pictures painted so that hypothesis 1 of a fan is right: red is where its points are, as a smooth bump."""
    hyp = fan(3, drift=6.0)
    u = torch.linspace(0, 1, F, dtype=torch.float64)
    chosen = torch.linspace(0, hyp.num_frames - 1, F).round().long()
    ctrl = BSpline(hyp.control_points, hyp.knots, 3)
    points = ctrl.evaluate(u)[1]
    fx, fy, cx, cy = hyp.intrinsics.tolist()
    at = torch.stack(
        [points[..., 0] / points[..., 2] * fx + cx, points[..., 1] / points[..., 2] * fy + cy], -1
    )
    h, w = hyp.size
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    grid = torch.stack([x, y], -1)
    images = torch.zeros(F, 3, h, w)
    for f in range(F):
        for n in range(hyp.num_points):
            bump = torch.exp(-(grid - at[n, f]).square().sum(-1) / (2 * 4.0**2))
            colour = torch.tensor([1.0, n / 6, 1 - n / 6])
            images[f] += bump * colour[:, None, None]
    return composed.Views(
        images, images if features else None, u, hyp.visibility[chosen].T.round(),
        hyp.query_points, hyp.intrinsics, hyp.size, shown,
    ), hyp  # fmt: skip


def test_the_hypothesis_that_the_pictures_show_ranks_first() -> None:
    pictured, hyp = views(shown=1.0)
    for name in ("photometric", "patch"):
        scores = composed.scores(hyp, pictured, {name: 1.0})
        assert hyp.rank(scores)[0] == 1, name
    # They part only where points are hidden: what was seen alone tells nothing.
    blind = composed.scores(hyp, dataclasses.replace(pictured, shown=0.0), {"photometric": 1.0})
    assert blind.max() - blind.min() < 1e-3
    full = composed.scores(hyp, pictured, {"photometric": 1.0})
    assert full.max() - full.min() > 100 * (blind.max() - blind.min())


def test_slopes_together_or_each() -> None:
    pictured, hyp = views(shown=1.0)
    known = composed.energies(pictured)
    ctrl = hyp.control_points
    weights = {"photometric": 2.0, "semantic": 0.5}
    joint = composed.slopes(known, weights, ctrl)
    alone = [composed.slopes(known, {name: w}, ctrl) for name, w in weights.items()]
    torch.testing.assert_close(joint, alone[0] + alone[1], atol=1e-5, rtol=1e-4)
    each = composed.slopes(known, {"photometric": 1.0}, ctrl, "each")
    torch.testing.assert_close(each.flatten(1).norm(dim=1), torch.ones(3))
    # A step down lowers the energy of those that are wrong.
    energy = known["photometric"]
    before, after = energy(ctrl), energy(ctrl - 1e-3 * each)
    assert (after < before)[[0, 2]].all()


@pytest.fixture(scope="module")
def watched() -> tuple[Diffusion4DPipeline, Observation]:
    """A small sampler of random weights, and a video with tracks."""
    tracks, visibility = flowing_tracks()
    pipe = small_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe, observe(Given(textured_frames(), tracks=tracks, visibility=visibility))


def test_views_are_what_was_observed_at_key_frames(
    watched: tuple[Diffusion4DPipeline, Observation],
) -> None:
    _, seen = watched
    assert seen.clip is not None
    encoder = load_encoder("tiny")
    found = composed.views_of(seen, encoder)
    frames = key_frames(seen.clip.u, composed.KEY_FRAMES)
    assert torch.equal(found.images, seen.clip.frames[frames].float() / 255)
    assert torch.equal(found.visibility, seen.tracks.visibility[frames].T)
    assert torch.equal(found.u, seen.clip.u[frames])
    assert torch.equal(found.anchor, seen.tracks.tracks[0])
    assert set(composed.energies(found)) == {"photometric", "patch", "occlusion", "semantic"}
    # A point that follows its track meets the same features: texture that shifts by a pixel a frame.
    pixels = seen.tracks.tracks[frames].transpose(0, 1)
    aside = pixels + torch.tensor([0.0, 12.0]) * (torch.arange(len(frames)) > 0)[:, None]
    for measure, maps in (("photometric", found.images), ("semantic", found.features)):
        of = getattr(consistency, measure)
        there, away = (of(maps, p, found.visibility, found.size) for p in (pixels, aside))
        assert there < away
    assert composed.views_of(seen).features is None
    tracks, visibility = flowing_tracks()
    with pytest.raises(UserError, match="need a video to compare hypotheses with"):
        composed.views_of(observe(Given(tracks=tracks, visibility=visibility, size=(64, 80))))


@pytest.mark.parametrize("how", ["joint", "each"])
def test_guidance_goes_down_its_energies(
    watched: tuple[Diffusion4DPipeline, Observation], how: Literal["joint", "each"]
) -> None:
    pipe, seen = watched
    pictured = composed.views_of(seen, load_encoder("tiny"))
    clip = prepare(pipe.transformer, pipe.encode(seen), pipe.regressor)
    known = composed.energies(pictured)
    N, M = clip.evidence.ctrl.shape[1:3]
    r = 0.3 * torch.randn((2, N, M, 3), generator=torch.Generator().manual_seed(0))

    def corrected(weights: dict[str, float]) -> Tensor:
        guided = composed.guide(pictured, weights, how)(clip)(lambda x, _: x, [0, 1])
        with torch.no_grad():
            return guided(r, torch.tensor(1.0))

    for name in ("photometric", "semantic"):
        weight = 1e-3 if how == "joint" else 1e-4
        before, after = (
            known[name](clip.decode(x[None])[0]) for x in (r, corrected({name: weight}))
        )
        assert (after < before).all(), name
        # Twice the weight is twice the way.
        torch.testing.assert_close(
            corrected({name: 2e3 * weight}) - r, 2 * (corrected({name: 1e3 * weight}) - r),
            rtol=1e-3, atol=1e-5,
        )  # fmt: skip
    if how == "joint":
        alone = [corrected({n: w}) - r for n, w in (("photometric", 50.0), ("semantic", 200.0))]
        both = corrected({"photometric": 50.0, "semantic": 200.0}) - r
        torch.testing.assert_close(both, alone[0] + alone[1], rtol=1e-3, atol=1e-5)
    else:
        size = (
            (corrected({"photometric": 0.1, "semantic": 0.2}) - r).square().mean((1, 2, 3)).sqrt()
        )
        torch.testing.assert_close(size, torch.full((2,), 0.3), rtol=1e-3, atol=1e-5)


def test_the_pipeline_takes_guidance(watched: tuple[Diffusion4DPipeline, Observation]) -> None:
    pipe, seen = watched
    settings = Settings(num_hypotheses=2, steps=2, frame="camera")
    pictured = composed.views_of(seen)

    def sampled(weight: float | None) -> Tensor:
        guide = None if weight is None else composed.guide(pictured, {"photometric": weight})
        return pipe.sample(seen, settings, guide=guide).hypotheses.control_points

    plain = sampled(None)
    torch.testing.assert_close(sampled(0.0), plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(sampled(100.0), plain, rtol=1e-3, atol=1e-3)
    hyp = pipe.sample(seen, settings).hypotheses
    order = hyp.rank(composed.scores(hyp, pictured, {"photometric": 1.0}))
    assert sorted(order.tolist()) == [0, 1]
    with pytest.raises(UserError, match="need weights of energies out of"):
        composed.guide(pictured, {"semantic": 1.0})
    with pytest.raises(UserError, match="has nothing to guide"):
        small_pipeline("twin").sample(seen, guide=composed.guide(pictured, {"photometric": 1.0}))


def test_what_does_not_fit_is_refused() -> None:
    pictured, hyp = views(features=False)
    with pytest.raises(UserError, match="need weights of energies out of"):
        composed.scores(hyp, pictured, {"semantic": 1.0})
    with pytest.raises(UserError, match="need weights of energies"):
        composed.scores(hyp, pictured, {})
    with pytest.raises(UserError, match="need finite weights of at least 0"):
        composed.scores(hyp, pictured, {"patch": -1.0})
    with pytest.raises(UserError, match="need hypotheses in the camera frame"):
        composed.scores(dataclasses.replace(hyp, frame="world"), pictured, {"patch": 1.0})
    with pytest.raises(ValueError, match="need a tolerance above 0"):
        consistency.photometric(ramp(), places(), torch.ones(5, F).double(), SIZE, tolerance=0.0)
    with pytest.raises(ValueError, match="need radius >= 1"):
        consistency.patch(ramp(), places(), torch.ones(5, F).double(), SIZE, radius=0)
    with pytest.raises(ValueError, match="need a radius above 0"):
        consistency.own_visibility(places(), torch.ones(5, F).double(), 0.0)
    with pytest.raises(ValueError, match="need 1 <= k < number of points"):
        consistency.nearest(torch.rand(3, 2), 3)
