"""`python -m diffusion4d.scenes OUTPUT.mp4 --seed 3` writes a generated world as a video."""

import sys

import tyro

from diffusion4d.errors import UserError
from diffusion4d.scenes.video import write_video


def main() -> int:
    """Exit status 2 for bad input."""
    try:
        tyro.cli(write_video, prog="python -m diffusion4d.scenes")
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
