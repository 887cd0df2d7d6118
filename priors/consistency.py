r"""Consistency energies: does the picture say the same wherever a path says that the same point is?

A path predicts pixels p_{n,f} in F pictures; the first is the anchor. With maps m (colours or features) read bilinearly
at p, and weights w_{n,f} ≥ 0 of the pairs (anchor, f),

    photometric   Σ w ρ(|I_f(p_f) − I_0(p_0)| / τ) / Σ w,       ρ(x) = √(1 + x²) − 1
    patch         Σ w (1 − SSIM(I_f ∘ A_f, I_0)) / 2 / Σ w      over a patch around p_0, carried by the affine map A_f
    semantic      Σ w (1 − cos(y_f(p_f), y_0(p_0))) / Σ w       y features of an encoder

SSIM (Wang et al. 2004) is taken on grey patches as one window, with contrast and structure but without the term of
means, so that a change of brightness costs nothing and a change of gain little. A_f is the affine map that takes the
anchor's neighbours of a point to where the path has them in picture f (least squares, held to the identity).

Where a path has its own occlusions, they are soft and differentiable: point j hides n where it is near in the image and
nearer to the camera,

    s_{n,f} = 1 − max_j near((p_j − p_n) / r) σ((1 − margin − z_j / z_n) / softness),      near(d) = exp(−|d|² / 2)

and must agree with what was observed to be seen, v:

    occlusion     −Σ v log q + (1 − v) log(1 − q) over all,       q = lost + (1 − lost − ghost) s

where a tracker reports a share `ghost` of visible points as hidden, and a share `lost` of hidden ones as seen.

All take any number of paths at once and give one number each; all are differentiable in p and z.

Shape letters:  K paths (any batch)   N points   F pictures   C channels   P pixels of a patch   k neighbours
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from priors import rigidity
from priors.preprocessing import ROUNDING

TOLERANCE = 0.1
"""τ: difference of colours (in [0, 1] each) that is nothing unusual."""
STABLE = 1e-3
"""Of SSIM: a variance of grey below this is no structure."""
HELD = 0.5
"""How strongly affine maps are held to the identity, in the neighbours' mean squared distance."""
LOST, GHOST = 0.05, 0.25
MARGIN, SOFTNESS = 0.05, 0.03
"""Shares of depth: how much nearer a point must be to hide another, and how gradually it does."""


def read(
    maps: Float[Tensor, "F C h w"], pixels: Float[Tensor, "*K N F 2"], size: tuple[int, int]
) -> Float[Tensor, "*K N F C"]:
    """Values at pixels of pictures of `size` (H, W), whatever the maps' own resolution; outside, the border's.

    Pixel centres are at +0.5: the pictures span [0, W] x [0, H], and so do the maps.

    Raises:
        ValueError: maps or pixels of another shape or number of pictures, or pixels that are not finite.
    """
    _require_pixels(pixels)
    if maps.ndim != 4 or len(maps) != pixels.shape[-2] or 0 in maps.shape:
        raise ValueError(
            f"need maps [F, C, h, w] of the {pixels.shape[-2]} pictures of the pixels, "
            f"got {list(maps.shape)}"
        )
    height, width = size
    batch = pixels.shape[:-2]
    where = 2 * pixels / pixels.new_tensor([width, height]) - 1
    where_FS12 = where.reshape(-1, *pixels.shape[-2:]).transpose(0, 1)[:, :, None]
    values_FCS1 = functional.grid_sample(
        maps.to(pixels), where_FS12, mode="bilinear", padding_mode="border", align_corners=False
    )
    return values_FCS1[..., 0].permute(2, 0, 1).reshape(*batch, *values_FCS1.shape[:2])


def inside(pixels: Float[Tensor, "*K N F 2"], size: tuple[int, int]) -> Float[Tensor, "*K N F"]:
    """1 within the picture, 0 outside."""
    extent = pixels.new_tensor([size[1], size[0]])
    return ((pixels >= 0) & (pixels <= extent)).all(-1).to(pixels)


def photometric(
    images: Float[Tensor, "F 3 h w"],
    pixels: Float[Tensor, "*K N F 2"],
    weights: Float[Tensor, "*#K N F"],
    size: tuple[int, int],
    *,
    tolerance: float = TOLERANCE,
) -> Float[Tensor, "*K"]:
    """Of images in [0, 1].

    Raises:
        ValueError: a tolerance that is not positive, images that are no floats in [0, 1], shapes that do not fit,
            pixels that are not finite, a negative weight.
    """
    _require_images(images)
    if not tolerance > 0:
        raise ValueError(f"need a tolerance above 0, got {tolerance}")
    return mean(photometric_pairs(images, pixels, size, tolerance), weights)


def photometric_pairs(
    images: Float[Tensor, "F 3 h w"],
    pixels: Float[Tensor, "*K N F 2"],
    size: tuple[int, int],
    tolerance: float = TOLERANCE,
) -> Float[Tensor, "*K N F"]:
    """ρ of each pair. Raises ValueError as `read`."""
    colour = read(images, pixels, size)
    squared = (colour - colour[..., :1, :]).square().mean(-1) / tolerance**2
    return (1 + squared).sqrt() - 1


def semantic(
    features: Float[Tensor, "F C h w"],
    pixels: Float[Tensor, "*K N F 2"],
    weights: Float[Tensor, "*#K N F"],
    size: tuple[int, int],
) -> Float[Tensor, "*K"]:
    """Of features of any length.

    Raises:
        ValueError: shapes that do not fit, pixels that are not finite, a negative weight.
    """
    return mean(semantic_pairs(features, pixels, size), weights)


def semantic_pairs(
    features: Float[Tensor, "F C h w"], pixels: Float[Tensor, "*K N F 2"], size: tuple[int, int]
) -> Float[Tensor, "*K N F"]:
    """1 − cos of each pair. Raises ValueError as `read`."""
    unit = functional.normalize(read(features, pixels, size), dim=-1)
    return 1 - (unit * unit[..., :1, :]).sum(-1)


def patch(
    images: Float[Tensor, "F 3 h w"],
    pixels: Float[Tensor, "*K N F 2"],
    weights: Float[Tensor, "*#K N F"],
    size: tuple[int, int],
    neighbours: Int64[Tensor, "N k"] | None = None,
    *,
    radius: int = 3,
    step: float = 1.0,
) -> Float[Tensor, "*K"]:
    """Of (2 radius + 1)² pixels `step` px apart; without neighbours patches are only shifted.

    Raises:
        ValueError: a radius below 1, a step that is not positive, images that are no floats in [0, 1], neighbours
            that are no points, shapes that do not fit, pixels that are not finite, a negative weight.
    """
    _require_images(images)
    if radius < 1 or not step > 0:
        raise ValueError(f"need radius >= 1 and step > 0, got {radius} and {step}")
    return mean(patch_pairs(images, pixels, size, neighbours, radius, step), weights)


def patch_pairs(
    images: Float[Tensor, "F 3 h w"],
    pixels: Float[Tensor, "*K N F 2"],
    size: tuple[int, int],
    neighbours: Int64[Tensor, "N k"] | None = None,
    radius: int = 3,
    step: float = 1.0,
    maps: Float[Tensor, "N F 2 2"] | None = None,
) -> Float[Tensor, "*K N F"]:
    """(1 − SSIM) / 2 of each pair; under given affine maps, the neighbours' own, or shifts.

    Raises:
        ValueError: as `read` and `affine_maps`.
    """
    _require_pixels(pixels)
    side = step * torch.arange(-radius, radius + 1).to(pixels)
    offset_P2 = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).flatten(0, 1)
    if maps is not None:
        spread = torch.einsum("...ij,pj->...pi", maps.to(pixels), offset_P2)
    elif neighbours is not None:
        spread = torch.einsum("...ij,pj->...pi", affine_maps(pixels, neighbours), offset_P2)
    else:
        spread = offset_P2.expand(*pixels.shape[:-1], -1, 2)
    places_KNPF2 = (pixels[..., None, :] + spread).transpose(-2, -3)
    grey = images.mean(1, keepdim=True)
    values = read(grey, places_KNPF2.flatten(-4, -3), size)[..., 0]
    values = values.unflatten(-2, (pixels.shape[-3], -1))
    centred = values - values.mean(-2, keepdim=True)
    variance = centred.square().mean(-2)
    joint = (centred * centred[..., :1]).mean(-2)
    ssim = (2 * joint + STABLE) / (variance + variance[..., :1] + STABLE)
    return (1 - ssim) / 2


def affine_maps(
    pixels: Float[Tensor, "*K N F 2"], neighbours: Int64[Tensor, "N k"]
) -> Float[Tensor, "*K N F 2 2"]:
    """From the anchor to each picture, of the neighbourhood of each point; the identity for the anchor itself.

    Raises:
        ValueError: neighbours that are no [N, k] of the N points, pixels of another shape or not finite.
    """
    _require_pixels(pixels)
    count = pixels.shape[-3]
    if neighbours.ndim != 2 or len(neighbours) != count or neighbours.shape[1] < 1:
        raise ValueError(f"need neighbours [{count}, k], got {list(neighbours.shape)}")
    if not bool(((neighbours >= 0) & (neighbours < count)).all()):
        raise ValueError(
            f"need neighbours among {count} points, "
            f"got numbers {int(neighbours.min())} to {int(neighbours.max())}"
        )
    edges = pixels[..., neighbours, :, :] - pixels[..., :, None, :, :]
    first = edges[..., :1, :]
    scale = first.square().sum(-1).mean(-2, keepdim=True)[..., None].clamp_min(1e-12)
    eye = torch.eye(2).to(pixels)
    gram = torch.einsum("...kfi,...kfj->...fij", first, first) / first.shape[-3]
    cross = torch.einsum("...kfi,...kfj->...fij", edges, first.expand_as(edges)) / first.shape[-3]
    held = HELD * scale * eye
    return torch.linalg.solve(gram + held, cross + held, left=False)


def nearest(places: Float[Tensor, "N 2"], k: int) -> Int64[Tensor, "N k"]:
    """The k nearest other points: `rigidity.nearest`, as patches are told their neighbours. Raises ValueError as it."""
    return rigidity.nearest(places, k).index


def own_visibility(
    pixels: Float[Tensor, "*K N F 2"], depth: Float[Tensor, "*K N F"], radius: float
) -> Float[Tensor, "*K N F"]:
    """s: how visible each point is among the path's own points, 1 where none hides it.

    Args:
        radius: px; how far a point, standing for the surface around it, reaches.

    Raises:
        ValueError: a radius that is not positive, pixels and depths of other shapes or not finite.
    """
    if not radius > 0:
        raise ValueError(f"need a radius above 0, got {radius}")
    _require_pixels(pixels)
    if depth.shape != pixels.shape[:-1] or not bool(depth.isfinite().all()):
        raise ValueError(f"need finite depths {list(pixels.shape[:-1])}, got {list(depth.shape)}")
    # Pairs are N² a picture: pictures are few, and taken one at a time.
    shown = [
        _own_visibility(pixels[..., f, :], depth[..., f], radius) for f in range(depth.shape[-1])
    ]
    return torch.stack(shown, -1)


def _own_visibility(pixels: Tensor, depth: Tensor, radius: float) -> Tensor:
    gap = (pixels[..., :, None, :] - pixels[..., None, :, :]).square().sum(-1)
    near = torch.exp(-gap / (2 * radius**2))
    depth = depth.clamp_min(1e-6)
    nearer = 1 - MARGIN - depth[..., None, :] / depth[..., :, None]
    hides = near * torch.sigmoid(nearer / SOFTNESS)
    other = 1 - torch.eye(depth.shape[-1]).to(depth)
    # Neighbours of one surface overlap, and must not hide twice over: the strongest counts.
    return 1 - (hides * other).amax(-1)


def occlusion(
    shown: Float[Tensor, "*K N F"], visibility: Float[Tensor, "N F"]
) -> Float[Tensor, "*K"]:
    """Cross entropy per point and picture of what was observed to be seen, given a path's own visibility.

    Raises:
        ValueError: shapes that do not fit, numbers outside [0, 1].
    """
    if visibility.ndim != 2 or shown.shape[-2:] != visibility.shape:
        raise ValueError(
            f"need a visibility [N, F] of what is shown {list(shown.shape)}, "
            f"got {list(visibility.shape)}"
        )
    for name, values in (("shown", shown), ("visibility", visibility)):
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"need {name} in [0, 1], got {float(values.min())} to {float(values.max())}"
            )
    expected = LOST + (1 - LOST - GHOST) * shown
    seen = visibility.to(shown)
    return -(seen * expected.log() + (1 - seen) * (1 - expected).log()).mean((-2, -1))


def mean(values: Float[Tensor, "*K N F"], weights: Float[Tensor, "*#K N F"]) -> Float[Tensor, "*K"]:
    """Weighted, over points and pictures but the anchor; 0 where nothing has weight.

    Raises:
        ValueError: weights of another shape, or one that is negative or not finite.
    """
    shape = values.shape
    if weights.ndim > values.ndim or any(
        have not in (1, want)
        for have, want in zip(reversed(weights.shape), reversed(shape), strict=False)
    ):
        raise ValueError(f"need weights {list(shape)}, got {list(weights.shape)}")
    # Written so that NaN fails too.
    if not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ValueError(
            f"need finite weights >= 0, got {float(weights.min())} to {float(weights.max())}"
        )
    weights = weights.expand_as(values)[..., 1:]
    total = weights.sum((-2, -1))
    return (weights * values[..., 1:]).sum((-2, -1)) / total.clamp_min(1e-9)


def _require_pixels(pixels: Tensor) -> None:
    if pixels.ndim < 3 or pixels.shape[-1] != 2:
        raise ValueError(f"need pixels [*K, N, F, 2], got {list(pixels.shape)}")
    if not bool(pixels.isfinite().all()):
        missing = int((~pixels.isfinite()).sum())
        raise ValueError(f"need finite pixels, got {missing} numbers that are not")


def _require_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"need images [F, 3, h, w], got {list(images.shape)}")
    low, high = (float(value) for value in images.aminmax())
    # Bytes would be taken for colours hundreds of tolerances apart.
    if not (images.is_floating_point() and low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"need images as floats in [0, 1], got {low:.4g} to {high:.4g} of {images.dtype}"
        )
