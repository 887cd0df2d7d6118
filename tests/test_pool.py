"""A pool of worlds: the same whoever draws it, whole shards only, gaps filled."""

import dataclasses

import pytest
import torch
from models import simple_worlds
from packs import small_pack
from safetensors.torch import load_file, save_file

from diffusion4d.config import PoolSpec
from diffusion4d.data.pack import Pack
from diffusion4d.errors import UserError
from diffusion4d.scenes import pool
from diffusion4d.scenes.world import ACTOR, generate

SPEC = PoolSpec(worlds=4, points=6, frames=5, first_seed=3)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SHARD", 2)


class Inline:
    """Stands in for a pool of processes: a spawned one would not see the small shards."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def imap_unordered(self, work, jobs):
        # Several processes finish in any order.
        return map(work, jobs if self.processes == 1 else reversed(jobs))


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    context = type("Context", (), {"Pool": Inline})
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: context)


def test_worlds_do_not_depend_on_processes_or_shards(tmp_path, monkeypatch):
    one = pool.load_pool(pool.draw_pool(tmp_path / "one", SPEC, processes=1))
    two = pool.load_pool(pool.draw_pool(tmp_path / "two", SPEC, processes=2))
    monkeypatch.setattr(pool, "SHARD", 1)
    alone = pool.load_pool(pool.draw_pool(tmp_path / "alone", dataclasses.replace(SPEC, worlds=2)))
    for field in dataclasses.fields(one):
        assert torch.equal(getattr(one, field.name), getattr(two, field.name)), field.name
        assert torch.equal(getattr(one, field.name)[:2], getattr(alone, field.name)), field.name
    assert one.points.shape == (4, 6, 5, 3)
    assert one.visible.dtype == one.moving.dtype == torch.bool


def test_spawned_processes_draw_what_this_one_draws(tmp_path):
    job = (dataclasses.replace(SPEC, worlds=2), 3, tmp_path / "shard.safetensors")
    threads = torch.get_num_threads()
    pool._write_shard(job)
    torch.set_num_threads(threads)
    written, drawn = load_file(job[2]), pool.draw_shard(SPEC, 3, 2)
    assert written.keys() == drawn.keys()
    for name, tensor in drawn.items():
        assert torch.equal(written[name], tensor), name


def test_an_interrupted_pool_goes_on(tmp_path, monkeypatch):
    drawn = []
    shard = pool.draw_shard

    def interrupted(spec, first_seed, count):
        drawn.append(first_seed)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return shard(spec, first_seed, count)

    monkeypatch.setattr(pool, "draw_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.draw_pool(tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["3-6x5-v2.safetensors"]
    # What a killed process leaves is hidden, and never read.
    (tmp_path / ".5-6x5-abc.safetensors").write_bytes(b"half")
    reports = []
    paths = pool.draw_pool(tmp_path, SPEC, progress=lambda *report: reports.append(report))
    assert drawn == [3, 5, 5]
    assert [path.name for path in paths] == ["3-6x5-v2.safetensors", "5-6x5-v2.safetensors"]
    assert reports == [(1, 2), (2, 2)]
    assert len(pool.load_pool(paths)) == 4
    pool.draw_pool(tmp_path, SPEC)
    assert drawn == [3, 5, 5]


def test_taking_keeps_the_order():
    worlds = simple_worlds(4)
    taken = worlds.take(torch.tensor([2, 0, 2]))
    assert len(taken) == 3
    assert torch.equal(taken.points[0], worlds.points[2])
    assert torch.equal(taken.intrinsics[1], worlds.intrinsics[0])


def test_shards_are_stacked_in_the_order_given(tmp_path):
    worlds = simple_worlds(4)
    for name, part in (("b", slice(0, 2)), ("a", slice(2, 4))):
        tensors = {f.name: getattr(worlds, f.name)[part] for f in dataclasses.fields(worlds)}
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / name)
    together = pool.load_pool([tmp_path / "b", tmp_path / "a"])
    assert torch.equal(together.points, worlds.points)


def test_a_pool_of_a_pack_shows_its_actors(tmp_path):
    """Worlds are those that `generate` makes of the pack; the pack's draw is part of a shard's name."""
    folder = small_pack(tmp_path / "pack", ("train", "held-out"))
    spec = dataclasses.replace(SPEC, worlds=2, pack=folder, actors_only=True)
    (path,) = pool.draw_pool(tmp_path / "pool", spec)
    pack = Pack.open(folder)
    assert path.name == f"3-6x5-v2-{pack.fingerprint}-actors.safetensors"
    worlds = pool.load_pool([path])
    for number in range(2):
        drawn = generate(3 + number, num_points=6, num_frames=5, family=ACTOR, pack=pack)
        assert drawn.family == ACTOR
        assert torch.equal(worlds.points[number], torch.from_numpy(drawn.points).float())
        assert torch.equal(worlds.moving[number], torch.from_numpy(drawn.moving))


def test_names_of_shards_tell_packs_apart(tmp_path):
    folder = small_pack(tmp_path / "pack", ("train", "held-out"))
    some = dataclasses.replace(SPEC, pack=folder)
    held = dataclasses.replace(some, splits=("held-out",))
    only = dataclasses.replace(some, actors_only=True)
    labels = [pool.Cast.of(spec).label for spec in (SPEC, some, held, only)]
    assert len(set(labels)) == 4
    assert labels[3] == f"{labels[1]}-actors"
    (actor,) = pool.Cast.of(held).pack.actors
    assert actor.split == "held-out"
    small_pack(tmp_path / "pack", ("test",))
    # Actors that take no part in the draw do not matter.
    assert pool.Cast.of(some).label == labels[1]


def test_pools_of_other_shares_of_two_answers_are_other_pools(tmp_path):
    spec = dataclasses.replace(SPEC, worlds=1, ambiguous=0.5)
    usual = pool.draw_pool(tmp_path, dataclasses.replace(SPEC, worlds=1))
    (other,) = pool.draw_pool(tmp_path, spec)
    assert other not in usual
    assert "ambiguous0.5" in other.name


def test_a_pool_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="need a pack for worlds of actors only, got none"):
        pool.Cast.of(dataclasses.replace(SPEC, actors_only=True))
    with pytest.raises(UserError, match="need a folder with a pack"):
        pool.draw_pool(tmp_path, dataclasses.replace(SPEC, pack=tmp_path / "none"))
    folder = small_pack(tmp_path / "pack")
    with pytest.raises(ValueError, match=r"need a pack with actors of \('test',\)"):
        pool.Cast.of(dataclasses.replace(SPEC, pack=folder, splits=("test",)))
