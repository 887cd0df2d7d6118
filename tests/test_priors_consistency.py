"""What consistency energies refuse: pictures, pixels and weights that would give a number without a meaning."""

import pytest
import torch
from unchecked import unchecked

from priors import consistency, rigidity

SIZE = (40, 60)
N, F = 5, 3
IMAGES = torch.rand(F, 3, 40, 60, generator=torch.Generator().manual_seed(0))
PIXELS = 10 + 20 * torch.rand(2, N, F, 2, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.ones(N, F)
plain = unchecked(consistency)


@pytest.mark.parametrize("energy", [plain.photometric, plain.patch])
def test_pictures_are_floats_in_the_unit_range(energy) -> None:
    assert energy(IMAGES, PIXELS, WEIGHTS, SIZE).isfinite().all()
    for wrong, said in (
        ((255 * IMAGES).to(torch.uint8), r"got 0 to 25. of torch\.uint8"),
        (255 * IMAGES, r"got .* to 25.* of torch\.float32"),
        (IMAGES - 0.5, r"got -0\."),
        (IMAGES * torch.nan, "got nan to nan"),
    ):
        with pytest.raises(ValueError, match=r"need images as floats in \[0, 1\], " + said):
            energy(wrong, PIXELS, WEIGHTS, SIZE)
    with pytest.raises(ValueError, match=r"need images \[F, 3, h, w\], got \[3, 40, 60\]"):
        energy(IMAGES[0], PIXELS, WEIGHTS, SIZE)


@pytest.mark.parametrize("energy", [plain.photometric, plain.patch, plain.semantic])
def test_pixels_and_weights_are_numbers_that_fit(energy) -> None:
    gone = PIXELS.clone()
    gone[1, 2, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="need finite pixels, got 1 numbers that are not"):
        energy(IMAGES, gone, WEIGHTS, SIZE)
    with pytest.raises(ValueError, match=r"need pixels \[\*K, N, F, 2\], got \[5, 2\]"):
        energy(IMAGES, PIXELS[0, :, 0], WEIGHTS, SIZE)
    for wrong, said in (
        (-1.0, "got -1.0 to 1.0"),
        (torch.nan, "got nan"),
        (torch.inf, "got 1.0 to inf"),
    ):
        weights = WEIGHTS.clone()
        weights[0, 1] = wrong
        with pytest.raises(ValueError, match="need finite weights >= 0, " + said):
            energy(IMAGES, PIXELS, weights, SIZE)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"need maps \[F, C, h, w\] of the 3 pictures .*, got \[2,"
    ):
        plain.read(IMAGES[:2], PIXELS, SIZE)
    with pytest.raises(ValueError, match=r"need neighbours \[5, k\], got \[4, 2\]"):
        plain.affine_maps(PIXELS, torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="need neighbours among 5 points, got numbers 0 to 9"):
        plain.patch_pairs(IMAGES, PIXELS, SIZE, torch.tensor([[0], [1], [2], [3], [9]]))
    with pytest.raises(ValueError, match=r"need finite depths \[2, 5, 3\], got \[2, 5\]"):
        plain.own_visibility(PIXELS, torch.ones(2, N), 2.0)
    with pytest.raises(ValueError, match=r"need a visibility \[N, F\] .*\[2, 5, 3\], got \[3, 5\]"):
        plain.occlusion(torch.ones(2, N, F), WEIGHTS.T)
    with pytest.raises(ValueError, match=r"need visibility in \[0, 1\], got 5.0 to 5.0"):
        plain.occlusion(torch.ones(2, N, F), 5 * WEIGHTS)
    for wrong in (WEIGHTS.T, WEIGHTS[:, :2], WEIGHTS.expand(2, 2, N, F)):
        with pytest.raises(ValueError, match=r"need weights \[2, 5, 3\], got \["):
            plain.mean(torch.ones(2, N, F), wrong)


def test_the_neighbours_are_those_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """One search for both: what changes the graph changes the patches' neighbours."""
    places = PIXELS[0, :, 0]
    assert torch.equal(consistency.nearest(places, 2), rigidity.nearest(places, 2).index)
    other = rigidity.Neighbours(torch.full((N, 2), 3))
    monkeypatch.setattr(rigidity, "nearest", lambda places, k: other)
    assert torch.equal(consistency.nearest(places, 2), other.index)
