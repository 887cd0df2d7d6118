"""What decoding costs: ours beside a product with the basis, scipy and a loop over frames; and how it grows.

    python experiments/bench/decoding.py            writes decoding.json beside this file

Times are CPU seconds of this process, which a busy machine stretches less than the clock does; with two threads
(`--threads 1 2`) the clock's, which mean nothing unless the machine is free. The alternatives are interleaved
(A B C A B C ...) and medians taken. Growth is measured by ours alone, with the peak of resident memory above what
was held before. An exponent is the slope of log seconds over log size between the middle of the range and its end.
"""

import argparse
import ctypes
import json
import math
import statistics
import time
from pathlib import Path

import torch
from decoders import DECODERS, work

SIZES = [(64, 128, 12, 48), (16, 128, 64, 1024)]
HYPOTHESES = (1, 16, 64, 256, 1024)
POINTS = (64, 256, 1024, 4096)
FRAMES = (16, 64, 256, 1024)
# [K, N, T, 3] would take 48 GiB; 1.5 GiB for what has to decode every hypothesis.
LARGEST = {
    "moments": (1024, 4096, 12, 1024),
    "errors": (1024, 128, 12, 1024),
    "quantiles": (1024, 128, 12, 1024),
}
RESULTS = Path(__file__).with_name("decoding.json")


def compare(what: str, size: tuple[int, int, int, int], threads: int, rounds: int) -> dict:
    """Median seconds of every decoder, and how many times ours they take."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    job, decoders = work(*size), DECODERS[what]
    spent: dict[str, list[float]] = {who: [] for who in decoders}
    for turn in range(rounds + 1):
        for who, decoder in decoders.items():
            begin = clock()
            decoder(job)
            if turn > 0:
                spent[who].append(clock() - begin)
    seconds = {who: statistics.median(times) for who, times in spent.items()}
    over = {who: round(value / seconds["ours"], 2) for who, value in seconds.items()}
    return {"size": size, "threads": threads, "seconds": seconds, "over_ours": over}


def alone(what: str, size: tuple[int, int, int, int], rounds: int) -> dict:
    """Median CPU seconds and most bytes of ours."""
    torch.set_num_threads(1)
    decoder, job = DECODERS[what]["ours"], work(*size)
    times, peaks = [], []
    for _ in range(rounds):
        # What the allocator kept of earlier work would hide as much of this one's.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, begin = _memory("VmRSS"), time.process_time()
        decoder(job)
        times.append(time.process_time() - begin)
        peaks.append(_memory("VmHWM") - before)
    return {"size": size, "seconds": statistics.median(times), "bytes": max(peaks)}


def _memory(name: str) -> int:
    """Bytes resident now (VmRSS), or at most since the mark was reset (VmHWM). Linux alone tells."""
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if name in row]
    return 1024 * int(line.split()[1])


def exponent(curve: list[dict], axis: int) -> float:
    """The slope between the middle of the range and its end."""
    middle, end = curve[len(curve) // 2], curve[-1]
    growth = math.log(end["seconds"] / middle["seconds"])
    return round(growth / math.log(end["size"][axis] / middle["size"][axis]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="2 on a free machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    results: dict = {"rounds": args.rounds, "compared": {}, "grown": {}, "largest": {}}
    axes = {
        "K": (0, [(K, 128, 12, 48) for K in HYPOTHESES]),
        "N": (1, [(16, N, 12, 48) for N in POINTS]),
        "T": (3, [(16, 128, 12, T) for T in FRAMES]),
    }
    for what in DECODERS:
        for name, (axis, sizes) in axes.items():
            curve = [alone(what, size, args.rounds) for size in sizes]
            grown = {"curve": curve, "exponent": exponent(curve, axis)}
            results["grown"].setdefault(what, {})[name] = grown
        results["compared"][what] = []
        for threads in args.threads:
            for size in SIZES:
                results["compared"][what].append(compare(what, size, threads, args.rounds))
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(what, "compared", flush=True)
    for what, size in LARGEST.items():
        results["largest"][what] = alone(what, size, 1)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(what, "at its largest", flush=True)


if __name__ == "__main__":
    main()
