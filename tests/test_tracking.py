"""Query points and Lucas-Kanade tracks on clips whose motion is known exactly; reading and writing tracks."""

import pickle

import numpy as np
import pytest
import torch
from videos import centres, waves, write_video

from diffusion4d.clip import Clip, read_clip
from diffusion4d.errors import UserError
from diffusion4d.queries import check_queries
from diffusion4d.tracking import Tracks, query_points, track_lk

H, W = 96, 128


def clip_of(greys: list[np.ndarray]) -> Clip:
    frames = np.rint(np.stack(greys)).astype(np.uint8)
    return read_clip(np.repeat(frames[..., None], 3, axis=-1), max_frames=None)


def shifting(shifts: np.ndarray, seed: int = 0) -> Clip:
    """A texture that has moved by shifts[t] px in frame t."""
    x, y = centres(H, W)
    value = waves(seed)
    return clip_of([value(x - dx, y - dy) for dx, dy in shifts])


def square(centre: tuple[float, float], half: float = 20) -> np.ndarray:
    x, y = centres(H, W)
    return (abs(x - centre[0]) <= half) & (abs(y - centre[1]) <= half)


def inner_grid(margin: float, count: int = 7) -> torch.Tensor:
    x, y = np.meshgrid(
        np.linspace(margin, W - margin, count), np.linspace(margin, H - margin, count)
    )
    return torch.tensor(np.stack([x, y], -1).reshape(-1, 2), dtype=torch.float32)


def test_subpixel_translation():
    shifts = np.stack([0.7 * np.arange(12), 4 * np.sin(np.arange(12) / 3)], -1)
    queries = inner_grid(16)
    tracks = track_lk(shifting(shifts), queries)
    truth = queries + torch.tensor(shifts, dtype=torch.float32)[:, None]
    assert tracks.tracks.shape == (12, 49, 2)
    assert tracks.size == (H, W)
    assert tracks.intrinsics is None
    error = (tracks.tracks - truth).norm(dim=-1)
    assert error.median() < 0.05
    assert error.max() < 0.3
    assert (tracks.visibility > 0.7).all()
    assert (tracks.visibility <= 1).all()
    assert torch.equal(tracks.tracks[0], queries)


def test_pixel_centres_are_at_one_half():
    # Zooming about the corner of the image, p -> s p, tells the conventions apart: with centres
    # taken for integers every point would be off by (s - 1) / 2 = 0.15 px in x and y.
    x, y = centres(H, W)
    value = waves(0)
    clip = clip_of([value(x / s, y / s) for s in np.linspace(1, 1.3, 16)])
    columns, rows = np.meshgrid(np.linspace(12, 90, 12), np.linspace(12, 66, 10))
    queries = torch.tensor(np.stack([columns, rows], -1).reshape(-1, 2), dtype=torch.float32)
    tracks = track_lk(clip, queries)
    assert (tracks.visibility[-1] > 0).all()
    assert (tracks.tracks[-1] - 1.3 * queries).mean(0).abs().max() < 0.05


def test_query_points_are_pixel_centres():
    points = query_points(moving_square(0.0), 60)
    assert torch.equal(points % 1, torch.full((60, 2), 0.5))


def occluded(num_frames: int = 24) -> tuple[Clip, list[np.ndarray]]:
    """A still texture, and a square of 32 px of another one that passes over it to the right, 6 px a frame."""
    x, y = centres(H, W)
    behind, front = waves(2), waves(3)
    greys, covers = [], []
    for t in range(num_frames):
        cx = -20 + 6.0 * t
        covers.append(square((cx, 48), half=16))
        greys.append(np.where(covers[-1], front(x - cx, y), behind(x, y)))
    return clip_of(greys), covers


def test_an_occluder_hides_points_and_gives_them_back():
    clip, covers = occluded(30)
    queries = inner_grid(14, 11)
    tracks = track_lk(clip, queries)
    x, y = queries.long().T.numpy()
    covered = np.stack([c[y, x] for c in covers])
    # Deep under the square: the whole patch is covered.
    deep = np.stack([square((-20 + 6.0 * t, 48), half=10)[y, x] for t in range(30)])
    seen = tracks.visibility.numpy()
    ever = covered.any(0)
    # Windows and patches reach 8 px.
    far = abs(y - 48) > 16 + 9
    assert deep.any(0).sum() >= 14
    assert seen[deep].mean() < 0.05
    assert seen[:, far].min() > 0.5
    # At the end the square has left on the right, and nearly every point is found where it was.
    assert covered[-1].sum() == 0
    back = seen[-1, ever] > 0
    assert back.mean() > 0.8
    error = (tracks.tracks[-1] - queries).norm(dim=-1).numpy()
    assert np.median(error[seen[-1] > 0]) < 0.05
    assert error[seen[-1] > 0].max() < 1


def test_a_slow_occluder_does_not_carry_points_along():
    # At 1 px a frame each pair of frames matches, there and back: without memory every point would ride along.
    x, y = centres(H, W)
    behind, front = waves(2), waves(3)
    edges = np.arange(60) - 4.0
    clip = clip_of([np.where(x < e, front(x - e, y), behind(x, y)) for e in edges])
    queries = inner_grid(14, 9)
    seen = track_lk(clip, queries).visibility.numpy() > 0
    covered = queries[:, 0].numpy() < edges[:, None] - 8
    free = queries[:, 0].numpy() > edges[:, None] + 8
    assert covered.sum() > 500
    assert seen[covered].mean() < 0.2
    assert seen[free].mean() > 0.99


def test_hidden_points_hold_their_last_position():
    clip, _ = occluded()
    tracks = track_lk(clip, inner_grid(14))
    hidden = tracks.visibility[1:] == 0
    held = (tracks.tracks[1:] == tracks.tracks[:-1]).all(-1)
    assert hidden.any()
    assert held[hidden].all()


@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0, 4.0])
def test_points_on_nothing_are_not_seen(noise):
    # In a flat part there is only noise to follow, and the way back follows the same noise.
    x, y = centres(H, W)
    rng = np.random.default_rng(0)
    still = np.where(x < 64, 100, waves(1)(x, y))
    clip = clip_of(
        [np.clip(still + noise * rng.standard_normal((H, W)), 0, 255) for _ in range(12)]
    )
    flat = [[20.0, 30.0], [30.0, 50.0], [40.0, 70.0], [15.0, 15.0], [45.0, 20.0]]
    good = query_points(clip, 5, mask=torch.from_numpy(x > 80))
    seen = track_lk(clip, torch.cat([torch.tensor(flat), good])).visibility[-1]
    assert (seen[:5] == 0).all()
    assert (seen[5:] > 0).all()


def test_points_that_leave_the_image():
    shifts = np.stack([4.0 * np.arange(16), np.zeros(16)], -1)
    queries = inner_grid(10)
    tracks = track_lk(shifting(shifts), queries)
    truth = queries + torch.tensor(shifts, dtype=torch.float32)[:, None]
    gone = truth[..., 0] > W
    assert gone.any()
    assert (tracks.visibility[gone] == 0).all()
    assert (tracks.tracks >= 0).all()
    assert (tracks.tracks <= torch.tensor([W, H])).all()
    well_inside = truth[..., 0] < W - 12
    assert (tracks.visibility[well_inside] > 0.5).float().mean() > 0.95


def test_frames_are_what_counts_not_how_many_points():
    clip, _ = occluded()
    queries = inner_grid(14)
    assert torch.equal(track_lk(clip, queries).tracks, track_lk(clip, queries).tracks)
    alone = track_lk(clip, queries[:1])
    assert alone.tracks.shape == (24, 1, 2)


def moving_square(pan: float, num_frames: int = 20) -> Clip:
    """A square of 40 px that moves up by 1 px a frame, before a background that moves sideways by `pan`."""
    x, y = centres(H, W)
    behind, front = waves(4), waves(5)
    greys = []
    for t in range(num_frames):
        cover = square((90, 66 - 1.0 * t))
        greys.append(np.where(cover, front(x, y + t), behind(x - pan * t, y)))
    return clip_of(greys)


@pytest.mark.parametrize("pan", [0.0, 0.8])
@pytest.mark.parametrize("num_points", [64, 128])
def test_half_of_a_mixture_is_on_what_moves(pan, num_points):
    points = query_points(moving_square(pan), num_points)
    assert points.shape == (num_points, 2)
    # The square and half a window around it, where its edge is what a point follows: 17 % of the image.
    on = square((90, 66), half=24)[points[:, 1].long(), points[:, 0].long()]
    assert 0.4 <= on.mean() <= 0.6


def test_a_mixture_is_spread_out():
    points = query_points(moving_square(0.8), 40)
    off = ~square((90, 66), half=28)[points[:, 1].long(), points[:, 0].long()]
    others = points[torch.from_numpy(off)]
    between = torch.cdist(others, others).fill_diagonal_(torch.inf).min(0).values
    # On a square lattice 20 points over what is left would be 23 px apart.
    assert between.median() > 9
    assert torch.cdist(points, points).fill_diagonal_(torch.inf).min() >= 3


def test_a_mixture_depends_on_its_seed_alone():
    clip = moving_square(0.0)
    assert torch.equal(query_points(clip, 32, seed=5), query_points(clip, 32, seed=5))
    assert not torch.equal(query_points(clip, 32, seed=5), query_points(clip, 32, seed=6))


@pytest.mark.parametrize("num_points", [1, 2, 3, 100, 700])
def test_exactly_as_many_points_as_asked_for(num_points):
    clip = shifting(np.zeros((2, 2)))
    for method in ("mixture", "grid"):
        points = query_points(clip, num_points, method=method)
        assert points.shape == (num_points, 2)
        assert len(points.unique(dim=0)) == num_points
        check_queries(points, clip.size)


def test_a_still_video_has_still_tracks():
    clip = shifting(np.zeros((6, 2)))
    points = query_points(clip, 50)
    tracks = track_lk(clip, points)
    assert (tracks.tracks - points).abs().max() < 0.01
    assert tracks.visibility.min() > 0.99


def test_grid_is_regular():
    points = query_points(shifting(np.zeros((2, 2))), 48, method="grid")
    x, y = points.reshape(6, 8, 2).unbind(-1)
    torch.testing.assert_close(x, ((torch.arange(8) + 0.5) * 16).expand(6, 8))
    torch.testing.assert_close(y, ((torch.arange(6) + 0.5) * 16)[:, None].expand(6, 8))


@pytest.mark.parametrize("method", ["mixture", "grid"])
@pytest.mark.parametrize("num_points", [5, 64])
def test_points_stay_inside_a_mask(method, num_points):
    clip = moving_square(0.0)
    mask = torch.from_numpy(square((40, 40), half=12) | square((90, 66), half=5))
    points = query_points(clip, num_points, method=method, mask=mask)
    assert points.shape == (num_points, 2)
    assert mask[points[:, 1].long(), points[:, 0].long()].all()


def test_a_mask_may_be_of_the_source_size():
    x, y = centres(4 * H, 4 * W)
    grey = np.rint(waves(6)(x / 4, y / 4)).astype(np.uint8)
    clip = read_clip(np.repeat(np.stack([grey] * 2)[..., None], 3, -1), max_size=H)
    assert clip.size == (H, W)
    mask = torch.zeros(4 * H, 4 * W, dtype=torch.bool)
    mask[200:300, 100:200] = True
    points = query_points(clip, 20, mask=mask)
    assert (points >= torch.tensor([25, 50])).all()
    assert (points <= torch.tensor([50, 75])).all()


def test_a_mask_without_texture_still_gets_points():
    x, y = centres(H, W)
    clip = clip_of([np.where(x < 64, waves(7)(x, y), 90.0)] * 2)
    mask = torch.from_numpy(square((100, 50)))
    points = query_points(clip, 30, mask=mask)
    assert mask[points[:, 1].long(), points[:, 0].long()].all()


def test_texture_in_a_corner_is_enough_or_said_not_to_be():
    x, y = centres(H, W)
    clip = clip_of([np.where(square((30, 30)), waves(8)(x, y), 90.0)] * 2)
    points = query_points(clip, 100)
    assert torch.from_numpy(square((30, 30), half=25))[
        points[:, 1].long(), points[:, 0].long()
    ].all()
    with pytest.raises(UserError, match=r"need texture for 5000 query points, got \d+ places"):
        query_points(clip, 5000)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_nothing_to_track(tmp_path, level):
    frames = np.full((4, 64, 80, 3), level, np.uint8)
    clips = [read_clip(frames), read_clip(write_video(tmp_path / "flat.mp4", frames))]
    for clip in clips:
        with pytest.raises(UserError, match="need texture to track in the first frame, got none"):
            query_points(clip, 8)
        with pytest.raises(UserError, match="need texture to track in the first frame, got none"):
            track_lk(clip, torch.full((8, 2), 20.0))


def test_an_edge_is_no_corner():
    x, _ = centres(H, W)
    with pytest.raises(UserError, match="need texture to track"):
        query_points(clip_of([np.where(x < 60, 20.0, 200.0)] * 2), 8)


def test_bad_requests():
    clip = shifting(np.zeros((2, 2)))
    with pytest.raises(UserError, match="need at least 1 query point, got num_points=0"):
        query_points(clip, 0)
    with pytest.raises(
        UserError, match="need 20000 different pixels for the points, got a region of 12288"
    ):
        query_points(clip, 20000)
    with pytest.raises(UserError, match=r"need a mask of the clip's \[96, 128\].* got \[128, 96\]"):
        query_points(clip, 8, mask=torch.ones(W, H, dtype=torch.bool))
    with pytest.raises(UserError, match="need a mask with something inside"):
        query_points(clip, 8, mask=torch.zeros(H, W, dtype=torch.bool))
    for bad in ([-1.0, 5.0], [5.0, H + 1.0], [float("nan"), 5.0]):
        with pytest.raises(
            UserError, match=r"need query points within \[0, 128\] x \[0, 96\] px, got .* at 1"
        ):
            track_lk(clip, torch.tensor([[5.0, 5.0], bad]))
    with pytest.raises(UserError, match="need at least 1 query point, got 0"):
        track_lk(clip, torch.zeros(0, 2))


def some_tracks(T: int = 4, N: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 60, (T, N, 2)).astype(np.float32), rng.uniform(0.1, 1, (T, N)).astype(
        np.float32
    )


@pytest.mark.parametrize("intrinsics", [None, (50.0, 51.0, 32.0, 31.5)])
def test_tracks_round_trip(tmp_path, intrinsics):
    xy, seen = some_tracks()
    tracks = Tracks.from_arrays(xy, seen, size=(60, 64), intrinsics=intrinsics)
    tracks.save(tmp_path / "tracks")
    again = Tracks.load(tmp_path / "tracks")
    assert torch.equal(again.tracks, torch.from_numpy(xy))
    assert torch.equal(again.visibility, torch.from_numpy(seen))
    assert again.size == (60, 64)
    assert (again.intrinsics is None) == (intrinsics is None)
    if intrinsics is not None:
        assert again.intrinsics.tolist() == list(intrinsics)
    assert [p.name for p in tmp_path.iterdir()] == ["tracks"]


def test_cotracker_layout(tmp_path):
    xy, seen = some_tracks()
    np.savez(tmp_path / "a.npz", tracks=xy[None].astype(np.float64), visibility=(seen > 0.5)[None])
    tracks = Tracks.load(tmp_path / "a.npz", size=(64, 64))
    assert torch.equal(tracks.tracks, torch.from_numpy(xy))
    assert torch.equal(tracks.visibility, torch.from_numpy((seen > 0.5).astype(np.float32)))
    np.savez(tmp_path / "b.npz", tracks=xy[None], visibility=seen[None, ..., None], size=[64, 64])
    assert torch.equal(Tracks.load(tmp_path / "b.npz").visibility, torch.from_numpy(seen))
    lists = Tracks.from_arrays(xy.tolist(), torch.from_numpy(seen), size=np.array([64, 64]))
    assert torch.equal(lists.tracks, torch.from_numpy(xy))


def test_hidden_positions_may_be_missing():
    xy, seen = some_tracks(5, 2)
    seen[0, 0] = seen[2:4, 1] = 0
    whole = xy.copy()
    xy[0, 0] = np.nan
    xy[2:4, 1] = np.inf
    whole[0, 0] = xy[1, 0]
    whole[2:4, 1] = xy[1, 1]
    assert torch.equal(Tracks.from_arrays(xy, seen, size=(64, 64)).tracks, torch.from_numpy(whole))


def test_resized():
    xy, seen = some_tracks()
    tracks = Tracks.from_arrays(xy, seen, size=(60, 80), intrinsics=(50.0, 51.0, 40.0, 30.0))
    half = tracks.resized((30, 160))
    torch.testing.assert_close(half.tracks, torch.from_numpy(xy) * torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(half.intrinsics, torch.tensor([100.0, 25.5, 80.0, 15.0]))
    assert half.size == (30, 160)


def test_tracks_survive_a_change_of_image_size():
    # The image spans [0, W] at every size: points found at one size are at scaled places in another.
    x, y = centres(2 * H, 2 * W)
    value = waves(9)
    frames = [value((x - 2 * t) / 2, y / 2) for t in range(6)]
    array = np.repeat(np.rint(np.stack(frames)).astype(np.uint8)[..., None], 3, -1)
    large, small = read_clip(array, max_size=2 * H), read_clip(array, max_size=H)
    queries = inner_grid(20)
    a = track_lk(small, queries)
    b = track_lk(large, 2 * queries).resized((H, W))
    assert (a.tracks - b.tracks).norm(dim=-1).median() < 0.05
    assert ((a.tracks - b.tracks).mean((0, 1))).abs().max() < 0.05


def wrong(**changes):
    xy, seen = some_tracks()
    return {"tracks": xy, "visibility": seen, "size": (64, 64)} | changes


NAN_XY, _ = some_tracks()
NAN_XY[1, 2, 0] = np.nan
LOST_XY = np.full((4, 3, 2), np.nan)
LOST_XY[:, :2] = 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (wrong(tracks=np.zeros((4, 3, 3))), r"need tracks of shape \[T, N, 2\], got \[4, 3, 3\]"),
        (
            wrong(tracks=np.zeros((2, 4, 3, 2))),
            r"need tracks of shape \[T, N, 2\], got \[2, 4, 3, 2\]",
        ),
        (
            wrong(visibility=np.ones((3, 4))),
            r"need visibility of shape \[T, N\] = \[4, 3\], got \[3, 4\]",
        ),
        (
            wrong(tracks=np.zeros((1, 3, 2)), visibility=np.ones((1, 3))),
            "at least 2 frames .* got 1 frames",
        ),
        (
            wrong(tracks=np.zeros((4, 0, 2)), visibility=np.ones((4, 0))),
            "1 point, got 4 frames, 0 points",
        ),
        (
            wrong(visibility=np.full((4, 3), 1.5)),
            r"need visibility in \[0, 1\], got 1.5 at frame 0, point 0",
        ),
        (wrong(visibility=np.full((4, 3), np.nan)), r"need visibility in \[0, 1\], got nan"),
        (
            wrong(tracks=NAN_XY),
            r"need finite tracks where visibility is above 0, got .* at frame 1, point 2",
        ),
        (
            wrong(tracks=LOST_XY, visibility=np.array([[1, 1, 0]] * 4)),
            "position for every point .* point 2",
        ),
        (wrong(tracks=np.full((4, 3, 2), 500.0)), r"need tracks in px of the 64 x 64 image"),
        (wrong(tracks=np.full((4, 3, 2), "a")), "need tracks as numbers"),
        (wrong(tracks=[[1, 2], [3]]), "need tracks as one array"),
        (wrong(size=(64, 64, 3)), "need a size of two whole numbers"),
        (wrong(size=(0, 64)), "need a size of two whole numbers"),
        (wrong(size=np.array([np.nan, 64])), "need a size of two whole numbers"),
        (wrong(intrinsics=(0.0, 50.0, 32.0, 32.0)), "need intrinsics .* with fx, fy > 0"),
        (wrong(intrinsics=np.eye(3)), "need intrinsics"),
        (wrong(intrinsics=(50.0, 50.0, np.nan, 32.0)), "need intrinsics"),
    ],
)
def test_bad_tracks(arrays, message):
    with pytest.raises(UserError, match=message):
        Tracks.from_arrays(**arrays)


def test_bad_files(tmp_path):
    xy, seen = some_tracks()
    with pytest.raises(UserError, match="found nothing at"):
        Tracks.load(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("this is no archive")
    with pytest.raises(UserError, match="need a readable"):
        Tracks.load(tmp_path / "text.npz")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(UserError, match="need a readable"):
        Tracks.load(tmp_path / "empty.npz")
    with pytest.raises(UserError, match="need a readable"):
        Tracks.load(tmp_path)
    np.save(tmp_path / "one.npy", xy)
    with pytest.raises(UserError, match="got a single array"):
        Tracks.load(tmp_path / "one.npy")
    np.savez(tmp_path / "keys.npz", trajectories=xy, visibility=seen)
    with pytest.raises(
        UserError, match=r"need the keys tracks and visibility .* got \['trajectories', 'vis"
    ):
        Tracks.load(tmp_path / "keys.npz")
    np.savez(tmp_path / "size.npz", tracks=xy, visibility=seen)
    with pytest.raises(UserError, match=r"need the size \(H, W\)"):
        Tracks.load(tmp_path / "size.npz")
    whole = (tmp_path / "size.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="need a readable"):
        Tracks.load(tmp_path / "cut.npz")
    torn = bytearray(whole)
    torn[150] ^= 255
    (tmp_path / "torn.npz").write_bytes(bytes(torn))
    with pytest.raises(UserError, match="need a readable"):
        Tracks.load(tmp_path / "torn.npz", size=(64, 64))


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_nothing_is_unpickled(tmp_path):
    _, seen = some_tracks()
    np.savez(
        tmp_path / "trap.npz", tracks=np.array([Trap()], object), visibility=seen, size=[64, 64]
    )
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.npz", "bare.npz"):
        with pytest.raises(UserError, match="need a readable"):
            Tracks.load(tmp_path / name)
    assert not Trap.sprung
