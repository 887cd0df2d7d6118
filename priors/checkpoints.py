"""From an encoder's name to its weights, or to an error that says what to do.

One road for all: a name becomes a local folder (the packaged one, the user's, or a snapshot in the
hub's cache), and the folder becomes a model. Only safetensors are read; pickles can run code.
Everything that goes wrong here is a ValueError with a remedy: no such name, gated weights, offline,
weights missing, incomplete or damaged, not a DINO ViT, a torchvision that breaks transformers.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from priors.tiny import TINY_FOLDER

if TYPE_CHECKING:
    import transformers

# model_type in config.json -> transformers' class.
BACKBONES = {
    "dinov3_vit": "DINOv3ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
CHOICES = (
    "'tiny' (packaged), a folder, or a model id 'owner/name' such as "
    "'facebook/dinov3-vits16-pretrain-lvd1689m' or 'facebook/dinov2-with-registers-small'"
)


def find_folder(name: str) -> Path:
    """The folder that holds an encoder; a model id is looked up in the hub cache, or downloaded.

    Raises:
        ValueError: there is no such encoder to be had; the message says why and what to do.
    """
    if name == "tiny":
        if not (TINY_FOLDER / "config.json").is_file():
            raise ValueError(
                f"missing weights: the packaged encoder 'tiny' is not in {TINY_FOLDER}. "
                "Reinstall the package, or choose another encoder: a folder or a model id"
            )
        return TINY_FOLDER
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"need an encoder's folder, got a file: {name}")
    if name.count("/") != 1 or name[0] in "./~":
        raise ValueError(f"unknown encoder {name!r}: no such folder, and need {CHOICES}")
    return _find_on_hub(name)


def _find_on_hub(name: str) -> Path:
    """The folder of a model id in the local hub cache, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{name}"
    wanted = [
        "config.json",
        "preprocessor_config.json",
        "*.safetensors",
        "*.safetensors.index.json",
    ]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ValueError(
            f"access to the encoder {name!r} is gated: accept its licence at {page}, then run "
            "`hf auth login` with a token of that account; or give a local folder that holds "
            "the model, or 'tiny', the packaged encoder"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"unknown encoder {name!r}: no such folder, and no such public model on the hub; "
            f"need {CHOICES}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"the encoder {name!r} is not in the local hub cache (or only in part), and the hub "
            "cannot be reached (no network, or HF_HUB_OFFLINE is set). Go online once (DINOv3 is "
            f"gated: accept the licence at {page} and run `hf auth login`), give a local folder "
            "that holds the model, or use 'tiny', the packaged encoder"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot get the encoder {name!r} from the hub: {error}") from error


def load_model(folder: Path, name: str) -> "transformers.PreTrainedModel":
    """The backbone in `folder`, in float32 on the CPU.

    Raises:
        ValueError: no DINO ViT, weights that are missing, incomplete or damaged, or transformers
            cannot be imported; `name` is what the message calls the encoder.
    """
    config = folder / "config.json"
    try:
        model_type = json.loads(config.read_text())["model_type"]
    except FileNotFoundError as error:
        raise ValueError(f"need an encoder's folder with a config.json, got {folder}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {config}: {error!r}") from error
    if model_type not in BACKBONES:
        raise ValueError(
            f"the encoder {name!r} is of type {model_type!r}; need one of {', '.join(BACKBONES)}"
        )
    _check_safetensors(folder, name)
    backbone = _backbone(BACKBONES[model_type])
    with _no_progress_bar():
        try:
            # float32 whatever the file holds: bf16 is slower than float32 on most CPUs.
            model, report = backbone.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except MemoryError:
            raise
        # transformers raises nearly anything for a configuration that its weights contradict.
        except Exception as error:
            raise ValueError(f"cannot load the encoder {name!r} from {folder}: {error}") from error
    # transformers fills what is missing with random numbers, and would only print a table.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("mask_token"))
    if missing:
        raise ValueError(
            f"the weights of the encoder {name!r} are incomplete: {len(missing)} missing, "
            f"{missing[0]} first"
        )
    # safetensors has no checksum: a damaged byte shows at best as a number that is none.
    for key, values in model.state_dict().items():
        if not values.isfinite().all():
            raise ValueError(f"the weights of the encoder {name!r} are corrupted: {key} not finite")
    return model


def _check_safetensors(folder: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"missing weights: the encoder {name!r} has no .safetensors file in {folder} "
            "(pickled weights are not read)"
        )
    for file in files:
        try:
            # Opening checks the header and that the file has the length the header promises.
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the weights of the encoder {name!r} are corrupted: {file} "
                f"({file.stat().st_size} bytes): {error}. Delete it and fetch it again"
            ) from error


def _backbone(class_name: str) -> Any:
    try:
        import transformers

        return getattr(transformers, class_name)
    # A torchvision built for another torch raises RuntimeError, which transformers turns into a
    # ModuleNotFoundError that names neither of the two.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        advice = "transformers >= 5 is needed"
        if importlib.util.find_spec("torchvision") is not None:
            advice = (
                f"most likely the installed torchvision does not match torch {torch.__version__}: "
                "uninstall torchvision (it is not needed) or install the matching version"
            )
        raise ValueError(f"cannot import transformers' {class_name}: {advice} ({error})") from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
