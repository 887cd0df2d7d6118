r"""Tables that evaluate twice a step: two rows, the second of which sees the answer of the first.

A step t → s first goes to a middle point x_m, asks there, and starts again from x_t. As x_m = a x_t + b x̂_0, x_t is
(x_m − b x̂_0) / a, so the second row needs x_m and the two answers only. That loses no more digits than the method
does: the flow's own share of x_t is carried by both rows alike, and on straight paths Heun's second row is x_m plus a
multiple of x̂_m − x̂_0. Where a step keeps a thousandth of σ that multiple is 500, in Heun's own formula as well.

A step that ends at the data (for dpmpp_2s also one that starts at pure noise) is one row of first order.
"""

import itertools
import math
from typing import get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.flows import FLOWS, Path, euler_rows
from samplers.grids import check_grid
from samplers.schedules import Schedule
from samplers.tables import Table, ddim


def heun(schedule: Schedule, grid: Float64[Tensor, "times"], path: Path = "straight") -> Table:
    """The trapezoidal rule with Euler's answer at s: x̄_s = x̄_t + (c_s − c_t) (v_t + v_m) / 2. Second order.

    The path is one of flows.py: "straight" is Heun for flow matching, "exploding" Karras et al. 2022, algorithm 1 (and
    diffusers' Heun), "circle" suits the cosine schedule. 2 S − 1 rows for a grid of S steps that ends at the data.
    Raises ValueError for a bad grid, an unknown path, or "exploding" from pure noise, where its clock is infinite.
    """
    check_grid(grid)
    if path not in FLOWS:
        raise ValueError(f"need a path out of {', '.join(get_args(Path))}, got {path!r}")
    flow = FLOWS[path](schedule, grid)
    if not math.isfinite(flow.clock[0]):
        raise ValueError(f"need alpha > 0 at the first time, got 0 at t={grid[0].item()}")
    first_a, first_b = euler_rows(flow)
    rows, times = [], [grid[0]]
    for i, step in enumerate(flow.clock.diff()):
        rows.append((first_a[i], first_b[i], torch.zeros_like(step)))
        times.append(grid[i + 1])
        if flow.clock[i + 1] > 0:
            k_t, m_t, k_s, m_s = flow.k[i], flow.m[i], flow.k[i + 1], flow.m[i + 1]
            # v_t out of x̄_m = (1 + step k_t / m_t) x̄_t − step x̂_0 / m_t.
            kept = m_t + step * k_t
            a = 1 + step / 2 * (k_s / m_s - k_t / kept)
            b, d = -step / 2 / m_s, step / 2 / kept
            rows.append((a, flow.scale[i + 1] * b, flow.scale[i + 1] * d))
            times.append(grid[i + 1])
    return _table(times, rows)


def dpmpp_2s(schedule: Schedule, grid: Float64[Tensor, "times"]) -> Table:
    """DPM-Solver++(2S): ask in the middle of the step in λ = log(α / σ), and use that answer. Second order.

    x_s = (σ_s / σ_t) x_t + α_s (1 − e^{−h}) x̂_m, Lu et al. 2022, algorithm 1 with r = 1/2. Two rows a step. Raises
    ValueError for a bad grid.
    """
    check_grid(grid)
    rows, times = [], [grid[0]]
    for t, s in itertools.pairwise(grid):
        log_snr = schedule.log_snr(torch.stack([t, s]))
        middle = schedule.t_of_log_snr(log_snr.mean())
        whole = ddim(schedule, torch.stack([t, s]))
        # A step so short that its middle rounds to an end has nothing to ask there.
        if bool(log_snr.isfinite().all()) and s < middle < t:
            halves = ddim(schedule, torch.stack([t, middle, s]))
            (a_m, a_s), b_m = halves.a, halves.b[0]
            rows += [(a_m, b_m, torch.zeros_like(a_m)), (a_s, whole.b[0], -a_s * b_m)]
            times += [middle, s]
        else:
            rows.append((whole.a[0], whole.b[0], torch.zeros_like(t)))
            times.append(s)
    return _table(times, rows)


def _table(times: list[Tensor], rows: list[tuple[Tensor, Tensor, Tensor]]) -> Table:
    a, b, d = (torch.stack(column) for column in zip(*rows, strict=True))
    return Table(torch.stack(times), a, b, d[:, None], torch.zeros_like(a))
