"""Chains of windows: against enumeration of every chain, exact fades, and closed forms of the offset."""

import itertools

import pytest
import torch

from diffusion4d import windows


@pytest.mark.parametrize(
    ("num_frames", "length", "overlap"), [(7, 32, 16), (32, 32, 16), (33, 32, 16), (357, 32, 16), (100, 9, 8)]
)  # fmt: skip
def test_windows_cover_the_clip_and_overlap_enough(
    num_frames: int, length: int, overlap: int
) -> None:
    cuts = windows.cut(num_frames, length, overlap)
    assert cuts[0].start == 0
    assert cuts[-1].stop == num_frames
    assert all(len(frames) == min(length, num_frames) for frames in cuts)
    shared = [a.stop - b.start for a, b in itertools.pairwise(cuts)]
    assert all(s >= overlap for s in shared)
    # One fewer could not do it: each window adds at most length - overlap frames.
    assert length + (len(cuts) - 2) * (length - overlap) < num_frames or len(cuts) == 1


@pytest.mark.parametrize(("length", "overlap"), [(4, 4), (4, 0)])
def test_windows_that_do_not_go_on_are_refused(length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap < length"):
        windows.cut(10, length, overlap)
    with pytest.raises(ValueError, match="at least 1 frame"):
        windows.cut(0, 4, 2)


def test_disagreement_is_a_root_mean_square_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(3, 5, 4, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, 5, 4, 2, generator=generator, dtype=torch.float64)
    off = left[:, None] - right[None]
    found = windows.disagreement(left, right)
    assert torch.allclose(found, off.square().sum(-1).mean((-1, -2)).sqrt())
    weight = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    found = windows.disagreement(left, right, weight=weight)
    share = weight / weight.sum()
    assert torch.allclose(found, (off.square().sum(-1) * share).sum((-1, -2)).sqrt())
    # Up to an offset: the variance that is left, and nothing at all of a shifted copy.
    found = windows.disagreement(left, right, "offset", weight)
    mean = (off * share[..., None]).sum((2, 3), keepdim=True)
    assert torch.allclose(
        found, ((off - mean).square().sum(-1) * share).sum((-1, -2)).sqrt(), atol=1e-6
    )
    moved = left + torch.tensor([0.3, -2.0])
    assert windows.disagreement(left, moved, "offset", weight).diagonal().max() < 1e-6
    assert torch.allclose(
        windows.disagreement(left, moved).diagonal(), torch.tensor(4.09).double().sqrt()
    )


def test_an_overlap_in_which_nothing_was_seen_compares_nothing() -> None:
    left = torch.zeros(3, 5, 4, 2)
    with pytest.raises(ValueError, match="weight 0 throughout"):
        windows.disagreement(left, left, weight=torch.zeros(5, 4))


@pytest.fixture
def seams() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator) for shape in ((4, 3), (3, 5), (5, 2))]


def every_chain(seams: list[torch.Tensor]) -> dict[tuple[int, ...], float]:
    sizes = [seams[0].shape[0], *(seam.shape[1] for seam in seams)]
    return {
        ks: sum(seam[a, b].item() for seam, (a, b) in zip(seams, itertools.pairwise(ks), strict=True))
        for ks in itertools.product(*map(range, sizes))
    }  # fmt: skip


def test_the_likeliest_chain_is_the_best_of_all(seams: list[torch.Tensor]) -> None:
    costs = every_chain(seams)
    assert tuple(windows.likeliest(seams, 4).tolist()) == min(costs, key=lambda ks: costs[ks])
    assert windows.likeliest([], 6).shape == (1,)


def test_chains_are_drawn_with_their_probabilities(seams: list[torch.Tensor]) -> None:
    costs = every_chain(seams)
    odds = torch.tensor(list(costs.values()), dtype=torch.float64).div(-0.4).softmax(0)
    num = 40_000
    drawn = windows.draw(seams, 4, num, torch.Generator().manual_seed(0), temperature=0.4)
    names, counts = drawn.unique(dim=0, return_counts=True)
    found = dict(zip(map(tuple, names.tolist()), (counts / num).tolist(), strict=True))
    share = torch.tensor([found.get(ks, 0.0) for ks in costs], dtype=torch.float64)
    # Binomial: four standard deviations for each of the 120 chains.
    assert ((share - odds).abs() < 4 * (odds / num).sqrt()).all()


def test_one_window_gives_its_own_hypotheses_back() -> None:
    drawn = windows.draw([], 16, 16, torch.Generator().manual_seed(3))
    assert drawn.flatten().tolist() == list(range(16))
    with pytest.raises(ValueError, match="temperature above 0"):
        windows.draw([], 4, 4, torch.Generator(), temperature=0.0)


def test_chains_do_not_jump_between_modes() -> None:
    """Two answers, a shape and its reversal, sampled alternately: a chain keeps to one of them."""
    truth = torch.sin(torch.linspace(0, 6, 40)) * torch.linspace(-1, 1, 7)[:, None]
    cuts = windows.cut(40, 16, 8)
    sign = torch.tensor([1.0, -1.0]).repeat(4)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for frames in cuts:
        noise = 0.02 * torch.randn(8, 7, 1, 1, generator=generator)
        parts.append(sign[:, None, None, None] * truth[None, :, frames.start : frames.stop, None] + noise)  # fmt: skip
    seams = windows.seams_between(parts, cuts)
    chains = windows.draw(seams, 8, 64, generator)
    assert (sign[chains] == sign[chains[:, :1]]).all()
    assert (sign[chains[:, 0]] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    long = windows.chain(parts, cuts, chains)
    off = long[..., 0] - sign[chains[:, 0]][:, None, None] * truth
    assert off.abs().max() < 0.1


@pytest.mark.parametrize("length", [6, 10])
def test_windows_of_one_motion_give_it_back(length: int) -> None:
    """Whatever the overlap, up to three windows deep; and with the offsets that each window may have of its own."""
    generator = torch.Generator().manual_seed(0)
    long = torch.randn(3, 4, 23, 2, generator=generator, dtype=torch.float64)
    cuts = windows.cut(23, length, length - 2)
    parts = [long[:, :, frames.start : frames.stop] for frames in cuts]
    assert torch.allclose(windows.blend(parts, cuts), long)
    shifted = [part + i * torch.tensor([0.5, -1.0]) for i, part in enumerate(parts)]
    weight = torch.rand(4, 23, generator=generator, dtype=torch.float64)
    assert torch.allclose(windows.blend(shifted, cuts, "offset", weight), long)
    assert not torch.allclose(windows.blend(shifted, cuts), long)
    seams = windows.seams_between(shifted, cuts, "offset", weight)
    assert max(seam.diagonal().max() for seam in seams) < 1e-6
    assert windows.likeliest(seams, 3).unique().numel() == 1


def test_overlaps_fade_linearly() -> None:
    parts = [torch.zeros(1, 1, 5, 1), torch.ones(1, 1, 5, 1)]
    faded = windows.blend(parts, [range(5), range(2, 7)]).flatten()
    assert torch.allclose(faded, torch.tensor([0, 0, 0.25, 0.5, 0.75, 1, 1]))


def test_parts_that_do_not_fit_their_windows_are_refused() -> None:
    part = torch.zeros(2, 3, 5, 1)
    with pytest.raises(ValueError, match="parts of"):
        windows.blend([part, part], [range(5), range(3, 9)])
    with pytest.raises(ValueError, match="overlap and go on"):
        windows.blend([part, part], [range(5), range(5, 10)])
