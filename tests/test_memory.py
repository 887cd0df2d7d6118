"""How many hypotheses at once: the budget is kept to, and the model of memory covers what is really held."""

import ctypes
import gc
from pathlib import Path

import pytest
import torch
from observed import M, some_evidence, some_network

from diffusion4d import denoiser, memory, sampling
from diffusion4d.errors import UserError
from diffusion4d.loops import PLAIN, Loop
from diffusion4d.memory import CHUNK_ROWS, KERNELS, MIB, Shapes, plan, row_bytes

FUSED = Loop("fused", "fp32", "test")
HALF = Loop("fused", "bf16", "test")
NETWORK = some_network()
SHAPES = Shapes(hypotheses=1000, points=32, frames=48, tokens=0)


def test_a_budget_is_kept_to_and_used():
    wide = plan(NETWORK, FUSED, SHAPES, 2**34)
    assert wide.chunk == CHUNK_ROWS // 32
    assert wide.bytes < 2**34
    for share in (0.3, 0.6, 0.9):
        budget = int(KERNELS + share * (wide.bytes - KERNELS))
        narrow = plan(NETWORK, FUSED, SHAPES, budget)
        each = 1.25 * 32 * row_bytes(NETWORK, FUSED, SHAPES)
        assert narrow.bytes <= budget
        # One more would not have fitted.
        assert narrow.chunk == wide.chunk or narrow.bytes + each > budget
        assert 1 <= narrow.chunk <= wide.chunk
    few = plan(NETWORK, FUSED, Shapes(3, 32, 48, 0), 2**34)
    assert few.chunk == 3
    assert str(few) == f"at most {few.bytes / MIB:.0f} MiB for sampling, 3 hypotheses at a time"


def test_what_is_too_little_is_refused_with_what_would_do():
    with pytest.raises(UserError, match=r"need a memory budget of at least (\d+) MiB") as error:
        plan(NETWORK, FUSED, SHAPES, 10 * MIB)
    wanted = int(str(error.value).split("at least ")[1].split(" MiB")[0])
    assert plan(NETWORK, FUSED, SHAPES, (wanted + 1) * MIB).chunk >= 1


def test_more_of_anything_takes_more():
    def taken(loop: Loop = FUSED, **changed: int) -> int:
        shapes = {"hypotheses": 8, "points": 32, "frames": 16, "tokens": 0} | changed
        return plan(NETWORK, loop, Shapes(**shapes), 2**36).bytes

    assert taken(hypotheses=9) > taken() < taken(frames=600)
    assert taken(points=33) > taken()
    # Scores of attention are written out in half precision alone.
    assert taken(HALF, tokens=10_000) > taken(HALF)
    assert taken(FUSED, tokens=10_000) == taken(FUSED)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets a peak")
@pytest.mark.parametrize("loop", [PLAIN, FUSED, HALF], ids=["plain", "fp32", "bf16"])
def test_what_is_held_is_within_what_is_predicted(loop, monkeypatch):
    if loop is not PLAIN and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    N, K = 256, 96
    network = some_network(width=192, num_heads=3, mlp_ratio=4.0).float().requires_grad_(False)
    evidence = some_evidence(N=N, tokens=True, dtype=torch.float32)
    clip = denoiser.prepare(network, evidence)
    table, seeds = sampling.table_for("angular", 2), sampling.seeds_from(0, K)
    # All at once, so that what is held is far more than what an allocator keeps anyway.
    monkeypatch.setattr(memory, "CHUNK_ROWS", N * K)
    planned = plan(network, loop, Shapes(K, N, 4, evidence.num_tokens), 2**36)
    assert planned.chunk == K
    sampling.sample(clip, seeds[:1], table, loop=loop)
    # What earlier tests freed would be taken again, and growth not seen.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    ctrl = sampling.sample(clip, seeds, table, loop=loop, chunk=K)
    grown = _status("VmHWM") - before
    assert ctrl.shape == (K, N, M, 3)
    assert grown <= planned.bytes
    # A prediction ten times too large would keep any promise.
    assert planned.bytes - KERNELS < 4 * grown


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024
