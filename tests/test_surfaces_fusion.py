"""Depth maps of a ball fuse to that ball, also where it moves, turns and grows; what nobody saw stays open."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import roma
import torch
import trimesh
from torch import Tensor
from unchecked import unchecked

from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.splines import knot_vector
from diffusion4d.surfaces import fusion
from diffusion4d.surfaces.fusion import Volume, fused, fused_surface, to_nodes

pytest.importorskip("skimage", reason="needs scikit-image, the extra surfaces")
SIDE = 96
LENS = torch.tensor([120.0, 120, SIDE / 2, SIDE / 2])
BOX = (np.full(3, -1.3, np.float32), np.full(3, 1.3, np.float32))


def _depth(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """z of a ball in the camera's axes, NaN beside it."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2) / 120
    ray = np.stack([x, y, np.ones_like(x)], -1)
    # |z ray − centre|² = radius²
    a, b = np.square(ray).sum(-1), ray @ np.array(centre)
    inside = b**2 - a * (np.dot(centre, centre) - radius**2)
    with np.errstate(invalid="ignore"):
        return ((b - np.sqrt(inside)) / a).astype(np.float32)


def _looking(angle: float) -> Tensor:
    """World to camera, 4 away from the origin, about y."""
    pose = torch.eye(4)
    pose[:3, :3] = roma.rotvec_to_rotmat(torch.tensor([0.0, angle, 0.0]))
    pose[2, 3] = 4.0
    return pose


def test_a_ball_seen_from_all_round() -> None:
    depths = np.stack([_depth((0, 0, 4), 1)] * 6)
    around = torch.stack([_looking(i * math.pi / 3) for i in range(6)])
    mesh = fused(depths, LENS, around, Volume(*BOX, 0.04))
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert abs(np.median(radius) - 1) < 0.004
    assert np.quantile(np.abs(radius - 1), 0.9) < 0.03
    # Outwards: inside out, normals would point at the middle.
    assert (np.einsum("vi,vi->v", mesh.normals, mesh.vertices) > 0.7).mean() > 0.98
    # Six cameras on the equator see no farther than some 70° of latitude, and no surface is made up beyond.
    area = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).area
    assert 0.85 < area / (4 * math.pi) < 0.97
    assert np.abs(mesh.vertices[:, 1]).max() < math.sin(math.acos(0.25)) + 0.04


def test_one_camera_sees_one_side() -> None:
    mesh = fused(_depth((0, 0, 4), 1)[None], LENS, _looking(0.0)[None], Volume(*BOX, 0.04))
    # The horizon of a ball of radius 1 from 4 away is at z = −1/4.
    assert mesh.vertices[:, 2].max() < -0.25 + 0.06
    assert mesh.vertices[:, 2].min() == pytest.approx(-1, abs=0.02)


def test_what_moves_is_fused_where_it_rests() -> None:
    # Before a camera at rest, the ball goes sideways, turns a third of the way round in every frame, and grows.
    shifts = [(0.3 * t, 0.1 * t, 4 + 0.1 * t) for t in range(3)]
    growth = [1.0, 1.1, 1.2]
    depths = np.stack([_depth(c, r) for c, r in zip(shifts, growth, strict=True)])

    def warp(places: Tensor) -> Callable[[int], Tensor]:
        def at(t: int) -> Tensor:
            turn = roma.rotvec_to_rotmat(torch.tensor([0.0, 2 * math.pi / 3 * t, 0.0]))
            return growth[t] * places @ turn.mT + torch.tensor(shifts[t])

        return at

    still = torch.eye(4).expand(3, 4, 4)
    volume = Volume(*BOX, 0.04)
    # Frame t is all of channel t.
    images = np.broadcast_to(np.eye(3, dtype=np.float32)[..., None, None], (3, 3, SIDE, SIDE))
    mesh = fused(depths, LENS, still, volume, warp=warp, images=images)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert np.quantile(np.abs(radius - 1), 0.9) < 0.03
    # All round, though each frame shows a side.
    assert mesh.vertices[:, 2].max() > 0.8
    assert mesh.vertices[:, 2].min() < -0.8
    # What faces a camera has the colour of its frame; the first looks along z at the rest pose.
    assert mesh.colours is not None
    facing = mesh.vertices[:, 2] < -0.9
    np.testing.assert_allclose(mesh.colours[facing], np.tile([1, 0, 0], (facing.sum(), 1)))
    assert set(mesh.colours.argmax(1)) == {0, 1, 2}
    twice = fused(depths, LENS, still, volume, warp=warp, votes=2)
    assert len(twice.faces) < 0.8 * len(mesh.faces)


def test_through_the_nodes_of_a_hypothesis() -> None:
    nodes = np.asarray(trimesh.creation.icosphere(2).vertices, np.float32)
    turn = roma.rotvec_to_rotmat(torch.tensor([[0.0, math.pi * u, 0.0] for u in (0, 0.5, 1)]))
    ctrl = torch.einsum("tij,nj->nti", turn, torch.from_numpy(nodes)) + torch.tensor([0.0, 0, 4])
    hyp = Hypotheses(
        # Degree 1: control points are the positions at u = 0, ½ and 1.
        control_points=ctrl[None].float(),
        knots=knot_vector(3, 1),
        degree=1,
        times=torch.tensor([0, 0.5, 1], dtype=torch.float64),
        query_points=torch.zeros(len(nodes), 2),
        tracks=torch.zeros(3, len(nodes), 2),
        visibility=(ctrl[..., 2].T < 3.7).float(),
        intrinsics=LENS * 2,
        size=(2 * SIDE, 2 * SIDE),
        extrinsics=torch.eye(4).expand(3, 4, 4),
        seeds=torch.arange(1),
    )
    # Each map is known up to a factor of its own.
    depths = np.stack([factor * _depth((0, 0, 4), 1) for factor in (1.0, 3.0, 0.2)])
    mesh = fused_surface(hyp, 0, depths, resolution=48)
    away = mesh.vertices - [0, 0, 4]
    radius = np.linalg.norm(away, axis=1)
    assert np.quantile(np.abs(radius - 1), 0.8) < 0.04
    assert away[:, 2].max() > 0.85
    assert away[:, 2].min() < -0.85
    with pytest.raises(UserError, match="each of 3 frames, got 2"):
        fused_surface(hyp, 0, depths[:2])
    with pytest.raises(UserError, match="192 x 192 px or in proportion, got 96 x 48"):
        fused_surface(hyp, 0, depths[:, ::2])


def test_maps_are_brought_to_the_nodes_that_are_seen() -> None:
    nodes = torch.tensor([[[0.0, 0, 2], [0.1, 0, 4], [0, 0.1, 9]]])
    flat = np.full((1, SIDE, SIDE), 2.0, np.float32)
    seen = torch.tensor([[True, False, False]])
    assert to_nodes(flat, LENS, nodes, seen) == pytest.approx(flat)
    assert np.isnan(to_nodes(flat, LENS, nodes, ~seen & False)).all()
    both = to_nodes(flat, LENS, nodes, torch.tensor([[True, True, False]]))
    assert both == pytest.approx(1.5 * flat)


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(UserError, match="need a box and a spacing above 0"):
        Volume(BOX[1], BOX[0], 0.1)
    with pytest.raises(UserError, match=r"at most 4,000,000 voxels, got 2601 x 2601 x 2601"):
        Volume(*BOX, 0.001)
    nothing = np.full((1, SIDE, SIDE), np.nan, np.float32)
    with pytest.raises(UserError, match="got none there"):
        fused(nothing, LENS, _looking(0.0)[None], Volume(*BOX, 0.1))
    with pytest.raises(UserError, match="got none there"):
        fused(_depth((0, 0, 4), 1)[None], LENS, _looking(0.0)[None], Volume(*BOX, 0.1), votes=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"truncation": 0.0}, "need a truncation above 0, got 0.0"),
        ({"truncation": float("nan")}, "need a truncation above 0, got nan"),
        ({"votes": 0}, "need votes of 1 or more, got 0"),
        ({"images": np.zeros((1, 3, SIDE, SIDE), np.float32)}, r"shape \[2, 3, 96, 96\], got \[1,"),
        (
            {"images": np.zeros((2, 3, 4, 4), np.float32)},
            r"shape \[2, 3, 96, 96\], got \[2, 3, 4, 4",
        ),
        ({"extrinsics": torch.eye(4)[None]}, "extrinsics of 2 depth maps, got 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(given: dict, said: str) -> None:
    depths = np.stack([_depth((0, 0, 4), 1)] * 2)
    parts = {"extrinsics": _looking(0.0).expand(2, 4, 4), **given}
    with pytest.raises(ValueError, match=said):
        unchecked(fusion).fused(depths, LENS, volume=Volume(*BOX, 0.1), **parts)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(UserError, match=r"pip install 'diffusion4d\[surfaces\]'"):
        fused(_depth((0, 0, 4), 1)[None], LENS, _looking(0.0)[None], Volume(*BOX, 0.1))
