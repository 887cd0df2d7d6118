"""Trajectories as clamped B-splines: bases, curves, fits, arc length."""

from diffusion4d.splines.basis import basis_functions, basis_matrix, greville, knot_vector
from diffusion4d.splines.least_squares import fit

__all__ = ["basis_functions", "basis_matrix", "fit", "greville", "knot_vector"]
