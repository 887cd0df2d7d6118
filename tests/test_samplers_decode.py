"""Decoding in blocks: scipy's splines, numpy's order statistics, closed forms, and the plain twin in float64."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from diffusion4d.splines.basis import basis_matrix, knot_vector
from samplers.kernels import decode, decode_blocked, decode_reference
from samplers.kernels.view import View

LEVELS = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.95, 1.0], dtype=torch.float64)
SHAPES = [(1, 3, 4, 5), (2, 1, 5, 16), (33, 7, 12, 48), (5, 40, 40, 200)]


def case(K: int, N: int, M: int, T: int, *, world: bool = False) -> tuple[Tensor, Tensor, View]:
    """K hypotheses before the camera, and a view in which 30 % is not seen and lost tracks are NaN."""
    rng = torch.Generator().manual_seed(K + N + M + T)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    ctrl = 0.1 * normal(K, N, M, 3) + torch.tensor([0.0, 0.0, 3.0]) + 0.2 * normal(N, M, 3)
    basis = basis_matrix(torch.linspace(0, 1, T, dtype=torch.float64), M).float()
    angle, zero, one = 0.1 * normal(T), torch.zeros(T), torch.ones(T)
    turn = [[angle.cos(), zero, angle.sin()], [zero, one, zero], [-angle.sin(), zero, angle.cos()]]
    rows = [torch.stack([*row, 0.1 * normal(T)], -1) for row in turn]
    seen = torch.rand(N, T, generator=rng) > 0.3
    tracks = 256 * torch.rand(N, T, 2, generator=rng)
    tracks[0, 0], seen[0, 0] = torch.nan, False
    intrinsics = torch.tensor([200.0, 210.0, 128.0, 120.0])
    return ctrl, basis, View(tracks, seen, intrinsics, torch.stack(rows, 1) if world else None)


def agree(name: str, backend: str, ctrl: Tensor, basis: Tensor, *rest: Tensor | View) -> None:
    """err(fused) ≤ 2 err(plain) + 1e-7 of the largest number, both against the plain twin in float64."""
    plain: Callable = getattr(decode_reference, name)
    precise = [r.to(torch.float64) if isinstance(r, View) else r for r in rest]
    truth = _tuple(plain(ctrl.double(), basis.double(), *precise))
    twin = _tuple(plain(ctrl, basis, *rest))
    found = _tuple(getattr(decode, name)(ctrl, basis, *rest, backend=backend))
    for exact, expected, value in zip(truth, twin, found, strict=True):
        assert value.dtype == expected.dtype
        assert value.shape == expected.shape
        assert torch.equal(value.isnan(), exact.isnan())
        assert torch.equal(value.isinf(), exact.isinf())
        errors = [
            (v.double() - exact).nan_to_num(0, 0, 0).abs().max().item() for v in (value, expected)
        ]
        size = exact.nan_to_num(0, 0, 0).abs().max().clamp_min(1).item()
        assert errors[0] <= 2 * errors[1] + 1e-7 * size, (name, errors)


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_match_the_plain_twin(shape: tuple[int, int, int, int]) -> None:
    ctrl, basis, view = case(*shape)
    agree("positions", "blocked", ctrl, basis)
    agree("moments", "blocked", ctrl, basis)
    agree("covariance", "blocked", ctrl, basis)
    agree("quantiles", "blocked", ctrl, basis, LEVELS)
    ranks = torch.tensor([0, int(view.seen.sum()) * shape[0] // 2, -1])
    ranks[-1] = int(view.seen.sum()) * shape[0] - 1
    for world in (False, True):
        ctrl, basis, view = case(*shape, world=world)
        agree("reprojection", "blocked", ctrl, basis, view)
        agree("median_reprojection", "blocked", ctrl, basis, view)
        agree("ranked_reprojection", "blocked", ctrl, basis, view, ranks)


def test_small_blocks_change_nothing_but_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one point and one hypothesis, too, put every number where it belongs."""
    monkeypatch.setattr(decode_blocked, "CACHE", 1)
    monkeypatch.setattr(decode_blocked, "ERRORS", 1)
    test_blocks_match_the_plain_twin((33, 7, 12, 48))


@pytest.mark.parametrize("batch", [(), (2,), (1, 2), (0,)])
def test_positions_are_scipys(batch: tuple[int, ...]) -> None:
    ctrl = torch.randn(
        *batch, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    u = torch.linspace(0, 1, 50, dtype=torch.float64)
    found = decode.positions(ctrl, basis_matrix(u, 9))
    assert found.shape == (*batch, 50, 2)
    if 0 not in batch:
        oracle = BSpline(knot_vector(9).numpy(), np.moveaxis(ctrl.numpy(), -2, 0), 3)
        np.testing.assert_allclose(np.moveaxis(found.numpy(), -2, 0), oracle(u.numpy()), atol=1e-14)


def test_any_basis_will_do() -> None:
    """Rows of zeros, rows without zeros, and supports that jump about."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.randn(70, 11, generator=rng)
    basis[20:40, 3:] = 0
    basis[40:] *= torch.rand(30, 11, generator=rng) > 0.8
    basis[5] = 0
    ctrl = torch.randn(6, 3, 11, 2, generator=rng)
    agree("positions", "blocked", ctrl, basis)
    agree("moments", "blocked", ctrl, basis)
    agree("quantiles", "blocked", ctrl, basis, LEVELS)


def test_spread_of_scaled_copies_in_closed_form() -> None:
    """c^k = s_k c: the mean is mean(s) X, the deviation std(s) |X|, the covariance var(s) X Xᵀ."""
    ctrl, basis, _ = case(1, 5, 12, 48)
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0])
    copies = scale[:, None, None, None] * ctrl
    X = decode_reference.positions(ctrl.double(), basis.double())[0]
    mean, spread = decode.moments(copies, basis)
    torch.testing.assert_close(mean.double(), scale.mean().double() * X, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spread.double(), scale.std() * X.abs(), rtol=1e-6, atol=1e-6)
    _, square = decode.covariance(copies, basis)
    outer = X[..., None] * X[..., None, :]
    torch.testing.assert_close(square, scale.double().var() * outer, rtol=1e-10, atol=1e-10)


def test_a_small_spread_far_away_is_not_lost() -> None:
    """Deviations of 1e-4 a hundred units off: a sum of squares less the square of the sum would give noise."""
    ctrl, basis, _ = case(33, 4, 12, 48)
    far = (1e-3 * (ctrl - ctrl.mean(0)) + 100).float()
    truth = decode_reference.moments(far.double(), basis.double())[1]
    assert (decode.moments(far, basis)[1] - truth).abs().max() < 1e-9
    assert truth.mean() > 1e-5


def test_quantiles_are_numpys_and_one_hypothesis_is_its_own() -> None:
    ctrl, basis, _ = case(33, 4, 12, 48)
    X = decode_reference.positions(ctrl, basis).numpy()
    expected = np.quantile(X.astype(np.float64), LEVELS.numpy(), axis=0)
    np.testing.assert_allclose(decode.quantiles(ctrl, basis, LEVELS).numpy(), expected, atol=2e-6)
    alone = decode.quantiles(ctrl[:1], basis, LEVELS)
    torch.testing.assert_close(alone, torch.from_numpy(X[:1]).expand(6, -1, -1, -1))


def test_medians_and_ranks_count_what_was_seen_and_what_is_behind() -> None:
    ctrl, basis, view = case(4, 6, 12, 48)
    ctrl[1] = -ctrl[1]
    error_KS = decode_reference.reprojection(ctrl, basis, view)[:, view.seen]
    median = decode.median_reprojection(ctrl, basis, view)
    assert median[1].isinf()
    torch.testing.assert_close(median, error_KS.median(1).values)
    count = error_KS.numel()
    ranks = torch.tensor([count - 1, 0, count // 3, 3 * count // 4])
    found = decode.ranked_reprojection(ctrl, basis, view, ranks)
    assert found[0].isinf()
    torch.testing.assert_close(found, error_KS.flatten().sort().values[ranks])
    nothing = View(view.tracks, torch.zeros_like(view.seen), view.intrinsics)
    assert decode.median_reprojection(ctrl, basis, nothing).isnan().all()
    with pytest.raises(ValueError, match="need ranks within"):
        decode.ranked_reprojection(ctrl, basis, nothing, torch.tensor([0]))


def test_strips_leave_out_only_zeros() -> None:
    basis = basis_matrix(torch.linspace(0, 1, 100, dtype=torch.float64), 30)
    cut = decode_blocked.strips(basis)
    kept = torch.zeros_like(basis)
    for strip in cut:
        kept[strip.frames, strip.ctrl] = basis[strip.frames, strip.ctrl]
    assert torch.equal(kept, basis)
    assert max(s.ctrl.stop - s.ctrl.start for s in cut) <= 9
    assert sum(s.num_frames for s in cut) == 100


@pytest.mark.parametrize("name", ["moments", "quantiles", "median_reprojection"])
def test_memory_does_not_grow_with_hypotheses_times_frames(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch does not say what it held on a CPU, so every tensor made is looked at: none is a tenth of [K, N, T, 3]."""
    K, N, M, T = 256, 8, 12, 400
    ctrl, basis, view = case(K, N, M, T)
    monkeypatch.setattr(decode_blocked, "ERRORS", 1 << 16)
    monkeypatch.setattr(decode_blocked, "CACHE", 1 << 16)
    rest = {"moments": (), "quantiles": (LEVELS,), "median_reprojection": (view,)}[name]
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    with Watch():
        getattr(decode, name)(ctrl, basis, *rest)
    assert 0 < largest < K * N * T * 3 * 4 / 10


def test_what_does_not_fit_is_refused_in_order() -> None:
    ctrl, basis, view = case(2, 3, 12, 9)
    # Users have no type checker at run time; these tests do, so it is stepped round.
    positions = inspect.unwrap(decode.positions)
    with pytest.raises(ValueError, match="need a backend of"):
        positions(ctrl, basis, backend="fast")
    with pytest.raises(ValueError, match="as many columns of the basis as control points"):
        positions(ctrl[:, :, :9], basis.double())
    with pytest.raises(
        ValueError, match=r"float32 or float64, got torch\.float32 and torch\.float64"
    ):
        decode.moments(ctrl, basis.double())
    with pytest.raises(ValueError, match=r"need a view of \[N, T\] = \[3, 9\]"):
        decode.reprojection(ctrl, basis, case(2, 4, 12, 9)[2])
    with pytest.raises(ValueError, match=r"need the view in torch\.float32"):
        decode.reprojection(ctrl, basis, view.to(torch.float64))
    with pytest.raises(ValueError, match="one device, got"):
        decode.positions(ctrl, basis.to("meta"))
    with pytest.raises(ValueError, match="kernels have none"):
        decode.moments(ctrl.requires_grad_(), basis)
    with torch.no_grad():
        decode.moments(ctrl, basis)
    with pytest.raises(ValueError, match=r"need levels within \[0, 1\]"):
        decode.quantiles(ctrl.detach(), basis, torch.tensor([1.5], dtype=torch.float64))


def test_a_view_that_does_not_fit_is_refused() -> None:
    _, _, view = case(2, 3, 12, 9)
    check = inspect.unwrap(View.__post_init__)
    fields = {"tracks": view.tracks, "seen": view.seen, "intrinsics": view.intrinsics}
    with pytest.raises(ValueError, match=r"need tracks \[N, T, 2\] and seen \[N, T\], got"):
        check(SimpleNamespace(**fields | {"seen": view.seen[:2]}, cameras=None))
    with pytest.raises(ValueError, match="need one camera a frame, got 4 for 9 frames"):
        check(SimpleNamespace(**fields, cameras=torch.zeros(4, 3, 4)))


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl, basis, _ = case(2, 3, 12, 9)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install"):
        decode.moments(ctrl, basis, backend="triton")
