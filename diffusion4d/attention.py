"""Attention through diffusers' backend dispatcher, and what its backends need.

Queries, keys and values are [B, S, H, D] (batch, sequence, heads, channels of a head). diffusers keeps one active
backend for the whole process, lets any be chosen, and fails in the kernel; so here a backend belongs to a network,
is passed at every call, and is checked before anything runs.
"""

import dataclasses
import importlib.util

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
SINGLE = (torch.float32, *HALF)


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a backend asks for: the device, the precisions it knows, a package of its own."""

    cuda: bool = False
    dtypes: tuple[torch.dtype, ...] | None = None
    package: str | None = None


BACKENDS = {
    "native": Needs(),
    "_native_math": Needs(),
    "_native_efficient": Needs(cuda=True, dtypes=SINGLE),
    "_native_flash": Needs(cuda=True, dtypes=HALF),
    "_native_cudnn": Needs(cuda=True, dtypes=HALF),
    "flash": Needs(cuda=True, dtypes=HALF, package="flash_attn"),
    "xformers": Needs(cuda=True, dtypes=SINGLE, package="xformers"),
}
"""The backends of diffusers' dispatcher that can be chosen. "native" is torch's SDPA, "_native_math" its plain form."""


def check_backend_name(backend: str) -> None:
    """Raises ValueError for a backend that is not known."""
    if backend not in BACKENDS:
        raise ValueError(f"need an attention backend out of {', '.join(BACKENDS)}, got {backend!r}")


def check_backend(
    backend: str, head_channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse a backend that cannot run: by name, shape, precision, device, package, in this order.

    Raises:
        ValueError: what the backend needs and what it would get.
    """
    check_backend_name(backend)
    needs = BACKENDS[backend]
    if needs.cuda and head_channels % 8:
        raise ValueError(
            f"attention backend {backend!r} needs heads of a multiple of 8 channels, got {head_channels}"
        )
    if needs.dtypes is not None and dtype not in needs.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in needs.dtypes)
        raise ValueError(f"attention backend {backend!r} needs {names}, got {dtype}")
    if needs.cuda and device.type != "cuda":
        raise ValueError(
            f"attention backend {backend!r} needs a CUDA device, got {device.type!r}; choose 'native'"
        )
    if needs.package is not None and importlib.util.find_spec(needs.package) is None:
        raise ValueError(
            f"attention backend {backend!r} needs the package {needs.package}, which is not installed"
        )


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys, through diffusers' backend dispatcher."""

    def __init__(self, width: int, num_heads: int, source_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_query = nn.RMSNorm(width // num_heads, eps=1e-6, elementwise_affine=False)
        self.norm_key = nn.RMSNorm(width // num_heads, eps=1e-6, elementwise_affine=False)

    def keys_values(self, source: Float[Tensor, "B S C"]) -> tuple[Tensor, Tensor]:
        key, value = rearrange(
            self.key_value(source), "b s (two h d) -> two b s h d", two=2, h=self.num_heads
        )
        return self.norm_key(key), value

    def forward(
        self, x: Float[Tensor, "B Q W"], keys_values: tuple[Tensor, Tensor], backend: str
    ) -> Float[Tensor, "B Q W"]:
        query = self.norm_query(rearrange(self.query(x), "b q (h d) -> b q h d", h=self.num_heads))
        key, value = (part.to(query.dtype) for part in keys_values)
        if backend == "native" and query.device.type == "cpu" and query.requires_grad:
            mixed = written_out(query, key, value)
        else:
            mixed = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend))
        return self.out(mixed.flatten(-2))


def written_out(
    query: Float[Tensor, "B Q H D"], key: Float[Tensor, "B S H D"], value: Float[Tensor, "B S H D"]
) -> Float[Tensor, "B Q H D"]:
    """softmax(Q K^T / sqrt(D)) V in three products.

    For training on a CPU: there, the gradient of torch's SDPA takes most of a block's time in half precision.
    """
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    share = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, -1).to(value.dtype)
    return (share @ value).transpose(1, 2)
