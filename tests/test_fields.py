"""Deformable fields: exact on motions that are known, proper where neighbours say little, inverse, slopes, measures."""

import math

import numpy as np
import pytest
import roma
import torch
from fans import fan
from torch import Tensor

from diffusion4d.errors import UserError
from diffusion4d.fields.blend import Blend, carry_normals, deform, held_jacobian, jacobian
from diffusion4d.fields.graph import APART, node_distances, surface_distances
from diffusion4d.fields.inverse import invert
from diffusion4d.fields.measures import arap_energy, edge_stretch, edges_of, fold_over
from diffusion4d.fields.motion import NodeMotion, motion_of, node_motion, reference
from diffusion4d.fields.skinning import Skinning, skin, skin_by_graph
from diffusion4d.fields.stream import stream


def _cloud(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _turns(*batch: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    turns = roma.random_rotmat(math.prod(batch), dtype=torch.float64)
    return turns.view(*batch, 3, 3), torch.randn(*batch, 3, dtype=torch.float64)


def _grid(n: int) -> tuple[Tensor, Tensor]:
    """A square sheet in the plane z = 0 with n x n vertices, and its triangles."""
    at = torch.linspace(0, 1, n, dtype=torch.float64)
    x, y = torch.meshgrid(at, at, indexing="xy")
    vertices = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    corner = torch.arange(n * n).view(n, n)[:-1, :-1].reshape(-1)
    first = torch.stack([corner, corner + 1, corner + n], 1)
    second = torch.stack([corner + 1, corner + n + 1, corner + n], 1)
    return vertices, torch.cat([first, second])


@pytest.mark.parametrize("batch", [(), (2,), (1, 3)])
@pytest.mark.parametrize("nodes", [1, 2, 3, 40])
def test_a_rigid_motion_carries_every_point_rigidly(batch: tuple[int, ...], nodes: int) -> None:
    rest, points = _cloud(nodes), _cloud(30, 1)
    turn, shift = _turns(*batch)
    if nodes == 1:
        # A single node says where, and nothing of the turn.
        turn = torch.eye(3, dtype=torch.float64).expand_as(turn)
    positions = (turn[..., None, :, :] @ rest[..., None]).squeeze(-1) + shift[..., None, :]
    motion = node_motion(rest, positions)
    assert torch.linalg.det(motion.rotations).min() > 0.999
    held = skin(torch.cdist(points, rest))
    if nodes > 3:
        torch.testing.assert_close(
            motion.rotations, turn[..., None, :, :].expand_as(motion.rotations), atol=1e-4, rtol=0
        )
        expected = (turn[..., None, :, :] @ points[..., None]).squeeze(-1) + shift[..., None, :]
        for blend in ("linear", "dual_quaternion"):
            moved = deform(points, held, motion, blend)
            torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
    # What all nodes do, the nodes themselves do, whatever the blend.
    own = Skinning(torch.arange(nodes)[:, None], torch.ones(nodes, 1, dtype=torch.float64))
    for blend in ("additive", "linear", "dual_quaternion"):
        torch.testing.assert_close(
            deform(rest, own, motion, blend), positions, atol=1e-5, rtol=1e-5
        )


def test_collinear_neighbours_turn_with_their_line_and_no_further() -> None:
    """A line that turns by 90° about z: along itself nothing says how it turns, so it doesn't."""
    rest = torch.zeros(6, 3, dtype=torch.float64)
    rest[:, 0] = torch.arange(6)
    positions = rest[:, [1, 0, 2]]
    motion = node_motion(rest, positions)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(motion.rotations, quarter.expand(6, 3, 3), atol=1e-2, rtol=0)
    # A mirror image is no rotation.
    mirrored = node_motion(_cloud(20), _cloud(20) * torch.tensor([1.0, 1, -1]))
    torch.testing.assert_close(
        torch.linalg.det(mirrored.rotations), torch.ones(20, dtype=torch.float64)
    )


@pytest.mark.parametrize("axis", [[0.0, 0, 1], [0.3, 0.5, 0.8]])
@pytest.mark.parametrize("nodes", [2, 8])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_line_turns_half_way_round_without_a_jump(
    batch: tuple[int, ...], nodes: int, axis: list[float]
) -> None:
    rest = torch.zeros(nodes, 3, dtype=torch.float64)
    rest[:, 0] = torch.linspace(0, 1, nodes)
    about = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    # On beyond the antipode, where the least turn from rest goes the other way.
    angle = torch.linspace(0, 1.5 * math.pi, 300, dtype=torch.float64)
    turn = roma.rotvec_to_rotmat(angle[:, None] * about)
    noise = torch.randn(*batch, 300, nodes, 3, generator=torch.Generator().manual_seed(0))
    positions = torch.einsum("tij,nj->tni", turn, rest) + 1e-4 * noise
    motion = node_motion(rest, positions)
    assert torch.linalg.det(motion.rotations).min() > 0.999
    step = roma.rotmat_geodesic_distance(
        motion.rotations[..., 1:, :, :, :], motion.rotations[..., :-1, :, :, :]
    )
    assert step.max() * 180 / math.pi < 2.0
    # And the line is where its nodes are.
    along = (motion.rotations @ rest[-1]).mean(-2)
    expected = positions[..., -1, :] - positions[..., 0, :]
    torch.testing.assert_close(along, expected, atol=2e-3, rtol=0)


def test_a_body_has_the_same_turns_at_an_instant_as_in_a_motion() -> None:
    rest = _cloud(30)
    positions = rest + 0.3 * torch.stack([_cloud(30, seed) for seed in range(1, 5)])
    together = node_motion(rest, positions).rotations
    for at, alone in zip(together, positions, strict=True):
        torch.testing.assert_close(node_motion(rest, alone).rotations, at)


def test_at_a_hinge_each_side_keeps_its_own_turn() -> None:
    """Half of a bar turns by 90° about a hinge at x = 0; nodes an edge away from it are all but unaware."""
    at = torch.linspace(0.1, 1.9, 10, dtype=torch.float64)
    across = torch.tensor([-0.1, 0.1], dtype=torch.float64)
    side = torch.cartesian_prod(at, across, across)
    rest = torch.cat([side * torch.tensor([-1.0, 1, 1]), side])
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    still = torch.eye(3, dtype=torch.float64)
    turns = torch.stack([still, quarter]).repeat_interleave(len(side), 0)
    motion = node_motion(rest, (turns @ rest[..., None]).squeeze(-1))
    between = roma.rotmat_geodesic_distance(motion.rotations, turns) * 180 / math.pi
    away = rest[:, 0].abs() > 0.6
    assert between[away].max() < 1.0
    # At the hinge a node sees both sides, and turns between them.
    assert 2 < between[~away].max() < 45


def test_weights_are_a_partition_of_unity_without_a_jump() -> None:
    rest = _cloud(50)
    along = torch.from_numpy(node_distances(rest.numpy()))
    path = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * torch.tensor([2.0, 1, 0.5])
    held = skin(torch.cdist(path, rest))
    torch.testing.assert_close(held.weights.sum(1), torch.ones(4001, dtype=torch.float64))
    dense = torch.zeros(4001, 50, dtype=torch.float64).scatter_add_(1, held.indices, held.weights)
    assert dense.diff(dim=0).abs().max() < 0.02
    few = skin_by_graph(_cloud(7, 2), rest[:3], along[:3, :3])
    torch.testing.assert_close(few.weights.sum(1), torch.ones(7, dtype=torch.float64))
    assert (few.weights > 0).all()
    lightest = held.most(2)
    torch.testing.assert_close(lightest.weights.sum(1), torch.ones(4001, dtype=torch.float64))
    with pytest.raises(ValueError, match="sum to 1"):
        Skinning(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0.4, 0.4]]))


def test_distances_go_along_the_surface() -> None:
    """The ends of a hairpin are close in space and far along it; a part that nothing joins is far."""
    at = np.linspace(0, 3, 31)
    low = np.stack([at, 0 * at, 0 * at], 1)
    high = np.stack([at, 0.2 + 0 * at, 0 * at], 1)
    pin = np.concatenate([low, [[3.1, 0.1, 0]], high[::-1]])
    ribbon = np.concatenate([pin, pin + np.array([0, 0, 0.3])])
    n = len(pin)
    quads = [(i, i + 1, n + i) for i in range(n - 1)] + [
        (i + 1, n + i + 1, n + i) for i in range(n - 1)
    ]
    found = surface_distances(ribbon, np.array(quads), ribbon[[0]])
    assert found[n - 1, 0] == pytest.approx(6.28, abs=0.05)
    # A seam: vertices that share a place are one.
    split = np.concatenate([ribbon, ribbon])
    torn = np.array([[*f] if f[0] < 20 else [v + 2 * n for v in f] for f in quads])
    np.testing.assert_allclose(
        surface_distances(split, torn, ribbon[[0]])[:n], found[:n], rtol=1e-5
    )
    away = np.concatenate([ribbon, ribbon[:3] + 50])
    lost = surface_distances(away, np.array(quads), ribbon[[0]])[-1, 0]
    assert lost == pytest.approx(APART * np.linalg.norm(ribbon[2] + 50 - ribbon[0]), rel=1e-5)


def test_nodes_that_part_are_not_neighbours() -> None:
    """Two rows side by side, one of which slides away: paths go along the rows."""
    row = np.stack([np.arange(10.0), np.zeros(10), np.zeros(10)], 1)
    rest = np.concatenate([row, row + np.array([0, 0.5, 0])])
    moved = rest + np.repeat([[0.0, 0, 0], [0, 5, 0]], 10, 0)
    together = node_distances(rest)
    apart = node_distances(rest, np.stack([rest, moved]))
    assert together[0, 10] == pytest.approx(0.5)
    assert apart[0, 10] == pytest.approx(APART * 0.5)
    assert apart[0, 9] == pytest.approx(9)


def _bent() -> tuple[Tensor, NodeMotion, object]:
    """Nodes of a cube that is twisted about z and bent; and weights anywhere."""
    at = torch.linspace(-1, 1, 5, dtype=torch.float64)
    rest = torch.stack(torch.meshgrid(at, at, at, indexing="ij"), -1).reshape(-1, 3)
    angle = 0.4 * rest[:, 2] + 0.2 * rest[:, 0]
    x, y, z = rest.unbind(-1)
    turned = torch.stack(
        [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos(), z + 0.1 * x**2], -1
    )
    along = torch.from_numpy(node_distances(rest.numpy()))
    return rest, node_motion(rest, turned), lambda x: skin_by_graph(x, rest, along)


def test_jacobian_is_the_slope() -> None:
    _, motion, skin_at = _bent()
    points = 0.3 * _cloud(20, 5)
    found = jacobian(points, skin_at, motion)
    step = 1e-5
    for axis in range(3):
        offset = torch.zeros(3, dtype=torch.float64)
        offset[axis] = step
        ahead, behind = (_forward(points + s * offset, skin_at, motion) for s in (1, -1))
        torch.testing.assert_close(
            found[..., axis], (ahead - behind) / (2 * step), atol=1e-4, rtol=1e-3
        )
    # With the weights held, a point's own motion is what its nodes' rotations are.
    held = skin_at(points)
    frozen = held_jacobian(held, motion)
    moved = [deform(points + s * offset, held, motion) for s in (1e3, -1e3)]
    torch.testing.assert_close(
        frozen[..., 2], ((moved[0] - moved[1]) / (2 * 1e3 * step)).double(), atol=2e-3, rtol=2e-3
    )


def _forward(x: Tensor, skin_at, motion: NodeMotion) -> Tensor:
    held = skin_at(x)
    places = (motion.rotations[held.indices] @ x[:, None, :, None]).squeeze(-1)
    return (held.weights[..., None] * (places + motion.offsets[held.indices])).sum(1)


def test_there_and_back() -> None:
    _, motion, skin_at = _bent()
    points = (0.6 * _cloud(200, 6)).clamp(-0.95, 0.95)
    places = _forward(points, skin_at, motion)
    back, found = invert(places, skin_at, motion)
    assert found.double().mean() > 0.97
    torch.testing.assert_close(back[found], points[found], atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="need one instant"):
        invert(
            places, skin_at, NodeMotion(motion.rest, motion.positions[None], motion.rotations[None])
        )


def test_normals_of_a_stretched_sphere_stand_on_its_ellipsoid() -> None:
    normal = torch.nn.functional.normalize(_cloud(50), dim=-1)
    stretch = torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    carried = carry_normals(normal, stretch.expand(50, 3, 3))
    # x²/1 + y²/4 + z²/.25 = 1 has the gradient (x, y/4, z/.25) at the place (n_x, 2 n_y, n_z/2).
    expected = normal / torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(carried, torch.nn.functional.normalize(expected, dim=-1))


def test_measures_of_known_motions() -> None:
    sheet, faces = _grid(9)
    edges = edges_of(faces)
    assert len(edges) == 2 * 9 * 8 + 64
    turn, shift = _turns(2)
    rigid = (turn[:, None] @ sheet[..., None]).squeeze(-1) + shift[:, None]
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(edge_stretch(sheet, rigid, edges), zero, atol=1e-9, rtol=0)
    torch.testing.assert_close(arap_energy(sheet, rigid, edges), zero, atol=1e-8, rtol=0)
    assert fold_over(sheet, rigid, faces).max() == 0
    grown = 1.3 * sheet
    assert edge_stretch(sheet, grown, edges).item() == pytest.approx(0.3)
    assert arap_energy(sheet, grown, edges).item() == pytest.approx(0.09, rel=1e-3)
    # One inner vertex is pulled far over its neighbours, and the triangles it passes are turned over.
    torn = sheet.clone()
    torn[40, 0] += 0.2
    assert 0 < fold_over(sheet, torn, faces) <= 6 / len(faces)


def test_the_additive_field_shears_what_the_others_turn() -> None:
    """A rod that bends by 90°: a stick on its side stands upright with rotations, and leans without."""
    rest = torch.zeros(21, 3, dtype=torch.float64)
    rest[:, 0] = torch.linspace(0, 2, 21)
    angle = rest[:, 0] * math.pi / 4
    radius = 4 / math.pi
    bent = torch.stack([radius * angle.sin(), radius * (1 - angle.cos()), 0 * angle], -1)
    motion = node_motion(rest, bent)
    stick = torch.stack([torch.tensor([1.0, h, 0.0]) for h in (0.0, 0.05, 0.1)]).double()
    held = skin(torch.cdist(stick, rest))
    half = math.pi / 4
    expected = torch.tensor([-math.sin(half), math.cos(half), 0], dtype=torch.float64)
    for blend, limit in (("linear", 0.02), ("dual_quaternion", 0.02)):
        moved = deform(stick, held, motion, blend).double()
        direction = torch.nn.functional.normalize(moved[2] - moved[0], dim=0)
        assert (direction - expected).norm() < limit
    flat = deform(stick, held, motion, "additive").double()
    assert (torch.nn.functional.normalize(flat[2] - flat[0], dim=0) - expected).norm() > 0.5


@pytest.mark.parametrize("blend", ["additive", "linear", "dual_quaternion"])
def test_float64_is_kept_and_gradients_are_where_they_are_promised(blend: Blend) -> None:
    rest, points = _cloud(20), _cloud(30, 1).requires_grad_()
    shift = torch.tensor([0.1, 1e3, 0], dtype=torch.float64)
    motion = node_motion(rest, (rest + shift).requires_grad_())
    moved = deform(points, skin(torch.cdist(points.detach(), rest)), motion, blend)
    assert moved.requires_grad == (blend == "dual_quaternion")
    assert moved.dtype == torch.float64
    # In float32 a place at 1000 is told to 6e-5.
    torch.testing.assert_close(moved, points + shift, atol=1e-8, rtol=0)


def test_every_hypothesis_drives_the_same_surface() -> None:
    hyp = fan(3, 20, 24)
    shape = reference(hyp)
    rest, motion = shape.places, motion_of(hyp, shape)
    assert motion.positions.shape == (3, 24, 20, 3)
    torch.testing.assert_close(motion.positions, hyp.evaluate().transpose(1, 2))
    held = skin(torch.cdist(rest, rest))
    whole = deform(rest, held, motion)
    parts = list(stream(rest, held, hyp, shape, budget=20 * 48 * 7))
    assert [(k, span.start, span.stop) for k, span, _ in parts[:4]] == [
        (0, 0, 7),
        (0, 7, 14),
        (0, 14, 21),
        (0, 21, 24),
    ]
    for k, span, vertices in parts:
        torch.testing.assert_close(vertices, whole[k, span])
    # One hypothesis alone goes on from the shape of all.
    alone = hyp.select(torch.tensor([2]))
    ((k, span, vertices),) = stream(rest, held, alone, shape, "dual_quaternion")
    torch.testing.assert_close(
        vertices, deform(rest, held, motion, "dual_quaternion")[2], atol=1e-5, rtol=1e-4
    )
    with pytest.raises(UserError, match="need a budget of 960 bytes for a frame of 20 vertices"):
        next(stream(rest, held, hyp, shape, budget=100))
    with pytest.raises(ValueError, match="need a skinning of 19 points"):
        next(stream(rest[:19], held, hyp, shape))
