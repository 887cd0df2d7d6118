r"""Joint positions in a NumPy archive (.npz), from whatever pipeline made them.

Keys: `positions` [T, J, 3] and `fps`; optionally `units` ("m", "cm", "mm"; default metres), `up` ("y" or "z";
default z), `parents` [J] and `names` [J]. Without `parents` the tree is found from the motion
(`diffusion4d.data.skeleton.spanning_parents`). Single frames that lack a joint are filled linearly in time.
Shape letters:  T frames   J joints.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

from diffusion4d.data.skeleton import Take, spanning_parents, z_up
from diffusion4d.errors import reason

Array = np.ndarray

_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}


def read(path: Path) -> Take:
    """The archive as a take; ValueError that names the key at fault."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            stored = {key: archive[key] for key in archive.files}
    except (BadZipFile, EOFError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name}: need a NumPy archive (.npz), got {reason(error)}"
        ) from error
    for key in ("positions", "fps"):
        if key not in stored:
            raise ValueError(f"{path.name}: need a key {key!r}, got {sorted(stored)}")
        if stored[key].dtype.kind not in "iuf":
            raise ValueError(f"{path.name}: need real numbers as {key}, got {stored[key].dtype}")
    positions = stored["positions"].astype(np.float64)
    if positions.ndim != 3 or positions.shape[-1] != 3:
        raise ValueError(f"{path.name}: need positions [T, J, 3], got {list(positions.shape)}")
    units = str(stored.get("units", "m"))
    if units not in _METRES:
        raise ValueError(f"{path.name}: need units m, cm or mm, got {units!r}")
    try:
        positions = _filled(positions) * _METRES[units]
        parents = (
            stored["parents"].astype(np.int64)
            if "parents" in stored
            else spanning_parents(positions)
        )
        if parents.shape != positions.shape[1:2]:
            raise ValueError(
                f"need one parent a joint, got {parents.shape} for {positions.shape[1]} joints"
            )
        names = tuple(str(name) for name in stored.get("names", ()))
        take = Take(positions, parents, float(stored["fps"].item()), names)
        return z_up(take, str(stored.get("up", "z")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _filled(positions_TJ3: Float[Array, "T J 3"]) -> Float[Array, "T J 3"]:
    """Missing joints (NaN) between two frames that have them; ValueError where more than a fifth is missing."""
    missing_TJ = np.count_nonzero(np.isnan(positions_TJ3), axis=-1) > 0
    if not missing_TJ.any():
        return positions_TJ3
    share_J = missing_TJ.mean(0)
    if (most := float(share_J.max())) > 0.2:
        joint = int(share_J.argmax())
        raise ValueError(
            f"need every joint in 80 % of the frames, got joint {joint} in {1 - most:.0%}"
        )
    filled, time_T = positions_TJ3.copy(), np.arange(len(positions_TJ3))
    for joint in np.flatnonzero(missing_TJ.any(0)):
        known_T = ~missing_TJ[:, joint]
        for axis in range(3):
            known = positions_TJ3[known_T, joint, axis]
            filled[:, joint, axis] = np.interp(time_T, time_T[known_T], known)
    return filled


def write(path: Path, take: Take) -> None:
    """The take's positions as such an archive (metres, z up)."""
    from diffusion4d.atomic import replace_when_done

    with replace_when_done(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            positions=take.positions.astype(np.float32),
            fps=np.float32(take.fps),
            parents=take.parents,
            names=np.array(take.names or [f"joint {j}" for j in range(len(take.parents))]),
            units=np.array("m"),
            up=np.array("z"),
        )
