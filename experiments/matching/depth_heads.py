r"""Log depth by a linear head, fitted in closed form, and by the packaged DPT head, on the same frozen tokens."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffusion4d.scenes.rendered import RenderedWorlds, load_rendered
from priors.describe import describe
from priors.dinov3 import Encoder
from priors.heads import LinearHead, tapped
from priors.pointmaps import depth_errors, load_pointmapper

Grid = tuple[int, int]


def layers_of(encoder: Encoder, images: Tensor, taps: tuple[int, ...]) -> tuple[list[Tensor], Grid]:
    """The tokens of some layers, and their grid."""
    pixels = encoder.preprocess(images)
    grid = (pixels.shape[-2] // encoder.patch, pixels.shape[-1] // encoder.patch)
    hidden = encoder.model(pixels, output_hidden_states=True).hidden_states
    return tapped(hidden, taps, grid[0] * grid[1]), grid


def fit_linear(encoder: Encoder, stacks: list[RenderedWorlds]) -> LinearHead:
    """Least squares of log depth on the last layer's normalised tokens, with a constant of its own for each image.

    The constant drops out when tokens and depths are taken less their image's means; a ridge of 1e-3 of the tokens'
    variance keeps the rest well posed.
    """
    depth = encoder.model.config.num_hidden_layers
    head = LinearHead(encoder.channels, (depth,))
    square = torch.zeros(encoder.channels, encoder.channels, dtype=torch.float64)
    product = torch.zeros(encoder.channels, dtype=torch.float64)
    for stack in stacks:
        for b in range(len(stack)):
            (tokens,), grid = layers_of(encoder, stack.images[b], head.taps)
            tokens = functional.layer_norm(tokens, tokens.shape[-1:]).double()
            maps = stack.depth[b].float().log()
            valid = maps.isfinite().float()
            share = functional.adaptive_avg_pool2d(valid, grid)
            mean = functional.adaptive_avg_pool2d(maps.nan_to_num(0, 0, 0), grid) / share
            for x, y, known in zip(tokens, mean.flatten(1), share.flatten(1) > 0.5, strict=True):
                if known.any():
                    x, y = x[known] - x[known].mean(0), (y[known] - y[known].mean()).double()
                    square += x.T @ x
                    product += x.T @ y
    ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    head.read.weight.copy_(torch.linalg.solve(square + ridge, product)[None].float())
    head.read.bias.zero_()
    return head


def linear_against_dpt(
    held_out: Path, fitting_worlds: Path, count: int, draws: int
) -> dict[str, object]:
    """A linear head on the frozen tokens against the packaged DPT head."""
    mapper = load_pointmapper("tiny")
    encoder = mapper.encoder
    fitting = load_rendered(sorted(fitting_worlds.glob("[0-9]*-depth*.safetensors")))
    known = {"linear": fit_linear(encoder, fitting), "dpt": mapper.head}
    scores: dict[str, list[list[float]]] = {"flat": [], **{name: [] for name in known}}
    seconds: dict[str, list[float]] = {name: [] for name in known}
    stacks = load_rendered(sorted(held_out.glob("[0-9]*-depth*.safetensors")))
    order = sorted((b, s) for s, stack in enumerate(stacks) for b in range(len(stack)))
    for b, s in order[:count]:
        truth = stacks[s].depth[b].float().log()
        valid = truth.isfinite()
        size = (truth.shape[-2], truth.shape[-1])
        guesses = {"flat": torch.zeros(len(truth), 1, 1, 1)}
        for name, head in known.items():
            layers, grid = layers_of(encoder, stacks[s].images[b], head.taps)
            start = time.process_time()
            guesses[name] = head(layers, grid)
            seconds[name].append(time.process_time() - start)
        for name, guess in guesses.items():
            fine = functional.interpolate(guess, size=size, mode="bilinear", align_corners=False)
            errors = depth_errors(fine[:, 0], truth, valid)
            scores[name].append([float(errors[k].nanmean()) for k in ("abs_rel", "delta")])
    costs = describe("tiny", (128, 128), outputs=1).heads
    out: dict[str, object] = {"worlds": count}
    for name, rows in scores.items():
        values = np.array(rows)
        picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
        low, high = np.nanquantile(np.nanmean(values[picks], 1), (0.025, 0.975), axis=0)
        mean = np.nanmean(values, 0)
        out[name] = {
            key: [round(float(v[i]), 3) for v in (mean, low, high)]
            for i, key in enumerate(("abs_rel", "delta"))
        }
    for name in ("linear", "dpt"):
        cost = costs["linear" if name == "linear" else "dpt"]
        out[f"{name} cost"] = {
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "ms of 6 images": round(1e3 * float(np.median(seconds[name])), 3),
        }
    return out
