"""First weights from a finished network, which may know fewer kinds of evidence than the one that is to be trained.

What both have in the same shape is copied. Of the first layer, the columns of the evidence that both are told are
copied, and the columns of what the given network was not told are 0; where a block newly asks the patch tokens, its
gate is 0. So a network that only gains evidence starts as the very function that the given one is.
"""

import torch
from torch import Tensor

from diffusion4d.dit import HAS_TOKENS, TrajectoryDiT, observed_widths

FIRST_LAYER = "embed_observed.0.weight"


@torch.no_grad()
def take_over(network: TrajectoryDiT, given: TrajectoryDiT, *, with_output: bool) -> None:
    """Copy the weights of `given` into `network`; the output layer only where it says the same thing."""
    theirs = given.state_dict()
    for name, mine in network.state_dict().items():
        if name not in theirs or (name.startswith("project_out") and not with_output):
            continue
        if mine.shape == theirs[name].shape:
            mine.copy_(theirs[name])
        elif name == FIRST_LAYER and len(mine) == len(theirs[name]):
            _copy_columns(mine, theirs[name], network, given)
        elif ".modulation." in name and network.config["width"] == given.config["width"]:
            # Shift, scale and gate of the patch tokens come last; all start at 0.
            rows = min(len(mine), len(theirs[name]))
            mine[:rows] = theirs[name][:rows]
    if network.config["token_channels"] and not given.config["token_channels"]:
        # The given network has a weight for whether there are tokens, but never saw any.
        network.get_parameter("embed_clip.0.weight")[:, HAS_TOKENS] = 0


def _copy_columns(
    mine: Tensor, theirs: Tensor, network: TrajectoryDiT, given: TrajectoryDiT
) -> None:
    known = dict(_columns(theirs, given))
    for kind, part in _columns(mine, network):
        found = known.get(kind)
        if found is not None and found.shape == part.shape:
            part.copy_(found)
        elif found is None:
            part.zero_()


def _columns(weight: Tensor, network: TrajectoryDiT) -> list[tuple[str, Tensor]]:
    """The parts of the first layer's weight that belong to each kind of evidence; views."""
    widths = observed_widths(network.config)
    return list(zip(widths, weight.split(list(widths.values()), 1), strict=True))
