"""From the points of the anchor frame to something that can be drawn.

What no command uses is a library call:

    >>> import numpy as np, trimesh
    >>> from diffusion4d.surfaces.alpha import alpha_shape
    >>> from diffusion4d.surfaces.delaunay import territories
    >>> solid = alpha_shape(np.random.default_rng(0).random((400, 3)), alpha=9.0)
    >>> trimesh.Trimesh(solid.vertices, solid.faces).is_watertight
    True
    >>> territories(np.array([[0.5, 0.5], [3.5, 0.5]]), (1, 4)).tolist()
    [[0, 0, 1, 1]]
"""
