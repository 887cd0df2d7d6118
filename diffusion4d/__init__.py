"""Sample several plausible 3D motions from one video."""
