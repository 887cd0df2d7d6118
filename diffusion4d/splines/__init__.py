"""Trajectories as clamped B-splines: bases, curves, fits, arc length."""

from diffusion4d.splines.basis import basis_functions, basis_matrix, greville, knot_vector
from diffusion4d.splines.bezier import de_casteljau
from diffusion4d.splines.curve import BSpline, hermite
from diffusion4d.splines.gram import gram_matrix
from diffusion4d.splines.least_squares import fit
from diffusion4d.splines.lengths import arc_length, natural_parameter, parameter_at

__all__ = [
    "BSpline",
    "arc_length",
    "basis_functions",
    "basis_matrix",
    "de_casteljau",
    "fit",
    "gram_matrix",
    "greville",
    "hermite",
    "knot_vector",
    "natural_parameter",
    "parameter_at",
]
