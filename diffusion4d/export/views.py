"""The fan drawn: in the image, in space from beside and above the camera, from above, from the side.

All paths are thin, those of a few chosen points strong, with their mean in white. The views of space
are orthographic and put depth, which is what a monocular clip leaves open, across the page. They are drawn in the axes
of the first camera, with the ways of the cameras where these move through a world.

Shape letters:  K hypotheses   N points   T frames   S samples of a drawn path
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusion4d.cameras import transform
from diffusion4d.export.palette import FAINT, GROUND, TEXT, colours
from diffusion4d.export.spread import Spread
from diffusion4d.hypotheses import Hypotheses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 40
Chosen = list[tuple[int, str]]
"""Points worth a closer look, each with the reason; their letters are A, B, C."""


def illustrative_points(hypotheses: Hypotheses, spread: Spread) -> Chosen:
    """Up to three distinct points worth a closer look, each with the reason in words.

    The mover is near the 95th percentile of motion: the very fastest is often a lost track.
    """
    tracks_NT2, seen_NT = hypotheses.tracks.transpose(0, 1), spread.seen
    steps_NT = tracks_NT2.diff(dim=1).norm(dim=-1) * (seen_NT[:, 1:] & seen_NT[:, :-1])
    motion_N = steps_NT.nan_to_num(0.0).sum(1)
    hidden_N = (~seen_NT).float().mean(1)
    doubt_N = (spread.depth / spread.distance.clamp_min(1e-9)).mean(1)
    by_motion = motion_N.argsort(descending=True)
    skipped = round(0.05 * (hypotheses.num_points - 1))
    wanted = [(by_motion.roll(-skipped), "moves")]
    # Among points hidden for long, one that moved while it was seen says more than a still one.
    score_N = torch.where((hidden_N > 0.2) & (hidden_N < 0.9), hidden_N * motion_N, 0.0)
    if float(score_N.max()) > 0:
        wanted.append((score_N.argsort(descending=True), "is hidden for a while"))
    wanted.append((doubt_N.argsort(descending=True), "is most in doubt"))
    chosen: Chosen = []
    for order, reason in wanted[: hypotheses.num_points]:
        chosen.append((_apart(order, [n for n, _ in chosen], hypotheses), reason))
    return chosen


def _apart(order: torch.Tensor, taken: list[int], hypotheses: Hypotheses) -> int:
    """The first of `order` that is well apart from those taken in the anchor frame, or just another."""
    free = [n for n in order.tolist() if n not in taken]
    query_N2 = hypotheses.query_points
    for n in free[: max(1, len(free) // 4)]:
        gaps = (query_N2[taken] - query_N2[n]).norm(dim=-1)
        if (gaps > 0.15 * min(hypotheses.size)).all():
            return n
    return free[0]


class Scene:
    """What several panels draw, as arrays."""

    def __init__(self, hypotheses: Hypotheses) -> None:
        self.hypotheses = hypotheses
        u = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)
        paths_KNS3 = hypotheses.evaluate(u)
        self.eyes_KT3: np.ndarray | None = None
        if hypotheses.frame == "world":
            # A given world may have its origin anywhere; estimated ones have it in the first camera already.
            anchor_K44 = hypotheses.cameras[:, 0]
            flat = transform(anchor_K44, paths_KNS3.flatten(1, 2))
            paths_KNS3 = flat.unflatten(1, paths_KNS3.shape[1:3])
            eyes_KT3 = torch.linalg.inv(hypotheses.cameras)[..., :3, 3]
            self.eyes_KT3 = transform(anchor_K44, eyes_KT3).numpy()
        self.paths_KNS3 = paths_KNS3.numpy()
        self.mean_NS3 = self.paths_KNS3.mean(0)
        self.depth_KNT = hypotheses.camera_points()[..., 2].numpy()
        self.pixels_KNT2 = hypotheses.project().numpy()
        self.seen_NT = hypotheses.seen.numpy().T
        self.ink_K3 = colours(hypotheses)
        # A few wild samples must not shrink everything else.
        points = self.paths_KNS3.reshape(-1, 3)
        self.low, self.high = np.quantile(points, (0.005, 0.995), axis=0)

    @property
    def corners_43(self) -> np.ndarray:
        """The corners of the image at depth 1."""
        fx, fy, cx, cy = self.hypotheses.intrinsics.tolist()
        height, width = self.hypotheses.size
        pixels = np.array([(0, 0), (width, 0), (width, height), (0, height)])
        rays = (pixels - (cx, cy)) / (fx, fy)
        return np.concatenate([rays, np.ones((4, 1))], -1)


def _lines(
    axes: "Axes", lines: Any, colour: Any, width: float, alpha: float, order: float | int
) -> None:
    from matplotlib.collections import LineCollection

    axes.add_collection(
        LineCollection(
            list(lines),
            colors=[colour],
            linewidths=width,
            alpha=alpha,
            zorder=order,
            capstyle="round",
        ),
        autolim=False,
    )


def _fan(axes: "Axes", paths_KNS2: np.ndarray, scene: Scene, chosen: Chosen) -> None:
    """Every path thin, those of the chosen points over them in full strength, with their means."""
    points = [n for n, _ in chosen]
    ends_KN2 = paths_KNS2[:, :, -1]
    for k, ink in enumerate(scene.ink_K3):
        _lines(axes, paths_KNS2[k], ink, 0.7, 0.3, 2)
        axes.scatter(*ends_KN2[k].T, s=3, color=[ink], alpha=0.5, linewidths=0, zorder=2.5)
        _lines(axes, paths_KNS2[k, points], ink, 1.7, 0.95, 3)
        axes.scatter(*ends_KN2[k, points].T, s=16, color=[ink], linewidths=0, zorder=3.5)
    mean_NS2 = paths_KNS2.mean(0)
    _lines(axes, mean_NS2[points], "white", 1.3, 0.95, 4)
    for letter, n in zip("ABC", points, strict=False):
        _label(axes, mean_NS2[n, 0], letter)


def _eyes(axes: "Axes", scene: Scene, view_32: np.ndarray) -> None:
    """Where the cameras went, if they moved; one line a hypothesis where each has its own."""
    if scene.eyes_KT3 is None:
        return
    shared = scene.hypotheses.extrinsics.ndim == 3
    for k, eyes_T3 in enumerate(scene.eyes_KT3[:1] if shared else scene.eyes_KT3):
        _lines(axes, [eyes_T3 @ view_32], FAINT if shared else scene.ink_K3[k], 1.1, 0.7, 2.2)


def _label(axes: "Axes", place: np.ndarray, letter: str) -> None:
    axes.scatter(*place, s=26, color="white", edgecolors=GROUND, linewidths=1, zorder=5)
    note = axes.annotate(
        letter,
        (place[0], place[1]),
        (7, 6),
        textcoords="offset points",
        color="white",
        fontsize=12,
        zorder=6,
    )
    note.set_bbox(
        {"boxstyle": "round,pad=0.18", "facecolor": GROUND, "edgecolor": "none", "alpha": 0.7}
    )


def draw_image(axes: "Axes", scene: Scene, frame: np.ndarray | None, chosen: Chosen) -> None:
    hyp = scene.hypotheses
    height, width = hyp.size
    if frame is not None:
        axes.imshow(
            frame, extent=(0, width, height, 0), alpha=0.72, aspect="auto", interpolation="lanczos"
        )
    for k, ink in enumerate(scene.ink_K3):
        _lines(axes, scene.pixels_KNT2[k], ink, 0.9, 0.45, 2)
    tracks_TN2 = np.where(scene.seen_NT.T[..., None], hyp.tracks.numpy(), np.nan)
    _lines(axes, tracks_TN2.swapaxes(0, 1), "white", 1.0, 0.9, 3)
    axes.scatter(*hyp.query_points.numpy().T, s=7, color="white", linewidths=0, zorder=4)
    for letter, (n, _) in zip("ABC", chosen, strict=False):
        _label(axes, hyp.query_points[n].numpy(), letter)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    note = axes.text(
        *(0.012, 0.022),
        "white: tracks, where seen · colour: hypotheses",
        transform=axes.transAxes,
        color=TEXT,
        fontsize=9.5,
        zorder=7,
    )
    note.set_bbox(
        {"boxstyle": "round,pad=0.25", "facecolor": GROUND, "edgecolor": "none", "alpha": 0.7}
    )
    _bare(axes)


def draw_three_quarter(
    axes: "Axes", scene: Scene, frame: np.ndarray | None, chosen: Chosen
) -> None:
    """Orthographic, from beside and above the camera: depth runs to the right."""
    from matplotlib.transforms import Affine2D

    yaw, pitch = math.radians(-62), math.radians(20)
    level = np.array([math.sin(yaw), 0, math.cos(yaw)])
    right = np.array([level[2], 0, -level[0]])
    down = np.array([0, math.cos(pitch), 0]) - math.sin(pitch) * level
    view_32 = np.stack([right, down], -1)

    _fan(axes, scene.paths_KNS3 @ view_32, scene, chosen)
    plane = 0.62 * max(scene.low[2], 0.05 * scene.high[2])
    corners_42 = (plane * scene.corners_43) @ view_32
    reach_42 = (1.02 * scene.high[2] * scene.corners_43) @ view_32
    _lines(axes, [np.stack([np.zeros(2), c]) for c in corners_42], FAINT, 1.0, 0.9, 1)
    _lines(
        axes,
        [np.stack(pair) for pair in zip(corners_42, reach_42, strict=True)],
        FAINT,
        0.7,
        0.3,
        1,
    )
    _lines(axes, [np.concatenate([corners_42, corners_42[:1]])], FAINT, 1.2, 1.0, 1.6)
    if frame is not None:
        # An orthographic picture of a plane is an affine map of it.
        height, width = frame.shape[:2]
        across, along = (
            (corners_42[1] - corners_42[0]) / width,
            (corners_42[3] - corners_42[0]) / height,
        )
        place = Affine2D(
            np.array(
                [
                    [across[0], along[0], corners_42[0, 0]],
                    [across[1], along[1], corners_42[0, 1]],
                    [0, 0, 1],
                ]
            )
        )
        axes.imshow(
            frame,
            extent=(0, width, height, 0),
            transform=place + axes.transData,
            aspect="auto",
            alpha=0.95,
            zorder=1.5,
        )
    for n, _ in chosen:
        _lines(
            axes, [np.stack([np.zeros(2), scene.mean_NS3[n, 0] @ view_32])], "white", 0.8, 0.5, 1.8
        )
    axes.scatter(0, 0, s=40, color=FAINT, zorder=2)
    _eyes(axes, scene, view_32)
    box = np.array(list(np.ndindex(2, 2, 2)))
    seen = np.where(box, scene.high, scene.low) @ view_32
    _fit(axes, np.concatenate([seen, corners_42, np.zeros((1, 2))]))
    _bare(axes)


def draw_orthographic(axes: "Axes", scene: Scene, chosen: Chosen, pair: tuple[int, int]) -> None:
    """One axis of space left out; depth runs to the right, the camera is at the origin."""
    _fan(axes, scene.paths_KNS3[..., pair], scene, chosen)
    reach = 1.1 * scene.high[2] * scene.corners_43[[0, 2]][:, pair]
    _lines(axes, [np.stack([np.zeros(2), r]) for r in reach], FAINT, 0.9, 0.6, 1)
    axes.scatter(0, 0, s=40, color=FAINT, zorder=2)
    _eyes(axes, scene, np.eye(3)[:, pair])
    box = np.stack([scene.low, scene.high])[:, pair]
    _fit(axes, np.concatenate([box, np.zeros((1, 2))]))
    unit = "m" if scene.hypotheses.units == "m" else "scene units"
    axes.set_xlabel(f"depth z, {unit}", color=FAINT)
    axes.set_ylabel(("right x", "down y")[pair[1]], color=FAINT)


def _fit(axes: "Axes", points: np.ndarray) -> None:
    """Equal axes, second one downwards, that hold all points and fill the panel."""
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, 0.54 * (high - low)
    place = axes.get_position()
    width, height = axes.get_figure().get_size_inches()  # type: ignore[union-attr]
    shape = np.array([place.width * width, place.height * height])
    half = np.maximum(half, (half / shape).max() * shape)
    axes.set(
        xlim=(middle[0] - half[0], middle[0] + half[0]),
        ylim=(middle[1] + half[1], middle[1] - half[1]),
    )


def _bare(axes: "Axes") -> None:
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
