"""Reading clips: every pixel and every time where the file says it is, and errors that say what arrived."""

import io
import os
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from videos import counting, quadrants, write_video

from diffusion4d.clip import Clip, key_frames, read_clip
from diffusion4d.errors import UserError


def levels(clip: Clip) -> list[int]:
    """Which frames of `videos.counting` a clip holds."""
    return [round((grey - 16) / 4) for grey in clip.frames.double().mean((1, 2, 3)).tolist()]


def write_folder(folder: Path, frames: np.ndarray, pattern: str = "frame{}.png") -> Path:
    folder.mkdir()
    for index, pixels in enumerate(frames):
        Image.fromarray(pixels).save(folder / pattern.format(index))
    return folder


def test_video_is_read_in_full(tmp_path):
    clip = read_clip(write_video(tmp_path / "count.mp4", counting(20)))
    assert levels(clip) == list(range(20))
    assert (clip.T, clip.size, clip.source_size, clip.name) == (20, (48, 64), (48, 64), "count")
    assert clip.frames.dtype == torch.uint8
    assert clip.frames.is_contiguous()
    torch.testing.assert_close(clip.seconds, torch.arange(20, dtype=torch.float64) / 10)
    torch.testing.assert_close(clip.u, torch.linspace(0, 1, 20, dtype=torch.float64))


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("start", [0.0, 0.5, 3.1, 3.149, 7.6])
def test_range_is_the_same_with_and_without_seeking(tmp_path, codec, start):
    # From 1 s on the reader seeks; with B-frames and key frames 12 apart the frame must still be the one asked for.
    path = write_video(tmp_path / "long.mp4", counting(58), rate=7, codec=codec)
    clip = read_clip(path, start=start, end=start + 0.5)
    shown = [i for i in range(58) if start <= (i * 1000 // 7) / 1000 < start + 0.5]
    assert levels(clip) == shown
    torch.testing.assert_close(
        clip.seconds, torch.tensor([i * 1000 // 7 / 1000 for i in shown], dtype=torch.float64)
    )


def test_stride_and_max_frames(tmp_path):
    path = write_video(tmp_path / "count.mp4", counting(20))
    assert levels(read_clip(path, stride=3)) == [0, 3, 6, 9, 12, 15, 18]
    assert levels(read_clip(path, stride=3, max_frames=4)) == [0, 3, 6, 9]
    assert read_clip(path, stride=3, max_frames=4).goes_on
    assert not read_clip(path, max_frames=None).goes_on
    assert levels(read_clip(path, start=0.5, stride=5, max_frames=None)) == [5, 10, 15]
    torch.testing.assert_close(
        read_clip(path, start=0.5, stride=5).u, torch.tensor([0, 0.5, 1], dtype=torch.float64)
    )


def test_variable_rate_keeps_its_own_clock(tmp_path):
    times = [0, 40, 80, 400, 440, 1000]
    for name in ("vfr.mp4", "vfr.mkv", "vfr.mov"):
        clip = read_clip(write_video(tmp_path / name, counting(6), times=times, rate=25))
        expected = torch.tensor(times, dtype=torch.float64) / 1000
        torch.testing.assert_close(clip.seconds, expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(clip.u, expected, atol=1e-3, rtol=0)
        assert levels(clip) == list(range(6))


def test_times_start_at_the_first_frame(tmp_path):
    # A transport stream starts its clock somewhere; the user's 0 s is the first frame.
    path = write_video(tmp_path / "stream.ts", counting(30), codec="mpeg4", rate=10)
    assert read_clip(path).seconds[0] == 0
    assert levels(read_clip(path, start=1.5, max_frames=3)) == [15, 16, 17]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_rotation_and_mirroring_are_applied(tmp_path, degrees, mirror):
    pixels = quadrants(48, 80)
    path = write_video(tmp_path / "r.mp4", np.stack([pixels] * 3), rotation=(degrees, *mirror))
    shown = np.rot90(pixels, degrees // 90)
    shown = shown[:, ::-1] if mirror[0] else shown
    shown = shown[::-1] if mirror[1] else shown
    clip = read_clip(path)
    assert clip.source_size == clip.size == shown.shape[:2]
    error = np.abs(clip.frames[0].permute(1, 2, 0).numpy().astype(int) - shown)
    assert np.median(error) < 12
    # Shrunk and turned is turned and shrunk.
    small = read_clip(path, max_size=24)
    assert small.size == (shown.shape[0] // 2, shown.shape[1] // 2)
    assert small.source_size == shown.shape[:2]
    middle = small.frames[0, :, small.size[0] // 4, small.size[1] // 4].numpy().astype(int)
    assert np.abs(middle - shown[shown.shape[0] // 4, shown.shape[1] // 4]).max() < 12


def test_pixels_that_are_not_square(tmp_path):
    frames = np.stack([quadrants(48, 64)] * 3)
    wide = read_clip(write_video(tmp_path / "w.mp4", frames, pixel_aspect=Fraction(2, 1)))
    assert (wide.size, wide.source_size) == ((24, 64), (48, 64))
    tall = read_clip(write_video(tmp_path / "t.mp4", frames, pixel_aspect=Fraction(1, 2)))
    assert (tall.size, tall.source_size) == ((48, 32), (48, 64))


def test_odd_sizes(tmp_path):
    # FFV1 in RGB is lossless, so every pixel of the odd frame can be compared.
    frames = np.random.default_rng(0).integers(0, 256, (3, 37, 51, 3), dtype=np.uint8)
    path = write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    clip = read_clip(path)
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), frames)
    assert read_clip(path, max_size=20).size == (20, 28)


def test_gif(tmp_path):
    pixels = counting(4, 31, 43)
    images = [Image.fromarray(p) for p in pixels]
    delays = [100, 100, 300, 500]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=delays)
    clip = read_clip(tmp_path / "a.gif")
    assert levels(clip) == [0, 1, 2, 3]
    assert clip.size == (31, 43)
    torch.testing.assert_close(clip.seconds, torch.tensor([0, 0.1, 0.2, 0.5], dtype=torch.float64))


def test_folder_in_natural_order(tmp_path):
    folder = write_folder(tmp_path / "shots", counting(12))
    (folder / "._frame3.png").write_bytes(b"a file system's own note, not an image")
    (folder / "notes.txt").write_text("not an image either")
    clip = read_clip(folder)
    assert levels(clip) == list(range(12))
    assert clip.name == "shots"
    assert levels(read_clip(str(folder), start=0.1, stride=4)) == [3, 7, 11]


def test_folder_images_of_other_kinds(tmp_path):
    # 16-bit grey is scaled, not clipped; EXIF orientation 6 is a quarter turn clockwise.
    deep = tmp_path / "deep"
    deep.mkdir()
    for index in range(2):
        level = np.full((20, 30), (40 + 60 * index) * 256, np.uint16)
        Image.fromarray(level).save(deep / f"{index}.png")
    assert read_clip(deep).frames.unique().tolist() == [40, 100]
    turned = tmp_path / "turned"
    turned.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(2):
        Image.fromarray(quadrants(32, 48)).save(turned / f"{index}.jpg", exif=exif, quality=95)
    frame = read_clip(turned).frames[0].permute(1, 2, 0).numpy().astype(int)
    assert np.median(np.abs(frame - np.rot90(quadrants(32, 48), -1))) < 12


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "float16"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("channels", ["first", "last"])
def test_arrays(kind, library, channels):
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 33, 3), dtype=np.uint8)
    array = frames if kind == "uint8" else (frames / 255).astype(kind)
    array = array.transpose(0, 3, 1, 2) if channels == "first" else array
    clip = read_clip(torch.from_numpy(array.copy()) if library == "torch" else array)
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), frames)
    torch.testing.assert_close(clip.seconds, torch.arange(5, dtype=torch.float64) / 30)


def test_shrinking_averages_over_areas():
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    clip = read_clip(frames, max_size=20)
    areas = frames.reshape(2, 20, 3, 30, 3, 3).mean((2, 4))
    assert clip.size == (20, 30)
    assert clip.source_size == (60, 90)
    assert np.abs(clip.frames.permute(0, 2, 3, 1).numpy() - areas).max() <= 0.5 + 1e-6
    # A scale that is no whole number: integrate the step function that the image is over each new pixel.
    row = read_clip(frames[:, :40, :40], max_size=17).frames.permute(0, 2, 3, 1).numpy()
    edges = np.linspace(0, 40, 18)
    overlap = np.clip(
        np.minimum(edges[1:, None], np.arange(1, 41)) - np.maximum(edges[:-1, None], np.arange(40)),
        0,
        None,
    ) / (40 / 17)
    exact = np.einsum("iy,jx,tyxc->tijc", overlap, overlap, frames[:, :40, :40])
    assert np.abs(row - exact).max() <= 1.01
    # Shorter side: portrait too; and nothing grows.
    assert read_clip(frames.swapaxes(1, 2), max_size=20).size == (30, 20)
    assert read_clip(frames, max_size=61).size == (60, 90)


def test_memory_is_bounded_by_the_shrunk_frames():
    # An array that takes no memory: one frame, seen 150 times.
    frames = np.broadcast_to(quadrants(720, 1280), (150, 720, 1280, 3))
    tracemalloc.start()
    clip = read_clip(frames, max_frames=None, max_size=32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.T == 150
    assert peak < 4 * clip.frames.numel() + 3 * 720 * 1280 * 3


def test_decoding_stops_with_the_last_wanted_frame(tmp_path):
    # The second half of the file is damaged; whoever does not ask for it does not notice.
    path = write_video(
        tmp_path / "a.mp4",
        np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8),
        options={"movflags": "faststart"},
    )
    os.truncate(path, int(path.stat().st_size * 0.6))
    assert read_clip(path, max_frames=10).T == 10
    assert read_clip(path, end=0.8).T == 8


# One frame short is beyond doubt only where the container counts its frames.
@pytest.mark.parametrize(
    ("name", "share"),
    [("a.mp4", 0.5), ("a.mp4", 0.8), ("a.mp4", 0.975), ("a.mkv", 0.5), ("a.mkv", 0.8)],
)
def test_truncated_video_is_refused(tmp_path, name, share):
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = write_video(tmp_path / name, frames, options=options)
    assert read_clip(path).T == 40
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(
        UserError, match=r"need (a whole|an intact) video, got .*reads the intact part"
    ):
        read_clip(path)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"found nothing at .*nowhere\.mp4"):
        read_clip(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    with pytest.raises(UserError, match=r"need a readable video, got .*text\.mp4"):
        read_clip(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match=r"empty file"):
        read_clip(tmp_path / "empty.mp4")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match=r"need a folder of images .* found none in .*hollow"):
        read_clip(tmp_path / "hollow")
    # Without its index, at the end of an ordinary mp4, nothing can be read.
    path = write_video(tmp_path / "cut.mp4", counting(20))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"need a readable video, got .*cut\.mp4"):
        read_clip(path)


def test_playlists_do_not_reach_out(tmp_path):
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(UserError, match="need a"):
        read_clip(tmp_path / "list.mp4")


def test_sound_without_pictures(tmp_path):
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    with pytest.raises(UserError, match="need a file with a video stream"):
        read_clip(tmp_path / "sound.wav")


def test_too_few_frames(tmp_path):
    one = write_video(tmp_path / "one.mp4", counting(1))
    with pytest.raises(UserError, match="need at least 2 frames, got 1 from one"):
        read_clip(one)
    Image.fromarray(quadrants(20, 20)).save(tmp_path / "still.png")
    with pytest.raises(UserError, match="need at least 2 frames, got 1 from still"):
        read_clip(tmp_path / "still.png")
    count = write_video(tmp_path / "count.mp4", counting(20))
    with pytest.raises(UserError, match=r"need at least 2 frames, got 1 .*one in 30"):
        read_clip(count, stride=30)
    for start in (1.95, 50.0):
        with pytest.raises(
            UserError, match=r"need a start within count, whose last frame is at 1\.90 s"
        ):
            read_clip(count, start=start)
    with pytest.raises(UserError, match="need at least 2 frames, got 1 from count"):
        read_clip(count, start=1.85)


def test_zero_frames(tmp_path):
    path = write_video(tmp_path / "none.mp4", counting(20)[:0])
    assert path.stat().st_size > 0
    with pytest.raises(UserError, match="need a file with a video stream"):
        read_clip(path)


def test_frames_of_two_sizes(tmp_path):
    folder = write_folder(tmp_path / "mixed", counting(3))
    Image.fromarray(counting(1, 50, 64)[0]).save(folder / "frame1.png")
    with pytest.raises(UserError, match=r"got 64x48 px and then 64x50 px in frame1\.png of mixed"):
        read_clip(folder)


def test_damaged_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    folder = write_folder(tmp_path / "torn", noise)
    whole = (folder / "frame1.png").read_bytes()
    (folder / "frame1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"need a readable image, got .*frame1\.png"):
        read_clip(folder)
    (folder / "frame1.png").write_text("text")
    with pytest.raises(UserError, match=r"need a readable image, got .*frame1\.png"):
        read_clip(folder)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((48, 64), np.int32)).save(buffer, "tiff")
    (folder / "frame1.png").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"need 8- or 16-bit images, got mode I"):
        read_clip(folder)


def test_bad_arrays():
    good = np.full((3, 20, 20, 3), 0.5)
    for shape in [(20, 20, 3), (3, 20, 20), (3, 20, 20, 4), (3, 1, 20, 20), (0, 3, 20, 20)]:
        with pytest.raises(
            UserError, match=r"need frames of shape \[T, 3, H, W\] or \[T, H, W, 3\]"
        ):
            read_clip(np.zeros(shape, np.uint8))
    for kind in (np.int64, np.uint16, bool, complex, object):
        with pytest.raises(UserError, match="need frames of type uint8, or floating"):
            read_clip(good.astype(kind))
    for value in (np.nan, np.inf, -1.0, 255.0):
        bad = good.copy()
        bad[1, 2, 3, 1] = value
        with pytest.raises(
            UserError, match=r"need floating frames within \[0, 1\], got .* in frame 1"
        ):
            read_clip(bad)
        with pytest.raises(
            UserError, match=r"need floating frames within \[0, 1\], got .* in frame 1"
        ):
            read_clip(torch.from_numpy(bad))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, "need a start of 0 s or later, got -1"),
        ({"start": float("nan")}, "need a start of 0 s or later, got nan"),
        ({"start": 1.0, "end": 1.0}, r"need an end after the start \(1.0 s\), got 1.0"),
        ({"end": float("nan")}, "need an end after the start"),
        ({"stride": 0}, "need a stride of at least 1, got 0"),
        ({"max_frames": 1}, "need at least 2 frames, got max_frames=1"),
        ({"max_size": 0}, "need a shorter side of at least 16 px, got max_size=0"),
    ],
)
def test_bad_ranges(arguments, message):
    with pytest.raises(UserError, match=message):
        read_clip(counting(5), **arguments)


def test_key_frames_are_spread_like_the_control_points() -> None:
    # A cubic with 6 control points has Greville abscissae 0, 1/9, 1/3, 2/3, 8/9, 1.
    assert key_frames(torch.linspace(0, 1, 10), 6).tolist() == [0, 1, 3, 6, 8, 9]
    # By the clip's own clock, not by the count of frames.
    bunched = torch.tensor([0.0, 0.1, 0.12, 0.34, 0.6, 0.9, 1.0])
    assert key_frames(bunched, 6).tolist() == [0, 2, 3, 4, 5, 6]
    assert key_frames(torch.linspace(0, 1, 2), 6).tolist() == [0, 1]
