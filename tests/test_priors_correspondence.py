"""The contrastive loss and the matching score on cases with known answers."""

import math

import numpy as np
import pytest
import torch

from priors.correspondence import chance_pck, info_nce, match_points, pck, pixel_error
from priors.tokens import TokenGrid


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_orthogonal_features_have_a_closed_form() -> None:
    eye = torch.eye(6, dtype=torch.float64).reshape(2, 3, 6)
    for temperature in (0.1, 0.5):
        loss = info_nce(eye, 5 * eye, temperature=temperature)
        expected = math.log(1 + 5 * math.exp(-1 / temperature))
        assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_equal_features_cost_the_logarithm_of_the_candidates() -> None:
    ones = torch.ones(2, 4, 3, dtype=torch.float64)
    assert info_nce(ones, ones).item() == pytest.approx(math.log(8))
    valid = torch.tensor([[True, True, False, True], [False, True, False, True]])
    assert info_nce(ones, ones, valid=valid).item() == pytest.approx(math.log(5))


def test_near_points_of_the_same_clip_are_no_negatives() -> None:
    ones = torch.ones(2, 3, 4, dtype=torch.float64)
    # In clip 0 the first two points are 3 px apart; clip 1 has the same places, 100 px apart each.
    positions = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [100.0, 0.0]]] * 2, dtype=torch.float64)
    positions[1, 1, 0] = 200.0
    loss = info_nce(ones, ones, positions=positions, radius=8.0)
    # Six candidates, five for the two neighbours; the same places in another clip do count.
    assert loss.item() == pytest.approx((2 * math.log(5) + 4 * math.log(6)) / 6)


def test_loss_equals_a_loop_over_its_definition() -> None:
    first, second = features(2, 5, 7, seed=1), features(2, 5, 7, seed=2)
    valid = torch.tensor([[True, False, True, True, True], [True, True, True, False, True]])
    positions = 20 * features(2, 5, 2, seed=3)
    a = [f / np.linalg.norm(f) for f in first[valid].numpy()]
    b = [f / np.linalg.norm(f) for f in second[valid].numpy()]
    where = positions[valid].numpy()
    clip = [0] * 4 + [1] * 4
    total = 0.0
    for i in range(8):
        rivals = [
            j
            for j in range(8)
            if j == i or clip[j] != clip[i] or np.linalg.norm(where[i] - where[j]) >= 15
        ]
        for own, others in ((a, b), (b, a)):
            scores = [math.exp(own[i] @ others[j] / 0.2) for j in rivals]
            total -= math.log(math.exp(own[i] @ others[i] / 0.2) / sum(scores)) / 16
    loss = info_nce(first, second, valid=valid, positions=positions, radius=15.0, temperature=0.2)
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert len({round(float(np.linalg.norm(w)), 3) for w in where}) == 8


def test_gradients_and_the_batch_without_pairs() -> None:
    first, second = features(2, 3, 4).requires_grad_(), features(2, 3, 4, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b), (first, second))
    loss = info_nce(first, second, valid=torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert first.grad is not None
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_a_code_of_its_own_for_each_token_is_found_at_the_tokens_centre() -> None:
    grid, size = (3, 4), (48, 128)
    predicted = match_points(torch.eye(12), torch.eye(12), grid, size, upsample=1)
    expected = [[(j + 0.5) * 32, (i + 0.5) * 16] for i in range(3) for j in range(4)]
    assert predicted.tolist() == expected


@pytest.mark.parametrize("upsample", [1, 3, 4])
def test_features_sampled_at_cell_centres_find_their_cell(upsample: int) -> None:
    # This holds only if the refined grid and TokenGrid.sample share one convention.
    grid, size = (4, 5), (70, 110)
    tokens = features(1, 20, 32)
    cells = torch.cartesian_prod(
        (torch.arange(5 * upsample) + 0.5) * 110 / (5 * upsample),
        (torch.arange(4 * upsample) + 0.5) * 70 / (4 * upsample),
    ).double()
    # Cells beyond the outermost centres are clamped, hence alike: only the inner ones are unique.
    inner = (cells > torch.tensor([11.1, 8.85])).all(-1)
    inner &= (cells < torch.tensor([98.9, 61.15])).all(-1)
    cells = cells[inner]
    queries = TokenGrid(tokens, grid, size, torch.zeros(1)).sample(cells[:, None])[:, 0]
    found = match_points(queries, tokens[0], grid, size, upsample=upsample)
    # A neighbouring cell is 4.4 px away at least; the cells above are written in float32.
    assert pixel_error(found, cells).max() < 1e-4


def test_a_shifted_smooth_code_is_found_within_a_cell() -> None:
    # The second frame shows the same surface 24 px to the right and 8 px up.
    grid, size, shift = (8, 8), (128, 128), torch.tensor([24.0, -8.0])

    def code(points: torch.Tensor) -> torch.Tensor:
        angles = points @ (torch.tensor([[1.0, 0.0, 0.7], [0.0, 1.0, 0.7]]) / 30)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    rows, columns = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    centres = torch.stack([columns, rows], dim=-1).reshape(64, 2) * 16
    first = TokenGrid(code(centres)[None], grid, size, torch.zeros(1))
    points = torch.tensor([[20.0, 50.0], [44.0, 90.0], [70.0, 31.0], [61.0, 77.0]])
    queries = first.sample(points[:, None])[:, 0]
    found = match_points(queries, code(centres - shift), grid, size, upsample=4)
    # A cell is 4 px wide; interpolating the code costs a little more.
    assert pixel_error(found, points + shift).max() < 4
    # The answer does not depend on the length of the features.
    assert torch.equal(found, match_points(7 * queries, code(centres - shift), grid, size))


def test_pck_counts_errors_up_to_the_threshold() -> None:
    error = torch.tensor([[0.0, 1.0, 2.0], [4.0, 8.0, 100.0]])
    thresholds = torch.tensor([1.0, 4.0, 50.0])
    assert pck(error, thresholds).tolist() == pytest.approx([2 / 6, 4 / 6, 5 / 6])
    valid = torch.tensor([[True, False, True], [False, False, True]])
    assert pck(error, thresholds, valid).tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert pck(error, thresholds, torch.zeros(2, 3, dtype=torch.bool)).isnan().all()


def test_chance_is_the_share_of_pixels_in_reach() -> None:
    truth = torch.tensor([[10.5, 10.5], [0.5, 0.5]])
    thresholds = torch.tensor([0.1, 1.0, 1000.0])
    # Within 1 px of a pixel's centre are 5 pixels in the middle and 3 in the corner.
    expected = [1 / 600, 4 / 600, 1.0]
    assert chance_pck(thresholds, truth, (20, 30)).tolist() == pytest.approx(expected)


def test_unusable_arguments_are_refused() -> None:
    ones = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match=r"need temperature > 0, got 0\.0"):
        info_nce(ones, ones, temperature=0.0)
    with pytest.raises(ValueError, match="positions where it is > 0"):
        info_nce(ones, ones, radius=2.0)
    with pytest.raises(ValueError, match=r"need grid h \* w = 2 tokens, got grid=\(2, 2\)"):
        match_points(ones[0], ones[0], (2, 2), (8, 8))
    with pytest.raises(ValueError, match="need upsample >= 1, got 0"):
        match_points(ones[0], ones[0], (1, 2), (8, 8), upsample=0)
