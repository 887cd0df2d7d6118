"""How the loop runs a network, chosen in the open.

    plain      `TrajectoryDiT.forward` as it is written; any device
    fused      the same function packed for one clip and the table's times (`fused.py`); CPU
    compiled   the same function through torch.compile; on CUDA in its mode that replays CUDA graphs (never run)

"auto" is fused where that can run, else plain. It never compiles: on a CPU that takes a minute before the first step.
Of precisions, "auto" is bf16 where the loop is fused and the processor multiplies bfloat16 natively, else fp32;
`docs/decisions/0007-one-loop.md` has what that changes. A choice that cannot run is refused, and every choice says why.
"""

import dataclasses
import os
import shutil
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion4d.denoiser import ClipDenoiser
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.fused import FusedNetwork, Precision, check_fusable

LoopName = Literal["auto", "plain", "fused", "compiled"]
PrecisionName = Literal["auto", "fp32", "bf16"]

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors that multiply bfloat16, as torch names them."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A choice that can run, and why it was made."""

    name: Literal["plain", "fused", "compiled"]
    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.name}, {self.precision} ({self.reason})"


PLAIN = Loop("plain", "fp32", "as written")


def multiplies_bf16() -> bool:
    """Whether this processor has instructions that multiply bfloat16; False where torch cannot tell."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    known = torch.cpu.get_capabilities()
    return any(known.get(flag) for flag in NATIVE_BF16)


def choose(
    network: TrajectoryDiT, loop: LoopName = "auto", precision: PrecisionName = "auto"
) -> Loop:
    """Settle what "auto" leaves open.

    Raises:
        UserError: an unknown name; a loop that cannot run this network; a compiler that is missing; bf16 on a
            processor that emulates it.
    """
    if loop not in get_args(LoopName):
        raise UserError(f"need a loop out of {', '.join(get_args(LoopName))}, got {loop!r}")
    if precision not in get_args(PrecisionName):
        raise UserError(
            f"need a precision out of {', '.join(get_args(PrecisionName))}, got {precision!r}"
        )
    on_cpu = network.device.type == "cpu"
    name, reason = _settled(network, loop)
    if precision == "bf16" and on_cpu and not multiplies_bf16():
        raise UserError(
            "need a processor that multiplies bfloat16 for bf16, and this one emulates it"
        )
    if precision != "auto":
        return Loop(name, precision, reason)
    if name == "fused" and multiplies_bf16():
        return Loop(name, "bf16", f"{reason}; bfloat16 in hardware")
    return Loop(name, "fp32", reason)


def _settled(
    network: TrajectoryDiT, loop: LoopName
) -> tuple[Literal["plain", "fused", "compiled"], str]:
    if loop == "plain":
        return "plain", "asked for"
    if loop == "compiled":
        _check_compiler(network.device)
        return "compiled", "asked for"
    try:
        check_fusable(network)
    except ValueError as error:
        if loop == "fused":
            raise UserError(str(error)) from error
        return "plain", str(error)
    return "fused", "asked for" if loop == "fused" else "on a CPU"


def _check_compiler(device: torch.device) -> None:
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError(
            f"the compiled loop needs a C++ compiler on a CPU, found no {os.environ.get('CXX', 'g++')}"
        )


def ready(clip: ClipDenoiser, loop: Loop, times: Float[Tensor, "times"]) -> ClipDenoiser:
    """The clip as this loop runs it through a table with these times.

    Raises:
        ValueError: the fused loop cannot run this clip.
    """
    if loop.name == "fused":
        # The network is never asked at the last time, where the sample is.
        fused = FusedNetwork.of(clip.network, clip.conditioning, times[:-1], loop.precision)
        return dataclasses.replace(clip, fused=fused)
    if loop.name == "compiled":
        on_cuda = clip.network.device.type == "cuda"
        network = torch.compile(
            clip.network, mode="reduce-overhead" if on_cuda else "default", dynamic=False
        )
        return dataclasses.replace(clip, network=cast("TrajectoryDiT", network))
    return clip


def precision_of(loop: Loop, device: torch.device) -> Any:
    """A context in which the loop's products have its precision; the fused loop needs none."""
    mixed = loop.precision == "bf16" and loop.name != "fused"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed)
