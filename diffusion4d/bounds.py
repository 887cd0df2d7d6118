"""Numbers of a configuration that are too small, said before any work is done."""

from collections.abc import Mapping
from operator import attrgetter

from diffusion4d.errors import UserError


def require_at_least(config: object, least: Mapping[str, int | float]) -> None:
    """Compare numbers, and all numbers of a tuple, with the least they may be; None passes.

    Args:
        least: by the dotted name of the field, as on the command line.

    Raises:
        UserError: a number is smaller, or none at all.
    """
    for name, low in least.items():
        value = attrgetter(name)(config)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number < float("inf"):
                option = name.replace("_", "-")
                raise UserError(f"need --{option} of at least {low:g}, got {number:g}")
