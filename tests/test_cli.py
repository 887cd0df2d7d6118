"""The command line, end to end: the main job's files, every kind of bad input, interruptions, help."""

import contextlib
import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from jaxtyping import config
from models import flowing_tracks, small_pipeline, textured_frames
from safetensors import SafetensorError
from videos import write_video

from diffusion4d import Hypotheses, cli
from diffusion4d.config import SamplerName
from diffusion4d.export import FILES


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video, tracks and models that are all right."""
    root = tmp_path_factory.mktemp("stock")
    write_video(root / "good.mp4", textured_frames())
    small_pipeline("anchored").save_pretrained(root / "model")
    small_pipeline("twin").save_pretrained(root / "twin")
    tracks, visibility = flowing_tracks()
    np.savez(root / "good.npz", tracks=tracks, visibility=visibility, size=np.array([64, 80]))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION4D_CACHE", "off")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")


def quick(stock: dict[str, Path], out: Path, *arguments: str | Path) -> list[str]:
    """Arguments of a run that takes moments."""
    settings = ["--model", stock["model"], "-k", "2", "--steps", "1", "--num-points", "8"]
    return ["sample", *map(str, arguments), *map(str, settings), "-o", str(out)]


def test_the_main_job(stock, tmp_path, capfd):
    out = tmp_path / "new" / "out"
    assert cli.run(quick(stock, out, stock["good.mp4"])) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    hyp = Hypotheses.load(out)
    assert hyp.control_points.shape == (2, 8, 6, 3)
    summary = json.loads((out / "summary.json").read_text())
    stages = summary["timings_s"]
    assert [*stages][:5] == ["reading", "loading", "tracking", "encoding", "sampling"]
    said = capfd.readouterr()
    assert said.err == ""
    assert "intrinsics: assumed" in said.out
    assert said.out.count("memory: ") == 1
    assert "MiB for sampling" in summary["assumed"]["memory"]
    assert "fov_degrees: 55.0" in said.out
    assert str(out / "hypotheses.glb") in said.out


def test_tracks_alone(stock, tmp_path):
    assert cli.run(quick(stock, tmp_path / "out", "--tracks", stock["good.npz"])) == 0
    hyp = Hypotheses.load(tmp_path / "out")
    np.testing.assert_array_equal(hyp.tracks.numpy(), flowing_tracks()[0])


@pytest.mark.parametrize("tracker", ["lk", "dino", "sinkhorn", "fused"])
def test_who_follows_the_points_is_chosen_and_said(stock, tmp_path, tracker):
    arguments = [stock["good.mp4"], "--tracks", tracker]
    assert cli.run(quick(stock, tmp_path / "out", *arguments)) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    said = "lucas-kanade" if tracker == "lk" else f"{tracker} (tiny)"
    assert summary["assumed"]["tracks"] == said


def test_range_and_camera(stock, tmp_path):
    arguments = ["--stride", "2", "--max-size", "32", "--intrinsics", "80", "80", "40", "32"]
    assert cli.run(quick(stock, tmp_path / "out", stock["good.mp4"], *arguments)) == 0
    hyp = Hypotheses.load(tmp_path / "out")
    assert hyp.size == (32, 40)
    assert hyp.tracks.shape[0] == 4
    assert hyp.intrinsics.tolist() == [40, 40, 20, 16]


def moving_tracks(path: Path, frames: int = 8) -> np.ndarray:
    """Tracks of points that stand still, all over the image, before a camera that goes to the right; its extrinsics."""
    rng = np.random.default_rng(0)
    rays = rng.uniform(-0.45, 0.45, (40, 2))
    depth = rng.uniform(1, 3, (40, 1))
    shift = np.linspace(0, 0.3, frames)
    plane = rays + np.stack([-shift, 0 * shift], -1)[:, None] / depth
    tracks = plane * 80 + [40, 32]
    np.savez(
        path, tracks=tracks, visibility=np.ones((frames, 40)), size=np.array([64, 80]),
        intrinsics=np.array([80.0, 80, 40, 32]),
    )  # fmt: skip
    extrinsics = np.tile(np.eye(4), (frames, 1, 1))
    extrinsics[:, 0, 3] = -shift
    return extrinsics


def test_given_cameras_and_frames(stock, tmp_path, capfd):
    """Under given cameras results are in metres in the world; --frame camera leaves them where they were."""
    extrinsics = moving_tracks(tmp_path / "tracks.npz")
    np.savez(tmp_path / "cameras.npz", extrinsics=extrinsics)
    arguments = ["--tracks", tmp_path / "tracks.npz", "--cameras", tmp_path / "cameras.npz"]
    assert cli.run(quick(stock, tmp_path / "out", *arguments)) == 0
    hyp = Hypotheses.load(tmp_path / "out")
    assert (hyp.frame, hyp.units) == ("world", "m")
    np.testing.assert_allclose(hyp.extrinsics.numpy(), extrinsics, atol=1e-6)
    said = capfd.readouterr().out
    assert "camera: given" in said
    # Two decimals of what summary.json has in full.
    assert re.search(r"^  refit_px: \d+\.\d{1,2}, \d+\.\d{1,2}$", said, re.MULTILINE)
    assert cli.run(quick(stock, tmp_path / "out", *arguments, "--frame", "camera")) == 0
    hyp = Hypotheses.load(tmp_path / "out")
    assert (hyp.frame, hyp.units) == ("camera", "scene")
    assert hyp.static is None
    assert "not estimated" in capfd.readouterr().out


def damaged_tracks(path: Path, change: str) -> Path:
    tracks, visibility = flowing_tracks()
    if change == "nan":
        tracks[2, 3] = np.nan
    elif change == "shape":
        tracks = np.repeat(tracks, 2, -1)[..., :3]
    np.savez(path, tracks=tracks, visibility=visibility, size=np.array([64, 80]))
    return path


def bad_input(case: str, stock: dict[str, Path], folder: Path) -> list[str | Path]:
    """The arguments of a case that must be refused; files it needs are made in `folder`."""
    video = folder / "video.mp4"
    match case:
        case "missing file":
            return [video]
        case "text":
            video.write_text("This is no video.\n" * 99)
            return [video]
        case "truncated":
            video.write_bytes(stock["good.mp4"].read_bytes()[:900])
            return [video]
        case "empty":
            video.touch()
            return [video]
        case "one frame":
            return [write_video(video, textured_frames(1))]
        case "black":
            return [write_video(video, np.zeros((8, 64, 80, 3), np.uint8))]
        case "nan" | "shape":
            return ["--tracks", damaged_tracks(folder / "tracks.npz", case)]
        case "other tracks":
            frames = flowing_tracks(5)
            np.savez(folder / "tracks.npz", tracks=frames[0], visibility=frames[1])
            return [stock["good.mp4"], "--tracks", folder / "tracks.npz"]
        case "tracker":
            return [stock["good.mp4"], "--tracks", "dyno"]
        case "tracker alone":
            return ["--tracks", "dino"]
        case "track encoder":
            return [stock["good.mp4"], "--tracks", "fused", "--track-encoder", "no-such-encoder"]
        case "k 0":
            return [stock["good.mp4"], "-k", "0"]
        case "no steps":
            return [stock["good.mp4"], "--steps", "0"]
        case "twin k 16":
            return [stock["good.mp4"], "--model", stock["twin"], "-k", "16"]
        case "model":
            return [stock["good.mp4"], "--model", "huge"]
        case "encoder":
            return [stock["good.mp4"], "--encoder", "no-such-encoder"]
        case "checkpoint":
            small_pipeline("sampler").save_pretrained(folder / "model")
            weights = folder / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:5000])
            return [stock["good.mp4"], "--model", folder / "model"]
        case "nothing":
            return []
        case "cameras":
            np.savez(folder / "cameras.npz", extrinsics=np.tile(np.eye(4), (5, 1, 1)))
            return ["--tracks", stock["good.npz"], "--cameras", folder / "cameras.npz"]
        case "camera lens":
            np.savez(
                folder / "cameras.npz",
                extrinsics=np.tile(np.eye(4), (8, 1, 1)),
                intrinsics=np.array([np.inf, 100, 80, 60]),
            )
            return ["--tracks", stock["good.npz"], "--cameras", folder / "cameras.npz"]
        case "no cameras":
            return ["--tracks", stock["good.npz"], "--cameras", folder / "none.json"]
        case "sampler":
            return [stock["good.mp4"], "--sampler", "pndm"]
        case "junk tracks":
            (folder / "tracks.npz").write_bytes(b"no archive at all" * 99)
            return ["--tracks", folder / "tracks.npz"]
        case "junk cameras":
            (folder / "cameras.npz").write_bytes(b"no archive at all" * 99)
            return ["--tracks", stock["good.npz"], "--cameras", folder / "cameras.npz"]
        case "fov":
            return [stock["good.mp4"], "--fov", "200"]
    raise AssertionError(case)


BAD_INPUT = {
    "missing file": ("need a video file or a folder of images", "video.mp4"),
    "text": ("video.mp4",),
    "truncated": ("video.mp4",),
    "empty": ("got an empty file", "video.mp4"),
    "one frame": ("at least 2 frames", "got 1"),
    "black": ("texture",),
    "nan": ("need finite tracks", "frame 2, point 3"),
    "shape": ("[T, N, 2]", "[8, 10, 3]"),
    "other tracks": ("8 frames of the clip", "got 5"),
    "k 0": ("at least 1 hypothesis", "got 0"),
    "no steps": ("at least 1 inference step", "got 0"),
    "twin k 16": ("gives one answer", "16"),
    "model": ("need a model out of", "'huge'"),
    "encoder": ("trained without an encoder",),
    "checkpoint": ("damaged", "model"),
    "tracker": ("a file or one of lk, dino, sinkhorn, fused", "'dyno'"),
    "tracker alone": ("need a video for the tracker 'dino'",),
    "track encoder": ("no-such-encoder",),
    "nothing": ("need a video or tracks", "neither"),
    "cameras": ("a camera for each of the 8 frames", "got 5"),
    "camera lens": ("finite intrinsics", "inf", "cameras.npz"),
    "no cameras": ("no cameras at", "none.json"),
    "sampler": ("need a sampler out of ancestral, angular, ddim", "heun", "got 'pndm'"),
    "junk tracks": ("tracks.npz", "no npz file of plain arrays"),
    "junk cameras": ("cameras.npz", "no npz file of plain arrays"),
    "fov": ("between 0 and 180 degrees", "200"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(stock, tmp_path, capfd, case):
    folder = tmp_path / "given"
    folder.mkdir()
    arguments = quick(stock, tmp_path / "out")
    # The last of two equal options counts, so those of the case come last.
    arguments += map(str, bad_input(case, stock, folder))
    capfd.readouterr()
    # Without the type checks of the test run, as for a user.
    config.update("jaxtyping_disable", case == "sampler")
    try:
        assert cli.run(arguments) == 2
    finally:
        config.update("jaxtyping_disable", False)
    said = capfd.readouterr().err
    for part in BAD_INPUT[case]:
        assert part in said
    assert len(said.strip().splitlines()) <= 3
    assert "Traceback" not in said
    assert "pickle" not in said
    assert case != "sampler" or len(said.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_an_output_folder_that_cannot_be(stock, tmp_path, capfd):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.run(quick(stock, out, stock["good.mp4"])) == 2
        assert "cannot write results to" in capfd.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "writer", ["glb.write_glb", "overlay.write_overlay", "summary.write_summary"]
)
def test_a_full_disk(stock, tmp_path, capfd, monkeypatch, writer):
    def full(_hyp, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"diffusion4d.export.{writer}", full)
    assert cli.run(quick(stock, tmp_path / "out", stock["good.mp4"])) == 2
    assert "No space left on device" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "I/O error: No space left (os error 28)",
            "the disk is full; nothing half-written is left",
        ),
        ("header too large", "a file of tensors could not be read or written: header too large"),
    ],
)
def test_errors_of_safetensors_end_with_one_line(capfd, monkeypatch, said, message):
    def fail(_):
        raise SafetensorError(said)

    monkeypatch.setattr(cli, "train", fail)
    assert cli.run(["train", "--out", "nowhere"]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("old", [False, True])
def test_an_interruption_leaves_what_was_there(stock, tmp_path, capfd, monkeypatch, old):
    out = tmp_path / "out"
    if old:
        out.mkdir()
        (out / "hypotheses.glb").write_text("older")

    def interrupted(_hyp, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusion4d.export.overlay.write_overlay", interrupted)
    assert cli.run(quick(stock, out, stock["good.mp4"])) == 130
    assert "interrupted" in capfd.readouterr().err
    held = [(p.name, p.read_text()) for p in out.iterdir()] if old else list(tmp_path.iterdir())
    assert held == ([("hypotheses.glb", "older")] if old else [])


def test_usage_errors_exit_with_2(tmp_path, capfd):
    for arguments in (["sample", "-k", "many"], ["sample", "--nonsense"], ["dance"], []):
        with pytest.raises(SystemExit) as error:
            cli.run(arguments)
        assert error.value.code == 2, arguments
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "sample",
        "modes",
        "view",
        "animate",
        "export",
        "train",
        "train-encoder",
        "evaluate",
        "doctor",
    ],
)
def test_help_of_each_command(command, capfd):
    with pytest.raises(SystemExit) as error:
        cli.run([command, "--help"])
    assert error.value.code == 0
    said = capfd.readouterr().out
    assert f"diffusion4d {command}" in said
    if command in ("sample", "evaluate"):
        assert "{" + ",".join(get_args(SamplerName)) + "}" in "".join(said.replace("│", "").split())


def test_help_imports_nothing_heavy():
    script = (
        "import contextlib, sys\n"
        "from diffusion4d import cli\n"
        "with contextlib.suppress(SystemExit): cli.run(['--help'])\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'cv2', 'av', 'matplotlib', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "sample" in done.stdout


def test_train_says_what_it_wrote(tmp_path, capfd, monkeypatch):
    from diffusion4d import train

    monkeypatch.setattr(train, "run", lambda config: config.out / "pipeline")
    assert cli.run(["train", "--out", str(tmp_path), "--objective", "mean"]) == 0
    assert capfd.readouterr().out.strip() == f"wrote {tmp_path / 'pipeline'}"
    with contextlib.suppress(FileNotFoundError):
        assert list(tmp_path.iterdir()) == []
