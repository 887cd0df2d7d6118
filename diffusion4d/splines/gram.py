r"""Inner products of a basis' derivatives, exactly:  G_ij = ∫ N_i^{(q)}(u) N_j^{(q)}(u) du.

With them the energy of a curve's q-th derivative is a quadratic form of its control points,

    ∫ ‖p^{(q)}(u)‖² du = Σ_ij G_ij ⟨c_i, c_j⟩,

so smoothness needs no frames: q = 0 is the curve's size, 1 its motion, 2 its bending, 3 its jerk. In a span the
integrand is a polynomial of degree 2 (P − q), which Gauss–Legendre quadrature with P − q + 1 nodes integrates
without error.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion4d.splines.basis import basis_functions, derivative_matrix


def gram_matrix(
    knots: Float[Tensor, "knots"], degree: int, order: int = 0
) -> Float64[Tensor, "ctrl ctrl"]:
    """G of the `order`-th derivative, `[M, M]`, symmetric and positive semidefinite; polynomials below q are free.

    Raises:
        ValueError: `order` is not in 0 … degree.
    """
    knots = knots.to("cpu", torch.float64)
    derivative = derivative_matrix(knots, degree, order)
    lower = degree - order
    nodes, weights = np.polynomial.legendre.leggauss(lower + 1)
    breaks = knots.unique_consecutive()
    width_S = breaks.diff()
    u = breaks[:-1, None] + width_S[:, None] * (torch.from_numpy(nodes) + 1) / 2
    basis = basis_functions(u.flatten(), knots[order : len(knots) - order], lower) @ derivative
    weight = (width_S[:, None] * torch.from_numpy(weights) / 2).flatten()
    return basis.mT @ (weight[:, None] * basis)
