r"""`diffusion4d animate`: hypotheses drive a mesh, each in an animation of its own.

The mesh stands among the anchor-frame points g_n of one hypothesis (`placement`), which are the rest of the skeleton.
Under hypothesis k it moves by

    x' = Σ_n w_n(x) (R_n^k(u) (x − g_n) + p_n^k(u)),

with p_n^k(u) that hypothesis' own points and R_n^k(u) the local rotation from the g around node n to the p^k(u) around
it. So at the first instant the mesh is carried to the anchor shape of k, whose depths are its own, by the same map as
ever after: there is no second mesh a hypothesis, and nothing of k's motion is measured against another's shape but the
rest. For the hypothesis that the mesh was placed at, R = 1 and p = g at the first instant: it stays as it is.

Shape letters:  K hypotheses   N points   V vertices   T frames   U instants
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion4d.config import Animate
from diffusion4d.errors import UserError
from diffusion4d.export import ASSUMED_RATE, clock, staged
from diffusion4d.export.gltf_mesh import MeshDocument, mesh_document, read_mesh_document
from diffusion4d.export.gltf_scene import (
    AXES,
    camera,
    median_depth,
    require_animatable,
    scene_extras,
)
from diffusion4d.export.joint_motion import joint_motion
from diffusion4d.export.skinned_glb import JOINTS, Shot, skinned_glb
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.placement import anchor_nodes, chosen, require_near
from diffusion4d.splines import BSpline
