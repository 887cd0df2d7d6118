"""Pointmaps: planes come back as planes; losses and errors with known values; one factor an image is free."""

import math

import pytest
import torch
from torch import Tensor

from priors.dinov3 import load_encoder
from priors.heads import make_head
from priors.pointmaps import (
    Pointmapper,
    confidence_loss,
    depth_errors,
    pointmap_loss,
    unproject,
    without_scale,
)


def test_a_plane_comes_back_as_a_plane() -> None:
    """z = c / (n . d) along each pixel's ray d: every point lies on n . X = c and projects to its cell's middle."""
    size, cells = (40, 60), (20, 15)
    intrinsics = torch.tensor([[50.0, 55.0, 28.0, 21.0], [80.0, 70.0, 30.0, 20.0]]).double()
    normal, offset = torch.tensor([0.2, -0.3, 1.0]).double(), 2.5
    rows = (torch.arange(20).double() + 0.5) * 2
    columns = (torch.arange(15).double() + 0.5) * 4
    x = (columns - intrinsics[:, None, None, 2]) / intrinsics[:, None, None, 0]
    y = (rows[:, None] - intrinsics[:, None, None, 3]) / intrinsics[:, None, None, 1]
    depth = offset / (normal[0] * x + normal[1] * y + normal[2])
    assert depth.shape == (2, *cells)
    points = unproject(depth.log(), intrinsics, size)
    assert torch.allclose(points @ normal, torch.full((2, *cells), offset, dtype=torch.float64))
    fx, fy, cx, cy = intrinsics[:, None, None].unbind(-1)
    assert torch.allclose(points[..., 0] / points[..., 2] * fx + cx, columns.expand(2, 20, 15))
    assert torch.allclose(
        points[..., 1] / points[..., 2] * fy + cy, rows[:, None].expand(2, 20, 15)
    )
    # The same camera for all frames.
    assert torch.equal(unproject(depth.log(), intrinsics[0], size)[0], points[0])


def maps() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 8, 9, generator=generator, dtype=torch.float64)
    valid = torch.rand(3, 8, 9, generator=generator) < 0.7
    valid[2] = False
    return truth + 0.1 * torch.randn(3, 8, 9, generator=generator), truth, valid


def test_a_factor_an_image_is_free_and_what_is_unseen_does_not_count() -> None:
    found, truth, valid = maps()
    shift = torch.tensor([1.5, -0.7, 3.0])[:, None, None]
    masked = truth.where(valid, torch.nan)
    unseen = found.where(valid, torch.full_like(found, 99.0))
    assert torch.allclose(
        pointmap_loss(found + shift, truth, valid), pointmap_loss(unseen, masked, valid)
    )
    assert pointmap_loss(truth + shift, masked, valid) < 1e-12
    for name, values in depth_errors(found + shift, truth, valid).items():
        same = depth_errors(unseen, masked, valid)[name]
        assert torch.allclose(values[:2], same[:2])
        assert values[2].isnan()


def test_loss_of_a_step() -> None:
    """One column of five is off by 1: a fifth of the cells, two of the four steps across, none of those down."""
    truth = torch.zeros(1, 4, 5)
    found = truth.clone()
    found[..., 2] = 1
    valid = torch.ones(1, 4, 5, dtype=torch.bool)
    assert pointmap_loss(found, truth, valid, edges=0.0) == pytest.approx(1 / 5)
    steps = 4 * 2 / (4 * 4 + 3 * 5)
    assert pointmap_loss(found, truth, valid, edges=0.5, scales=1) == pytest.approx(
        1 / 5 + 0.5 * steps
    )
    # At half the resolution columns 0, 2, 4 and rows 0, 2 are left: two steps a row.
    coarse = 2 * 2 / (2 * 2 + 3)
    assert pointmap_loss(found, truth, valid, edges=0.5, scales=2) == pytest.approx(
        1 / 5 + 0.25 * steps + 0.25 * coarse
    )


def test_loss_has_a_gradient_even_of_nothing() -> None:
    found, truth, valid = maps()
    for seen in (valid, torch.zeros_like(valid)):
        guess = found.clone().requires_grad_()
        pointmap_loss(guess, truth.where(seen, torch.nan), seen).backward()
        assert guess.grad is not None
        assert guess.grad.isfinite().all()
        assert (guess.grad != 0).any() == seen.any()


def test_errors_of_a_known_map() -> None:
    """A quarter of the pixels twice as deep: AbsRel 1/4, delta 3/4; a tenth deeper is close enough."""
    truth = torch.zeros(1, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    found = truth.clone()
    found[0, 0] = math.log(2)
    errors = depth_errors(found, truth, valid)
    assert errors["abs_rel"].item() == pytest.approx(0.25)
    assert errors["delta"].item() == pytest.approx(0.75)
    found[0, 0] = math.log(1.1)
    assert depth_errors(found, truth, valid)["delta"].item() == 1
    assert without_scale(found, truth, valid)[0, 1:].abs().max() == 0


def test_confidence_is_right_where_it_says_the_mean_error() -> None:
    """Laplace's law: the cost is least at k = -log mean |r - median r|, and its value there is 1 - k."""
    generator = torch.Generator().manual_seed(0)
    truth, valid = torch.zeros(1, 9, 9).double(), torch.ones(1, 9, 9, dtype=torch.bool)
    valid[0, 0] = False
    found = torch.randn(1, 9, 9, generator=generator, dtype=torch.float64)
    error = without_scale(found, truth, valid)[valid].abs().mean()
    best = -error.log()

    def cost(k: Tensor) -> Tensor:
        return confidence_loss(found, k * torch.ones_like(found), truth, valid)

    assert cost(best).item() == pytest.approx(1 - best.item())
    assert cost(best + 0.1) > cost(best)
    assert cost(best - 0.1) > cost(best)
    # What is not valid costs nothing, whatever is claimed of it.
    nothing = confidence_loss(found, 50 * torch.ones_like(found), truth, ~valid & valid)
    assert nothing.item() == 0


def test_pointmap_spans_the_frame() -> None:
    torch.manual_seed(0)
    mapper = Pointmapper(load_encoder("tiny"), make_head("dpt", 128, 4).eval())
    frames = torch.rand(2, 3, 50, 70)
    intrinsics = torch.tensor([60.0, 60.0, 35.0, 25.0])
    points = mapper.pointmap(frames, intrinsics)
    assert points.shape == (2, 50, 70, 3)
    assert torch.allclose(points[..., 0], points[..., 2] * ((torch.arange(70) + 0.5 - 35) / 60))
    middle = points[..., 2].flatten(1).median(1).values
    assert torch.allclose(middle, torch.ones(2), atol=0.05)
