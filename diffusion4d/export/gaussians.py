r"""3DGS .ply: Gaussians as the viewers of Kerbl et al. 2023 ("3D Gaussian Splatting") read them.

A vertex has x y z, nx ny nz (0), f_dc_0..2 with colour = 1/2 + C0 f_dc (spherical harmonics of degree 0, C0 = 1 /
√(4π)), opacity as its logit, scale_0..2 as logarithms, rot_0..3 as a unit quaternion (w, x, y, z); all float32,
little endian. Axes are those viewers', which are COLMAP's and ours: x right, y down, z ahead. No other file of ours
has them.

Shape letters:  V Gaussians
"""

import math

import numpy as np
import roma

from diffusion4d.surfaces.gaussians import Gaussians

C0 = 1 / math.sqrt(4 * math.pi)
_LEAST = 1e-9
"""A deviation that has a logarithm."""
NAMES = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *("f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def gaussian_ply(gaussians: Gaussians) -> bytes:
    """The bytes of the file.

    Raises:
        ValueError: Gaussians of more than one instant.
    """
    if gaussians.means.ndim != 2:
        raise ValueError(f"need one instant, got means {list(gaussians.means.shape)}")
    turned, deviations = gaussians.axes()
    quaternion = roma.rotmat_to_unitquat(turned)[:, [3, 0, 1, 2]]
    opacity = gaussians.opacities.logit()[:, None]
    columns = [
        gaussians.means,
        0 * gaussians.means,
        (gaussians.colours - 0.5) / C0,
        opacity,
        deviations.clamp_min(_LEAST).log(),
        quaternion,
    ]
    table = np.concatenate([c.float().numpy() for c in columns], 1).astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [*(f"property float {name}" for name in NAMES), "end_header"]
    return ("\n".join(lines) + "\n").encode() + table.tobytes()
