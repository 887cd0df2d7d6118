"""The project's own small encoder: DINOv3's architecture at 0.9 M parameters.

DINOv3's weights are gated and may not be passed on, so the package ships an encoder of its own,
trained on rendered clips with the loss in `priors.correspondence`. It is a plain transformers
folder, read by the same `load_encoder` as any DINOv3: patch 16, CLS, four registers, rotary
positions.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from priors.preprocessing import FILE_NAME, Preprocessing

if TYPE_CHECKING:
    import transformers

TINY_FOLDER = Path(__file__).parent / "weights" / "tiny"


def tiny_config() -> "transformers.DINOv3ViTConfig":
    """Width 128, 4 layers, 4 heads, MLP 512: 893,056 parameters, 3.6 MB in float32."""
    from transformers import DINOv3ViTConfig

    return DINOv3ViTConfig(
        patch_size=16,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_register_tokens=4,
    )


def save_encoder(
    model: "transformers.PreTrainedModel", folder: Path, preprocessing: Preprocessing | None = None
) -> None:
    """Write a model as the folder that `load_encoder` reads: configuration, weights, preprocessing.

    Args:
        model: any of the backbones that `load_encoder` takes.
        folder: made if missing; files of the same names are replaced.
        preprocessing: what the model was trained with; DINOv3's own by default.

    Raises:
        OSError: the folder cannot be written.
    """
    model.save_pretrained(folder)
    config = (preprocessing or Preprocessing()).to_config()
    (folder / FILE_NAME).write_text(json.dumps(config, indent=2) + "\n")
    # transformers writes weights that only their owner can read; a package is for everyone.
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
