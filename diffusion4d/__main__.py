"""`python -m diffusion4d` is the command `diffusion4d`."""

from diffusion4d.cli import main

if __name__ == "__main__":
    main()
