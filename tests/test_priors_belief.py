"""Transport plans, votes, epipolar lines: each against a closed form or an oracle."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from priors.assignment import sinkhorn, soft_attention
from priors.epipolar import MOVES, along_lines, fundamental
from priors.matches import Cells
from priors.voting import vote


def scores(num_points: int, num_cells: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_points, num_cells, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("score", [0.2, 0.5, 0.9])
def test_one_point_and_one_cell_have_a_closed_form(score: float) -> None:
    """Two by two with marginals of 1: the odds of the diagonal are the root of exp((s - z) / tau)."""
    plan = sinkhorn(torch.tensor([[score]], dtype=torch.float64), 0.1, 0.4, 200)
    assert plan.item() == pytest.approx(1 / (1 + math.exp(-(score - 0.4) / 0.2)), abs=1e-9)


def test_marginals_and_optimality() -> None:
    s, tau, z = scores(5, 9), 0.2, 0.3
    plan = sinkhorn(s, tau, z, 500)
    assert (plan.sum(0) <= 1 + 1e-9).all()
    nowhere, empty = 1 - plan.sum(1), 1 - plan.sum(0)
    assert (nowhere > 0).all()
    # Optimal plans are scalings of exp(S / tau): every 2 x 2 minor keeps its cross ratio, dustbin included.
    for n, d in ((0, 0), (2, 5), (4, 8)):
        corner = 9 - empty.sum()
        corner = 9 + 5 - plan.sum() - nowhere.sum() - empty.sum()
        ratio = plan[n, d] * corner / (nowhere[n] * empty[d])
        assert ratio.item() == pytest.approx(math.exp((s[n, d] - z) / tau), rel=1e-6)


def test_when_cold_it_is_the_best_assignment() -> None:
    for seed in range(5):
        s = scores(6, 8, seed)
        rows, columns = linear_sum_assignment(-s.numpy())
        plan = sinkhorn(s, 0.003, -5.0, 3000)
        assert torch.equal(plan.argmax(1), torch.from_numpy(columns)[np.argsort(rows)])


def test_twins_share_what_one_would_take() -> None:
    """Two points with the same feature: each alone is sure of the cell; together they get half of it."""
    s = torch.tensor([[0.9, 0.1, 0.1], [0.9, 0.1, 0.1]])
    alone = soft_attention(s, 0.05)
    assert alone[:, 0].min() > 0.99
    plan = sinkhorn(s, 0.05, 0.3, 300)
    assert plan[:, 0].sum() == pytest.approx(1, abs=1e-3)
    assert torch.allclose(plan[0], plan[1])


CELLS = Cells((8, 8), (128, 128), 2)


def at(x: float, y: float) -> int:
    return int((CELLS.centres(torch.zeros(1)) - torch.tensor([x, y])).norm(dim=-1).argmin())


def test_neighbours_settle_what_a_point_alone_cannot() -> None:
    queries = torch.tensor([[36.0, 36.0], [44.0, 36.0], [36.0, 44.0], [100.0, 100.0]])
    belief = torch.full((4, 256), 1e-4)
    for n in (1, 2):
        belief[n, at(*(queries[n] + torch.tensor([16.0, 8.0])).tolist())] = 1.0
    right, wrong = at(52, 44), at(84, 12)
    belief[0, right], belief[0, wrong] = 0.45, 0.55
    belief = belief / belief.sum(1, keepdim=True)
    weighed = vote(belief, queries, CELLS, radius=16.0)
    assert belief[0].argmax() == wrong
    assert weighed[0].argmax() == right
    assert weighed[0, right] > 0.95 * weighed[0].sum()
    assert torch.allclose(weighed.sum(1), belief.sum(1))
    # The far point hears nobody and keeps what it thinks.
    assert torch.allclose(weighed[3], belief[3], rtol=0.02)
    assert torch.allclose(vote(belief[:1], queries[:1], CELLS, radius=16.0), belief[:1])
    with pytest.raises(ValueError, match="need radius > 0 px, got 0"):
        vote(belief, queries, CELLS, radius=0.0)


def two_views(moving: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Points of a still scene in two cameras, of which the first `moving` move by themselves; and the true F."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2, -2, 4], [2, 2, 9], (80, 3))
    intrinsics = np.array([[200.0, 0, 128], [0, 200, 128], [0, 0, 1]])
    angle = 0.1
    turn = np.array(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    shift = np.array([0.9, 0.2, 0.1])
    later = points.copy()
    later[:moving] += rng.uniform(0.6, 1.2, (moving, 3))
    views = [points @ intrinsics.T, (later @ turn.T + shift) @ intrinsics.T]
    first, second = (torch.from_numpy(v[:, :2] / v[:, 2:]).float() for v in views)
    cross = np.array([[0, -shift[2], shift[1]], [shift[2], 0, -shift[0]], [-shift[1], shift[0], 0]])
    inverse = np.linalg.inv(intrinsics)
    return first, second, inverse.T @ cross @ turn @ inverse


def test_the_epipolar_geometry_of_what_does_not_move() -> None:
    first, second, truth = two_views(moving=20)
    matrix = fundamental(first, second, token=16.0)
    assert matrix is not None
    # The same line for each point, however F is scaled: the true partners of still points lie on it.
    ones = torch.ones(80, 1)
    lines = torch.cat([first, ones], 1) @ matrix.T
    off = (lines * torch.cat([second, ones], 1)).sum(1).abs() / lines[:, :2].norm(dim=1)
    assert off[20:].max() < 1
    assert off[:20].median() > 4
    a, b = matrix.double().numpy(), truth
    assert abs((a * b).sum()) / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def test_no_line_without_parallax() -> None:
    first, second, _ = two_views(moving=0)
    generator = torch.Generator().manual_seed(0)
    jitter = torch.randn(first.shape, generator=generator)
    assert fundamental(first, first + jitter, token=16.0) is None
    assert fundamental(first[:10], second[:10], token=16.0) is None
    anywhere = 256 * torch.rand(first.shape, generator=generator)
    assert fundamental(first, anywhere, token=16.0) is None


def test_belief_stays_on_the_line_and_movers_keep_theirs() -> None:
    # A camera that moves along x: epipolar lines are rows.
    matrix = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    queries = torch.tensor([[52.0, 52.0]])
    belief = torch.full((1, 256), 1e-6)
    on, off = at(84, 52), at(52, 100)
    belief[0, on], belief[0, off] = 0.4, 0.6
    weighed = along_lines(belief, queries, CELLS, matrix)
    assert weighed[0, on] / weighed[0, off] == pytest.approx(0.4 / 0.6 / MOVES, rel=1e-3)
    assert weighed.sum() == pytest.approx(belief.sum().item())


def test_unusable_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="need temperature > 0, got 0"):
        soft_attention(scores(2, 2), 0.0)
    with pytest.raises(ValueError, match="need temperature > 0"):
        sinkhorn(scores(2, 2), -1.0, 0.5, 10)
    with pytest.raises(ValueError, match="need at least 1 iteration, got 0"):
        sinkhorn(scores(2, 2), 0.1, 0.5, 0)
