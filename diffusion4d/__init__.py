"""Sample several plausible 3D motions from one video.

The names below are imported on first use, so that `import diffusion4d` and the command line's help
cost milliseconds, not the seconds that torch, diffusers and transformers take.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion4d.clip import Clip, read_clip
    from diffusion4d.dit import TrajectoryDiT
    from diffusion4d.errors import UserError
    from diffusion4d.hypotheses import Hypotheses
    from diffusion4d.pipeline import Diffusion4DPipeline
    from diffusion4d.splines import BSpline
    from diffusion4d.tracking import Tracks

    __version__: str

_HOME = {
    "BSpline": "diffusion4d.splines",
    "Clip": "diffusion4d.clip",
    "Diffusion4DPipeline": "diffusion4d.pipeline",
    "Hypotheses": "diffusion4d.hypotheses",
    "Tracks": "diffusion4d.tracking",
    "TrajectoryDiT": "diffusion4d.dit",
    "UserError": "diffusion4d.errors",
    "read_clip": "diffusion4d.clip",
}

__all__ = [
    "BSpline",
    "Clip",
    "Diffusion4DPipeline",
    "Hypotheses",
    "Tracks",
    "TrajectoryDiT",
    "UserError",
    "__version__",
    "read_clip",
]


def _check_distribution(name: str) -> ModuleType:
    """Import `samplers` or `priors` and refuse one that is not ours: both names are anybody's.

    Raises:
        ImportError: the package is missing, or another project's was found first; says which file.
    """
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"diffusion4d needs its own package `{name}`, and none is installed: "
            "install diffusion4d again"
        ) from error
    if getattr(package, "__distribution__", None) != "diffusion4d":
        # A folder without __init__.py is a package too, one that has no file.
        found = getattr(package, "__file__", None) or ", ".join(package.__path__)
        raise ImportError(
            f"diffusion4d needs its own package `{name}`, but Python found another one first: "
            f"{found}. Rename it, run from another folder, or uninstall what it belongs to"
        )
    return package


_check_distribution("samplers")
_check_distribution("priors")


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("diffusion4d")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'diffusion4d' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
