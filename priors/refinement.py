r"""From a token's precision to a pixel's: the patch around the query point, slid over the place that tokens found.

A token is 16 px or more wide; its tracks are good to a quarter of that. For each point and frame the patch around the
query point in the anchor frame is compared with every whole-pixel place d in reach of the match (normalised
cross-correlation, zncc in [-1, 1]; OpenCV's matchTemplate), and what the tokens think is the prior:

    P(d) ∝ exp(zncc(d) / tau - d^T Sigma^-1 d / 2)          Sigma: the match's own covariance, and 1 px^2 each way

The answer is the mean of P in a window of 3 x 3 px around its mode. It is taken where zncc there is at least
`ALIKE`; elsewhere the patch has turned, changed or gone, and the token's answer stands. A flat patch correlates
with nothing (its zncc is noise over noise), so it is left alone too.

Shape letters:  T frames   N points   y, x places of the search window
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from priors.matches import Matches
from priors.preprocessing import in_unit_range

PATCH = 15
"""Side of the patch, px."""
REACH = 16
"""The match is searched this far each way, px, or its two deviations if that is less; `LEAST_REACH` at least."""
LEAST_REACH = 2
DOUBT = 1.0
"""px² that a match's covariance is widened by in the prior, whatever the size of a token: none is that sure."""
TAU = 0.05
ALIKE = 0.7
FLAT = 2.0
"""Standard deviation of grey levels below which a patch tells nothing."""


def refine(
    frames: Float[Tensor, "T 3 H W"] | UInt8[Tensor, "T 3 H W"], matches: Matches
) -> Matches:
    """The same matches, to a fraction of a pixel where the anchor frame's patches are found.

    Args:
        frames: [T, 3, H, W] sRGB, float in [0, 1] or uint8: the frames that were matched, at the resolution that
            tracks are told in.

    Raises:
        ValueError: `frames` is no [T, 3, H, W], of another type, or another number of them than the matches have.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"need frames of shape [T, 3, H, W], got {list(frames.shape)}")
    if len(frames) != len(matches.tracks):
        raise ValueError(
            f"need the {len(matches.tracks)} frames that were matched, got {len(frames)}"
        )
    if frames.dtype != torch.uint8:
        # Grey levels are those of bytes, and so is what counts as flat.
        frames = (255 * in_unit_range(frames)).clamp(0, 255).round().to(torch.uint8)
    tracks = matches.tracks.clone()
    covariance = matches.covariance.clone()
    patches = _patches(_grey(frames[0]), tracks[0].cpu().numpy())
    usable = np.flatnonzero(patches.std((1, 2)) >= FLAT)
    margin = PATCH // 2 + REACH + 1
    for t in range(1, len(frames)):
        image = np.pad(_grey(frames[t]), margin, mode="edge")
        start = tracks[t].double().cpu().numpy()
        doubt = covariance[t].double().cpu().numpy()
        for n in usable:
            better = _slide(image, margin, patches[n], start[n], doubt[n])
            if better is not None:
                place, spread = better
                tracks[t, n] = torch.from_numpy(place)
                covariance[t, n] = torch.from_numpy(spread)
    return Matches(tracks, covariance, matches.visibility)


def _slide(
    image: np.ndarray, margin: int, patch: np.ndarray, start: np.ndarray, doubt: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """A better place [2] px and its covariance, or None."""
    import cv2

    height, width = (side - 2 * margin for side in image.shape)
    deviation = float(np.sqrt(np.linalg.eigvalsh(doubt)[-1]))
    reach = int(np.clip(np.ceil(2 * deviation), LEAST_REACH, REACH))
    # The pixel whose centre is nearest to the match.
    column, row = np.clip(np.floor(start), 0, (width - 1, height - 1)).astype(int)
    half = PATCH // 2 + reach
    window = image[
        row + margin - half : row + margin + half + 1,
        column + margin - half : column + margin + half + 1,
    ]
    alike_yx = cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED).astype(np.float64)
    # Where the window is flat the correlation is 0 / 0.
    alike_yx = np.where(np.isfinite(alike_yx) & (np.abs(alike_yx) <= 1), alike_yx, -1.0)
    offset = np.arange(-reach, reach + 1)
    places_yx2 = np.stack(np.meshgrid(column + offset, row + offset), -1) + 0.5
    off_yx2 = places_yx2 - start
    precision = np.linalg.inv(doubt + DOUBT * np.eye(2))
    prior = np.einsum("yxi,ij,yxj->yx", off_yx2, precision, off_yx2) / 2
    belief = alike_yx / TAU - prior
    y, x = np.unravel_index(belief.argmax(), belief.shape)
    if alike_yx[y, x] < ALIKE:
        return None
    near = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
    weight = np.exp(belief[near] - belief[y, x])[..., None]
    place = (weight * places_yx2[near]).sum((0, 1)) / weight.sum()
    share = np.exp(belief - belief[y, x])
    share /= share.sum()
    from_place = places_yx2 - place
    spread = np.einsum("yx,yxi,yxj->ij", share, from_place, from_place) + np.eye(2) / 12
    return place.astype(np.float32), spread.astype(np.float32)


def _grey(frame: Tensor) -> np.ndarray:
    import cv2

    return cv2.cvtColor(
        np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy()), cv2.COLOR_RGB2GRAY
    ).astype(np.float32)


def _patches(image: np.ndarray, points: np.ndarray) -> Float[np.ndarray, "N y x"]:
    """Bilinear patches around points; the middle pixel's centre is on the point."""
    import cv2

    return np.stack(
        [
            cv2.getRectSubPix(image, (PATCH, PATCH), (float(x - 0.5), float(y - 0.5)))
            for x, y in points
        ]
    )
