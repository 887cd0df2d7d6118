r"""Where the steps go: S + 1 falling times from t_0 = 1 (noise) to t_S = 0 (data), in float64.

    uniform           t_i = 1 − i / S
    power             t_i = (1 − i / S)^p              p > 1 crowds the steps at the data end
    log_snr_uniform   log-SNR from `low` to `high` in equal steps, then 0
    karras            σ/α by the ρ-law of Karras et al. 2022, eq. 5, then 0

Log-SNR is infinite at the data, and for most schedules at the noise. The last two grids therefore
place t_0 … t_{S−1} inside a finite range, set t_0 to 1 exactly, and append t_S = 0.
"""

import math
import numbers

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.schedules import Schedule


def check_grid(grid: Float64[Tensor, "times"]) -> None:
    """Raise ValueError unless `grid` is one float64 row that falls strictly within [0, 1]."""
    if grid.dim() != 1 or grid.dtype != torch.float64:
        raise ValueError(
            f"need a grid of float64 times in one row, got {grid.dtype} of shape {tuple(grid.shape)}"
        )
    if len(grid) < 2:
        raise ValueError(f"need a grid of at least 2 times, got {len(grid)}")
    # Both comparisons are false for NaN, so NaN is refused as well.
    if not (bool((grid.diff() < 0).all()) and bool(((grid >= 0) & (grid <= 1)).all())):
        raise ValueError(f"need times that fall strictly within [0, 1], got {grid.tolist()}")


def _check_num_steps(num_steps: int) -> None:
    if not isinstance(num_steps, numbers.Integral):
        raise ValueError(f"need a whole num_steps, got num_steps={num_steps!r}")
    if num_steps < 1:
        raise ValueError(f"need num_steps >= 1, got num_steps={num_steps}")


def uniform(num_steps: int) -> Float64[Tensor, "{num_steps}+1"]:
    """Equal steps in t. Raises ValueError for num_steps < 1, or one that is no integer."""
    _check_num_steps(num_steps)
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def power(num_steps: int, exponent: float) -> Float64[Tensor, "{num_steps}+1"]:
    """(1 − i / S)^exponent; 1 is `uniform`. Raises ValueError unless exponent > 0 and finite."""
    if not 0 < exponent < math.inf:
        raise ValueError(f"need a positive, finite exponent, got exponent={exponent}")
    grid = uniform(num_steps) ** exponent
    check_grid(grid)
    return grid


def log_snr_uniform(
    num_steps: int, schedule: Schedule, low: float = -10.0, high: float = 10.0
) -> Float64[Tensor, "{num_steps}+1"]:
    """Equal steps in log(α² / σ²) from `low` (noise) to `high` (data), then 0.

    `low` is raised to the schedule's own log-SNR at t = 1 where that is finite. Raises ValueError
    for num_steps < 1 or an empty or infinite range.
    """
    _check_num_steps(num_steps)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"need finite bounds on log-SNR, got low={low}, high={high}")
    start = _start_log_snr(schedule, low)
    if not start < high:
        raise ValueError(f"need log-SNR rising from low to high, got low={start}, high={high}")
    log_snr = torch.linspace(start, high, num_steps, dtype=torch.float64)
    return _with_ends(schedule.t_of_log_snr(log_snr))


def karras(
    num_steps: int,
    schedule: Schedule,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Float64[Tensor, "{num_steps}+1"]:
    """The ρ-law in σ/α; the defaults are those of Karras et al. 2022, table 1.

    `sigma_max` is lowered to the schedule's own σ/α at t = 1 where that is finite. Raises
    ValueError for num_steps < 1, rho not positive, or unless 0 < sigma_min < sigma_max < ∞.
    """
    _check_num_steps(num_steps)
    if not 0 < rho < math.inf:
        raise ValueError(f"need a positive, finite rho, got rho={rho}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            "need 0 < sigma_min < sigma_max < inf, "
            f"got sigma_min={sigma_min}, sigma_max={sigma_max}"
        )
    start = math.exp(-_start_log_snr(schedule, -2 * math.log(sigma_max)) / 2)
    if not sigma_min < start:
        raise ValueError(f"need sigma_min below the schedule's {start}, got sigma_min={sigma_min}")
    ramp = torch.linspace(
        start ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float64
    )
    return _with_ends(schedule.t_of_log_snr(-2 * rho * ramp.log()))


def _start_log_snr(schedule: Schedule, low: float) -> float:
    return max(low, schedule.log_snr(torch.ones((), dtype=torch.float64)).item())


def _with_ends(times: Float64[Tensor, "steps"]) -> Float64[Tensor, "steps+1"]:
    """Start at pure noise and finish at the data, whatever range `times` was drawn from."""
    grid = torch.cat([times, times.new_zeros(1)])
    grid[0] = 1
    check_grid(grid)
    return grid
