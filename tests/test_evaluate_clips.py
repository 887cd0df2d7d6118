"""Clips with truth on disk: a round trip, TAPVid-3D's own layout, what is refused, and a folder from end to end."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
import torch
from models import simple_worlds, small_pipeline

from diffusion4d import baselines, cameras, evaluation
from diffusion4d.baselines import Dressing
from diffusion4d.config import Evaluate
from diffusion4d.errors import UserError
from diffusion4d.evaluation import clips, command
from diffusion4d.evaluation.cases import Case, rendered_clips, world_clips
from diffusion4d.evaluation.methods import Model, encode
from diffusion4d.scenes.rendered import RenderedWorlds
from priors.dinov3 import load_encoder

T, N = 9, 10


def read(path, **options) -> clips.TrueClip:
    return clips.read_clip(path, **({"num_points": 12, "max_frames": 48} | options))


def jpeg(value: int, size: tuple[int, int] = (64, 48)) -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", size, (value, value, value)).save(data, "JPEG")
    return data.getvalue()


def tapvid(**changes: object) -> dict[str, object]:
    """The five keys of a TAPVid-3D file with a still camera, in metres; point 9 is not seen in frame 0."""
    rng = np.random.default_rng(0)
    start = rng.uniform([-1, -1, 3], [1, 1, 5], (N, 3))
    way = np.linspace(0, 1, T)[:, None, None] * rng.uniform(-0.4, 0.4, (N, 3))
    way[:, :3] = 0
    visibility = np.ones((T, N), bool)
    visibility[0, 9] = visibility[5:, 4] = False
    fields = {
        "tracks_XYZ": (start + way).astype(np.float32),
        "visibility": visibility,
        "fx_fy_cx_cy": np.array([60.0, 60.0, 32.0, 24.0], np.float32),
        "queries_xyt": np.zeros((N, 3), np.float32),
        "images_jpeg_bytes": np.array([jpeg(20 * t) for t in range(T)]),
    }
    return {k: v for k, v in (fields | changes).items() if v is not None}


def written(tmp_path, **changes: object):
    path = tmp_path / "clip.npz"
    np.savez(path, **tapvid(**changes))
    return path


def test_a_clip_comes_back_as_it_was_written(tmp_path):
    for clip in world_clips(simple_worlds(3), 12):
        images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8) // 4
        clip = dataclasses.replace(clip, images=images, frames=torch.tensor([0, 6]))
        path = tmp_path / f"{clip.name}.npz"
        clips.write_clip(path, clip)
        back = read(path)
        # Points are read in order where all are seen in frame 0.
        seen = clip.visible[:, 0]
        for name in ("points", "visible", "moving", "tracks", "visibility"):
            assert torch.equal(getattr(back, name), getattr(clip, name)[seen]), name
        assert (back.name, back.size, back.focal_known) == (clip.name, clip.size, clip.focal_known)
        torch.testing.assert_close(back.intrinsics, clip.intrinsics)
        torch.testing.assert_close(back.u, clip.u)
        assert back.frames is not None
        assert back.images is not None
        assert back.frames.tolist() == [0, 6]
        assert (back.images.float() - images.float()).abs().mean() < 8


def test_a_file_in_the_layout_of_tapvid(tmp_path):
    fields = tapvid()
    clip = read(written(tmp_path))
    # Nine points are seen in frame 0, and the first three of them stand still.
    assert clip.points.shape == (9, T, 3)
    truth = torch.from_numpy(np.asarray(fields["tracks_XYZ"])).transpose(0, 1)
    assert torch.equal(clip.points, truth[:9])
    assert clip.moving.tolist() == [False] * 3 + [True] * 6
    assert not clip.visible[4, 5:].any()
    assert clip.size == (48, 64)
    assert clip.images is not None
    assert clip.images.shape == (T, 3, 48, 64)
    assert clip.images[3].float().mean().item() == pytest.approx(60, abs=2)
    # Simulated tracks begin at the true projections.
    pixels = cameras.project(clip.points, clip.intrinsics)
    torch.testing.assert_close(clip.tracks[:, 0], pixels[:, 0])
    assert (clip.tracks - pixels).norm(dim=-1)[clip.visibility > 0].median() < 3
    # In scene units.
    case = Case.of(clip, 0)
    assert case.truth[:, 0, 2].median() == pytest.approx(1)


def test_the_simulated_tracker_draws_from_the_seed_or_the_name(tmp_path):
    first, again = read(written(tmp_path)), read(written(tmp_path))
    assert torch.equal(first.tracks, again.tracks)
    other = read(written(tmp_path, seed=np.array(5)))
    assert not torch.equal(first.tracks, other.tracks)
    same = read(written(tmp_path, seed=np.array(zlib.crc32(b"clip"))))
    assert torch.equal(first.tracks, same.tracks)


def test_fewer_points_and_frames(tmp_path):
    path = written(tmp_path, images_jpeg_bytes=None, size=np.array([96, 128]))
    whole, part = read(path), read(path, num_points=4, max_frames=6)
    assert part.points.shape == (4, 6, 3)
    assert part.u[-1] == 1
    assert whole.size == (96, 128)
    assert part.images is None
    for points in part.points:
        assert any(torch.equal(points, other[:6]) for other in whole.points)


def test_what_moves_in_the_world_is_told_from_the_cameras_motion(tmp_path):
    # A camera that slides along x: what stands in the world moves in the camera's frame.
    fields = tapvid()
    extrinsics = np.tile(np.eye(4), (T, 1, 1))
    extrinsics[:, 0, 3] = np.linspace(0, 1, T)
    shifted = np.asarray(fields["tracks_XYZ"]) + extrinsics[:, None, :3, 3].astype(np.float32)
    with_camera = read(written(tmp_path, tracks_XYZ=shifted, extrinsics_w2c=extrinsics))
    assert with_camera.moving.tolist() == [False] * 3 + [True] * 6
    assert read(written(tmp_path, tracks_XYZ=shifted)).moving.all()


def test_unknown_truth_is_in_no_subset(tmp_path):
    truth = np.array(tapvid()["tracks_XYZ"])
    truth[4:6, 2] = np.nan
    truth[0, 3] = np.nan
    case = Case.of(read(written(tmp_path, tracks_XYZ=truth)), 0)
    # Point 3 is not known where it is asked for.
    assert case.truth.shape == (8, T, 3)
    assert case.truth.isfinite().all()
    assert case.masks[0].sum() == 8 * T - 2
    assert not case.masks[:, 2, 4:6].any()
    assert case.clip.visibility.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracks_XYZ": None}, "need tracks_XYZ, got nothing"),
        ({"tracks_XYZ": np.zeros((T, N, 2))}, r"need tracks_XYZ \[T, N, 3\] = \[9, 10, 3\]"),
        ({"tracks_XYZ": np.zeros((1, N, 3))}, "with 2 frames or more, got"),
        ({"tracks_XYZ": np.full((T, N, 3), "a")}, "need numbers in tracks_XYZ"),
        ({"fx_fy_cx_cy": np.ones(3)}, r"need fx_fy_cx_cy \[4\]"),
        ({"fx_fy_cx_cy": np.array([np.nan, 1, 1, 1])}, "need finite numbers in fx_fy_cx_cy"),
        ({"fx_fy_cx_cy": np.array([0, 1, 1, 1])}, "need focal lengths above 0"),
        (
            {"fx_fy_cx_cy": np.array([1, 1, 0, 0]), "images_jpeg_bytes": None},
            "need a principal point",
        ),
        ({"size": np.zeros(2)}, "need a size"),
        ({"size": np.ones(1)}, r"need size \[2\]"),
        (
            {"observed_tracks": np.zeros((T, N, 2))},
            "observed_tracks and observed_visibility together",
        ),
        ({"observed_tracks": np.zeros((T, 3, 2))}, r"need observed_tracks \[T, N, 2\]"),
        (
            {"observed_tracks": np.full((T, N, 2), np.nan), "observed_visibility": np.ones((T, N))},
            "finite",
        ),
        ({"moving": np.ones(3)}, r"need moving \[N\] = \[10\]"),
        ({"u": np.linspace(0, 1, 3)}, r"need u \[T\] = \[9\]"),
        ({"u": np.linspace(1, 0, T)}, "need u to rise"),
        ({"u": np.zeros(T)}, "need u to rise"),
        ({"u": np.full(T, np.nan)}, "need finite numbers in u"),
        ({"extrinsics_w2c": np.zeros((T, 3, 4))}, r"need extrinsics_w2c \[T, 4, 4\]"),
        ({"extrinsics_w2c": np.zeros((T, 4, 4))}, "got a singular matrix"),
        ({"seed": np.zeros(2)}, r"need seed \[\]"),
        ({"images_jpeg_bytes": np.zeros(0, "S3")}, r"images_jpeg_bytes \[F\] of bytes"),
        ({"image_frames": np.arange(T) - 1}, r"that rise, from 0 to 8, got \[-1, 0"),
        ({"image_frames": np.arange(T)[::-1]}, r"that rise, from 0 to 8, got \[8, 7"),
        ({"image_frames": np.arange(T) / 1}, r"from 0 to 8, got \[9\] of float64"),
        ({"u": np.arange(T, dtype=np.uint8)[::-1]}, "need u to rise"),
        ({"seed": np.array(1e30)}, "need a whole number as seed"),
        ({"extrinsics_w2c": np.tile(np.diag([1, 1, 1, 0]), (T, 1, 1))}, "got a singular matrix"),
        ({"fx_fy_cx_cy": np.array([1e300, 1, 1, 1])}, "need at most 1e.06 px in fx_fy_cx_cy"),
        ({"size": np.full(2, 1e30)}, "need at most 1e.06 px in size"),
        (
            {"observed_tracks": np.full((T, N, 2), 1e30), "observed_visibility": np.ones((T, N))},
            "px in observed_tracks, got 1e.30",
        ),
        (
            {"observed_tracks": np.zeros((T, N, 2)), "observed_visibility": -np.ones((T, N))},
            "need observed_visibility from 0 to 1, got -1 to -1",
        ),
        (
            {"images_jpeg_bytes": np.array([jpeg(0)] * 8 + [jpeg(0, (48, 64))])},
            r"one size \(h, w\), got \[\(48, 64\), \(64, 48\)\]",
        ),
        ({"images_jpeg_bytes": np.array([jpeg(0)] * 3)}, "frame for each image, got 9 for 3"),
        ({"visibility": np.ones((T, 3), bool)}, r"need visibility \[T, N\] = \[9, 10\]"),
        ({"visibility": np.zeros((T, N), bool)}, "two points that are seen in frame 0, got 0"),
        ({"images": np.zeros((T, 4, 4)), "images_jpeg_bytes": None}, r"\[F, h, w, 3\] uint8"),
        ({"images_jpeg_bytes": np.array([b"no image"])}, "cannot be decoded"),
        ({"image_frames": np.arange(3)}, "need a frame for each image, got 3 for 9"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"clip\.npz: .*{message}"):
        read(written(tmp_path, **changes))


@pytest.mark.parametrize("dtype", [">f4", "f2", np.longdouble])
def test_numbers_of_any_precision_and_byte_order_are_read(tmp_path, dtype):
    fields = {"tracks_XYZ": np.ones((T, N, 3)), "extrinsics_w2c": np.tile(np.eye(4), (T, 1, 1))}
    changes = {name: array.astype(dtype) for name, array in fields.items()}
    clip = read(written(tmp_path, image_frames=np.arange(T, dtype=">i4"), **changes))
    assert torch.equal(clip.points, torch.ones(9, T, 3))
    assert not clip.moving.any()


def test_a_clip_cut_before_its_pictures_has_none(tmp_path):
    fields = {"images_jpeg_bytes": np.array([jpeg(0)]), "image_frames": np.array([T - 1])}
    clip = read(written(tmp_path, **fields), max_frames=4)
    assert clip.images is None
    assert clip.frames is None


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    objects = np.empty(T, dtype=object)
    objects[:] = Evil()
    path = written(tmp_path, images_jpeg_bytes=objects)
    with pytest.raises(UserError, match=r"images_jpeg_bytes is an array of objects.*--tokens none"):
        read(path)
    # Tracks alone are read past it.
    assert read(path, with_images=False).points.shape == (9, T, 3)
    assert not (tmp_path / "ran").exists()
    alone = tmp_path / "alone.npz"
    with alone.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"need an archive of arrays \(npz\), got a single array"):
        read(alone)
    path.write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="no npz file that can be read"):
        read(path)


def test_what_is_damaged_in_a_file_is_refused_by_name(tmp_path):
    path = written(tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def changed(u: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (members | {"u.npy": u}).items():
                archive.writestr(name, data)

    changed(b"no array")
    with pytest.raises(UserError, match="need an array in u, got 8 bytes of something else"):
        read(path)
    changed(members["tracks_XYZ.npy"][:200])
    with pytest.raises(UserError, match="u cannot be read: EOF"):
        read(path)
    np.savez_compressed(path, **tapvid())
    data = bytearray(path.read_bytes())
    # No block of compressed data begins with ones.
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    start = first.header_offset + 30 + len(first.filename) + 20
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"no npz file that can be read.*decompressing"):
        read(path)


def test_pictures_go_through_the_models_encoder():
    encoder = load_encoder("tiny")
    pipe = small_pipeline("anchored", encoder)
    worlds = simple_worlds(2)
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 2, 3, 64, 80), generator=g, dtype=torch.uint8)
    depth = torch.ones(2, 2, 32, 40).half()
    stack = RenderedWorlds(worlds, images, torch.tensor([0, 8]), depth)
    cases = [Case.of(clip, i) for i, clip in enumerate(rendered_clips([stack], 12))]
    model = Model(pipe, encoder)
    with torch.no_grad():
        grids = [encode(case, encoder) for case in cases]
        evidence = model.evidence(cases[1], grids[1])
    assert evidence.tokens is not None
    assert evidence.tokens.values.shape[1] == 2
    # Tracks are in px of the view, not of the picture.
    assert grids[1] is not None
    assert grids[1].size == (48, 64)
    assert torch.equal(evidence.tokens.values[0], grids[1].values)
    without = Model(pipe, None)
    assert without.evidence(cases[1], None).tokens is None


def test_a_folder_of_clips_is_scored_in_two_halves(tmp_path, monkeypatch):
    small_pipeline("anchored").save_pretrained(tmp_path / "sampler")
    small_pipeline("twin").save_pretrained(tmp_path / "twin")
    folder = tmp_path / "clips"
    clips.write_clips(world_clips(simple_worlds(3), 12), folder)
    fitted: list[int] = []

    def fit_dressing(cases: list) -> Dressing:
        fitted.append(len(cases))
        return Dressing(0.1, 0.05, 0.02)

    monkeypatch.setattr(baselines, "fit_dressing", fit_dressing)
    monkeypatch.setattr(command.plots, "write_all", lambda *_: [])
    read_names: list[str] = []

    def read_clips(files: list, **options) -> Iterator[clips.TrueClip]:
        read_names.extend(path.stem for path in files)
        return clips.read_clips(files, **options)

    monkeypatch.setattr(command, "read_clips", read_clips)
    config = Evaluate(
        model=str(tmp_path / "sampler"),
        twin=str(tmp_path / "twin"),
        clips=folder,
        out=tmp_path / "scores",
        points=12,
        steps=1,
        sweep=(),
    )
    result = evaluation.run(config)
    assert result["clips"] == 3
    assert len(result["fits"]) == 2
    # Fit on the other half, then score this one.
    zero, one, two = (f"world-00000{i}" for i in range(3))
    assert read_names == [one, zero, two, zero, two, one]
    assert sorted(set(fitted)) == [1, 2]
    lonely = dataclasses.replace(config, scenes=1)
    with pytest.raises(UserError, match="need at least two clips"):
        evaluation.run(lonely)
    with pytest.raises(UserError, match="found none in"):
        evaluation.run(dataclasses.replace(config, clips=tmp_path / "sampler"))


def test_tokens_beside_rendered_worlds_are_passed_over(monkeypatch, tmp_path):
    read: list[str] = []
    monkeypatch.setattr(
        command, "load_rendered", lambda paths: read.extend(p.name for p in paths) or []
    )
    with pytest.raises(UserError, match="need a folder of rendered worlds, found none in"):
        command.rendered_folds(Evaluate(), tmp_path)
    (tmp_path / "5-1.safetensors").touch()
    (tmp_path / "tokens-5.safetensors").touch()
    with pytest.raises(UserError, match="need at least two clips"):
        command.rendered_folds(Evaluate(), tmp_path)
    assert read == ["5-1.safetensors"]
    monkeypatch.undo()
    with pytest.raises(UserError, match="need rendered worlds that can be read in"):
        command.rendered_folds(Evaluate(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": 1}, "need --points of at least 2, got 1"),
        ({"max_frames": 0}, "need --max-frames of at least 2, got 0"),
        ({"steps": 0}, "need --steps of at least 1, got 0"),
        ({"sweep": (1, 0)}, "need --sweep of at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_scored(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        evaluation.run(Evaluate(model="none", out=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="need a folder to write scores into, got the file"):
        evaluation.run(Evaluate(model="none", out=tmp_path / "file"))


def test_rendered_worlds_are_scored_in_a_fixed_order(monkeypatch, tmp_path):
    (tmp_path / "5-1.safetensors").touch()
    images = torch.zeros(4, 2, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0, 0] = torch.arange(4)
    depth = torch.ones(4, 2, 4, 4).half()
    stack = RenderedWorlds(simple_worlds(4), images, torch.tensor([0, 8]), depth)
    first, second = stack.take(torch.arange(1)), stack.take(torch.arange(1, 4))
    monkeypatch.setattr(command, "load_rendered", lambda _: [first, second])

    def numbers(take) -> list[int]:
        return [int(clip.images[0, 0, 0, 0]) for clip in take()]

    config = Evaluate(scenes=3, fitting_scenes=1, points=12)
    (fold,) = command.rendered_folds(config, tmp_path)
    assert sorted(numbers(fold.scored) + numbers(fold.fitting)) == [0, 1, 2, 3]
    # Too few to set any apart: two halves.
    few = dataclasses.replace(config, fitting_scenes=2)
    one, other = command.rendered_folds(few, tmp_path)
    assert numbers(one.scored) == numbers(other.fitting)
    assert numbers(one.scored) + numbers(one.fitting) != numbers(fold.scored)
    assert (one.num_scored, other.num_scored) == (2, 1)
    # A world is what it is in whichever order it is taken.
    again = [
        clip for clip in fold.scored() if int(clip.images[0, 0, 0, 0]) == numbers(one.scored)[0]
    ]
    assert torch.equal(again[0].tracks, next(one.scored()).tracks)
    with pytest.raises(UserError, match="got both"):
        command.folds_of(Evaluate(clips=tmp_path, rendered=tmp_path), None)
