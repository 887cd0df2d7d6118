r"""Video frames to DINOv3 patch tokens, with any backbone of the family.

    [F, 3, H, W] --preprocess--> [F, 3, h p, w p] --ViT--> [F, 1 + R + h w, C] --drop--> [F, h w, C]

The ViT's output is its last layer after the final norm: CLS, R register tokens, then the patches
row by row. Only the patches are kept. DINOv3 (Simeoni et al. 2025, arXiv:2508.10104) has patch 16
and rotary positions, so any grid goes; DINOv2 (Oquab et al. 2023, arXiv:2304.07193; registers:
Darcet et al. 2023, arXiv:2309.16588) has patch 14 and interpolates its learned positions. Both are
transformers' own classes.

An encoder is frozen: evaluation mode for good (DINOv3 in training mode jitters its positions), no
gradients. It is identified by content, not by name: `fingerprint` hashes what decides its output,
so that a denoiser trained on one encoder's tokens can refuse another's.

Shape letters:  F frames   L = h w tokens a frame, h down and w across   C channels   p patch
"""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from priors.cache import FeatureCache
from priors.checkpoints import BACKBONES, find_folder, load_model
from priors.preprocessing import Fit, Preprocessing
from priors.tokens import TokenGrid

if TYPE_CHECKING:
    import transformers

# Settings that change the output and leave no trace in the weights' shapes.
_IDENTITY = (
    "model_type",
    "patch_size",
    "num_attention_heads",
    "num_register_tokens",
    "hidden_act",
    "layer_norm_eps",
    "rope_theta",
)
# Tokens in one forward pass. The widest activation, in the MLP, is then 25 MB in ViT-S/16 and 67 MB
# in ViT-L/16.
CHUNK_TOKENS = 4096


class Encoder(nn.Module):
    """A frozen DINO backbone with its preprocessing.

    Args:
        model: transformers' DINOv3ViTModel, Dinov2Model or Dinov2WithRegistersModel.
        preprocessing: what to do to a frame first.
        name: how messages call it.

    Attributes:
        name, preprocessing: as given.
        fingerprint: 32 hex digits over the settings, the preprocessing of colours and the weights;
            the same for the same content whatever its name, file layout, device or version of
            transformers.
        precision: "fp32", or what `priors.precision` made of it.
        channels: C.
        patch: p, in pixels of the preprocessed image.

    Raises:
        ValueError: another kind of model, or patches that are not square.
    """

    def __init__(
        self, model: "transformers.PreTrainedModel", preprocessing: Preprocessing, name: str
    ) -> None:
        super().__init__()
        config: Any = model.config
        if config.model_type not in BACKBONES:
            raise ValueError(f"need one of {', '.join(BACKBONES)}, got {config.model_type!r}")
        patch = config.patch_size
        if not isinstance(patch, int):
            if len(set(patch)) != 1:
                raise ValueError(f"need square patches, got patch_size={patch}")
            patch = int(patch[0])
        self.model = model.requires_grad_(False)
        self.preprocessing = preprocessing
        self.name = name
        self.precision = "fp32"
        self.patch: int = patch
        self.channels: int = config.hidden_size
        self.fingerprint = _fingerprint(model, preprocessing)
        self.eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode, whatever a trainer asks of the module around this one."""
        return super().train(False)

    def at_size(self, size: tuple[int, int]) -> "Encoder":
        """The same network, whose frames are brought to another size (H, W) first."""
        other = copy.copy(self)
        other.preprocessing = dataclasses.replace(self.preprocessing, size=size)
        return other

    def preprocess(
        self, frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"]
    ) -> Float[Tensor, "F 3 hp wp"]:
        """Pixel values for `forward`; see `priors.preprocessing`."""
        return self.preprocessing(frames, self.patch)

    @torch.no_grad()
    def forward(self, pixel_values: Float[Tensor, "F 3 hp wp"]) -> Float[Tensor, "F L C"]:
        """Patch tokens, row by row, of preprocessed pixels; one pass, on the model's device."""
        hidden = self.model(pixel_values.to(self.model.device, self.model.dtype)).last_hidden_state
        num_patches = (pixel_values.shape[-2] // self.patch) * (
            pixel_values.shape[-1] // self.patch
        )
        # CLS comes first, then the registers: in each of these models the patches are what is last.
        return hidden[:, -num_patches:]

    @torch.no_grad()
    def encode(
        self,
        frames: Float[Tensor, "F 3 H W"] | UInt8[Tensor, "F 3 H W"],
        u: Float[Tensor, "F"],
        cache: FeatureCache | None = None,
    ) -> TokenGrid:
        """Tokens of the key frames of a clip.

        Frames go through in chunks of about `CHUNK_TOKENS` tokens, so memory does not grow with F.
        A frame's tokens may differ in the last bits with the chunk it is in.

        Args:
            frames: [F, 3, H, W] sRGB, float in [0, 1] or uint8.
            u: [F] the clip time of each frame.
            cache: where tokens are looked up and left for next time; none by default.

        Returns:
            Tokens over the whole of each frame, on the model's device.

        Raises:
            ValueError: `frames` is no [F, 3, H, W] with F >= 1, or `u` is not [F].
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise ValueError(f"need frames of shape [F, 3, H, W], F >= 1, got {list(frames.shape)}")
        if u.shape != frames.shape[:1]:
            raise ValueError(f"need u of shape [{len(frames)}], got {list(u.shape)}")
        size = (frames.shape[2], frames.shape[3])
        grid = self.preprocessing.grid(size, self.patch)
        chunk = max(1, CHUNK_TOKENS // (grid[0] * grid[1]))
        values_FLC = torch.cat(
            [self._tokens(self.preprocess(part), cache) for part in frames.split(chunk)]
        )
        return TokenGrid(values_FLC, grid, size, u.to(values_FLC.device))

    def _tokens(self, pixels_F3HW: Tensor, cache: FeatureCache | None) -> Tensor:
        if cache is None:
            return self(pixels_F3HW)
        # The same weights in another precision give other tokens.
        identity = f"{self.fingerprint} {self.precision} {self.model.dtype}"
        keys = [cache.key(identity, pixels) for pixels in pixels_F3HW]
        found = [cache.get(key) for key in keys]
        missing = [index for index, tokens in enumerate(found) if tokens is None]
        if missing:
            fresh = self(pixels_F3HW[missing])
            cache.put({keys[index]: tokens for index, tokens in zip(missing, fresh, strict=True)})
            for index, tokens in zip(missing, fresh, strict=True):
                found[index] = tokens
        return torch.stack([tokens.to(self.model.device) for tokens in found if tokens is not None])


def load_encoder(name_or_folder: str | Path, *, fit: Fit = "aspect") -> Encoder:
    """Load a DINOv3 or DINOv2 backbone, in float32 on the CPU, from safetensors only.

    Args:
        name_or_folder: "tiny" for the packaged encoder, a transformers folder, or a model id on the
            hub (looked up in the local hub cache when offline). A folder called tiny is "./tiny".
        fit: "aspect" keeps the aspect ratio of frames, "square" is the processor's own resizing.

    Raises:
        ValueError: an unknown name, no access to gated weights, not cached while offline, no or
            damaged safetensors, a model that is no DINO ViT, or a torchvision that keeps
            transformers from importing. The message says which, and what to do.
    """
    name = str(name_or_folder)
    folder = find_folder(name)
    preprocessing = Preprocessing.from_folder(folder, fit)
    return Encoder(load_model(folder, name), preprocessing, name)


def _fingerprint(model: "transformers.PreTrainedModel", preprocessing: Preprocessing) -> str:
    # Names of parameters and defaults of settings change between versions of transformers, and
    # shards between files. So tensors are hashed one by one and sorted, and only settings that
    # matter go in.
    settings = {key: getattr(model.config, key, None) for key in _IDENTITY}
    digests = []
    for name, tensor in model.state_dict().items():
        # The mask token serves pre-training only; some checkpoints lack it.
        if name.endswith("mask_token"):
            continue
        values = tensor.detach().float().cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(values.shape)} ".encode())
        digest.update(memoryview(values.numpy()))
        digests.append(digest.hexdigest())
    content = [json.dumps(settings), preprocessing.identity(), *sorted(digests)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]
