"""Clocks: alternatives side by side, and how cost and memory grow.

On one thread the CPU seconds of the process are taken: beside other work they are what a quiet machine's clock would
say, near enough for ratios. On several threads only the wall clock means anything, and only on a quiet machine.
"""

import ctypes
import ctypes.util
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import psutil
import torch

Work = Callable[[], object]


def clock() -> float:
    """CPU seconds where there is one thread, else wall seconds."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Work) -> float:
    """Of one run."""
    since = clock()
    work()
    return clock() - since


def side_by_side(work: Mapping[str, Work], rounds: int, warm: bool = True) -> dict[str, float]:
    """Median seconds of each, run in turn, so that a slow spell of the machine meets all of them."""
    if warm:
        for run in work.values():
            run()
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            taken[name].append(seconds(run))
    return {name: statistics.median(held) for name, held in taken.items()}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of cost ~ size^p, by least squares on logarithms over the larger half, where fixed costs are small."""
    half = max(3, (len(sizes) + 1) // 2)
    x, y = np.log(sizes[-half:]), np.log(costs[-half:])
    return float(np.polyfit(x, y, 1)[0])


class Peak:
    """The highest resident memory of this process from now on, over what it is now. Linux alone can say.

    Raises:
        OSError: the system keeps no peak that can be reset.
    """

    def __init__(self) -> None:
        gc.collect()
        # What an earlier run left with the allocator would hide what this one takes.
        name = ctypes.util.find_library("c")
        if name is not None:
            getattr(ctypes.CDLL(name), "malloc_trim", lambda _: 0)(0)
        self._before = psutil.Process().memory_info().rss
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

    @property
    def growth(self) -> int:
        """Bytes until now."""
        with open("/proc/self/status") as file:
            peak = next(line for line in file if line.startswith("VmHWM"))
        return max(0, int(peak.split()[1]) * 1024 - self._before)


def peak_growth(work: Work) -> int:
    """Bytes by which a run raises the resident memory of this process at its highest."""
    peak = Peak()
    work()
    return peak.growth
