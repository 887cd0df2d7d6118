r"""Dense heads on a vision transformer: from patch tokens to log depth, confidence and a descriptor for each cell.

A head gives O numbers a cell. The first is log depth, up to a constant an image (`priors.pointmaps` makes
points of it); the second, if there is one, the log of the confidence in it; the others, brought to unit length, a
descriptor to match by. A *linear head* reads the last layer's tokens, one cell a token: O (C + 1) numbers in
all, O N C multiply-adds. A *DPT head* (Ranftl et al. 2021,
arXiv:2103.13413, section 3) reads several layers:

    reassemble   tokens of a layer as an image, projected to few channels and resized: early layers
                 become fine maps, the last stays at one cell a token (eq. 1 without read-out token)
    fusion       from the coarsest map to the finest: add the next one, two residual convolution
                 units, twice the resolution  (section 3, "RefineNet-based")
    head         two convolutions to O channels

The pieces of the DPT are transformers' own (`DPTReassembleLayer`, `DPTFeatureFusionLayer`), put
together so that any token grid goes: no map is coarser than the tokens, since half of an odd grid
is no whole number, and all resizing puts border on border, as `TokenGrid` does. Here the three maps
have 4, 2 and 1 cells along the side of a token, so that the answer has 8.

Layers come in unnormalised from inside the transformer; heads normalise each token themselves.

Shape letters:  F images   L = h w tokens, h down and w across   C channels   O outputs   y = 8 h, x = 8 w
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

HEAD_FILE = "pointmap.safetensors"
"""Beside the encoder's own weights; transformers reads model*.safetensors only."""
FACTORS = (4, 2, 1)
"""Cells along the side of a token, for each layer that a DPT head reads."""

Kind = Literal["linear", "dpt"]


class LinearHead(nn.Module):
    """w · token + b, at the resolution of the tokens.

    Args:
        channels: C.
        taps: numbers of the layers that are read; the last one counts.
        outputs: O.
    """

    kind: Kind = "linear"
    scale = 1

    def __init__(self, channels: int, taps: Sequence[int], outputs: int = 1) -> None:
        super().__init__()
        _require_outputs(outputs)
        self.channels, self.taps, self.outputs = channels, tuple(taps), outputs
        self.read = nn.Linear(channels, outputs)

    def forward(
        self, layers: Sequence[Float[Tensor, "F L C"]], grid: tuple[int, int]
    ) -> Float[Tensor, "F O y x"]:
        """O numbers a token; `layers` as the taps say, first to last."""
        maps_FChw = _as_maps(layers, self.taps, grid)[-1]
        return self.read(maps_FChw.movedim(1, -1)).movedim(-1, 1)


class DPTHead(nn.Module):
    """Reassemble, fuse, read out: eight cells along the side of a token.

    Args:
        channels: C of the transformer.
        taps: numbers of the three layers that are read, first to last; 0 is the patch embedding.
        width: channels inside.
        outputs: O.

    Raises:
        ValueError: not three taps, or no output.
    """

    kind: Kind = "dpt"
    scale = 2 * FACTORS[0]

    def __init__(
        self, channels: int, taps: Sequence[int], width: int = 32, outputs: int = 1
    ) -> None:
        from transformers import DPTConfig
        from transformers.models.dpt.modeling_dpt import (
            DPTFeatureFusionLayer,
            DPTReassembleLayer,
        )

        super().__init__()
        if len(taps) != len(FACTORS):
            raise ValueError(f"need {len(FACTORS)} layers to read, got taps={tuple(taps)}")
        _require_outputs(outputs)
        self.channels, self.taps, self.width = channels, tuple(taps), width
        self.outputs = outputs
        config = DPTConfig(hidden_size=channels, fusion_hidden_size=width)
        self.reassemble = nn.ModuleList(
            DPTReassembleLayer(config, channels=width, factor=factor) for factor in FACTORS
        )
        # Border on border: with aligned corners a map would shrink towards its middle each time.
        fusion = [DPTFeatureFusionLayer(config, align_corners=False) for _ in FACTORS]
        # The coarsest map is added to nothing.
        fusion[0].add_module("residual_layer1", nn.Identity())
        self.fusion = nn.ModuleList(fusion)
        self.read = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1), nn.GELU(), nn.Conv2d(width // 2, outputs, 1)
        )

    def forward(
        self, layers: Sequence[Float[Tensor, "F L C"]], grid: tuple[int, int]
    ) -> Float[Tensor, "F O y x"]:
        """O numbers a cell; `layers` as the taps say, first to last."""
        maps = _as_maps(layers, self.taps, grid)
        finer = [layer(values) for layer, values in zip(self.reassemble, maps, strict=True)]
        fused = self.fusion[0](finer[-1])
        for layer, values in zip(self.fusion[1:], reversed(finer[:-1]), strict=True):
            fused = layer(fused, values)
        return self.read(fused)


Head = LinearHead | DPTHead


def _require_outputs(outputs: int) -> None:
    if outputs < 1:
        raise ValueError(f"need at least 1 output, the log depth, got {outputs}")


@dataclass(frozen=True)
class Dense:
    """What a head says of each cell.

    Attributes:
        log_depth: up to a constant an image.
        log_confidence: None of a head with one output.
        descriptors: of unit length; None of a head with two outputs or one.
    """

    log_depth: Float[Tensor, "F y x"]
    log_confidence: Float[Tensor, "F y x"] | None
    descriptors: Float[Tensor, "F D y x"] | None

    @classmethod
    def of(cls, outputs: Float[Tensor, "F O y x"]) -> "Dense":
        """A head's outputs by their meaning."""
        count = outputs.shape[1]
        return cls(
            outputs[:, 0],
            outputs[:, 1] if count > 1 else None,
            functional.normalize(outputs[:, 2:], dim=1) if count > 2 else None,
        )


def make_head(kind: Kind, channels: int, num_layers: int, outputs: int = 1) -> Head:
    """A head that reads the transformer in the middle, at three quarters and at its end.

    Raises:
        ValueError: an unknown kind, fewer than 3 layers, or no output.
    """
    if num_layers < 3:
        raise ValueError(f"need a transformer of at least 3 layers, got {num_layers}")
    taps = (num_layers // 2, (3 * num_layers) // 4, num_layers)
    if kind == "linear":
        return LinearHead(channels, taps[-1:], outputs)
    if kind == "dpt":
        return DPTHead(channels, taps, outputs=outputs)
    raise ValueError(f"need a head 'linear' or 'dpt', got {kind!r}")


def tapped(
    hidden: Sequence[Float[Tensor, "F S C"]], taps: Sequence[int], num_patches: int
) -> list[Float[Tensor, "F L C"]]:
    """The patch tokens of some layers, out of transformers' `hidden_states` (the first: embedding).

    Raises:
        ValueError: a tap beyond the last layer.
    """
    if max(taps) >= len(hidden):
        raise ValueError(f"need layers {tuple(taps)}, got a transformer of {len(hidden) - 1}")
    # CLS and registers come first.
    return [hidden[tap][:, -num_patches:] for tap in taps]


def _as_maps(
    layers: Sequence[Tensor], taps: tuple[int, ...], grid: tuple[int, int]
) -> list[Float[Tensor, "F C h w"]]:
    if len(layers) != len(taps):
        raise ValueError(f"need the tokens of layers {taps}, got {len(layers)} layers")
    if grid[0] * grid[1] != layers[0].shape[1]:
        raise ValueError(f"need grid h * w = {layers[0].shape[1]} tokens, got grid={grid}")
    return [
        functional.layer_norm(tokens, tokens.shape[-1:]).mT.unflatten(2, grid) for tokens in layers
    ]


def save_head(head: Head, folder: Path, fingerprint: str) -> None:
    """Write a head beside the encoder it was trained with.

    Args:
        fingerprint: of that encoder (`Encoder.fingerprint`); `load_head` refuses another one.
    """
    settings = {"kind": head.kind, "channels": head.channels, "taps": head.taps}
    settings["outputs"] = head.outputs
    if isinstance(head, DPTHead):
        settings["width"] = head.width
    tensors = {name: values.detach().contiguous() for name, values in head.state_dict().items()}
    metadata = {"head": json.dumps(settings), "encoder": fingerprint}
    save_file(tensors, folder / HEAD_FILE, metadata=metadata)
    (folder / HEAD_FILE).chmod(0o644)


def load_head(folder: Path, fingerprint: str) -> Head:
    """The head that lies beside an encoder, frozen.

    Raises:
        ValueError: there is none, it is damaged, or it was trained with another encoder.
    """
    path = folder / HEAD_FILE
    if not path.is_file():
        raise ValueError(f"need a pointmap head, got no {HEAD_FILE} in {folder}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings: dict[str, Any] = json.loads(metadata["head"])
        kind = settings.pop("kind")
        head = {"linear": LinearHead, "dpt": DPTHead}[kind](**settings)
        head.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"cannot use {path}: {error!r}") from error
    if metadata["encoder"] != fingerprint:
        raise ValueError(
            f"need the encoder that the head in {folder} was trained with "
            f"({metadata['encoder']}), got {fingerprint}"
        )
    return head.eval().requires_grad_(False)


def take_over(head: Head, other: Head) -> None:
    """First weights of a head from another of its kind that reads the same layers; outputs that only one has are left.

    Raises:
        ValueError: another kind, other layers or another width.
    """
    mine, theirs = head.state_dict(), other.state_dict()
    shared = min(head.outputs, other.outputs)
    if mine.keys() != theirs.keys() or head.taps != other.taps:
        raise ValueError(
            f"need a {head.kind} head on layers {head.taps}, got {other.kind} on {other.taps}"
        )
    for name, values in mine.items():
        given = theirs[name]
        if given.shape[1:] != values.shape[1:]:
            raise ValueError(f"need {name} {list(values.shape)}, got {list(given.shape)}")
        if given.shape == values.shape:
            values.copy_(given)
        else:
            values[:shared].copy_(given[:shared])


def count_parameters(head: nn.Module) -> int:
    """How many numbers a head has."""
    return sum(parameter.numel() for parameter in head.parameters())
