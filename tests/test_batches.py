"""Training examples: pure functions of their seed, whose truth projects onto their tracks."""

import dataclasses

import pytest
import torch
from models import CTRL, simple_worlds

from diffusion4d import cameras, splines
from diffusion4d.config import Dropout
from diffusion4d.scenes import batches
from diffusion4d.scenes.batches import Example, draw, in_view, view
from diffusion4d.scenes.pool import Worlds

NOTHING = Dropout(0.0, 0.0, 0.0)


def example(seed: int = 0, dropout: Dropout = NOTHING, **options) -> Example:
    settings = {"num_ctrl": CTRL, "num_points": 12, "dropout": dropout, **options}
    return draw(simple_worlds(6), torch.Generator().manual_seed(seed), **settings)


@pytest.fixture
def _perfect_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracks are the true projections, seen where the truth is."""
    monkeypatch.setattr(
        batches, "observe_through_tracker", lambda pixels, visible, *_: (pixels, visible.float())
    )


def tensors(example: Example) -> dict[str, torch.Tensor]:
    return {
        f.name: getattr(example, f.name)
        for f in dataclasses.fields(example)
        if f.name != "evidence"
    } | {"evidence": example.evidence.ctrl, "weight": example.evidence.weight}


def test_a_batch_is_a_function_of_its_seed():
    torch.manual_seed(1)
    first = tensors(example(seed=4, dropout=Dropout(0.3, 0.5)))
    torch.manual_seed(2)
    again = tensors(example(seed=4, dropout=Dropout(0.3, 0.5)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = tensors(example(seed=5, dropout=Dropout(0.3, 0.5)))
    assert other["tracks"].shape != first["tracks"].shape or not torch.equal(
        other["tracks"], first["tracks"]
    )


@pytest.mark.usefixtures("_perfect_tracker")
@pytest.mark.parametrize("focal", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_truth_projects_onto_its_tracks(seed, focal):
    """Whatever symmetries were drawn, and also with the camera that stands in for a withheld one."""
    held = example(seed, Dropout(0.0, focal))
    assert torch.equal(held.evidence.focal_known, torch.full((6,), 1 - focal))
    projected = cameras.project(held.points, held.intrinsics[:, None, None])
    torch.testing.assert_close(projected, held.tracks, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("_perfect_tracker")
def test_a_withheld_focal_length_stretches_x_and_y_alone():
    known = example(0, augment=False)
    withheld = example(0, Dropout(0.0, 1.0), augment=False)
    assumed = cameras.intrinsics_from_fov((48, 64))
    torch.testing.assert_close(withheld.intrinsics, assumed.expand(6, 4))
    torch.testing.assert_close(withheld.points[..., 2], known.points[..., 2])
    ratio = (simple_worlds(6).intrinsics[:, 0] / assumed[0])[:, None, None, None]
    torch.testing.assert_close(withheld.points[..., :2], known.points[..., :2] * ratio)
    # What is seen is the same.
    torch.testing.assert_close(withheld.tracks, known.tracks)


@pytest.mark.parametrize("seed", range(4))
def test_the_median_depth_of_the_anchor_frame_is_one(seed):
    held = example(seed, Dropout(0.1, 0.5))
    depth = held.points[:, :, 0, 2].median(-1).values
    torch.testing.assert_close(depth, torch.ones(6))


@pytest.mark.parametrize("seed", range(4))
def test_visibility_is_a_share_and_clips_are_crops(seed):
    held = example(seed, Dropout(0.2, 0.3))
    assert held.visibility.min() >= 0
    assert held.visibility.max() <= 1
    T = held.points.shape[2]
    assert 9 // 2 <= T <= 9
    assert held.u.tolist() == pytest.approx([t / (T - 1) for t in range(T)])
    assert held.tracks.isfinite().all()


def test_withheld_tracks_are_seen_in_the_anchor_frame_alone():
    held = example(0, Dropout(1.0, 0.0))
    assert not held.visibility[..., 1:].any()
    assert held.visibility[..., 0].any()


@pytest.mark.usefixtures("_perfect_tracker")
def test_control_points_give_back_the_points():
    held = example(0, augment=False)
    decoded = splines.basis_matrix(held.u, CTRL) @ held.ctrl
    # sin(3u) is no cubic spline of six control points, but nearly one.
    assert (decoded - held.points).abs().max() < 0.01


def test_symmetries_keep_shapes():
    """Mirror and rotation keep distances, up to the one factor that makes the median depth 1."""
    worlds = simple_worlds(3)
    for seed in range(6):
        seen = view(worlds, torch.Generator().manual_seed(seed), num_points=20, augment=True)
        for before, after in zip(worlds.points, seen.points, strict=True):
            # A hidden point may come last, and time may be cropped and reversed: sort what is compared.
            T = after.shape[1]
            sizes = after.norm(dim=-1) / after.norm(dim=-1).max()
            candidates = [before[:, s : s + T] for s in range(9 - T + 1)]
            candidates += [c.flip(1) for c in candidates]
            errors = [
                (
                    c.norm(dim=-1).flatten().sort().values / c.norm(dim=-1).max()
                    - sizes.flatten().sort().values
                )
                .abs()
                .max()
                for c in candidates
            ]
            assert min(errors) < 1e-5


def test_what_a_turn_takes_out_of_the_picture_is_seen_no_longer():
    worlds = simple_worlds(8).take(torch.arange(64) % 8)
    # Seen wherever it is: near the sides of the picture, a turn takes some of it out.
    edge = worlds.size.flip(-1)[:, None, None] / 2 / worlds.intrinsics[:, None, None, :2]
    lateral = (
        torch.rand(worlds.points[..., :2].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    points = torch.cat([lateral * edge * worlds.points[..., 2:], worlds.points[..., 2:]], -1)
    worlds = dataclasses.replace(worlds, points=points, visible=torch.ones_like(worlds.visible))
    turned = view(worlds, torch.Generator().manual_seed(0), num_points=20, augment=True)
    inside = in_view(turned.points, turned.intrinsics, turned.size)
    assert torch.equal(turned.visible, inside)
    assert 0.8 < inside.float().mean() < 0.99
    still = view(worlds, torch.Generator().manual_seed(0), num_points=20, augment=False)
    assert still.visible.all()


def test_points_seen_in_the_anchor_frame_come_first():
    worlds = simple_worlds(4)
    visible = torch.zeros_like(worlds.visible)
    visible[:, 5:17] = True
    worlds = dataclasses.replace(worlds, visible=visible)
    seen = view(worlds, torch.Generator().manual_seed(0), num_points=12, augment=False)
    assert seen.visible[:, :, 0].float().mean() > 0.95


def test_some_clips_show_what_moves_alone(monkeypatch: pytest.MonkeyPatch):
    worlds = simple_worlds(4)
    moving = torch.zeros_like(worlds.moving)
    moving[:, 3:19] = True
    worlds = dataclasses.replace(worlds, moving=moving, visible=torch.ones_like(worlds.visible))

    def share(alone: float) -> float:
        monkeypatch.setattr(batches, "ALONE", alone)
        generator = torch.Generator().manual_seed(0)
        return view(worlds, generator, num_points=12, augment=True).moving.float().mean().item()

    assert share(1.0) > 0.95
    assert share(0.0) == pytest.approx(16 / worlds.moving.shape[1], abs=0.2)


def test_markers_are_seen_wherever_they_are_in_view(monkeypatch: pytest.MonkeyPatch):
    worlds = simple_worlds(4)
    hidden = dataclasses.replace(
        worlds,
        moving=torch.ones_like(worlds.moving),
        visible=torch.zeros_like(worlds.visible),
    )
    settings = {"num_ctrl": 4, "num_points": 12, "dropout": Dropout(0.0, 0.0, 0.0)}

    def share(markers: float, shown: Worlds, **changes: bool) -> float:
        monkeypatch.setattr(batches, "MARKERS", markers)
        example = draw(shown, torch.Generator().manual_seed(0), **settings, **changes)
        return example.visible.float().mean().item()

    assert share(1.0, hidden) > 0.5
    assert share(0.0, hidden) == 0.0
    assert share(1.0, hidden, augment=False) == 0.0
    # Where anything stands still, what hides points hides them.
    still = hidden.moving.clone()
    still[:, ::2] = False
    assert share(1.0, dataclasses.replace(hidden, moving=still)) == 0.0
