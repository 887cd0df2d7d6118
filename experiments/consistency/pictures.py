"""What energies of pictures are told of a rendered clip."""

from torch import Tensor

from diffusion4d import consistency
from diffusion4d.evaluation.cases import Case
from priors.dinov3 import Encoder


def true_views(case: Case, encoder: Encoder, images: Tensor) -> tuple[consistency.Views, Tensor]:
    """Pictures and features of a clip's key frames, and the true pixels [N, F, 2]."""
    clip = case.clip
    assert clip.frames is not None
    pixels = case.project(case.truth[None])[0][:, clip.frames]
    views = consistency.Views.of(
        images,
        clip.u[clip.frames],
        clip.visibility[:, clip.frames],
        clip.tracks[:, 0],
        case.intrinsics,
        clip.size,
        encoder,
    )
    return views, pixels
