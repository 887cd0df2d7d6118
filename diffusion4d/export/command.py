"""What `diffusion4d export` does: hypotheses in the files of other tools.

ply            ply/hypothesis_00/frame_0000.ply …    the points of every frame, with colours
usd            hypotheses.usdc                       hypotheses and the camera
gaussians      gaussians/hypothesis_00/frame_0000.ply …   the points' surface as 3D Gaussians
tapvid3d, tapip3d, trackcraft3r                      LAYOUT/hypothesis_00.npz …, one trajectory a point

Each holds the hypotheses that were asked for: by default the best one alone, in USD too.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from diffusion4d.animate import chosen, first_frame
from diffusion4d.cameras import transform
from diffusion4d.config import Export
from diffusion4d.errors import UserError
from diffusion4d.export import staged
from diffusion4d.export.folders import replaced_folder
from diffusion4d.export.gaussians import gaussian_ply
from diffusion4d.export.layouts import LAYOUTS
from diffusion4d.export.palette import ramp
from diffusion4d.export.ply import ply
from diffusion4d.export.recorded import clock, start_of
from diffusion4d.export.usd import write_usd
from diffusion4d.fields.graph import surface_distances
from diffusion4d.fields.motion import reference
from diffusion4d.fields.skinning import skin
from diffusion4d.fields.stream import stream
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.surfaces.delaunay import anchor_surface, sampled
from diffusion4d.surfaces.gaussians import carried, gaussians_of, surface_jacobians

USD_NAME = "hypotheses.usdc"


def run(config: Export, progress: Callable[[str, int, int], None] | None = None) -> list[Path]:
    """Write what was asked for; returns files and folders. Each appears when it is complete.

    Raises:
        UserError: the hypotheses cannot be used, a format's extra is not installed, or the folder cannot be written.
    """
    every = Hypotheses.load(config.folder)
    beside = config.folder if config.folder.is_dir() else config.folder.parent
    out = config.out or beside
    named = named_hypotheses(config.hypotheses, every, config.folder)
    report = progress or (lambda *_: None)
    written: list[Path] = []
    for kind in dict.fromkeys(config.formats):
        with contextlib.ExitStack() as stack:
            if kind == "usd":
                stage = stack.enter_context(staged(out, [USD_NAME]))
                shown = every if config.hypotheses == "all" else _together(named)
                seconds = clock(every, source=config.folder)
                write_usd(shown, stage / USD_NAME, seconds=seconds, names=[*named])
                written.append(out / USD_NAME)
                continue
            folder = stack.enter_context(replaced_folder(out / kind))
            total = len(named) * (1 if kind in LAYOUTS else every.num_frames)
            for done, (name, content) in enumerate(_files(kind, named, every, config), 1):
                (folder / name).parent.mkdir(exist_ok=True, parents=True)
                if isinstance(content, bytes):
                    (folder / name).write_bytes(content)
                else:
                    np.savez(folder / name, allow_pickle=False, **content)
                report(kind, done, total)
            written.append(out / kind)
    return written


def named_hypotheses(which: str, every: Hypotheses, source: Path) -> dict[str, Hypotheses]:
    """By name: "mean", or what `animate.chosen` takes.

    Args:
        source: folder of the hypotheses, or its hypotheses.npz.

    Raises:
        UserError: as that; or a mean of hypotheses that are each seen from cameras of their own, which has none.
    """
    if which == "mean":
        if every.frame == "world" and every.extrinsics.ndim == 4 and every.num_hypotheses > 1:
            raise UserError(
                "need hypotheses that share their cameras for a mean, got one camera path each: "
                "sample with --frame camera"
            )
        mean = dataclasses.replace(
            every.select(every.rank()[:1]),
            control_points=every.control_points.mean(0, keepdim=True),
            static=None,
        )
        return {"mean": mean}
    numbers = chosen(which, every, source)
    return {f"hypothesis_{k:02d}": every.select(torch.tensor([k])) for k in numbers}


def _together(named: dict[str, Hypotheses]) -> Hypotheses:
    parts = [*named.values()]
    first = parts[0]
    own = first.extrinsics.ndim == 4
    return dataclasses.replace(
        first,
        control_points=torch.cat([h.control_points for h in parts]),
        seeds=torch.cat([h.seeds for h in parts]),
        extrinsics=torch.cat([h.extrinsics for h in parts]) if own else first.extrinsics,
        static=None,
    )


def _files(
    kind: str, named: dict[str, Hypotheses], every: Hypotheses, config: Export
) -> Iterator[tuple[str, bytes | dict[str, np.ndarray]]]:
    if kind in LAYOUTS:
        for name, hypothesis in named.items():
            yield f"{name}.npz", LAYOUTS[kind](hypothesis)
    elif kind == "ply":
        tints = point_colours(every, _anchor_frame(every, config))
        for name, hypothesis in named.items():
            points_TN3 = hypothesis.evaluate()[0].transpose(0, 1).float().numpy()
            for t, points in enumerate(points_TN3):
                yield f"{name}/frame_{t:04d}.ply", ply(points, colours=tints)
    elif kind == "gaussians":
        yield from _splats(named, every, config)
    else:
        raise UserError(
            f"need formats out of ply, usd, gaussians, {', '.join(LAYOUTS)}, got {kind!r}"
        )


def point_colours(
    hypotheses: Hypotheses, image: Float32[np.ndarray, "H W 3"] | None = None
) -> Float32[np.ndarray, "N 3"]:
    """sRGB in [0, 1] of every point, the same in all frames and hypotheses.

    Args:
        image: the anchor frame at the hypotheses' size, in whose pixels the points begin. Without it, points are
            coloured by their place in the order of mean depth there: warm is near, as in `export.palette`.
    """
    if image is not None:
        return sampled(image, hypotheses.query_points.double().cpu().numpy())
    places = hypotheses.mean[:, 0]
    if hypotheses.frame == "world":
        places = transform(hypotheses.cameras[0, 0].to(places), places)
    rank = places[:, 2].argsort(stable=True).argsort()
    return ramp(rank.cpu().numpy() / max(len(rank) - 1, 1)).astype(np.float32)


def _anchor_frame(every: Hypotheses, config: Export) -> Float32[np.ndarray, "H W 3"] | None:
    return first_frame(config.video, every, start_of(config.start, config.folder))


def _splats(
    named: dict[str, Hypotheses], every: Hypotheses, config: Export
) -> Iterator[tuple[str, bytes]]:
    mesh = anchor_surface(every, _anchor_frame(every, config), levels=2)
    rest = reference(every)
    distances = surface_distances(mesh.vertices, mesh.faces, rest.places.numpy())
    skinning, splats = skin(torch.from_numpy(distances)), gaussians_of(mesh)
    points, corners = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    for name, hypothesis in named.items():
        for _, span, places in stream(points, skinning, hypothesis, rest):
            for t, means in zip(range(span.start, span.stop), places, strict=True):
                moved = carried(splats, means, surface_jacobians(points, means, corners))
                yield f"{name}/frame_{t:04d}.ply", gaussian_ply(moved)
