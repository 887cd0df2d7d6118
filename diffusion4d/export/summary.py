"""summary.png: the fan of hypotheses from several sides, and where it opens.

- the anchor frame with what was observed, and the paths of the hypotheses reprojected;
- the fan in space: a three-quarter view with the frame standing on the camera's image plane, from
  above, and from the side. Depth is what a monocular clip leaves open, so it runs across the page;
- three points in detail: one that moves, one that is hidden, the one most in doubt;
- the spread over time along the viewing ray and across it, seen and hidden points apart;
- the reprojection errors of the seen.

Colour is hypothesis, as in every file (`export.palette`); white is observation or mean.

Shape letters:  K hypotheses   N points   T frames   S samples of a drawn path
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from diffusion4d.atomic import replace_when_done
from diffusion4d.clip import Clip
from diffusion4d.export.palette import (
    FAINT,
    GRID,
    GROUND,
    HIDDEN_INK,
    PANEL,
    SEEN_INK,
    TEXT,
    colours,
    ramp,
)
from diffusion4d.export.spread import Spread, spread_of
from diffusion4d.export.views import (
    Scene,
    draw_image,
    draw_orthographic,
    draw_three_quarter,
    illustrative_points,
)
from diffusion4d.hypotheses import REFERENCE_SIDE, Hypotheses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

DPI = 110


def write_summary(
    hypotheses: Hypotheses,
    path: str | os.PathLike[str],
    *,
    seconds: Float[np.ndarray, "T"],
    clip: Clip | None = None,
    title: str = "",
) -> Path:
    """Draw and write the picture, all of it or nothing.

    Args:
        seconds: when each frame is shown, increasing.
        clip: its anchor frame is shown; a dark canvas without.
        title: the name of what was sampled.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    figure = summary(hypotheses, seconds=seconds, clip=clip, title=title)
    with replace_when_done(path) as temporary, warnings.catch_warnings():
        # A file's name in a script the font lacks is drawn as boxes, which is no one's fault.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=DPI, facecolor=GROUND)
    return path


def summary(
    hypotheses: Hypotheses,
    *,
    seconds: Float[np.ndarray, "T"],
    clip: Clip | None = None,
    title: str = "",
) -> "Figure":
    """The figure; see the module for its panels."""
    from matplotlib.figure import Figure

    clock = seconds - seconds[0]
    frame = None if clip is None else clip.frames[0].permute(1, 2, 0).contiguous().numpy()
    spread = spread_of(hypotheses)
    chosen = illustrative_points(hypotheses, spread)
    scene = Scene(hypotheses)

    figure = Figure(figsize=(16, 13.4), facecolor=GROUND)
    _heading(figure, hypotheses, clock, title)
    # The frame takes the width its shape asks for, and the fan in space what is left of the row.
    share = min(0.58, max(0.22, 0.315 * hypotheses.size[1] / hypotheses.size[0]))
    top = _row(figure, 0.915, 0.575, wspace=0.03, width_ratios=(share, 1 - share))
    middle = _row(figure, 0.53, 0.27, wspace=0.17, width_ratios=(1.15, 1.15, 1))
    bottom = _row(figure, 0.205, 0.042, wspace=0.17, width_ratios=(1.15, 1.15, 1))
    detail = middle[2].subgridspec(len(chosen), 1, hspace=0.14)

    draw_image(_axes(figure, top[0], "What the camera saw"), scene, frame, chosen)
    draw_three_quarter(_axes(figure, top[1], "The fan in space"), scene, frame, chosen)
    draw_orthographic(_axes(figure, middle[0], "From above"), scene, chosen, (2, 0))
    draw_orthographic(_axes(figure, middle[1], "From the side"), scene, chosen, (2, 1))
    for row, (letter, (n, why)) in enumerate(zip("ABC", chosen, strict=False)):
        name = "Depth of these points (shaded: hidden)" if row == 0 else ""
        axes = _axes(figure, detail[row], name)
        _depth_of_point(axes, scene, clock, n, f"{letter}: {why}")
        if row < len(chosen) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("time in s", color=FAINT)
    unit = "m" if hypotheses.units == "m" else "scene units"
    along = _axes(figure, bottom[0], f"Spread along the viewing ray (depth), {unit}")
    across = _axes(figure, bottom[1], f"Spread across the viewing ray, {unit}")
    _spread(along, spread, spread.depth, clock)
    _spread(across, spread, spread.lateral, clock)
    _reprojection(_axes(figure, bottom[2], "Reprojection error of what was seen"), hypotheses)
    return figure


def _row(figure: "Figure", top: float, bottom: float, **spacing: Any) -> "GridSpec":
    columns = len(spacing["width_ratios"])
    return figure.add_gridspec(1, columns, left=0.05, right=0.98, top=top, bottom=bottom, **spacing)


def _axes(figure: "Figure", place: Any, title: str) -> "Axes":
    axes = figure.add_subplot(place, facecolor=PANEL)
    axes.set_title(title, color=TEXT, fontsize=12.5, loc="left", pad=7)
    axes.tick_params(colors=FAINT, labelsize=9.5, length=3)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return axes


def _heading(figure: "Figure", hyp: Hypotheses, clock: np.ndarray, title: str) -> None:
    count = hyp.num_hypotheses
    name = f"{title[:48]}:  " if title else ""
    claim = "1 motion that explains it" if count == 1 else f"{count} motions that explain it"
    # A file may be called anything; a $ in it is no mathematics.
    words = figure.text(0.045, 0.968, f"{name}{claim}", color=TEXT, fontsize=19, parse_math=False)
    words.set_fontweight("bold")
    error_S = _seen_errors(hyp).ravel()
    fit = "nothing seen"
    if len(error_S):
        fit = f"reprojection {np.median(error_S):.2f} px at {REFERENCE_SIDE}"
    unit = "metres" if hyp.units == "m" else "scene units (median depth 1)"
    about = (
        f"{hyp.num_points} points · {hyp.num_frames} frames, {clock[-1]:.1f} s · "
        f"{hyp.num_ctrl} control points each · {fit} · {unit}, {hyp.frame} frame"
    )
    figure.text(0.045, 0.946, about, color=FAINT, fontsize=11.5)
    if count == 1:
        return
    bar = figure.add_axes((0.80, 0.962, 0.13, 0.012))
    bar.imshow(ramp(np.linspace(0, 1, 256))[None], aspect="auto")
    bar.set_axis_off()
    figure.text(0.794, 0.968, "nearer", color=TEXT, fontsize=11.5, ha="right", va="center")
    figure.text(0.936, 0.968, "farther", color=TEXT, fontsize=11.5, va="center")
    figure.text(0.865, 0.946, "one colour per hypothesis", color=FAINT, fontsize=10.5, ha="center")


def _depth_of_point(axes: "Axes", scene: Scene, clock: np.ndarray, n: int, name: str) -> None:
    for k, ink in enumerate(scene.ink_K3):
        axes.plot(clock, scene.depth_KNT[k, n], color=ink, linewidth=1.2, alpha=0.9)
    axes.plot(clock, scene.depth_KNT[:, n].mean(0), color="white", linewidth=1.5)
    low, high = axes.get_ylim()
    # A span too narrow for its own ticks would show rounding as motion.
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.02 * abs(middle))
    axes.set(xlim=_span(clock), ylim=(middle - half, middle + half))
    axes.fill_between(
        clock,
        0,
        1,
        where=~scene.seen_NT[n],
        transform=axes.get_xaxis_transform(),
        color=HIDDEN_INK,
        alpha=0.13,
    )
    note = axes.text(
        0.015, 0.86, name, transform=axes.transAxes, color=TEXT, fontsize=10.5, va="center"
    )
    note.set_bbox(
        {"boxstyle": "round,pad=0.2", "facecolor": PANEL, "edgecolor": "none", "alpha": 0.75}
    )


def _spread(axes: "Axes", spread: Spread, values: torch.Tensor, clock: np.ndarray) -> None:
    values_NT, seen_NT = values.numpy(), spread.seen.numpy()
    top = 0.0
    for name, mask_NT, ink in (("hidden", ~seen_NT, HIDDEN_INK), ("seen", seen_NT, SEEN_INK)):
        if not mask_NT.any():
            continue
        bands = np.full((5, len(clock)), np.nan)
        for t in range(len(clock)):
            # Quantiles of one or two points are no band.
            if mask_NT[:, t].sum() >= 3:
                bands[:, t] = np.quantile(values_NT[mask_NT[:, t], t], (0.1, 0.25, 0.5, 0.75, 0.9))
        median = np.median(values_NT[mask_NT])
        label = f"{name}: median {median:.3g}"
        axes.fill_between(clock, bands[0], bands[4], color=ink, alpha=0.13, linewidth=0)
        axes.fill_between(clock, bands[1], bands[3], color=ink, alpha=0.25, linewidth=0)
        axes.plot(clock, bands[2], color=ink, linewidth=2, label=label)
        top = max(top, float(np.nanmax(bands, initial=median)))
    axes.set(xlim=_span(clock), ylim=(0, 1.25 * top or 1))
    axes.set_xlabel("time in s; bands hold 50 % and 80 % of the points", color=FAINT)
    _legend(axes)


def _reprojection(axes: "Axes", hyp: Hypotheses) -> None:
    error_KS = _seen_errors(hyp)
    axes.set_xlabel(f"px, shorter side {REFERENCE_SIDE} px; one line per hypothesis", color=FAINT)
    axes.set_yticks([])
    finite = error_KS[np.isfinite(error_KS)]
    if len(finite) == 0:
        return
    median = float(np.median(finite))
    bins = np.linspace(0, max(min(np.quantile(finite, 0.98), 8 * median), 1e-3), 45)
    for errors, ink in zip(error_KS, colours(hyp), strict=True):
        axes.hist(
            errors[np.isfinite(errors)],
            bins.tolist(),
            histtype="step",
            color=ink,
            alpha=0.9,
            linewidth=1.1,
        )
    axes.axvline(median, color="white", linewidth=1.5, label=f"median {median:.2f} px")
    axes.set_xlim(bins[0], bins[-1])
    _legend(axes)


def _seen_errors(hyp: Hypotheses) -> Float[np.ndarray, "K seen"]:
    """px at the reference size; infinite behind the camera."""
    error_KS = hyp.reprojection()[:, hyp.seen.transpose(0, 1)].numpy()
    return error_KS * REFERENCE_SIDE / min(hyp.size)


def _span(clock: np.ndarray) -> tuple[float, float]:
    return 0.0, float(clock[-1]) or 1.0


def _legend(axes: "Axes") -> None:
    axes.legend(loc="upper right", frameon=False, labelcolor=TEXT, fontsize=10.5)
