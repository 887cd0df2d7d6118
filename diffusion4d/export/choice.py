"""choice.json: which hypotheses somebody kept in the viewer, for the commands that come after (`--hypotheses kept`).

    {"kept": [0, 2], "rejected": [1], "seeds": [10, 12]}

Numbers are those in the hypotheses.npz that it lies beside. `seeds` are those of the kept: a choice of other samples is
told by them. The page that is a file does not know where it lies and hands out `kept` and `rejected` alone.
"""

import json
from pathlib import Path

from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses

CHOICE = "choice.json"


def kept_of(body: bytes, hypotheses: Hypotheses) -> list[int]:
    """The numbers that were kept, in order.

    Raises:
        UserError: no choice of these hypotheses, or nothing is kept.
    """
    try:
        choice = json.loads(body)
        kept, seeds = choice["kept"], choice.get("seeds")
        good = isinstance(kept, list) and all(type(k) is int for k in kept)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError('need JSON such as {"kept": [0, 2]}')
    K = hypotheses.num_hypotheses
    kept = sorted(set(kept))
    if not kept or kept[0] < 0 or kept[-1] >= K:
        raise UserError(f"need at least one hypothesis out of 0 … {K - 1}, got {kept}")
    own = hypotheses.seeds[kept].tolist()
    if seeds is not None and seeds != own:
        raise UserError(f"need a choice of these hypotheses, of seeds {own}, got one of {seeds}")
    return kept


def read_choice(source: Path, hypotheses: Hypotheses) -> list[int]:
    """The numbers that choice.json beside hypotheses keeps.

    Args:
        source: folder of the hypotheses, or its hypotheses.npz.

    Raises:
        UserError: there is none, or as `kept_of`.
    """
    path = (source if source.is_dir() else source.parent) / CHOICE
    if not path.is_file():
        raise UserError(f"need {path} for the kept hypotheses: `diffusion4d view` saves it")
    try:
        return kept_of(path.read_bytes(), hypotheses)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
