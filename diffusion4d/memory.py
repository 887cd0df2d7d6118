r"""How many hypotheses go through the loop at once, from a model of what they hold.

A row is one trajectory of one hypothesis. With W channels, hidden MLP channels E, H heads and p bytes for what enters a
product, the loop holds at its fullest, in bytes a row,

    attention    4W (trunk) + 4W (norm) + pW + 6pW (query, key, value, and as heads) + 2pW + 4W + scores
    MLP          4W + 4W + pW + pE + pW + 4W
    scores       2 p H max(N, S), where they are written out: S patch tokens in cross-attention

and outside the network 3M numbers of x_t, of the noise and of their like. Snapping to T frames comes after, in float64:
about 26 numbers a frame and 5 M^2 of the normal equations. All K hypotheses are held once as they come out.
A quarter is added for what an allocator keeps, and a constant for what the libraries' kernels do.

Shape letters:  K hypotheses   N points   M control points   T frames   S patch tokens of a clip.
"""

import dataclasses

from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.loops import Loop

MIB = 2**20
MARGIN = 1.25
KERNELS = 48 * MIB
"""Held by libraries whatever the shapes: kernels that are compiled at their first call, their scratch space."""

CHUNK_ROWS = 2048
"""Rows that go through at once where memory allows: more make no product faster, and leave the cache sooner."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Hypotheses at once, and the bytes that sampling is expected to add at most, beside what is loaded."""

    chunk: int
    bytes: int

    def __str__(self) -> str:
        return f"at most {self.bytes / MIB:.0f} MiB for sampling, {self.chunk} hypotheses at a time"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What the model depends on; `tokens` is 0 without images."""

    hypotheses: int
    points: int
    frames: int
    tokens: int


def row_bytes(network: TrajectoryDiT, loop: Loop, shapes: Shapes) -> int:
    """Bytes that a trajectory of a hypothesis takes while it is in a chunk."""
    config = network.config
    M, W, H = config["num_ctrl"], config["width"], config["num_heads"]
    hidden = int(W * config["mlp_ratio"])
    p = 2 if loop.precision == "bf16" else 4
    if loop.name == "fused":
        keys = max(shapes.points, shapes.tokens)
        scores = 2 * p * H * keys if loop.precision == "bf16" else 0
        attention = 12 * W + 9 * p * W + scores
        mlp = 12 * W + p * (2 * W + hidden)
    else:
        # Written as plain operations, every one of which has an output of its own.
        attention = 4 * 16 * W
        mlp = 4 * (6 * W + 2 * hidden)
    around = 8 * 3 * M * 6
    snapped = 8 * (26 * shapes.frames + 5 * M * M)
    return max(max(attention, mlp) + around, snapped)


def plan(network: TrajectoryDiT, loop: Loop, shapes: Shapes, budget: int) -> Plan:
    """As many hypotheses at once as are worth it and as a budget in bytes allows.

    Raises:
        UserError: not even one fits.
    """
    each = MARGIN * shapes.points * row_bytes(network, loop, shapes)
    # The answer and its copy in the finer spline; N x N covariances of two groups, with their factors.
    num_ctrl = network.config["num_ctrl"]
    kept = 4 * 3 * shapes.points * num_ctrl * 4 * shapes.hypotheses
    fixed = KERNELS + MARGIN * (kept + 4 * 8 * shapes.points**2)
    fitting = int((budget - fixed) / each)
    if fitting < 1:
        raise UserError(
            f"need a memory budget of at least {(fixed + each) / MIB:.0f} MiB for {shapes.hypotheses} "
            f"hypotheses of {shapes.points} points, got {budget / MIB:.0f} MiB"
        )
    chunk = min(shapes.hypotheses, max(1, CHUNK_ROWS // shapes.points), fitting)
    return Plan(chunk, int(fixed + chunk * each))
