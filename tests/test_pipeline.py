"""The pipeline: what goes in, what comes out, what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import flowing_tracks, small_network, small_pipeline, textured_frames
from videos import write_video

from diffusion4d import Diffusion4DPipeline, UserError, cameras, memory, pipeline
from diffusion4d.clip import read_clip
from diffusion4d.loops import choose
from diffusion4d.observation import Given, observe
from diffusion4d.pipeline import Settings
from diffusion4d.stages import Stages
from diffusion4d.tracking import Tracks
from priors.dinov3 import load_encoder
from priors.preprocessing import Preprocessing
from priors.tiny import save_encoder

SIZE = (64, 80)
FAST = {"num_hypotheses": 3, "num_inference_steps": 2, "seed": 5}


def vit(folder: Path, seed: int = 0, side: int = 48) -> Path:
    """A random encoder of two narrow layers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(seed)
    config = DINOv3ViTConfig(
        patch_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_register_tokens=1,
    )
    save_encoder(DINOv3ViTModel(config), folder, Preprocessing(size=(side, side)))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved pipelines by kind, an encoder, and a pipeline that was trained with it."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("sampler", "anchored", "twin"):
        small_pipeline(kind).save_pretrained(root / kind)
    vit(root / "encoder")
    small_pipeline("anchored", load_encoder(root / "encoder")).save_pretrained(root / "imaged")
    return {path.name: path for path in root.iterdir()}


def loaded(folder: Path) -> Diffusion4DPipeline:
    pipe = Diffusion4DPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def from_tracks(pipe: Diffusion4DPipeline, **options):
    tracks, visibility = flowing_tracks()
    given = {"tracks": tracks, "visibility": visibility, "size": SIZE, **FAST, **options}
    return pipe(**given)


def test_a_saved_pipeline_gives_what_it_gave(folders, tmp_path):
    pipe = small_pipeline("anchored")
    pipe.set_progress_bar_config(disable=True)
    before = from_tracks(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    after = from_tracks(loaded(tmp_path / "saved"))
    torch.testing.assert_close(after.control_points, before.control_points)


def test_tracks_alone(folders):
    tracks, visibility = flowing_tracks()
    hyp = from_tracks(loaded(folders["anchored"]), intrinsics=(90.0, 90.0, 40.0, 32.0))
    assert hyp.control_points.shape == (3, 10, 6, 3)
    assert hyp.control_points.isfinite().all()
    torch.testing.assert_close(hyp.tracks, torch.from_numpy(tracks))
    torch.testing.assert_close(hyp.visibility, torch.from_numpy(visibility))
    torch.testing.assert_close(hyp.query_points, hyp.tracks[0])
    assert hyp.intrinsics.tolist() == [90, 90, 40, 32]
    assert hyp.size == SIZE
    depth = hyp.evaluate()[:, :, 0, 2].median(-1).values
    torch.testing.assert_close(depth, torch.ones(3))


def test_hypotheses_fit_the_tracks_where_seen_and_differ(folders, monkeypatch):
    hyp = from_tracks(loaded(folders["anchored"]))
    seen = hyp.visibility.T > 0
    error = hyp.reprojection()[:, seen].median()
    # Samples of an untrained network stray far; what is left after the snap is what splines can't follow.
    monkeypatch.setattr(pipeline, "snap", lambda ctrl, *_: ctrl)
    strayed = from_tracks(loaded(folders["anchored"])).reprojection()[:, seen].median()
    assert error < 1
    assert strayed > 5 * error
    assert (hyp.evaluate()[0] - hyp.evaluate()[1]).abs().max() > 1e-3


def test_a_hypothesis_is_the_same_whatever_its_mates_and_chunks(folders, monkeypatch):
    pipe = loaded(folders["anchored"])
    together = from_tracks(pipe, num_hypotheses=5).control_points
    few = from_tracks(pipe, num_hypotheses=2).control_points
    torch.testing.assert_close(few, together[:2], rtol=1e-4, atol=1e-5)
    # 10 points: two hypotheses go through the network at once.
    monkeypatch.setattr(memory, "CHUNK_ROWS", 20)
    chunked = from_tracks(pipe, num_hypotheses=5).control_points
    torch.testing.assert_close(chunked, together, rtol=1e-4, atol=1e-5)


def test_loop_and_memory_are_said_before_the_run_and_held_to(folders):
    tracks, visibility = flowing_tracks()
    observation = observe(Given(tracks=tracks, visibility=visibility, size=SIZE))
    pipe, said = loaded(folders["anchored"]), []
    result = pipe.sample(observation, Settings(num_hypotheses=5, steps=2), Stages(say=said.append))
    assert said == [f"memory: {result.assumptions['memory']}"]
    assert said[0].endswith("for sampling, 5 hypotheses at a time")
    assert result.assumptions["loop"] == str(choose(pipe.transformer))
    plain = Settings(num_hypotheses=5, steps=2, loop="plain", precision="fp32")
    other = pipe.sample(observation, plain)
    assert other.assumptions["loop"] == "plain, fp32 (asked for)"
    torch.testing.assert_close(
        other.hypotheses.control_points, result.hypotheses.control_points, rtol=0.05, atol=0.01
    )
    with pytest.raises(UserError, match=r"memory budget of at least \d+ MiB for 5 hypotheses"):
        pipe.sample(observation, dataclasses.replace(plain, memory=1e-3))
    with pytest.raises(UserError, match="positive number of GiB of memory"):
        Settings(memory=0.0)
    with pytest.raises(UserError, match="gives one answer and has no loop to choose"):
        loaded(folders["twin"]).sample(observation, Settings(loop="plain"))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m"])
def test_the_seed_decides(folders, sampler):
    pipe = loaded(folders["sampler"])
    first, again, other = (
        from_tracks(pipe, seed=seed, sampler=sampler).control_points for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_video_path_array_and_clip_agree(folders, tmp_path):
    pipe = loaded(folders["sampler"])
    path = write_video(tmp_path / "moving.mp4", textured_frames())
    clip = read_clip(path)
    options = {"num_points": 12, **FAST}
    of_path = pipe(path, **options)
    of_clip = pipe(clip, **options)
    of_array = pipe(clip.frames.permute(0, 2, 3, 1).numpy(), **options)
    for other in (of_clip, of_array):
        torch.testing.assert_close(other.control_points, of_path.control_points)
    assert of_path.control_points.shape[1] == 12
    # The texture moves one pixel to the left each frame.
    step = (of_path.tracks[1:] - of_path.tracks[:-1]).flatten(0, 1).median(0).values
    torch.testing.assert_close(step, torch.tensor([-1.0, 0.0]), atol=0.1, rtol=0)


def test_pixels_that_are_given_are_of_the_source():
    frames = np.zeros((4, 120, 160, 3), np.uint8)
    clip = read_clip(frames, max_size=60)
    tracks, visibility = flowing_tracks(4, size=(120, 160))
    seen = observe(
        Given(clip, tracks=tracks, visibility=visibility, intrinsics=(200.0, 220.0, 80.0, 60.0))
    )
    assert seen.size == (60, 80)
    assert seen.intrinsics.tolist() == [100, 110, 40, 30]
    torch.testing.assert_close(seen.tracks.tracks, torch.from_numpy(tracks) / 2)


def test_queries_are_of_the_source():
    clip = read_clip(textured_frames(4, 96, 128), max_size=48)
    seen = observe(Given(clip, queries=np.array([[64.0, 48.0], [40.0, 60.0]])))
    assert seen.tracks.tracks[0].tolist() == [[32, 24], [20, 30]]


def test_the_camera_is_given_or_assumed(tmp_path):
    tracks, visibility = flowing_tracks()
    own = Tracks.from_arrays(tracks, visibility, size=SIZE, intrinsics=(70.0, 70.0, 40.0, 32.0))
    own.save(tmp_path / "tracks.npz")
    assumed = observe(Given(tracks=tracks, size=SIZE))
    assert (assumed.camera, round(assumed.fov, 3)) == ("assumed", cameras.DEFAULT_FOV)
    by_fov = observe(Given(tracks=own, fov=30.0))
    assert (by_fov.camera, round(by_fov.fov, 3)) == ("given", 30)
    of_file = observe(Given(tracks=tmp_path / "tracks.npz"))
    assert of_file.camera == "given"
    assert of_file.intrinsics.tolist() == [70, 70, 40, 32]
    over = observe(Given(tracks=own, intrinsics=(50.0, 50.0, 40.0, 32.0)))
    assert over.intrinsics.tolist() == [50, 50, 40, 32]


def test_what_was_assumed_is_said(folders):
    tracks, visibility = flowing_tracks()
    observation = observe(Given(tracks=tracks, visibility=visibility, size=SIZE))
    result = loaded(folders["anchored"]).sample(observation, Settings(2, steps=2))
    assert result.assumptions["intrinsics"] == "assumed"
    assert result.assumptions["fov_degrees"] == cameras.DEFAULT_FOV
    assert result.assumptions["encoder"] is None
    assert list(result.timings) == ["encoding", "sampling", "placing"]


def test_a_twin_gives_one_answer(folders):
    twin = loaded(folders["twin"])
    one = from_tracks(twin, num_hypotheses=None)
    assert one.control_points.shape[0] == 1
    same = from_tracks(twin, num_hypotheses=1, seed=9)
    assert torch.equal(one.control_points, same.control_points)
    with pytest.raises(UserError, match=r"gives one answer, got a wish for 16"):
        from_tracks(twin, num_hypotheses=16)


def test_tokens_matter_and_can_be_left_out(folders):
    pipe = loaded(folders["imaged"])
    clip = read_clip(textured_frames())
    with_tokens = pipe(clip, num_points=8, **FAST).control_points
    without = pipe(clip, num_points=8, use_tokens=False, **FAST).control_points
    assert not torch.allclose(with_tokens, without, atol=1e-4)
    observation = observe(Given(clip, num_points=8))
    tokens = pipe.encode(observation).tokens
    assert tokens is not None
    # 64 x 80 px at a shorter side of 48 px: 3 x 4 patches in each key frame.
    assert tokens.values.shape == (1, 6, 12, 16)
    assert pipe.encode(observation, use_tokens=False).tokens is None


def test_another_encoder_is_refused(folders, tmp_path):
    pipe = loaded(folders["imaged"])
    pipe.use_encoder(folders["encoder"])
    with pytest.raises(UserError, match="their tokens mean different things"):
        pipe.use_encoder(vit(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"48x48, aspect, got an encoder .* 96x96, aspect"):
        pipe.use_encoder(vit(tmp_path / "larger", side=96))
    with pytest.raises(UserError, match="nowhere"):
        pipe.use_encoder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="trained without an encoder"):
        loaded(folders["sampler"]).use_encoder(folders["encoder"])


def test_progress_bars_obey_diffusers(folders, capfd):
    pipe = Diffusion4DPipeline.from_pretrained(folders["sampler"])
    capfd.readouterr()
    from_tracks(pipe)
    assert "100/100" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    from_tracks(pipe)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hypotheses": 0}, "at least 1 hypothesis, got 0"),
        ({"num_inference_steps": 0}, "at least 1 inference step, got 0"),
        ({"seed": -1}, "seed of at least 0, got -1"),
        ({"tracks": None}, "a video or tracks, got neither"),
        ({"size": None}, r"need the size \(H, W\)"),
        ({"fov": 0.0}, "between 0 and 180 degrees, got 0"),
        ({"fov": 50.0, "intrinsics": (1.0, 1.0, 0.0, 0.0)}, "got both"),
        ({"intrinsics": (0.0, 1.0, 0.0, 0.0)}, "fx, fy > 0"),
        ({"intrinsics": (1.0, 1.0, float("nan"), 0.0)}, "fx, fy > 0"),
        ({"num_points": 0}, "at least 1 point, got 0"),
        ({"tracks": np.full((8, 10, 2), np.nan, np.float32)}, "finite tracks"),
        ({"tracks": np.zeros((8, 10, 3), np.float32)}, r"\[T, N, 2\], got \[8, 10, 3\]"),
        ({"video": textured_frames(6)}, "over the 6 frames of the clip, got 8"),
    ],
)
def test_what_cannot_be_used_is_refused(folders, options, message):
    # A module-wide pipeline would do, but loading one is the cheaper half of a test.
    with pytest.raises(UserError, match=message):
        from_tracks(loaded(folders["sampler"]), **options)


def test_networks_that_do_not_belong_together():
    with pytest.raises(ValueError, match='"velocity" or a "mean" transformer'):
        Diffusion4DPipeline(small_network("gaussian"))
    with pytest.raises(ValueError, match="stands on a regressor: True, got a regressor: False"):
        Diffusion4DPipeline(small_network(anchored=True))


def test_unknown_models(tmp_path):
    with pytest.raises(UserError, match="or a folder, got 'no-such-model'"):
        Diffusion4DPipeline.from_pretrained("no-such-model")
    with pytest.raises(UserError, match=r"need a model folder with model_index\.json"):
        Diffusion4DPipeline.from_pretrained(tmp_path)


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:40] = b"x" * 32
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors.pop("project_out.weight")
    save_file(tensors, path)


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
DAMAGE = {
    "damaged header": (WEIGHTS, flip_header),
    "truncated weights": (WEIGHTS, cut),
    "missing tensor": (WEIGHTS, drop_a_tensor),
    "missing weights": (WEIGHTS, Path.unlink),
    "missing configuration": ("transformer/config.json", Path.unlink),
    "truncated index": ("model_index.json", cut),
    "index of something else": ("model_index.json", lambda path: path.write_text(json.dumps({}))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    small_pipeline("sampler").save_pretrained(folder)
    file, damage = DAMAGE[name]
    damage(folder / file)
    with pytest.raises(UserError, match="model"):
        Diffusion4DPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queries": np.ones((3, 2))}, "tracks or queries"),
        (
            {"tracks": "tracks.npz", "visibility": np.ones((4, 3))},
            "goes with tracks given as an array",
        ),
        ({"visibility": np.zeros((9, 3))}, "seen somewhere"),
    ],
)
def test_what_would_be_ignored_is_refused(given, message):
    tracks = {"tracks": np.full((9, 3, 2), 20.0), "size": (48, 64)}
    with pytest.raises(UserError, match=message):
        observe(Given(**{**tracks, **given}))


def test_a_cut_clip_says_so(folders):
    frames = torch.rand(20, 3, 48, 64)
    pipe = loaded(folders["sampler"])
    for most, goes_on in ((12, True), (20, False)):
        clip = read_clip(frames, max_frames=most)
        result = pipe.sample(observe(Given(clip, num_points=8)), Settings(2, 1))
        assert ("goes on" in result.assumptions["frames"]) is goes_on
