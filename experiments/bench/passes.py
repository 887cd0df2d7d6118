"""What is bound by memory: decoding by everything that could do it, and the table's update against a copy.

Shape letters:  K hypotheses   N points   M control points   T frames.
"""

import dataclasses

from decoders import DECODERS, work
from gate import Metric
from timing import side_by_side

from samplers.kernels.update_measure import bandwidth

SIZES = {"": (64, 128, 12, 48), "_long": (16, 128, 64, 1024)}
"""K, N, M, T."""
RIVALS = (("scipy", "scipy", 20.0), ("gemm", "gemm", 1.0), ("frames", "per frame", None))
"""Key, decoder and goal."""
TOLERANCES = {
    "positions": (0.25, 0.2, 0.3),
    "moments": (0.1, 0.1, 0.15),
    "quantiles": (0.15, 0.2, 0.3),
    "errors": (0.2, 0.3, 0.15),
}
"""Against each of these; milliseconds vary more than a loop does."""
UPDATES = (1.0, 64.0)
"""MiB of one tensor of an update; the last is the large copy's, more than the last cache holds."""


def decoding(rounds: int, most_frames: int) -> tuple[list[Metric], dict]:
    """How many times ours the others take: a product with the basis, scipy's BSpline, a loop over frames.

    Sizes of more frames than `most_frames` are left out. The goal of 20 times scipy is for what is asked over K;
    positions written out are bound by memory (decision 0006).
    """
    metrics, table = [], {}
    for suffix, size in SIZES.items():
        if size[-1] > most_frames:
            continue
        for what, decoders in DECODERS.items():
            job = work(*size)
            taken = side_by_side(
                {who: lambda d=decoder, j=job: d(j) for who, decoder in decoders.items()}, rounds
            )
            over = {who: spent / taken["ours"] for who, spent in taken.items()}
            table[what + suffix] = {"size": size, "seconds": taken, "over_ours": over}
            if not suffix:
                metrics += [
                    Metric(
                        f"decode_{what}_{key}",
                        over[who],
                        "x",
                        "higher",
                        TOLERANCES[what][i],
                        goal,
                    )
                    for i, (key, who, goal) in enumerate(RIVALS)
                ]
    return metrics, table


def updating(rounds: int) -> tuple[list[Metric], dict]:
    """Bytes a second of the fused update over those of a large copy (`samplers.kernels.update_measure`)."""
    rates = bandwidth(UPDATES, repeats=2 * rounds + 1, large_megabytes=UPDATES[-1])
    table = [dataclasses.asdict(rate) for rate in rates]
    share = {rate.way: rate.share for rate in rates if rate.megabytes == UPDATES[-1]}
    return [
        Metric("update_of_copy", share["blocked"], "of a copy's bytes / s", "higher", 0.15, 0.7),
        Metric("update_of_eager", share["blocked"] / share["eager"], "x eager", "higher", 0.1),
    ], {"rates": table}
