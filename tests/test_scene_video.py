"""A generated world as a video file shows the world that its seed stands for."""

import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from diffusion4d.errors import UserError
from diffusion4d.scenes.__main__ import main
from diffusion4d.scenes.render import render
from diffusion4d.scenes.video import write_video
from diffusion4d.scenes.world import compose, generate


def read(path: Path) -> tuple[np.ndarray, list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), [f.time or 0.0 for f in frames]


def test_video_shows_the_world_of_its_seed(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "clip.mp4"
    write_video(path, seed=3, frames=6, side=65, rate=12)
    images, times = read(path)
    world = generate(3, num_frames=6)
    scene = compose(world.scene_seed, num_frames=6, family=world.family)
    height, width = images.shape[1:3]
    assert min(height, width) in (64, 66)
    assert width / height == pytest.approx(scene.size[1] / scene.size[0], rel=0.05)
    np.testing.assert_allclose(times, np.arange(6) / 12, atol=1e-3)
    truth = 255 * render(scene, range(6), (height, width)).transpose(0, 2, 3, 1)
    # What is left is the codec's: it halves the resolution of colour and quantises.
    assert np.abs(images - truth).mean() < 6
    wrong_order = np.abs(images - truth[::-1]).mean()
    assert wrong_order > 2 * np.abs(images - truth).mean()


@pytest.mark.parametrize("wrong", [{"frames": 1}, {"side": 8}, {"rate": 0}, {"seed": -1}])
def test_bad_options_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (value,) = wrong.values()
    with pytest.raises(UserError, match=rf"got .*{value}"):
        write_video(tmp_path / "clip.mp4", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.mp4"
    options = ["--frames", "2", "--side", "32", "--family", "rigid"]
    monkeypatch.setattr(sys, "argv", ["scenes", str(path), *options])
    assert main() == 0
    assert read(path)[0].shape[0] == 2
    monkeypatch.setattr(sys, "argv", ["scenes", str(path), "--frames", "1"])
    assert main() == 2
    assert "need frames >= 2" in capsys.readouterr().err
