"""modes.png: the spectrum and what noise would look like, the first modes, and the clusters.

- spectrum: every eigenvalue as a deviation, modes in full colour, with the threshold, and the noise that was fitted;
- law: the rest of the spectrum as a histogram under the law that was taken; for white noise those of Marčenko–Pastur
  and of its limit, the semicircle, with the edge;
- modes: the mean motion in grey, each mode swung to one side (orange) and the other (blue), from beside the camera;
- clusters: hypotheses by their first two scores, a marker and colour a cluster, its representative ringed, weights.

Orange, blue and the cluster colours are Okabe and Ito's (2008), which the common colour deficiencies keep apart.

Shape letters:  K hypotheses   N points   S samples of a drawn path   r modes
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusion4d.atomic import replace_when_done
from diffusion4d.deformation import Deformation
from diffusion4d.export.palette import FAINT, GRID, GROUND, PANEL, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
SAMPLES = 24
DRAWN = 3
"""Modes that are drawn."""
AMPLITUDE = 2.0
MINUS, PLUS = "#56b4e9", "#e69f00"
INKS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2", "#bbbbbb")
MARKERS = "osD^vP*X"


def write_picture(deformation: Deformation, path: str | os.PathLike[str]) -> Path:
    """Draw and write the picture, all of it or nothing.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    with replace_when_done(path) as temporary:
        picture(deformation).savefig(temporary, format="png", dpi=DPI, facecolor=GROUND)
    return path


def picture(deformation: Deformation) -> "Figure":
    """The figure; see the module for its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10.6), facecolor=GROUND)
    _heading(figure, deformation)
    top = figure.add_gridspec(1, 3, left=0.055, right=0.98, top=0.865, bottom=0.53, wspace=0.2)
    columns = max(1, min(DRAWN, deformation.num_modes))
    low = figure.add_gridspec(
        1, columns, left=0.03, right=0.98, top=0.435, bottom=0.03, wspace=0.05
    )
    _spectrum(_axes(figure, top[0], "Spectrum: deviation of every direction"), deformation)
    _law(_axes(figure, top[1], "What is left, and the law of noise"), deformation)
    _clusters(_axes(figure, top[2], "Hypotheses by their scores"), deformation)
    view = _View(deformation)
    for i in range(min(DRAWN, deformation.num_modes)):
        axes = _axes(figure, low[i], f"Mode {i + 1}")
        _mode(axes, deformation, view, i)
    return figure


def _axes(figure: "Figure", place: Any, title: str) -> "Axes":
    axes = figure.add_subplot(place, facecolor=PANEL)
    axes.set_title(title, color=TEXT, fontsize=12.5, loc="left", pad=7)
    axes.tick_params(colors=FAINT, labelsize=9.5, length=3)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return axes


def _heading(figure: "Figure", deformation: Deformation) -> None:
    found, parts = deformation.modes, deformation.clusters
    modes = _plural(deformation.num_modes, "mode")
    clusters = "no clusters" if parts.count == 1 else _plural(parts.count, "cluster")
    claim = f"{deformation.hypotheses.num_hypotheses} hypotheses: {modes}, {clusters}"
    words = figure.text(0.045, 0.952, claim, color=TEXT, fontsize=19)
    words.set_fontweight("bold")
    white = found.spectrum
    if found.noise == "white":
        about = f"out of white noise of {white.noise:.2g} on every number"
        about += "" if white.holds else "; it does not look white, and is too little to say more"
    else:
        about = (
            f"out of noise that is alike in neighbouring numbers (white noise does not fit: misfit "
            f"{white.misfit:.2f}; coloured: eigenvalues within {found.bulk.misfit:.0%})"  # type: ignore[union-attr]
        )
    figure.text(
        0.045, 0.922, f"{about} · deviations are shares of depth", color=FAINT, fontsize=11.5
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count or 'no'} {word}s"


def _spectrum(axes: "Axes", deformation: Deformation) -> None:
    found = deformation.modes
    n, r = found.spectrum.shape[0], deformation.num_modes
    deviation = np.sqrt(found.spectrum.values / n)
    rank = np.arange(1, len(deviation) + 1)
    shown = deviation > 0
    axes.scatter(rank[r:][shown[r:]], deviation[r:][shown[r:]], s=16, color=FAINT, zorder=3)
    axes.scatter(rank[:r], deviation[:r], s=46, color=PLUS, zorder=4, label=_plural(r, "mode"))
    if found.threshold > 0:
        axes.axhline(
            math.sqrt(found.threshold / n), color=TEXT, linewidth=1.2, linestyle="--",
            label=f"noise exceeds it once in {1 / found.spectrum.level:.0f}",
        )  # fmt: skip
    if found.bulk is not None:
        axes.plot(
            rank, np.sqrt(found.bulk.expected / n), color=MINUS, linewidth=1.6, label="coloured noise, fitted"
        )  # fmt: skip
    if shown.any():
        axes.set_yscale("log")
    axes.set_xlabel("direction, by its deviation", color=FAINT)
    _legend(axes, "upper right")


def _law(axes: "Axes", deformation: Deformation) -> None:
    found = deformation.modes
    white = found.spectrum
    axes.set_yticks([])
    if white.noise == 0:
        axes.set_xlabel("nothing is left: the hypotheses are of exactly this rank", color=FAINT)
        return
    if found.bulk is not None:
        rest = white.values[found.bulk.count :]
        bins = np.geomspace(rest.min(), max(rest.max(), found.threshold), 22)
        axes.hist(rest, bins.tolist(), color=FAINT, alpha=0.55, label="observed")
        axes.hist(
            found.bulk.expected, bins.tolist(), histtype="step", color=MINUS, linewidth=1.8,
            label=f"coloured noise, θ = {found.bulk.concentration:.2g}",
        )  # fmt: skip
        axes.axvline(found.threshold, color=TEXT, linewidth=1.2, linestyle="--", label="threshold")
        low, high = white.law.edges
        scale = white.rest[1]
        axes.axvspan(
            low * scale, high * scale, color=PLUS, alpha=0.16, label="where white noise would lie"
        )
        axes.set_xscale("log")
        axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
        axes.set_xlabel("squared singular value", color=FAINT)
        _legend(axes, "upper left")
        return
    a, b = white.rest
    rest = white.values[white.count :] / b
    low, high = white.law.edges
    reach = (0.9 * min(low, rest.min()), 1.06 * max(high, rest.max(), white.threshold / b))
    bins = np.linspace(*reach, max(8, min(30, a // 3)))
    axes.hist(rest, bins.tolist(), density=True, color=FAINT, alpha=0.55, label="observed")
    x = np.linspace(*reach, 600)
    axes.plot(x, white.law.density(x), color=MINUS, linewidth=2, label="Marčenko–Pastur")
    circle = white.law.semicircle.density(x)
    axes.plot(x, circle, color=PLUS, linewidth=1.4, linestyle=":", label="semicircle")
    axes.axvline(white.edge / b, color=TEXT, linewidth=1.0, label="edge")
    axes.axvline(white.threshold / b, color=TEXT, linewidth=1.2, linestyle="--", label="threshold")
    axes.set_xlabel("eigenvalue", color=FAINT)
    _legend(axes, "upper right")


def _clusters(axes: "Axes", deformation: Deformation) -> None:
    scores, parts = deformation.modes.scores.numpy(), deformation.clusters
    if scores.shape[1] == 0:
        axes.set_xlabel("no mode, nothing to part", color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    # With one mode the second axis only keeps the markers apart.
    spread = np.linspace(-1, 1, len(scores))[
        np.argsort(np.argsort((np.arange(len(scores)) * 37) % 101))
    ]
    second = scores[:, 1] if scores.shape[1] > 1 else spread
    for g in range(parts.count):
        chosen = parts.labels == g
        ink, marker = INKS[g % len(INKS)], MARKERS[g % len(MARKERS)]
        label = f"{parts.weights[g]:.0%}, hypothesis {parts.representatives[g]} for it"
        axes.scatter(
            scores[chosen, 0], second[chosen], s=34, color=ink, marker=marker, label=label, zorder=3
        )
        k = parts.representatives[g]
        axes.scatter(
            scores[k, 0],
            second[k],
            s=210,
            facecolors="none",
            edgecolors="white",
            linewidths=1.6,
            zorder=4,
        )
    axes.set_xlabel("score of mode 1", color=FAINT)
    if scores.shape[1] > 1:
        axes.set_ylabel("score of mode 2", color=FAINT)
    else:
        axes.set_yticks([])
    low, high = axes.get_ylim()
    # Room for the words above and below.
    axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (1 + parts.count) * (high - low))
    told = f"silhouette {parts.silhouette:.2f}; one Gaussian stays below {parts.required:.2f}"
    axes.text(0.985, 0.02, told, transform=axes.transAxes, color=FAINT, fontsize=9.5, ha="right")
    _legend(axes, "upper left")


class _View:
    """An orthographic view from beside and above the camera, depth to the right; as in summary.png."""

    def __init__(self, deformation: Deformation) -> None:
        yaw, pitch = math.radians(-62), math.radians(20)
        level = np.array([math.sin(yaw), 0, math.cos(yaw)])
        down = np.array([0, math.cos(pitch), 0]) - math.sin(pitch) * level
        self.axes_32 = np.stack([np.array([level[2], 0, -level[0]]), down], -1)
        u = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)
        swung = deformation.swing(AMPLITUDE, DRAWN)
        self.paths_PNS2 = swung.evaluate(u).numpy() @ self.axes_32
        # A few far points must not shrink everything else.
        flat = self.paths_PNS2.reshape(-1, 2)
        low, high = np.quantile(flat, (0.02, 0.98), axis=0)
        self.low, self.high = np.minimum(low, 0), np.maximum(high, 0)


def _mode(axes: "Axes", deformation: Deformation, view: _View, i: int) -> None:
    from matplotlib.collections import LineCollection

    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    mean_NS2, ends = view.paths_PNS2[0], view.paths_PNS2[1 + 2 * i : 3 + 2 * i]
    middle = SAMPLES // 2
    axes.add_collection(
        LineCollection(list(mean_NS2), colors=["#d8dde6"], linewidths=0.8, alpha=0.65, zorder=3)
    )
    for path_NS2, ink in zip(ends, (MINUS, PLUS), strict=True):
        axes.add_collection(
            LineCollection(list(path_NS2), colors=[ink], linewidths=0.9, alpha=0.5, zorder=2)
        )
        from_N2, way_N2 = mean_NS2[:, middle], path_NS2[:, middle] - mean_NS2[:, middle]
        axes.quiver(
            *from_N2.T, *way_N2.T, angles="xy", scale_units="xy", scale=1, color=ink, alpha=0.85, width=0.0022,
            headwidth=4.5, headlength=5.5, zorder=4,
        )  # fmt: skip
    axes.scatter(0, 0, s=36, color=FAINT, zorder=2)
    axes.annotate("camera", (0, 0), (6, 8), textcoords="offset points", color=FAINT, fontsize=9.5)
    centre, half = (view.low + view.high) / 2, 0.56 * (view.high - view.low)
    box = axes.get_position()
    width, height = axes.get_figure().get_size_inches()  # type: ignore[union-attr]
    shape = np.array([box.width * width, box.height * height])
    half = np.maximum(half, (half / shape).max() * shape)
    axes.set(
        xlim=(centre[0] - half[0], centre[0] + half[0]),
        ylim=(centre[1] + half[1], centre[1] - half[1]),
    )
    values = deformation.modes.spectrum.values
    told = (
        f"deviation {deformation.modes.deviation[i]:.2g}, {values[i] / values.sum():.0%} of the variance\n"
        f"{deformation.depth_share()[i]:.0%} in depth, {deformation.common_share()[i]:.0%} common to all points"
    )
    axes.text(0.015, 0.975, told, transform=axes.transAxes, color=TEXT, fontsize=10, va="top")
    if i == 0:
        legend = f"grey: mean motion\nblue, orange: {AMPLITUDE:g} deviations\nto either side; arrows at mid-clip"
        axes.text(0.015, 0.025, legend, transform=axes.transAxes, color=FAINT, fontsize=9.5)


def _legend(axes: "Axes", place: Any) -> None:
    legend = axes.legend(loc=place, labelcolor=TEXT, fontsize=10, facecolor=PANEL, framealpha=0.75)
    legend.get_frame().set_edgecolor("none")
