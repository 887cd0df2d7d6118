r"""The encoder in fewer bits, for inference on a CPU.

    bf16   weights and activations in bfloat16: half the memory; fast where the processor multiplies it natively
           (AVX-512 BF16, AMX), slower than float32 elsewhere
    int8   weights of the linear layers in 8 bits, one scale a layer; activations are quantised on the fly, one scale
           and zero point a tensor:  W ≈ s_W Q_W,  x ≈ s_x (Q_x - z_x),  y = s_W s_x Q_W (Q_x - z_x) + b

int8 is torch's own dynamic quantisation (torch.ao.quantization.quantize_dynamic). torch calls it deprecated in favour
of the separate package torchao; in torch 2.13 it works, and needs nothing installed. Norms, softmax and the patch
embedding stay in float32.
"""

import copy
import warnings
from typing import Any, Literal, get_args

import torch
from torch import nn

from priors.dinov3 import Encoder

Precision = Literal["fp32", "bf16", "int8"]


def in_precision(encoder: Encoder, precision: Precision) -> Encoder:
    """A copy of the encoder in another precision; fingerprint and preprocessing are the same.

    Cached tokens are kept apart by precision.

    Raises:
        ValueError: an unknown precision; int8 where the encoder is not on the CPU, or torch has lost it.
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"need a precision out of {', '.join(get_args(Precision))}, got {precision!r}"
        )
    other = copy.deepcopy(encoder)
    other.precision = precision
    if precision == "bf16":
        nn.Module.to(other.model, torch.bfloat16)
    if precision == "int8":
        if other.model.device.type != "cpu":
            raise ValueError(f"int8 runs on the CPU only, got an encoder on {other.model.device}")
        other.model = _quantised(other.model)
    return other


def _quantised(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        # It says that torchao is to take over; the day it does, the import fails and says so below.
        warnings.simplefilter("ignore")
        try:
            from torch.ao.quantization import quantize_dynamic
        except ImportError as error:
            raise ValueError(
                f"need torch.ao.quantization for int8, and torch {torch.__version__} has none: "
                "use bf16"
            ) from error
        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
