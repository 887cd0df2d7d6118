"""What images and motion tell before anything is sampled: images to tokens to matches and geometry, paths to energies.

A *token grid* is a clip as a frozen DINO sees it, *matches* say where points of the first frame are in the others and
how surely, a *pointmap* has the surface point of each pixel, and an *energy* maps trajectories [*K, N, T, 3] to one
number each, differentiably. Nothing here knows diffusion:

    import torch

    from priors.dinov3 import load_encoder
    from priors.matching import Matcher, match_to_anchor
    from priors.motion import uneven_pace
    from priors.pointmaps import load_pointmapper
    from priors.refinement import refine

    tokens = load_encoder("tiny").encode(frames, torch.linspace(0, 1, len(frames)))
    matches = refine(frames, match_to_anchor(tokens, queries, Matcher("hough")))
    points = load_pointmapper("tiny").pointmap(frames, intrinsics)
    x, y = matches.tracks.long().unbind(-1)
    paths = points[torch.arange(len(frames))[:, None], y, x].transpose(0, 1)
    energy = uneven_pace(paths)

with frames [F, 3, H, W] as bytes or floats in [0, 1], queries [N, 2] px in the first of them (pixel centres at +0.5)
and intrinsics (fx, fy, cx, cy) px. Paths are [N, F, 3] in camera axes: OpenCV's, x right, y down, z ahead.

    images to tokens       dinov3, preprocessing, tokens, checkpoints, cache, precision, adapters (LoRA), tiny, describe
    tokens to matches      matching, matches, assignment, voting, epipolar, refinement; correspondence trains an encoder
    tokens to geometry     heads, pointmaps
    paths to cameras       rigid, bundle: what stands still, and the camera that sees it so
    paths to energies      motion, rigidity, cosines, low_rank; consistency: paths against pictures
    samples to modes       modes, spectrum, laws, coloured; clusters

`python -m priors.describe` tells what each DINOv3 and the heads on it cost, without weights.

Names live in their modules and nowhere else, so importing the package costs nothing.
"""

__distribution__ = "diffusion4d"
