"""overlay.mp4: as many frames as the clip, on its clock, with the marks where they belong."""

import dataclasses

import av
import numpy as np
import pytest
import torch
from fans import SIZE, fan

from diffusion4d.clip import Clip
from diffusion4d.export.overlay import frames, write_overlay
from diffusion4d.export.palette import colours
from diffusion4d.hypotheses import Hypotheses

SECONDS = np.linspace(3, 3.55, 12)


def _clip(hyp: Hypotheses, grey: int = 100) -> Clip:
    frames = torch.full((hyp.num_frames, 3, *hyp.size), grey, dtype=torch.uint8)
    return Clip(frames, hyp.times, torch.from_numpy(SECONDS), hyp.size, "grey")


def _read(path) -> tuple[list[np.ndarray], list[float], av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        images = [frame.to_ndarray(format="rgb24") for frame in decoded]
        return images, [float(frame.time) for frame in decoded], stream


def _still(pixel: tuple[float, float], *, seen: bool, num_hypotheses: int = 1) -> Hypotheses:
    """One point that stays at a pixel, at depth 1."""
    hyp = fan(num_hypotheses, 1)
    x, y = pixel
    place = torch.tensor([(x - 98) / 180, (y - 66) / 175, 1.0])
    return dataclasses.replace(
        hyp,
        control_points=place.expand_as(hyp.control_points).clone(),
        tracks=torch.tensor(pixel).expand_as(hyp.tracks).clone(),
        visibility=torch.full_like(hyp.visibility, float(seen)),
    )


def test_reads_back_with_every_frame_at_its_time(tmp_path):
    hyp = fan()
    # A clip of variable rate keeps its own clock.
    seconds = SECONDS + 0.2 * (np.arange(12) > 6)
    done: list[tuple[int, int]] = []
    path = write_overlay(
        hyp,
        tmp_path / "overlay.mp4",
        seconds=seconds,
        clip=_clip(hyp),
        progress=lambda *now: done.append(now),
    )
    images, times, stream = _read(path)
    assert len(images) == 12
    np.testing.assert_allclose(times, seconds - seconds[0], atol=1e-3)
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    height, width = images[0].shape[:2]
    # 128 px is enlarged four times; the legend stands below.
    assert width == 4 * SIZE[1]
    assert 4 * SIZE[0] < height < 4 * SIZE[0] + 60
    assert height % 2 == 0
    assert done == [(i, 12) for i in range(1, 13)]


@pytest.mark.parametrize("size", [(301, 173), (601, 333), (97, 64)])
def test_odd_sides_become_even(tmp_path, size):
    hyp = dataclasses.replace(fan(2, 2, 8), size=size)
    path = write_overlay(hyp, tmp_path / "overlay.mp4", seconds=np.arange(8) / 24)
    images, _, _ = _read(path)
    assert len(images) == 8
    assert all(side % 2 == 0 for side in images[0].shape[:2])


def test_one_frame_is_a_video_too(tmp_path):
    hyp = fan()
    hyp = dataclasses.replace(
        hyp,
        times=hyp.times[:1],
        tracks=hyp.tracks[:1],
        visibility=hyp.visibility[:1],
        extrinsics=hyp.extrinsics[:1],
    )
    images, _, _ = _read(write_overlay(hyp, tmp_path / "a.mp4", seconds=np.zeros(1)))
    assert len(images) == 1


def test_a_seen_point_is_a_white_dot_centred_on_its_pixel():
    hyp = _still((60.25, 40.75), seen=True)
    image = list(frames(hyp, _clip(hyp, 0), SECONDS))[-1][: 4 * SIZE[0]].astype(float)
    white = (image.min(-1) > 150).astype(float)
    rows, columns = np.nonzero(white)
    # Pixel centres are at +0.5, in the enlarged image too.
    assert columns.mean() + 0.5 == pytest.approx(4 * 60.25, abs=0.3)
    assert rows.mean() + 0.5 == pytest.approx(4 * 40.75, abs=0.3)
    assert white[round(4 * 40.75), round(4 * 60.25)] == 1


def test_a_hidden_point_is_a_hollow_ring_around_its_hypothesis():
    hyp = _still((60.25, 40.75), seen=False)
    image = list(frames(hyp, _clip(hyp, 0), SECONDS))[-1][: 4 * SIZE[0]]
    ring = image.min(-1) > 150
    assert ring.any()
    assert not ring[4 * 40, 4 * 60]
    rows, columns = np.nonzero(ring)
    distance = np.hypot(columns + 0.5 - 4 * 60.25, rows + 0.5 - 4 * 40.75)
    assert distance.min() > 2.5
    # Its middle has the colour of the hypothesis.
    centre = image[round(4 * 40.75 - 0.5), round(4 * 60.25 - 0.5)].astype(float)
    np.testing.assert_allclose(centre, 255 * colours(hyp)[0], atol=40)


def test_trails_fade_and_end():
    # Two points, one of which stops moving: its trail is gone when the clip ends.
    hyp = fan(1, 1, 60, 7)
    ctrl = hyp.control_points.clone()
    ctrl[..., 0] = torch.tensor([-0.3, -0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
    ctrl[..., 1], ctrl[..., 2] = 0.0, 1.0
    hyp = dataclasses.replace(
        hyp,
        control_points=ctrl,
        tracks=torch.full_like(hyp.tracks, 20.0),
        visibility=torch.zeros_like(hyp.visibility),
    )
    light = [
        image[:500, : 4 * 100].astype(float).sum()
        for image in frames(hyp, None, np.arange(60) / 30)
    ]
    empty = 500 * 400 * (22 + 25 + 33)
    assert light[15] > empty + 10_000
    assert light[-1] == empty


def test_the_video_is_below_and_darker():
    hyp = _still((60.0, 40.0), seen=True)
    image = next(frames(hyp, _clip(hyp, 100), SECONDS))
    assert image[400, 700].tolist() == [70, 70, 70]


def test_numbers_that_cannot_be_drawn_are_left_out(tmp_path):
    hyp = fan(2)
    ctrl = hyp.control_points.clone()
    ctrl[0, 0, :, 2] = -1.0
    ctrl[1, 1, :, 2] = 1e-9
    tracks = hyp.tracks.masked_fill(~hyp.seen[..., None], torch.nan)
    hyp = dataclasses.replace(hyp, control_points=ctrl, tracks=tracks)
    images, _, _ = _read(write_overlay(hyp, tmp_path / "a.mp4", seconds=SECONDS))
    assert len(images) == 12


def test_refuses_another_clip_and_leaves_nothing(tmp_path):
    hyp = fan()
    other = dataclasses.replace(hyp, size=(100, 100))
    with pytest.raises(ValueError, match=r"12 frames .* \(128, 200\), got 12 of \(100, 100\)"):
        write_overlay(hyp, tmp_path / "overlay.mp4", seconds=SECONDS, clip=_clip(other))
    assert list(tmp_path.iterdir()) == []
