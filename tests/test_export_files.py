"""The five files come together or not at all; the picture holds what it says."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fans import SIZE, fan
from PIL import Image

from diffusion4d import export
from diffusion4d.clip import Clip
from diffusion4d.errors import UserError
from diffusion4d.export import FILES, require_writable, write_all
from diffusion4d.export.spread import spread_of
from diffusion4d.export.summary import DPI, summary, write_summary
from diffusion4d.export.views import illustrative_points
from diffusion4d.hypotheses import Hypotheses

SECONDS = np.linspace(0, 1, 12)


def _clip(hyp: Hypotheses, name: str = "clip.mp4") -> Clip:
    noise = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (hyp.num_frames, 3, *SIZE), generator=noise, dtype=torch.uint8)
    return Clip(frames, hyp.times, torch.linspace(0, 1.1, 12, dtype=torch.float64), SIZE, name)


def test_writes_the_five_files_and_nothing_else(tmp_path):
    hyp = fan()
    out = tmp_path / "new" / "out"
    done: list[tuple[int, int]] = []
    paths = write_all(
        hyp,
        out,
        _clip(hyp),
        assumptions={"model": "tiny"},
        timings={"sample": 2.0},
        progress=lambda *now: done.append(now),
    )
    assert paths == {name: out / name for name in FILES}
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    assert torch.equal(Hypotheses.load(out).control_points, hyp.control_points)
    told = json.loads((out / "summary.json").read_text())
    assert told["assumed"] == {"model": "tiny"}
    assert told["timings_s"]["sample"] == 2.0
    assert set(told["timings_s"]["export"]) == {"npz", "glb", "overlay", "summary"}
    assert told["hypotheses"]["seconds"] == 1.1
    counts = [now for now, _ in done]
    assert counts == sorted(set(counts))
    assert done[-1] == (16, 16)


def test_tracks_alone_last_as_long_as_30_frames_a_second_say(tmp_path, monkeypatch):
    monkeypatch.setattr(export.summary, "write_summary", _touch)
    write_all(fan(), tmp_path)
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["hypotheses"]["seconds"] == pytest.approx(11 / 30)


def _older(folder: Path) -> dict[str, bytes]:
    """A folder with an older run and the user's own file in it."""
    folder.mkdir(exist_ok=True)
    content = {name: f"older {name}".encode() for name in (*FILES, "notes.txt")}
    for name, text in content.items():
        (folder / name).write_bytes(text)
    return content


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
@pytest.mark.parametrize("stage", ["glb.write_glb", "overlay.write_overlay", "report.write_report"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, failure, raised, stage):
    before = _older(tmp_path / "old")
    module, name = stage.split(".")

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(getattr(export, module), name, fail)
    # The picture is the slow one, and its turn comes only before the report.
    monkeypatch.setattr(export.summary, "write_summary", lambda *args, **kwargs: None)
    for out in (tmp_path / "old", tmp_path / "new" / "deep"):
        with pytest.raises(raised) as caught:
            write_all(fan(2, 2), out)
        if raised is UserError:
            assert str(out) in str(caught.value)
            assert "No space left" in str(caught.value)
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_in_the_middle_of_the_video(tmp_path, monkeypatch):
    # The encoder writes through C: a limit on the file size is a disk that fills up.
    resource = pytest.importorskip("resource", reason="limits on file size are POSIX")
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hyp = fan(8, 40, 12)
    small = len(export.glb.glb(hyp, seconds=1.0)) + 1000
    monkeypatch.setattr(export.glb, "write_glb", lambda *args, **kwargs: None)
    noisy = _clip(hyp)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(small, 200_000), hard))
        with pytest.raises(UserError, match="cannot write results"):
            write_all(hyp, tmp_path / "out", noisy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.iterdir()) == []


def test_replaces_an_older_run_and_keeps_the_users_files(tmp_path, monkeypatch):
    _older(tmp_path)
    monkeypatch.setattr(export.summary, "write_summary", _touch)
    write_all(fan(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((*FILES, "notes.txt"))
    assert all(not (tmp_path / name).read_bytes().startswith(b"older") for name in FILES)


def _touch(hyp, path, **options):
    Path(path).write_bytes(b"picture")


def test_require_writable_says_why_not_and_leaves_no_trace(tmp_path):
    require_writable(tmp_path / "a" / "b")
    require_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="file: Not a directory"):
        require_writable(tmp_path / "file" / "out")
    (tmp_path / FILES[2]).mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        require_writable(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", FILES[2]]


def test_a_folder_without_permission(tmp_path, monkeypatch):
    # Root may write anywhere, so the refusal is played.
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(export.tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        write_all(fan(), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    assert shutil.disk_usage(tmp_path).free > 0


def test_the_picture_shows_frame_fan_and_spread(tmp_path):
    hyp = fan(16, 24)
    # A name that would be mathematics, or lacks a letter in the font, is no reason to fail.
    path = write_summary(
        hyp, tmp_path / "summary.png", seconds=SECONDS, clip=_clip(hyp), title="a$b 猫"
    )
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (round(13.4 * DPI), 16 * DPI, 3)
    # The noise of the frame is there, as are both ends of the ramp of colours.
    assert pixels[200:500, 150:700].std() > 40
    for colour in ((255, 190, 60), (65, 110, 245)):
        assert (np.abs(pixels.astype(int) - colour).max(-1) < 12).sum() > 200
    figure = summary(hyp, seconds=SECONDS, title="a$b")
    assert figure.texts[0].get_text() == "a$b:  16 motions that explain it"
    spread = spread_of(hyp)
    axes = {a.get_title(loc="left"): a for a in figure.axes}
    across = axes["Spread across the viewing ray, scene units"]
    told = [text.get_text() for text in across.get_legend().get_texts()]
    hidden = np.median(spread.lateral[~spread.seen].numpy())
    assert told[0] == f"hidden: median {hidden:.3g}"
    line = next(line for line in across.get_lines() if line.get_label() == told[0])
    expected = np.median(spread.lateral[:, 9][~spread.seen[:, 9]].numpy())
    assert line.get_ydata()[9] == pytest.approx(expected)


@pytest.mark.parametrize("case", ["one", "unseen", "lost", "world"])
def test_the_picture_of_a_corner_case(case):
    hyp = fan(1, 1) if case == "one" else fan(3, 2)
    if case == "unseen":
        hyp = dataclasses.replace(hyp, visibility=torch.zeros_like(hyp.visibility))
    if case == "lost":
        ctrl = torch.cat([-hyp.control_points[:1], hyp.control_points[1:]])
        tracks = hyp.tracks.masked_fill(~hyp.seen[..., None], torch.nan)
        hyp = dataclasses.replace(hyp, tracks=tracks, control_points=ctrl)
    if case == "world":
        hyp = dataclasses.replace(hyp, frame="world", units="m")
    figure = summary(hyp, seconds=SECONDS)
    figure.canvas.draw()


def test_illustrative_points_are_what_they_are_called():
    # Point 7 swings wildest, but one in twenty may; 3 alone is hidden; 11 alone is in doubt.
    hyp = fan(4, 20, drift=0.0)
    visibility = torch.ones_like(hyp.visibility)
    visibility[4:8, 3] = 0.0
    tracks = hyp.tracks[:1].expand_as(hyp.tracks).clone()
    tracks[1::2, 7] += 50.0
    tracks[1::2, 15] += 30.0
    tracks[1::2, 3] += 5.0
    ctrl = hyp.control_points.clone()
    ctrl[0, 11] *= 3
    hyp = dataclasses.replace(hyp, tracks=tracks, visibility=visibility, control_points=ctrl)
    chosen = illustrative_points(hyp, spread_of(hyp))
    assert chosen == [(15, "moves"), (3, "is hidden for a while"), (11, "is most in doubt")]
