r"""Hypotheses judged by the pictures: energies of `priors.consistency` under each hypothesis' own projection.

A hypothesis predicts where its points are in F pictures and which of them it hides itself. What was seen is compared
where it was seen (v); what was hidden is compared where the hypothesis shows it, with a weight of its own:

    w_{n,f} = v_{n,f} + κ (1 − v_{n,f}) s_{n,f} [inside the picture],         s: `priors.consistency.own_visibility`

All hypotheses are snapped to the same tracks, so the first term hardly tells them apart. The second does: a point that
a hypothesis shows where the picture shows something else is where it cannot be. κ = 0 switches that off.

An energy maps control points [K, N, M, 3] in the camera frame to one number for each of the K, so it ranks (`scores`,
for `Hypotheses.rank`) or guides (`guide`, for `Diffusion4DPipeline.sample`) alike. Neither was found to bring
hypotheses nearer to the truth (experiments/consistency). Of several energies, each with its weight, the slope is taken
by one backward pass together or by one each. One each takes as long (1.01 times), since reading the pictures is the
work, and lets every slope be brought to unit length first, so that weights are shares and not units (`slopes`).

Shape letters:  K hypotheses   N points   M control points   F pictures   T frames.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d import splines
from diffusion4d.cameras import project
from diffusion4d.clip import key_frames
from diffusion4d.denoiser import ClipDenoiser
from diffusion4d.errors import UserError
from diffusion4d.hypotheses import Hypotheses
from diffusion4d.observation import Observation
from diffusion4d.posterior import ControlEnergy, on_diffused
from diffusion4d.sampling import Guide
from priors import consistency
from priors.cache import FeatureCache
from priors.dinov3 import Encoder
from samplers.guidance import corrected
from samplers.solve import Denoise

KEY_FRAMES = 6
"""Pictures that hypotheses are compared with: as many as the network is shown."""
SHOWN = 0.5
"""κ: what a pair counts for whose point was not observed to be seen, where the hypothesis shows it."""
NEAREST = 0.01
"""Depths (scene units) below this are moved out to it before they are projected."""
NEIGHBOURS = 6
REACH = 0.5
"""Of the median distance of neighbours in the anchor picture: how far a point reaches when it hides others."""


@dataclass(frozen=True)
class Views:
    """The pictures of a clip that hypotheses are compared with; the first is the anchor frame.

    images: in [0, 1], over the whole view of `size` (H, W) px, which `intrinsics` and `anchor` belong to, at any
    resolution.
    features: an encoder's maps of the same pictures, None without. u: their clip times. visibility: as observed.
    anchor: px of the points in the first picture.
    """

    images: Float[Tensor, "F 3 h w"]
    features: Float[Tensor, "F C y x"] | None
    u: Float[Tensor, "F"]
    visibility: Float[Tensor, "N F"]
    anchor: Float[Tensor, "N 2"]
    intrinsics: Float[Tensor, "4"]
    size: tuple[int, int]
    shown: float = SHOWN

    @classmethod
    def of(
        cls,
        images: Float[Tensor, "F 3 h w"],
        u: Float[Tensor, "F"],
        visibility: Float[Tensor, "N F"],
        anchor: Float[Tensor, "N 2"],
        intrinsics: Float[Tensor, "4"],
        size: tuple[int, int],
        encoder: Encoder | None = None,
        cache: FeatureCache | None = None,
    ) -> "Views":
        """Of pictures and an encoder of them, if any."""
        maps = None if encoder is None else encoder.encode(images, u.float(), cache).maps
        return cls(images, maps, u.double(), visibility, anchor, intrinsics, size)

    def predicted(
        self, ctrl: Float[Tensor, "K N M 3"]
    ) -> tuple[Float[Tensor, "K N F 2"], Float[Tensor, "K N F"]]:
        """Pixels and depths of a spline of the usual knots."""
        basis_FM = splines.basis_matrix(self.u, ctrl.shape[-2]).to(ctrl)
        points = basis_FM @ ctrl
        depth = points[..., 2].clamp_min(NEAREST)
        ahead = torch.cat([points[..., :2], depth[..., None]], -1)
        return project(ahead, self.intrinsics.to(ctrl)), depth

    @property
    def reach(self) -> float:
        """px within which a point hides others."""
        places = self.anchor.double()
        apart = torch.cdist(places, places)
        apart.fill_diagonal_(torch.inf)
        return max(1.0, REACH * float(apart.min(1).values.median()))

    def weights(
        self, pixels: Float[Tensor, "K N F 2"], depth: Float[Tensor, "K N F"]
    ) -> Float[Tensor, "K N F"]:
        """w; constant to the gradient, so that no point is moved only to be rid of it."""
        with torch.no_grad():
            seen = self.visibility.to(pixels)
            if self.shown == 0:
                return seen.expand_as(depth)
            own = consistency.own_visibility(pixels, depth, self.reach)
            return seen + self.shown * (1 - seen) * own * consistency.inside(pixels, self.size)


def views_of(
    observation: Observation, encoder: Encoder | None = None, cache: FeatureCache | None = None
) -> Views:
    """What an observed clip shows at its key frames; without an encoder there is no semantic energy.

    Raises:
        UserError: tracks without a video.
    """
    clip, tracks = observation.clip, observation.tracks
    if clip is None:
        raise UserError("need a video to compare hypotheses with, got tracks alone")
    frames = key_frames(clip.u, KEY_FRAMES)
    return Views.of(
        clip.frames[frames].float() / 255,
        clip.u[frames],
        tracks.visibility[frames].transpose(0, 1),
        tracks.tracks[0],
        observation.intrinsics,
        observation.size,
        encoder,
        cache,
    )


def energies(views: Views) -> dict[str, ControlEnergy]:
    """ "photometric", "patch" and "occlusion", and "semantic" where there are features."""
    count = min(NEIGHBOURS, len(views.anchor) - 1)
    neighbours = consistency.nearest(views.anchor, count) if count > 0 else None

    def compared(measure: Callable[..., Tensor], maps: Tensor, **options: object) -> ControlEnergy:
        def energy(ctrl: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K"]:
            pixels, depth = views.predicted(ctrl)
            return measure(maps, pixels, views.weights(pixels, depth), views.size, **options)

        return energy

    def hidden(ctrl: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K"]:
        pixels, depth = views.predicted(ctrl)
        shown = consistency.own_visibility(pixels, depth, views.reach)
        return consistency.occlusion(shown, views.visibility)

    step = min(views.size) / 256
    known: dict[str, ControlEnergy] = {
        "photometric": compared(consistency.photometric, views.images),
        "patch": compared(consistency.patch, views.images, neighbours=neighbours, step=step),
        "occlusion": hidden,
    }
    if views.features is not None:
        known["semantic"] = compared(consistency.semantic, views.features)
    return known


def scores(
    hypotheses: Hypotheses, views: Views, weights: Mapping[str, float]
) -> Float[Tensor, "K"]:
    """Σ_j w_j E_j of each hypothesis, lower is better: for `Hypotheses.rank`.

    Raises:
        UserError: hypotheses in the world frame (rank them before), an unknown energy, none, or a weight below 0.
    """
    if hypotheses.frame != "camera":
        raise UserError(
            "need hypotheses in the camera frame, got some in the world: rank them before"
        )
    known = energies(views)
    _require(known, weights)
    with torch.no_grad():
        ctrl = hypotheses.control_points
        return torch.stack([w * known[name](ctrl) for name, w in weights.items()]).sum(0)


def slopes(
    known: Mapping[str, ControlEnergy],
    weights: Mapping[str, float],
    ctrl: Float[Tensor, "K N M 3"],
    how: Literal["joint", "each"] = "joint",
) -> Float[Tensor, "K N M 3"]:
    """The direction of Σ_j w_j E_j.

    Args:
        how: "joint": one backward pass, the gradient of the weighted sum. "each": a pass each, every gradient brought
            to unit length for each hypothesis before it is weighted; where an energy is flat it has no say.

    Raises:
        UserError: an unknown energy, none, or a weight below 0.
    """
    _require(known, weights)
    x = ctrl.detach().requires_grad_()
    with torch.enable_grad():
        if how == "joint":
            total = sum(w * known[name](x).sum() for name, w in weights.items())
            assert isinstance(total, Tensor)
            return torch.autograd.grad(total, x)[0]
        steepest = torch.zeros_like(ctrl)
        for name, weight in weights.items():
            (slope,) = torch.autograd.grad(known[name](x).sum(), x)
            length = slope.flatten(1).norm(dim=1)[:, None, None, None]
            steepest += weight * slope / length.clamp_min(torch.finfo(ctrl.dtype).tiny)
        return steepest


def guide(
    views: Views, weights: Mapping[str, float], how: Literal["joint", "each"] = "joint"
) -> Callable[[ClipDenoiser], Guide]:
    """Guidance by the pictures, for `Diffusion4DPipeline.sample`: every estimate r of the sampler becomes r − Σ g.

    Σ is the covariance of the noise, so that hidden points move with those they are correlated with. "joint": g is the
    gradient of Σ_j w_j E_j. "each": unit slopes, summed by their weights, and Σ g brought to a root mean square of
    Σ_j w_j. The network is not differentiated: a sampler of one step starts where its slope has no length.

    Raises:
        UserError: an unknown energy, none, or a weight below 0.
    """
    known = energies(views)
    _require(known, weights)

    def of_clip(clip: ClipDenoiser) -> Guide:
        diffused = {name: on_diffused(clip, known[name]) for name in weights}

        def correct(r: Float[Tensor, "K N M 3"]) -> Float[Tensor, "K N M 3"]:
            slope = slopes(diffused, weights, r, how)
            slope = clip.factors.covary(slope[None]).squeeze(0)
            if how == "joint":
                return r - slope
            size = slope.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
            return r - sum(weights.values()) * slope / size

        def guided(denoise: Denoise, _: Sequence[int]) -> Denoise:
            return corrected(denoise, correct)

        return guided

    return of_clip


def _require(known: Mapping[str, ControlEnergy], weights: Mapping[str, float]) -> None:
    unknown = sorted(set(weights) - set(known))
    if unknown or not weights:
        raise UserError(f"need weights of energies out of {sorted(known)}, got {dict(weights)}")
    if any(not 0 <= w < float("inf") for w in weights.values()):
        raise UserError(f"need finite weights of at least 0, got {dict(weights)}")
