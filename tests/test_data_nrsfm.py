"""Benchmarks of non-rigid structure from motion: readers on files in the three layouts, errors with known values."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.stats
import torch

from diffusion4d import nonrigid
from diffusion4d.data import nrsfm
from diffusion4d.errors import UserError

T, N = 6, 9


@pytest.fixture
def shape() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(T, N, 3))


def rows(points: np.ndarray) -> np.ndarray:
    """[T, N, D] as [T D, N], the coordinates of a frame below each other."""
    return points.swapaxes(1, 2).reshape(-1, points.shape[1])


def test_akhter(tmp_path: Path, shape: np.ndarray) -> None:
    """W = Rs S, y up; the camera sees its own x and −y, and looks along the third axis of a right-handed frame."""
    turns = scipy.stats.special_ortho_group.rvs(3, size=T, random_state=np.random.default_rng(1))
    camera = np.einsum("tij,tnj->tni", turns, shape)
    sigma = 0.31
    scipy.io.savemat(
        tmp_path / "pickup.mat",
        {
            "W": rows(camera[..., :2]),
            "S": rows(shape),
            "Rs": turns[:, :2].reshape(-1, 3),
            "Shat": rows(shape) / sigma,
            "scale": 1 / sigma,
        },
    )
    sequence = nrsfm.read_sequence(tmp_path / "pickup.mat")
    assert sequence.name == "pickup"
    assert sequence.orthographic
    assert sequence.rotations is not None
    np.testing.assert_allclose(np.linalg.det(sequence.rotations), 1, atol=1e-12)
    np.testing.assert_allclose(sequence.tracks, camera[..., :2] * [1, -1], atol=1e-6)
    np.testing.assert_allclose(sequence.truth, camera * [1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(sequence.published["PTA"], sequence.truth, atol=1e-6)
    world = torch.from_numpy(sequence.rotations).float()
    np.testing.assert_allclose(torch.from_numpy(sequence.truth) @ world, shape, atol=1e-5)


def test_torresani(tmp_path: Path, shape: np.ndarray) -> None:
    """All x rows, then all y, then all z."""
    stacked = np.concatenate([shape[..., 0], shape[..., 1], shape[..., 2]])
    scipy.io.savemat(tmp_path / "face.mat", {"P3_gt": stacked})
    sequence = nrsfm.read_sequence(tmp_path / "face.mat")
    np.testing.assert_allclose(sequence.truth, shape * [1, -1, -1], atol=1e-6)
    np.testing.assert_array_equal(sequence.tracks, sequence.truth[..., :2])
    assert sequence.published == {}


def records(name: str, frames: np.ndarray) -> np.ndarray:
    """A MATLAB structure array of one field."""
    array = np.empty((1, len(frames)), dtype=[(name, object)])
    for i, frame in enumerate(frames):
        array[0, i][name] = frame
    return array


def write_totem(folder: Path, points: np.ndarray, factor: float) -> np.ndarray:
    """Returns K. The stored method's depths are the true ones times a factor of the frame."""
    K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    homogeneous = np.einsum("ij,tnj->tin", K, points / points[..., 2:])
    scipy.io.savemat(
        folder / "data_paper.mat",
        {
            "p": records("p", homogeneous),
            "Pgth": records("P", points.swapaxes(1, 2)),
            "v": np.ones((T, N)),
        },
    )
    depth = np.empty((1, T), dtype=object)
    for t in range(T):
        depth[0, t] = points[t : t + 1, :, 2] * factor ** (t + 1)
    scipy.io.savemat(
        folder / "paper_Initialisation.mat",
        {"initialisations": {"MDH_SOCP": {"K": K, "initialDepth": depth}}},
    )
    return K


def test_totem(tmp_path: Path, shape: np.ndarray) -> None:
    points = 100 * shape + [0, 0, 600]
    K = write_totem(tmp_path, points, 1.3)
    (name,) = nrsfm.find_sequences(tmp_path)
    sequence = nrsfm.read_sequence(nrsfm.find_sequences(tmp_path)[name])
    assert sequence.name == name == "paper"
    assert sequence.intrinsics == (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    np.testing.assert_allclose(sequence.truth, points, rtol=1e-6)
    pixels = points[..., :2] / points[..., 2:] * [500, 510] + [320, 240]
    np.testing.assert_allclose(sequence.tracks, pixels, rtol=1e-5)
    # Right up to a scale a frame.
    truth, stored = torch.from_numpy(sequence.truth), torch.from_numpy(sequence.published["MDH"])
    assert nonrigid.e_scale(stored, truth) < 1e-3
    assert (stored - truth).abs().max() > 100


def test_files_that_are_something_else_are_refused(tmp_path: Path, shape: np.ndarray) -> None:
    with pytest.raises(UserError, match="found none"):
        nrsfm.find_sequences(tmp_path)
    with pytest.raises(UserError, match="no file"):
        nrsfm.read_sequence(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_text("not a matrix, but long enough to have a header" * 10)
    with pytest.raises(UserError, match="not a readable MATLAB file"):
        nrsfm.read_sequence(tmp_path / "text.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"A": np.eye(3)})
    with pytest.raises(UserError, match="need W, S, Rs or P3_gt"):
        nrsfm.read_sequence(tmp_path / "other.mat")
    short = {"W": rows(shape[..., :2]), "S": rows(shape)[:-1], "Rs": np.zeros((2 * T, 3))}
    scipy.io.savemat(tmp_path / "short.mat", short)
    with pytest.raises(UserError, match="need S of shape"):
        nrsfm.read_sequence(tmp_path / "short.mat")
    write_totem(tmp_path, 100 * shape + [0, 0, 600], 1.0)
    (tmp_path / "paper_Initialisation.mat").unlink()
    with pytest.raises(UserError, match="no file"):
        nrsfm.read_sequence(tmp_path / "data_paper.mat")


@pytest.fixture
def truth(shape: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(shape * [1.0, 2.0, 0.5])


@pytest.fixture
def turn() -> torch.Tensor:
    return torch.from_numpy(
        scipy.stats.special_ortho_group.rvs(3, random_state=np.random.default_rng(2))
    )


def test_e_3d_forgives_one_turn_one_reflection_and_translations(
    truth: torch.Tensor, turn: torch.Tensor
) -> None:
    shifts = torch.arange(T)[:, None, None] * torch.tensor([1.0, -2.0, 3.0])
    assert nonrigid.e_3d(truth @ turn + shifts, truth) < 1e-12
    assert nonrigid.e_3d(truth * torch.tensor([1.0, 1.0, -1.0]), truth) < 1e-12
    # But not a reversal of half the sequence, which a turn a frame would not mend either.
    half = truth.clone()
    half[T // 2 :, :, 2] *= -1
    assert nonrigid.e_3d(half, truth) > 0.1
    assert nonrigid.e_f(half, truth) > 0.1


def test_e_3d_counts_scale_in_units_of_sigma(truth: torch.Tensor, turn: torch.Tensor) -> None:
    """Twice too large: every point is off by its distance from the centre."""
    centred = truth - truth.mean(1, keepdim=True)
    sigma = truth.numpy().std(1).mean()
    expected = centred.norm(dim=-1).mean().item() / sigma
    assert nonrigid.e_3d(2 * truth @ turn, truth) == pytest.approx(expected)
    assert nonrigid.e_f(2 * truth @ turn, truth) == pytest.approx(1)


def test_e_3d_of_a_flat_answer(truth: torch.Tensor) -> None:
    """With depth that x and y tell nothing of, the flat lift misses the depth, and nothing else."""
    x, y, z = (truth - truth.mean(1, keepdim=True)).unbind(-1)
    plane = torch.stack([x.flatten(), y.flatten()], 1)
    z = (z.flatten() - plane @ torch.linalg.lstsq(plane, z.flatten()).solution).view(T, N)
    whole = torch.stack([x, y, z], -1)
    flat = torch.stack([x, y, torch.zeros_like(z)], -1)
    sigma = whole.numpy().std(1).mean()
    assert nonrigid.e_3d(flat, whole) == pytest.approx(z.abs().mean().item() / sigma)


def test_e_f_forgives_a_turn_a_frame(truth: torch.Tensor) -> None:
    turns = scipy.stats.special_ortho_group.rvs(3, size=T, random_state=np.random.default_rng(3))
    turned = truth @ torch.from_numpy(turns)
    assert nonrigid.e_f(turned, truth) < 1e-12
    assert nonrigid.e_f(turned * torch.tensor([-1.0, 1.0, 1.0]), truth) < 1e-12
    assert nonrigid.e_3d(turned, truth) > 0.1


def test_e_scale_forgives_a_scale_a_frame_about_the_camera(truth: torch.Tensor) -> None:
    truth = truth + torch.tensor([0.0, 0.0, 20.0])
    scales = torch.linspace(0.5, 3, T)[:, None, None]
    assert nonrigid.e_scale(scales * truth, truth) < 1e-12
    # Off at right angles to the truth: no scale helps, and the distance is what was added.
    off = torch.cross(truth, torch.tensor([1.0, 0.0, 0.0]).expand_as(truth).double(), dim=-1)
    off = 0.1 * off / off.norm(dim=-1, keepdim=True)
    scale = (truth * (truth + off)).sum((1, 2)) / (truth + off).square().sum((1, 2))
    assert torch.allclose(scale, torch.ones_like(scale), atol=1e-4)
    assert nonrigid.e_scale(truth + off, truth) == pytest.approx(0.1, rel=1e-3)


MIRROR = torch.tensor([1.0, 1.0, -1.0]).double()


def test_samples_and_their_reversals_have_one_mean(truth: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    sign = torch.tensor([1.0, 1, -1, 1, -1, -1, 1, 1, -1])
    noise = 0.3 * torch.randn(9, T, N, 3, generator=generator, dtype=torch.float64)
    samples = (truth + noise) * torch.where(sign[:, None] < 0, MIRROR, 1.0)[:, None, None]
    assert torch.equal(nonrigid.upright(samples), (truth + noise))
    assert torch.equal(nonrigid.upright(samples * MIRROR), (truth + noise) * MIRROR)


def test_signs_are_the_best_of_all(truth: torch.Tensor) -> None:
    """Against enumeration, on samples that have hardly anything in common."""
    generator = torch.Generator().manual_seed(1)
    samples = 0.3 * truth + torch.randn(7, T, N, 3, generator=generator, dtype=torch.float64)
    depth = nonrigid.centred(samples)[..., 2].flatten(1)
    every = torch.tensor(list(itertools.product((1.0, -1.0), repeat=7)), dtype=torch.float64)
    best = (every @ depth).norm(dim=-1).max()
    found = nonrigid.centred(nonrigid.upright(samples))[..., 2].flatten(1).sum(0).norm()
    assert found == pytest.approx(best.item())
    # What has one sign already keeps it.
    alike = truth + 0.1 * samples
    assert torch.equal(nonrigid.upright(alike), alike)


def test_the_readme_says_what_the_results_say() -> None:
    folder = Path(__file__).parent.parent / "experiments" / "nrsfm"
    spec = importlib.util.spec_from_file_location("nrsfm_report", folder / "report.py")
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    results = json.loads((folder / "results.json").read_text())
    readme = (folder / "README.md").read_text()
    assert report.table(results) in readme
    assert report.verdict(results) in readme
