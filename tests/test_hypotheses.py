"""The answer: what it evaluates to, how it is ranked, and what it refuses to be."""

import dataclasses
import zipfile

import numpy as np
import pytest
import torch
from fans import INTRINSICS, SIZE, fan
from scipy.interpolate import BSpline as ScipyBSpline

from diffusion4d.errors import UserError
from diffusion4d.hypotheses import FILE_NAME, Hypotheses

KEYS = (
    *("control_points", "knots", "degree", "times", "query_points", "tracks", "visibility"),
    *("intrinsics", "size", "extrinsics", "seeds", "units", "frame"),
)


def test_evaluates_like_scipy_at_any_instant():
    hyp = fan()
    u = torch.tensor([0.0, 0.123456789, 0.5, 0.77, 1.0], dtype=torch.float64)
    oracle = ScipyBSpline(
        hyp.knots.numpy(), np.moveaxis(hyp.control_points.double().numpy(), 2, 0), hyp.degree
    )
    expected = np.moveaxis(oracle(u.numpy()), 0, 2)
    np.testing.assert_allclose(hyp.evaluate(u).numpy(), expected, atol=5e-7)
    np.testing.assert_array_equal(hyp.evaluate().numpy(), hyp.evaluate(hyp.times).numpy())
    np.testing.assert_array_equal(
        hyp.evaluate()[:, :, 0].numpy(), hyp.control_points[:, :, 0].numpy()
    )


def test_mean_and_spread_in_closed_form():
    # Without drift the hypotheses are scalings 1 + 0.1 (k − 1.5) of one scene at depth 1.
    hyp = fan(drift=0.0)
    scale = 1 + 0.1 * (torch.arange(4) - 1.5)
    unit_NT3 = hyp.evaluate()[0] / scale[0]
    assert torch.allclose(hyp.mean, unit_NT3, atol=1e-6)
    assert torch.allclose(hyp.spread, unit_NT3.abs() * scale.std(), atol=1e-6)
    assert torch.allclose(hyp.mean[..., 2], torch.ones(6, 12), atol=1e-6)


def test_quantiles_of_scalings_in_closed_form():
    # At depth scales 0.85, 0.95, 1.05, 1.15 the quartiles of depth are known, and the median is the mean.
    hyp = fan(drift=0.0)
    low, middle, high = hyp.quantiles([0.25, 0.5, 0.75])[..., 2]
    assert torch.allclose(low, torch.full((6, 12), 0.925), atol=1e-6)
    assert torch.allclose(middle, torch.ones(6, 12), atol=1e-6)
    assert torch.allclose(high, torch.full((6, 12), 1.075), atol=1e-6)
    with pytest.raises(ValueError, match="within"):
        hyp.quantiles([1.2])


def test_errors_at_ranks_are_those_of_all_that_was_seen():
    hyp = fan(error=torch.tensor([3.0, 0.5, 2.0, 1.0]))
    expected = hyp.reprojection()[:, hyp.seen.T].flatten().sort().values * 256 / 128
    ranks = [0, len(expected) // 2, len(expected) - 1]
    assert torch.allclose(hyp.errors_at(ranks), expected[ranks], atol=1e-4)
    with pytest.raises(ValueError, match="ranks within"):
        hyp.errors_at([len(expected)])


def test_one_hypothesis_has_no_spread():
    assert torch.equal(fan(1).spread, torch.zeros(6, 12, 3))


def test_reprojection_is_the_known_miss():
    miss = torch.tensor([3.0, 0.5, 2.0, 1.0])
    hyp = fan(drift=0.0, error=miss)
    error_KNT = hyp.reprojection()
    assert torch.allclose(error_KNT, miss[:, None, None].expand_as(error_KNT), atol=1e-3)
    assert torch.allclose(hyp.scores(), miss * 256 / 128, atol=2e-3)
    assert hyp.rank(hyp.scores()).tolist() == [1, 3, 2, 0]


def test_the_middle_one_of_a_fan_is_the_most_central():
    # Depths 0.8, 0.9, 1, 1.1, 1.2: the distance to the mean is |scale − 1| of a scene whose points are `unit` away.
    hyp = fan(5, drift=0.0)
    distance = hyp.evaluate()[2].norm(dim=-1).mean()
    expected = distance * torch.tensor([0.2, 0.1, 0.0, 0.1, 0.2])
    torch.testing.assert_close(hyp.off_centre(), expected, atol=1e-5, rtol=1e-4)
    order = hyp.rank().tolist()
    assert (order[0], set(order[1:3]), set(order[3:])) == (2, {1, 3}, {0, 4})
    assert hyp.best.seeds.tolist() == [12]
    assert torch.equal(hyp.best.control_points, hyp.control_points[2:3])
    assert hyp.select(hyp.rank()).rank()[0] == 0
    assert hyp.rank(torch.tensor([3.0, 1.0, torch.nan, 2.0, torch.inf])).tolist() == [1, 3, 0, 2, 4]


def test_scores_do_not_look_at_what_is_hidden():
    # The third hypothesis drifts by 40 px, all of it while hidden; the first misses by 0.1 px in sight.
    miss = torch.tensor([0.1, 0.2, 0.0, 0.3])
    seen_only = fan(drift=80.0, error=miss)
    assert seen_only.reprojection()[2].max() > 30
    assert seen_only.scores().argmin() == 2


def test_ties_and_nothing_seen_keep_the_order():
    hyp = fan(drift=0.0)
    unseen = dataclasses.replace(hyp, visibility=torch.zeros_like(hyp.visibility))
    assert unseen.scores().isnan().all()
    assert unseen.rank(unseen.scores()).tolist() == [0, 1, 2, 3]


def test_behind_the_camera_ranks_last_and_has_no_image():
    hyp = fan(2, drift=0.0)
    ctrl = hyp.control_points.clone()
    # The mirror image through the camera's centre projects to the very same pixels.
    ctrl[0] = -ctrl[0]
    hyp = dataclasses.replace(hyp, control_points=ctrl)
    assert hyp.project()[0].isnan().all()
    assert hyp.reprojection()[0].isinf().all()
    assert hyp.rank().tolist() == [1, 0]


def test_world_frame_is_seen_through_the_extrinsics():
    hyp = fan()
    angle = torch.linspace(0, 0.7, hyp.num_frames)
    extrinsics = torch.eye(4).repeat(hyp.num_frames, 1, 1)
    extrinsics[:, 0, 0] = extrinsics[:, 2, 2] = angle.cos()
    extrinsics[:, 0, 2], extrinsics[:, 2, 0] = angle.sin(), -angle.sin()
    extrinsics[:, :3, 3] = torch.stack([angle, 0 * angle, -0.2 * angle], -1)
    world = dataclasses.replace(hyp, extrinsics=extrinsics, frame="world")
    k, n, t = 1, 3, 7
    expected = extrinsics[t] @ torch.cat([hyp.evaluate()[k, n, t], torch.ones(1)])
    assert torch.allclose(world.camera_points()[k, n, t], expected[:3], atol=1e-6)
    x, y, z = expected[:3]
    pixel = torch.stack([180 * x / z + 98, 175 * y / z + 66])
    assert torch.allclose(world.project()[k, n, t], pixel, atol=1e-3)
    mean, square = world.camera_covariance(slice(2, 5))
    points = world.camera_points()[:, 2:5].double()
    assert torch.allclose(mean, points.mean(0), atol=1e-6)
    offset = points - points.mean(0)
    assert torch.allclose(square, torch.einsum("knti,kntj->ntij", offset, offset) / 3, atol=1e-6)
    # Camera-frame points are already there, whatever the camera does.
    camera = dataclasses.replace(world, frame="camera")
    assert torch.equal(camera.camera_points(), hyp.evaluate())


def test_saves_and_loads_the_same_value(tmp_path):
    hyp = dataclasses.replace(fan(), units="m", frame="world")
    path = hyp.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / FILE_NAME
    assert [p.name for p in path.parent.iterdir()] == [FILE_NAME]
    for source in (path, path.parent):
        back = Hypotheses.load(source)
        for field in dataclasses.fields(Hypotheses):
            old, new = getattr(hyp, field.name), getattr(back, field.name)
            if isinstance(old, torch.Tensor):
                assert new.dtype == old.dtype
                assert torch.equal(new, old), field.name
            else:
                assert new == old, field.name


def test_numpy_alone_opens_it(tmp_path):
    hyp = fan()
    with np.load(hyp.save(tmp_path), allow_pickle=False) as archive:
        assert tuple(archive.files) == KEYS
        assert archive["control_points"].shape == (4, 6, 7, 3)
        assert archive["control_points"].dtype == np.float32
        assert archive["size"].tolist() == list(SIZE)
        assert archive["intrinsics"].tolist() == INTRINSICS.tolist()
        assert archive["tracks"].shape == (12, 6, 2)
        assert archive["extrinsics"].shape == (12, 4, 4)
        assert (str(archive["units"]), str(archive["frame"])) == ("scene", "camera")
        assert (int(archive["degree"]), archive["seeds"].tolist()) == (3, [10, 11, 12, 13])


def _rewrite(path, **changes):
    with np.load(path) as archive:
        arrays = {k: archive[k] for k in archive.files} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"knots": None}, "missing \\['knots'\\]"),
        ({"control_points": np.zeros((4, 6, 7, 2), np.float32)}, "need control_points"),
        (
            {"control_points": np.full((4, 6, 7, 3), np.nan, np.float32)},
            "need finite control_points",
        ),
        ({"control_points": np.zeros((0, 6, 7, 3), np.float32)}, "at least 1"),
        ({"tracks": np.zeros((12, 5, 2), np.float32)}, "N = 6"),
        ({"tracks": np.full((12, 6, 2), np.nan, np.float32)}, "need finite tracks"),
        ({"visibility": np.full((12, 6), 1.5, np.float32)}, "within \\[0, 1\\]"),
        ({"times": np.linspace(1, 0, 12)}, "need times increasing"),
        ({"knots": np.linspace(0, 1, 11)}, "repeated exactly 4 times"),
        ({"knots": np.linspace(0, 1, 10)}, "need 11 knots"),
        ({"degree": np.asarray(7)}, "more control points"),
        ({"degree": np.asarray(3.5)}, "integers in degree"),
        ({"size": np.asarray([128])}, "size \\[2\\]"),
        ({"seeds": np.arange(3)}, "4 seeds"),
        ({"units": np.asarray("feet")}, "units to be one of"),
        ({"frame": np.asarray(3)}, "one string frame"),
        ({"intrinsics": np.asarray([0, 1, 2, 3], np.float32)}, "focal"),
        ({"extrinsics": np.asarray(["a"])}, "numbers in extrinsics"),
    ],
)
def test_load_says_what_does_not_fit(tmp_path, change, says):
    path = fan().save(tmp_path)
    _rewrite(path, **change)
    with pytest.raises(UserError, match=says) as caught:
        Hypotheses.load(path)
    assert str(path) in str(caught.value)


def test_load_never_unpickles(tmp_path):
    path = fan().save(tmp_path)
    _rewrite(path, units=np.asarray(["scene", None], object))
    with pytest.raises(UserError, match="no npz file of plain arrays"):
        Hypotheses.load(path)


def test_load_refuses_damaged_and_foreign_files(tmp_path):
    path = fan().save(tmp_path)
    whole = path.read_bytes()
    with pytest.raises(UserError, match="no hypotheses at"):
        Hypotheses.load(tmp_path / "elsewhere")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable"):
        Hypotheses.load(tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(UserError):
        Hypotheses.load(tmp_path)
    path.write_bytes(b"these are not the arrays you are looking for")
    with pytest.raises(UserError):
        Hypotheses.load(tmp_path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="not an npz"):
        Hypotheses.load(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("control_points.npy", b"no array")
    with pytest.raises(UserError):
        Hypotheses.load(tmp_path)


def test_lost_tracks_may_be_nan_where_hidden(tmp_path):
    hyp = fan()
    tracks = hyp.tracks.masked_fill(~hyp.seen[..., None], torch.nan)
    hyp = dataclasses.replace(hyp, tracks=tracks)
    back = Hypotheses.load(hyp.save(tmp_path))
    assert torch.equal(back.scores(), fan().scores())


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = fan().save(tmp_path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        fan(2).save(tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_clip_times_may_be_numpy_or_a_list() -> None:
    hyp = fan()
    u = [0.0, 0.3, 1.0]
    expected = hyp.evaluate(torch.tensor(u, dtype=torch.float64))
    assert torch.equal(hyp.evaluate(np.array(u)), expected)
    assert torch.equal(hyp.evaluate(u), expected)
