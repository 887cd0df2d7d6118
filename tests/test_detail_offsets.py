"""Detail: frames turn with the surface, offsets come back and turn as the surface truly does, seams stay shut, a depth
map puts points where it says."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import roma
import torch
import trimesh

from diffusion4d.cameras import project
from diffusion4d.detail.offsets import Detail, drift, extract, from_depth, smooth_base
from diffusion4d.fields.frames import frames, guides, vertex_normals


def _ball(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ball = trimesh.creation.icosphere(3)
    bumps = np.random.default_rng(seed).normal(size=(len(ball.vertices), 1))
    return (
        torch.from_numpy(ball.vertices * (1 + 0.02 * bumps)),
        torch.from_numpy(np.asarray(ball.faces, np.int64)),
    )


def _bend(points: torch.Tensor) -> torch.Tensor:
    """A bend by 120° over the ball: far from rigid as a whole, nearly so in the small."""
    angle, radius = points[..., 0] * math.pi / 3, 3 / math.pi
    return torch.stack(
        [
            (radius + points[..., 1]) * angle.sin(),
            (radius + points[..., 1]) * angle.cos(),
            points[..., 2],
        ],
        -1,
    )


def test_normals_of_a_sphere_point_out() -> None:
    ball = trimesh.creation.icosphere(4)
    vertices = torch.from_numpy(np.asarray(ball.vertices))
    normal = vertex_normals(vertices, torch.from_numpy(np.asarray(ball.faces, np.int64)))
    assert (normal * vertices).sum(-1).min() > 0.999


@pytest.mark.parametrize("batch", [(), (2,), (1, 3)])
def test_frames_turn_with_the_surface(batch: tuple[int, ...]) -> None:
    full, faces = _ball()
    guide = guides(full, faces)
    at_rest = frames(full, faces, guide)
    eye = torch.eye(3, dtype=torch.float64).expand_as(at_rest)
    torch.testing.assert_close(at_rest.mT @ at_rest, eye)
    assert torch.linalg.det(at_rest).min() > 0.999
    turn = roma.random_rotmat(math.prod(batch), dtype=torch.float64).view(*batch, 1, 3, 3)
    moved = (turn @ full[..., None]).squeeze(-1) + 3
    torch.testing.assert_close(frames(moved, faces, guide), turn @ at_rest)


def test_what_was_taken_off_comes_back_and_rides_along() -> None:
    full, faces = _ball()
    base = smooth_base(full, faces)
    assert (base - full).norm(dim=-1).mean() > 0.005
    detail = extract(base, full, faces)
    torch.testing.assert_close(detail.on(base), full)
    turn = roma.random_rotmat(2, dtype=torch.float64)[:, None]
    moved = (turn @ base[..., None]).squeeze(-1)
    torch.testing.assert_close(detail.on(moved), (turn @ full[..., None]).squeeze(-1))


def _sheet(n: int = 21) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit square in z = 0."""
    at = torch.linspace(0, 1, n, dtype=torch.float64)
    x, y = torch.meshgrid(at, at, indexing="xy")
    corner = torch.arange(n * n).view(n, n)[:-1, :-1].reshape(-1)
    first = torch.stack([corner, corner + 1, corner + n], 1)
    second = torch.stack([corner + 1, corner + n + 1, corner + n], 1)
    return torch.stack([x, y, 0 * x], -1).reshape(-1, 3), torch.cat([first, second])


def _rolled(
    points: torch.Tensor, radius: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sheet on a cylinder that is turned and moved, without any stretch; its true turn and normal everywhere."""
    angle, y = points[:, 0] / radius, points[:, 1]
    still = torch.zeros_like(angle)
    turn = roma.rotvec_to_rotmat(torch.tensor([0.4, -1.1, 0.7], dtype=torch.float64))
    rolled = torch.stack([radius * angle.sin(), y, radius * (1 - angle.cos())], -1)
    # From the sheet's z axis to the axis of the cylinder: about −y.
    local = roma.rotvec_to_rotmat(torch.stack([still, -angle, still], -1))
    normal = torch.stack([-angle.sin(), still, angle.cos()], -1)
    return rolled @ turn.T + 5, turn @ local, normal @ turn.T


@pytest.mark.parametrize("seams", [False, True])
def test_detail_turns_as_a_rolled_sheet_truly_does(seams: bool) -> None:
    base, faces = _sheet()
    generator = torch.Generator().manual_seed(0)
    offset = 0.02 * torch.randn(len(base), 3, generator=generator, dtype=torch.float64)
    n = len(base)
    inner = ((base[:, :2] > 0.01) & (base[:, :2] < 0.99)).all(1)
    number = torch.arange(n)
    if seams:
        # Every triangle has corners of its own.
        number = faces.flatten()
        faces = torch.arange(len(number)).reshape(-1, 3)
    base, offset, inner = base[number], offset[number], inner[number]
    detail = extract(base, base + offset, faces)
    rolled, turn, normal = _rolled(base)
    found = detail.on(rolled) - rolled
    expected = (turn @ offset[..., None]).squeeze(-1)
    size = offset.square().mean().sqrt()
    assert (found - expected)[inner].abs().max() < 0.01 * size
    # At the rim the only triangles are those on one side, half an edge (0.025 / 0.3 rad) away.
    assert (found - expected).square().mean().sqrt() < 0.05 * size
    torch.testing.assert_close(found.norm(dim=-1), offset.norm(dim=-1))
    torch.testing.assert_close(
        (found * normal).sum(-1)[inner], offset[inner, 2], atol=0.01 * float(size), rtol=0
    )
    # What stays in the world has turned by up to 191° against the surface.
    assert (offset - expected).square().mean().sqrt() > size


@pytest.mark.parametrize("bend", [_bend, lambda p: _rolled(p)[0]])
def test_copies_at_a_seam_stay_together(bend: Callable[[torch.Tensor], torch.Tensor]) -> None:
    smooth, faces = _ball()
    # A cube's corners have three normals, each in a copy; a bumpy ball's facets have one each.
    box = trimesh.creation.box((1, 1, 1)).subdivide()
    square = torch.from_numpy(np.asarray(box.faces, np.int64))
    for vertices, triangles in (
        (smooth, faces),
        (torch.from_numpy(np.asarray(box.vertices)), square),
    ):
        number = triangles.flatten()
        torn = torch.arange(len(number)).reshape(-1, 3)
        full = vertices[number]
        base = smooth_base(full, torn)
        detail = extract(base, full, torn)
        torch.testing.assert_close(detail.on(base), full)
        moved = detail.on(bend(base))
        first = torch.zeros_like(vertices).index_copy(0, number, moved)
        assert (moved - first[number]).norm(dim=-1).max() < 1e-9
        assert (full - base).norm(dim=-1).max() > 0.01


def test_both_sides_of_a_leaf_keep_their_detail() -> None:
    base, faces = _sheet(7)
    n = len(base)
    twice, both = torch.cat([base, base]), torch.cat([faces, faces.flip(1) + n])
    offset = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    detail = extract(twice, twice + offset, both)
    torch.testing.assert_close(detail.on(twice), twice + offset)
    torch.testing.assert_close(detail.offsets[:n, 2], -detail.offsets[n:, 2])
    lengths = (detail.on(_rolled(twice)[0]) - _rolled(twice)[0]).norm(dim=-1)
    torch.testing.assert_close(lengths, offset.norm().expand(2 * n))


def test_a_triangle_without_area_costs_no_offset() -> None:
    base = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 3, 1]])
    full = base + torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    torch.testing.assert_close(extract(base, full, faces).on(base), full)
    # Vertices apart by less than counts, though rounding does not make them one.
    base[3, 1] = -0.6e-6
    full[3, 1] = 0.02 - 0.6e-6
    torch.testing.assert_close(extract(base, full, faces).on(base), full)
    lone = torch.cat([base[:3], torch.full((1, 3), 2.0, dtype=torch.float64)])
    with pytest.raises(ValueError, match="need an edge of some length at every vertex, got 1"):
        extract(lone, lone, torch.tensor([[0, 1, 2], [3, 3, 3]]))
    line = torch.cat([base[:3], torch.tensor([3.0, 4, 5], dtype=torch.float64)[:, None] * base[1]])
    with pytest.raises(ValueError, match="need a normal at every vertex, got 3"):
        extract(line, line, torch.tensor([[0, 1, 2], [3, 4, 5]]))


def test_drift_is_that_of_a_detail_that_turns() -> None:
    full, faces = _ball()
    base = smooth_base(full, faces)
    detail = extract(base, full, faces)
    bent = _bend(base)
    frameless = drift(detail.offsets, bent, bent + (full - base), faces, detail.guide)
    # The bend turns the surface at x by −x 60° about z: what stays in the world has turned by as much the other way,
    # in frames that a ball of this size follows closely.
    about = roma.rotvec_to_rotmat(
        base[:, :1] * math.pi / 3 * torch.tensor([0.0, 0, 1], dtype=torch.float64)
    )
    offset = full - base
    turned = (about @ offset[..., None]).squeeze(-1) - offset
    expected = turned.square().mean().sqrt() / offset.square().mean().sqrt()
    torch.testing.assert_close(frameless, expected, rtol=0.1, atol=0)
    # A detail that is turned by 60° has drifted by a chord of 2 sin 30° = 1.
    angle = torch.tensor(math.pi / 3, dtype=torch.float64)
    about = roma.rotvec_to_rotmat(angle * torch.tensor([0.0, 0, 1], dtype=torch.float64))
    flat = Detail(
        torch.tensor([[0.3, 0, 0]], dtype=torch.float64).expand(len(base), 3), faces, detail.guide
    )
    turned = Detail(flat.offsets @ about.mT, faces, detail.guide)
    found = drift(flat.offsets, bent, turned.on(bent), faces, detail.guide)
    torch.testing.assert_close(found, torch.ones_like(found))


def test_smoothing_takes_bumps_and_leaves_the_shape() -> None:
    full, faces = _ball()
    base = smooth_base(full, faces)
    before, after = (p.norm(dim=-1) for p in (full, base))
    assert after.std() < 0.4 * before.std()
    assert after.mean() > 0.93
    torch.testing.assert_close(smooth_base(full, faces, 0.0), full)
    # A seam that doubles vertices changes nothing.
    twice = torch.cat([full, full])
    apart = torch.cat([faces[:600], faces[600:] + len(full)])
    torch.testing.assert_close(smooth_base(twice, apart)[: len(full)], base)
    with pytest.raises(ValueError, match="need smooth >= 0"):
        smooth_base(full, faces, -1.0)


def test_detail_from_a_depth_map() -> None:
    """A flat sheet before a wavy wall: seen vertices go to the wall along their rays, others stay."""
    at = torch.linspace(-0.4, 0.4, 12, dtype=torch.float64)
    x, y = torch.meshgrid(at, at, indexing="xy")
    base = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    corner = torch.arange(144).view(12, 12)[:-1, :-1].reshape(-1)
    first = torch.stack([corner, corner + 12, corner + 1], 1)
    second = torch.stack([corner + 1, corner + 12, corner + 13], 1)
    faces = torch.cat([first, second])
    intrinsics = torch.tensor([100.0, 100, 50, 50], dtype=torch.float64)
    row = torch.arange(100, dtype=torch.float64)
    depth = (1 + 0.05 * torch.sin(row / 9))[:, None].expand(100, 100).clone()
    depth[:, :20] = torch.inf
    depth[:, 80:] = 3.0
    full = from_depth(base, faces, depth, intrinsics, limit=0.2).on(base)
    column, line = project(base, intrinsics).floor().long().T
    seen = (column >= 20) & (column < 80)
    torch.testing.assert_close(full[~seen], base[~seen])
    torch.testing.assert_close(full[seen, 2], depth[line[seen], column[seen]])
    torch.testing.assert_close(project(full, intrinsics), project(base, intrinsics))


def test_what_does_not_fit_is_refused() -> None:
    full, faces = _ball()
    with pytest.raises(ValueError, match="need every vertex in a triangle, got 1"):
        guides(torch.cat([full, full[:1] + 9]), faces)
