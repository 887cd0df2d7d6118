"""How many bytes a second the fused update moves, beside what a copy moves.

A copy reads a tensor and writes one; nothing that has to read and write main memory moves more bytes a second. The
update's bytes are those it cannot avoid: every input once, every output once. All ways run in turns within one process,
so that whatever else the machine does hits all of them; medians are compared, and the copy is one of a large tensor.

    from samplers.kernels.update_measure import bandwidth
    for rate in bandwidth(megabytes=(1.0, 16.0, 256.0), repeats=9):
        print(rate)
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from samplers.kernels.update import Backend, Parts, Row, update_of

LARGE_MEGABYTES = 256.0


@dataclass(frozen=True)
class Rate:
    """One way at one size.

    way: a backend, or "eager", the formula written out in torch with new tensors for every sign.
    megabytes: of one tensor. seconds: median. share: bytes a second over those of the large copy.
    share_of_same: the same over a copy of this size, which for small tensors stays in the cache.
    """

    way: str
    megabytes: float
    seconds: float
    bytes_per_second: float
    share: float
    share_of_same: float


def bandwidth(
    megabytes: Sequence[float] = (1.0, 4.0, 16.0, 64.0, 256.0),
    backends: Sequence[Backend] = ("blocked",),
    repeats: int = 9,
    large_megabytes: float = LARGE_MEGABYTES,
) -> list[Rate]:
    """Rates of a guided, second-order, stochastic row on float32 CPU tensors: five inputs, x_s and x̂_0 written.

    Every way is called once before it is timed. Raises ValueError for fewer than one repeat or a size without numbers.
    """
    if repeats < 1 or min(*megabytes, large_megabytes) * 2**20 < 4:
        raise ValueError(
            f"need repeats >= 1 and sizes of a number at least, got repeats={repeats}, "
            f"megabytes={list(megabytes)}, large_megabytes={large_megabytes}"
        )
    rates: list[Rate] = []
    for size in megabytes:
        seconds, moved = _seconds(int(size * 2**20) // 4, backends, repeats, large_megabytes)
        large = 2 * large_megabytes * 2**20 / seconds.pop("large copy")
        same = 2 * int(size * 2**20) / seconds.pop("copy")
        for way, spent in seconds.items():
            rate = moved / spent
            rates.append(Rate(way, size, spent, rate, rate / large, rate / same))
    return rates


def _seconds(
    count: int, backends: Sequence[Backend], repeats: int, large_megabytes: float
) -> tuple[dict[str, float], int]:
    """Median seconds of every way and both copies, and the bytes that one update has to move."""
    x_t, cond, uncond, earlier, noise = torch.ones(5, count).unbind()
    out = torch.empty(count), torch.empty(count)
    source = torch.ones(int(large_megabytes * 2**20) // 4)
    target = torch.empty_like(source)
    row = Row(a=0.7, b=0.4, d=(-0.1,), e=0.2)
    parts = Parts((cond, uncond), keep=0.6, gains=(-1.2, 0.4), limit=6.0)
    ways: dict[str, Callable[[], object]] = {
        "copy": lambda: out[0].copy_(x_t),
        "large copy": lambda: target.copy_(source),
        "eager": lambda: update_of("reference")(row, x_t, parts, (earlier,), noise, True, None),
    }
    for backend in backends:
        update = update_of(backend)
        ways[backend] = lambda update=update: update(row, x_t, parts, (earlier,), noise, True, out)
    spent: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                if turn > 0:
                    spent[way].append(time.perf_counter() - start)
    return {way: statistics.median(values) for way, values in spent.items()}, 7 * 4 * count
