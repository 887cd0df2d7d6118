"""TokenGrid.sample: exact on ramps, clamped outside, differentiable; and pixels keep their place."""

import pytest
import torch

from priors.tokens import TokenGrid

SIZE = (90, 200)
GRID = (3, 5)


def token_centres() -> torch.Tensor:
    """Pixel coordinates [L, 2] of the token centres, written out: half a cell in from the border."""
    height, width = SIZE[0] / GRID[0], SIZE[1] / GRID[1]
    return torch.tensor(
        [[(j + 0.5) * width, (i + 0.5) * height] for i in range(GRID[0]) for j in range(GRID[1])],
        dtype=torch.float64,
    )


def ramp_grid() -> TokenGrid:
    """Channel 0 is x, channel 1 is y, channel 2 is 1 + 2x - 3y, plus 1000 in the second frame."""
    x, y = token_centres().unbind(-1)
    frame = torch.stack([x, y, 1 + 2 * x - 3 * y], dim=-1)
    return TokenGrid(
        torch.stack([frame, frame + 1000]), GRID, SIZE, torch.tensor([0.0, 1.0]).double()
    )


def test_linear_ramps_are_reproduced_between_the_outermost_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(50, 2, 2, generator=generator, dtype=torch.float64)
    low, high = token_centres()[0], token_centres()[-1]
    points = low + unit * (high - low)
    x, y = points.unbind(-1)
    expected = torch.stack([x, y, 1 + 2 * x - 3 * y], dim=-1)
    expected[:, 1] += 1000
    torch.testing.assert_close(ramp_grid().sample(points), expected, rtol=0, atol=1e-9)


def test_token_centres_return_the_tokens() -> None:
    grid = ramp_grid()
    points = token_centres()[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(grid.sample(points), grid.values.transpose(0, 1))


@pytest.mark.parametrize(
    ("point", "clamped"),
    [
        ((0.0, 45.0), (20.0, 45.0)),
        ((200.0, 45.0), (180.0, 45.0)),
        ((-500.0, -500.0), (20.0, 15.0)),
        ((70.0, 1e6), (70.0, 75.0)),
    ],
)
def test_outside_the_outermost_centres_the_coordinate_is_clamped(
    point: tuple[float, float], clamped: tuple[float, float]
) -> None:
    points = torch.tensor(point, dtype=torch.float64).expand(1, 2, 2)
    value = ramp_grid().sample(points)[0, 0, :2]
    torch.testing.assert_close(value, torch.tensor(clamped, dtype=torch.float64))


def test_sampling_is_differentiable_in_values_and_points() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(2, 15, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[50.0, 40.0], [111.0, 33.0]], [[67.0, 61.0], [150.0, 20.0]]])
    points = points.double().requires_grad_()
    u = torch.tensor([0.0, 1.0])

    def sample(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return TokenGrid(values, GRID, SIZE, u).sample(points)

    assert torch.autograd.gradcheck(sample, (values, points))


def test_maps_are_the_tokens_laid_out() -> None:
    grid = ramp_grid()
    assert grid.maps.shape == (2, 3, 3, 5)
    assert torch.equal(grid.maps[1, :, 2, 4], grid.values[1, 2 * 5 + 4])


def test_no_points_and_no_tokens_mismatch() -> None:
    assert ramp_grid().sample(torch.zeros(0, 2, 2)).shape == (0, 2, 3)
    with pytest.raises(ValueError, match=r"h \* w = 15 tokens, got grid=\(4, 4\)"):
        TokenGrid(torch.zeros(2, 15, 3), (4, 4), SIZE, torch.zeros(2))
    with pytest.raises(ValueError, match=r"points of shape \[N, 2, 2\], got \[7, 1, 2\]"):
        ramp_grid().sample(torch.zeros(7, 1, 2))
