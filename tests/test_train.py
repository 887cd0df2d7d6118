"""Training: every objective learns, and a run that was killed is the run that was not."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from models import CTRL, flowing_tracks, simple_worlds
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion4d import Diffusion4DPipeline, UserError, checkpoint, train
from diffusion4d.config import Dropout, Network, Optimisation, PoolSpec, Train
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.scenes import pool

NETWORK = Network(num_ctrl=CTRL, width=32, depth=1, num_heads=1, token_channels=0)
OPTIMISATION = Optimisation(steps=6, batch=3, points=12, warmup=2, learning_rate=3e-3, ema=0.5)


def write_pool(folder: Path) -> Path:
    """A shard of simple worlds under the name that a pool of 128 has."""
    folder.mkdir(parents=True)
    worlds = simple_worlds(8)
    tensors = {f.name: getattr(worlds, f.name) for f in dataclasses.fields(worlds)}
    save_file(tensors, folder / "0-20x9.safetensors")
    return folder


@pytest.fixture(scope="module")
def worlds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("train") / "pool")


def settings(out: Path, worlds_folder: Path, **changes) -> Train:
    """A run of moments."""
    # accelerate keeps the first precision it was asked for until the process ends.
    AcceleratorState._reset_state()
    config = Train(
        out=out,
        objective="mean",
        pool=worlds_folder,
        save_every=1,
        processes=1,
        network=NETWORK,
        optimisation=OPTIMISATION,
        worlds=PoolSpec(worlds=1, points=20, frames=9),
        dropout=Dropout(tracks=0.1),
    )
    return dataclasses.replace(config, **changes)


def losses(out: Path) -> dict[int, float]:
    """Loss by step, read off the logs as TensorBoard does; of a step that was taken twice, the last."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[int, float] = {}
    for path in sorted((out / "logs").rglob("events*"), key=lambda p: p.stat().st_mtime_ns):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == "loss":
                    found[event.step] = value.tensor.float_val[0]
    return found


class Killed(BaseException):
    """Stands in for a kill: nothing in the code catches it."""


@pytest.fixture(scope="module")
def regressor(tmp_path_factory, worlds_folder) -> Path:
    return train.run(
        settings(tmp_path_factory.mktemp("regressor"), worlds_folder, objective="gaussian")
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, worlds_folder) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train.run(settings(out, worlds_folder))
    return out


@pytest.mark.parametrize("killed_after", [1, 3, 5])
@pytest.mark.parametrize("save_every", [1, 2])
def test_a_run_that_was_killed_goes_on_exactly(
    tmp_path, worlds_folder, uninterrupted, monkeypatch, killed_after, save_every
):
    config = settings(tmp_path, worlds_folder, save_every=save_every)
    draw = train.draw_example

    def draw_and_die(config, worlds, step, *rest):
        if step == killed_after:
            raise Killed
        return draw(config, worlds, step, *rest)

    monkeypatch.setattr(train, "draw_example", draw_and_die)
    with pytest.raises(Killed):
        train.run(config)
    monkeypatch.setattr(train, "draw_example", draw)
    train.run(config)
    assert losses(tmp_path) == losses(uninterrupted)
    assert sorted(losses(tmp_path)) == list(range(6))
    ours, theirs = (load_file(out / "checkpoint.safetensors") for out in (tmp_path, uninterrupted))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


KILLED_FOR_REAL = """
import sys, pathlib, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from diffusion4d import train
from test_train import settings
config = settings(pathlib.Path({out!r}), pathlib.Path({pool!r}))
step = train.draw_example
def slowly(*args):
    import time
    time.sleep(0.2)
    return step(*args)
train.draw_example = slowly
train.run(config)
"""


def test_a_process_that_was_killed_goes_on_exactly(tmp_path, worlds_folder, uninterrupted):
    out = tmp_path / "run"
    script = KILLED_FOR_REAL.format(
        tests=str(Path(__file__).parent), out=str(out), pool=str(worlds_folder)
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    state = out / "checkpoint.safetensors"
    since = time.monotonic()
    while not state.exists() and process.poll() is None and time.monotonic() - since < 60:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with safe_open(state, "pt") as file:
        assert 1 <= int(file.metadata()["step"]) < 6
    train.run(settings(out, worlds_folder))
    theirs = load_file(uninterrupted / "checkpoint.safetensors")
    for name, tensor in load_file(state).items():
        torch.testing.assert_close(tensor, theirs[name])
    assert losses(out).keys() == losses(uninterrupted).keys()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, worlds_folder, regressor) -> Path:
    config = settings(
        tmp_path_factory.mktemp("teacher"), worlds_folder, objective="velocity", regressor=regressor
    )
    train.run(config)
    return config.out / "model"


@pytest.mark.parametrize("objective", ["progressive", "consistency"])
def test_a_student_that_was_killed_goes_on_exactly(
    tmp_path, worlds_folder, regressor, teacher, monkeypatch, objective
):
    """What it learns from is read again; its own answers, which it also learns from, are functions of its weights."""
    changes = {"objective": objective, "regressor": regressor, "teacher": teacher}
    whole, parts = (settings(tmp_path / n, worlds_folder, **changes) for n in ("whole", "parts"))
    folder = train.run(whole)
    draw = train.draw_example

    def draw_and_die(config, worlds, step, *rest):
        if step == 3:
            raise Killed
        return draw(config, worlds, step, *rest)

    monkeypatch.setattr(train, "draw_example", draw_and_die)
    with pytest.raises(Killed):
        train.run(parts)
    monkeypatch.setattr(train, "draw_example", draw)
    train.run(parts)
    assert losses(parts.out) == losses(whole.out)
    ours, theirs = (load_file(c.out / "checkpoint.safetensors") for c in (parts, whole))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    pipe = Diffusion4DPipeline.from_pretrained(folder)
    told, given = pipe.transformer.config, TrajectoryDiT.from_pretrained(teacher).config
    assert (told["trained_steps"], told["trained_sampler"]) == (
        2,
        "renoised" if objective == "consistency" else "angular",
    )
    assert (told["coordinates"], told["noise"]) == (given["coordinates"], given["noise"])
    with pytest.raises(UserError, match="with trained_steps 2, got 1"):
        train.run(dataclasses.replace(whole, solver_steps=(1,)))
    if objective == "progressive":
        # One of two steps is a teacher for one of one, and for no other.
        learner = settings(
            tmp_path / "one", worlds_folder, **{**changes, "teacher": whole.out / "model"}
        )
        with pytest.raises(UserError, match="need a velocity network or one of 4 steps"):
            train.run(learner)
        train.run(dataclasses.replace(learner, solver_steps=(1,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "--objective progressive needs a --teacher"),
        ({"objective": "velocity"}, "--teacher goes with --objective progressive or consistency"),
        ({"start_from": Path("anywhere")}, "leave out --start-from"),
        ({"solver_steps": (1, 2)}, r"one number of --solver-steps, got \(1, 2\)"),
        ({"regressor": None}, "the teacher stands on a regressor: True, got a regressor: False"),
    ],
)
def test_what_cannot_teach_is_refused(
    tmp_path, worlds_folder, regressor, teacher, changes, message
):
    given = {"objective": "progressive", "regressor": regressor, "teacher": teacher, **changes}
    with pytest.raises(UserError, match=message):
        train.run(settings(tmp_path, worlds_folder, **given))


def test_what_says_no_velocity_cannot_teach(tmp_path, worlds_folder, regressor):
    config = settings(tmp_path, worlds_folder, objective="consistency", teacher=regressor)
    with pytest.raises(UserError, match="says 'gaussian' on the cosine path"):
        train.run(config)


@pytest.mark.parametrize("objective", ["mean", "gaussian", "velocity"])
def test_the_loss_falls(tmp_path, worlds_folder, objective):
    config = settings(
        tmp_path,
        worlds_folder,
        objective=objective,
        save_every=200,
        optimisation=dataclasses.replace(OPTIMISATION, steps=120, batch=8, learning_rate=1e-2),
        dropout=Dropout(0.0, 0.0, 0.0),
    )
    train.run(config)
    course = losses(tmp_path)
    first, last = ([course[i] for i in part] for part in (range(30), range(90, 120)))
    assert sum(last) < 0.9 * sum(first)


def test_a_sampler_on_a_regressor_can_be_sampled(tmp_path, worlds_folder, regressor):
    folder = train.run(settings(tmp_path, worlds_folder, objective="velocity", regressor=regressor))
    assert folder == tmp_path / "pipeline"
    pipe = Diffusion4DPipeline.from_pretrained(folder)
    assert pipe.regressor.config["output"] == "gaussian"
    assert pipe.transformer.config["coordinates"] == pipe.regressor.config["coordinates"]
    pipe.set_progress_bar_config(disable=True)
    tracks, visibility = flowing_tracks()
    hyp = pipe(tracks=tracks, visibility=visibility, size=(64, 80), num_hypotheses=2)
    assert hyp.control_points.isfinite().all()


def test_the_average_is_what_is_saved(uninterrupted):
    state = load_file(uninterrupted / "checkpoint.safetensors")
    weights = TrajectoryDiT.from_pretrained(uninterrupted / "model").state_dict()
    assert not torch.equal(state["model.project_out.weight"], state["ema.project_out.weight"])
    for name, tensor in weights.items():
        assert torch.equal(tensor, state[f"ema.{name}"]), name


def test_a_start_takes_over_what_fits(tmp_path, worlds_folder, regressor):
    given = TrajectoryDiT.from_pretrained(regressor)
    (worlds,) = (pool.load_pool([worlds_folder / "0-20x9.safetensors"]),)
    same = train.build(
        settings(tmp_path, worlds_folder, objective="gaussian", start_from=regressor), worlds, None
    )
    assert same.config["coordinates"] == given.config["coordinates"]
    for name, tensor in given.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name
    other = train.build(
        settings(tmp_path, worlds_folder, objective="velocity", start_from=regressor), worlds, None
    )
    assert torch.equal(
        other.state_dict()["blocks.0.mlp.0.weight"], given.state_dict()["blocks.0.mlp.0.weight"]
    )
    # Another output layer says something else: it starts at zero.
    assert not other.state_dict()["project_out.weight"].any()


def test_bf16_trains(tmp_path, worlds_folder):
    train.run(settings(tmp_path, worlds_folder, precision="bf16"))
    weights = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_longer_pool_leaves_the_whitening_as_it_was(tmp_path, worlds_folder, uninterrupted):
    held = checkpoint.network(uninterrupted / "checkpoint.safetensors")
    built = TrajectoryDiT.from_pretrained(uninterrupted / "model")
    assert held is not None
    assert held.config["coordinates"] == built.config["coordinates"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "velocity"}, "another network, with output mean, got velocity"),
        ({"objective": "median"}, "another run, with objective mean, got median"),
        ({"network": dataclasses.replace(NETWORK, width=16)}, "with width 32, got 16"),
        ({"worlds": PoolSpec(worlds=2, first_seed=pool.HELD_OUT)}, "held out for evaluation"),
        (
            {"regressor": Path("nowhere")},
            "--regressor goes with --objective velocity, energy, progressive, consistency, got mean",
        ),
    ],
)
def test_what_does_not_fit_a_run_is_refused(worlds_folder, uninterrupted, changes, message):
    with pytest.raises(UserError, match=message):
        train.run(settings(uninterrupted, worlds_folder, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisation.steps": 0}, "need --optimisation.steps of at least 1, got 0"),
        ({"optimisation.batch": 0}, "need --optimisation.batch of at least 1, got 0"),
        ({"optimisation.ema": 2.0}, "need --optimisation.ema below 1, got 2.0"),
        ({"optimisation.learning_rate": math.nan}, "optimisation.learning-rate of at least"),
        ({"save_every": 0}, "need --save-every of at least 1, got 0"),
        ({"solver_samples": 1}, "need --solver-samples of at least 2, got 1"),
        ({"worlds.worlds": 0}, "need --worlds.worlds of at least 1, got 0"),
        ({"worlds.points": 3}, "need --worlds.points of at least the 12 of --optimisation.points"),
        ({"worlds.first_seed": pool.HELD_OUT - 1}, "held out for evaluation"),
        ({"network.num_heads": 5}, "need --network.width to be a multiple of"),
    ],
)
def test_settings_that_come_to_nothing_are_refused_first(tmp_path, worlds_folder, changes, message):
    config = settings(tmp_path / "out", worlds_folder)
    for name, value in changes.items():
        part, _, field = name.rpartition(".")
        if part:
            value = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part or field: value})
    with pytest.raises(UserError, match=message):
        train.run(config)
    assert not (tmp_path / "out").exists()


def test_a_file_of_tensors_that_is_no_checkpoint_is_refused(tmp_path, worlds_folder):
    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(UserError, match="need the checkpoint of a training run"):
        train.run(settings(tmp_path, worlds_folder))


def test_a_damaged_checkpoint_is_refused(tmp_path, worlds_folder, uninterrupted):
    content = (uninterrupted / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged"):
        train.run(settings(tmp_path, worlds_folder))


def test_a_missing_or_wrong_regressor_is_refused_before_worlds_are_drawn(tmp_path, uninterrupted):
    for folder, message in (
        (tmp_path / "nowhere", "need a finished model"),
        (uninterrupted / "model", 'need a "gaussian" regressor'),
    ):
        config = settings(
            tmp_path / "run", tmp_path / "pool", objective="velocity", regressor=folder
        )
        with pytest.raises(UserError, match=message):
            train.run(config)
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_a_function_of_its_number(tmp_path, worlds_folder):
    config = settings(tmp_path, worlds_folder)
    worlds = pool.load_pool([worlds_folder / "0-20x9.safetensors"])
    first, again, next_one = (train.draw_example(config, worlds, step) for step in (3, 3, 4))
    assert torch.equal(first.tracks, again.tracks)
    assert first.tracks.shape != next_one.tracks.shape or not torch.equal(
        first.tracks, next_one.tracks
    )
