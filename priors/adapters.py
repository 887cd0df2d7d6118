r"""LoRA: fine-tuning a backbone by a few numbers beside its frozen weights, through peft.

A projection W of the attention becomes  W + (alpha / r) B A  with A [r, C] and B [C, r] (Hu et al. 2021,
arXiv:2106.09685, eq. 3). B starts at 0, so nothing changes before the first step; only A and B are trained; in the end
they are added into W, and what is left is an ordinary backbone: `save_encoder` writes it, `load_encoder` reads it.

Needs the extra: pip install 'diffusion4d[lora]'.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import peft
    import transformers

TARGETS = ("q_proj", "v_proj")
"""What DINOv3 calls the projections to queries and values; Hu et al. (section 7.1) adapt these two."""


def with_adapters(
    model: "transformers.PreTrainedModel",
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] = TARGETS,
) -> "peft.PeftModel":
    """The model with trainable adapters; everything else in it is frozen. The model itself is changed in place.

    It is to be trained in evaluation mode: in training mode DINOv3 jitters its positions. Its `save_pretrained` writes
    the adapters alone.

    Args:
        rank: r. alpha: the adapters count alpha / r.
        targets: names of the linear layers that get adapters.

    Raises:
        ValueError: peft is not installed, `rank` < 1, or the model has no such layers.
    """
    if rank < 1:
        raise ValueError(f"need rank >= 1, got {rank}")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError(f"LoRA needs peft: pip install 'diffusion4d[lora]' ({error})") from error
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = sorted(set(targets) - names)
    if missing:
        raise ValueError(f"need layers called {', '.join(missing)} in the model, got none")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # peft asks transformers 5 for an attribute by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config).eval()  # type: ignore[return-value]


def merged(adapted: "peft.PeftModel") -> "transformers.PreTrainedModel":
    """The backbone with its adapters added into the weights, frozen, and nothing left of peft."""
    return adapted.merge_and_unload().requires_grad_(False).eval()  # type: ignore[operator]
