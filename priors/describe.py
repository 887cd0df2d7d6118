r"""How large each DINOv3 is, and what a head on it costs: parameters, multiply-adds and shapes, without any weights.

    python -m priors.describe                 # a table of every size, for one image of 256 x 256 px
    python -m priors.describe vits16 vit7b16

Configurations are those of the released models (Simeoni et al. 2025, arXiv:2508.10104, table 1), as
transformers' DINOv3ViTConfig. Models are built on torch's meta device, where a tensor has a shape and no
numbers; torch's own counter adds up what the matrix products and convolutions of a forward pass would
take (a multiply-add counts once). Norms, activations and softmax are not counted.

Of a transformer block with MLP ratio 4, on S tokens of C channels:  12 S C^2 + 2 S^2 C.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from priors.heads import Kind, count_parameters, make_head
from priors.tiny import tiny_config

if TYPE_CHECKING:
    import transformers

SIZES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "vits16": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
        "vits16plus": {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_attention_heads": 6,
            "use_gated_mlp": True,
        },
        "vitb16": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vitl16": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
        },
        "vith16plus": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "use_gated_mlp": True,
        },
        "vit7b16": {
            "hidden_size": 4096,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "use_gated_mlp": True,
            "query_bias": False,
            "value_bias": False,
        },
    }
)
"""By the names of the released models; 12 layers where nothing else is said."""


@dataclass(frozen=True)
class Cost:
    """parameters; multiply-adds of one image; shape of what comes out for it."""

    parameters: int
    multiply_adds: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """A backbone and the heads on it, for one image."""

    name: str
    layers: int
    backbone: Cost
    heads: Mapping[Kind, Cost]


def config_of(name: str) -> "transformers.DINOv3ViTConfig":
    """The configuration of a released size, or of "tiny".

    Raises:
        ValueError: an unknown name.
    """
    from transformers import DINOv3ViTConfig

    if name == "tiny":
        return tiny_config()
    if name not in SIZES:
        raise ValueError(f"need a size out of tiny, {', '.join(SIZES)}, got {name!r}")
    return DINOv3ViTConfig(patch_size=16, num_register_tokens=4, **SIZES[name])


def describe(name: str, size: tuple[int, int] = (256, 256), outputs: int = 2) -> Description:
    """Parameters, multiply-adds and shapes of a backbone and of both heads on it; takes no memory for weights.

    Args:
        name: "tiny", or one of `SIZES`.
        size: (H, W) px of the image, whole patches.
        outputs: numbers that the heads give a cell (`priors.heads`).

    Raises:
        ValueError: an unknown name, or a size that is not whole patches.
    """
    from transformers import DINOv3ViTModel

    config = config_of(name)
    patch = 16
    if size[0] % patch or size[1] % patch or min(size) < patch:
        raise ValueError(f"need a size of whole patches of {patch} px, got {size}")
    grid = (size[0] // patch, size[1] // patch)
    with torch.device("meta"):
        model = DINOv3ViTModel(config).eval()
        image = torch.empty(1, 3, *size)
        tokens = torch.empty(1, grid[0] * grid[1], config.hidden_size)
        backbone = _cost(model, lambda: model(image).last_hidden_state)
        heads = {}
        for kind in get_args(Kind):
            head = make_head(kind, config.hidden_size, config.num_hidden_layers, outputs)
            layers = [tokens] * len(head.taps)
            heads[kind] = _cost(head, lambda head=head, layers=layers: head(layers, grid))
    return Description(name, config.num_hidden_layers, backbone, MappingProxyType(heads))


def _cost(module: nn.Module, call: Any) -> Cost:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shape = tuple(call().shape)
    # The counter has two operations for a multiply-add.
    return Cost(count_parameters(module), counter.get_total_flops() // 2, shape)


def table(descriptions: list[Description]) -> str:
    """Markdown."""
    lines = [
        "| model | layers | tokens out | parameters | multiply-adds | "
        "linear head: parameters, multiply-adds, out | DPT head: parameters, multiply-adds, out |",
        "|---|---|---|---|---|---|---|",
    ]
    for d in descriptions:
        heads = (d.heads[kind] for kind in ("linear", "dpt"))
        cells = [
            d.name,
            str(d.layers),
            "x".join(map(str, d.backbone.shape[1:])),
            f"{d.backbone.parameters / 1e6:,.2f} M",
            f"{d.backbone.multiply_adds / 1e9:,.2f} G",
            *(
                f"{h.parameters / 1e6:.4f} M, {h.multiply_adds / 1e9:.4f} G, "
                f"{'x'.join(map(str, h.shape[1:]))}"
                for h in heads
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([describe(name) for name in sys.argv[1:] or ("tiny", *SIZES)]))
