r"""The network: a diffusion transformer whose patch is a whole trajectory.

One token a trajectory: its M noised control points and everything observed of it. Blocks are adaLN-Zero
(Peebles & Xie 2023, sec. 3.2): self-attention over the N points, cross-attention from points to DINOv3 patch
tokens, and an MLP. Points are a set: there is no positional encoding over them, so the network is
equivariant to their order and indifferent to their number.

What depends on the clip alone (the evidence embedding, the keys and values of the patch tokens) is computed
once by `TrajectoryDiT.condition` and shared by all hypotheses and all steps.

Shape letters:  B clips   K hypotheses   N points   M control points   F key frames   L patches
W width   V width of the clip vector   H heads   D head channels.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffusion4d.attention import Attention, check_backend, check_backend_name
from diffusion4d.evidence import Evidence, Tokens
from diffusion4d.parallax import DIRECTIONS, parallax

Output = Literal["velocity", "mean", "gaussian"]
PathName = Literal["cosine", "rectified"]
FewSteps = Literal["angular", "renoised"]
FREQUENCIES = 6
HAS_TOKENS = 2
"""Place of whether there are tokens among the numbers of a clip."""


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the network knows of a clip, computed once: point embedding, patch keys and values, clip vector."""

    points: Float[Tensor, "B N W"]
    keys_values: tuple[tuple[Tensor, Tensor], ...] | None
    clip: Float[Tensor, "B V"]


def fourier(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
    """sin and cos of pi 2^k x, k = 0..5 (NeRF's encoding, Mildenhall et al. 2020, eq. 4)."""
    angles = x[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=x.device))
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def observed_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """How many numbers of each kind of evidence a trajectory's token is made of, in their order.

    Kinds that a network with this configuration is not told are left out.
    """
    M = config["num_ctrl"]
    widths = {
        "place": 2 * M,
        "motion": 2 * M,
        "weight": M,
        "start": 2 * 2 * FREQUENCIES,
        "tokens": config["token_channels"],
        "parallax": 2 * M + 2 * DIRECTIONS if config["parallax"] else 0,
        "anchor": 6 * M if config["anchored"] else 0,
    }
    return {kind: width for kind, width in widths.items() if width}


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Block(nn.Module):
    """adaLN-Zero block: self-attention over points, optional cross-attention to patch tokens, MLP."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, vector_width: int, cross: bool
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, num_heads, width)
        self.cross = Attention(width, num_heads, width) if cross else None
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.num_modulations = 9 if cross else 6
        self.modulation = nn.Linear(vector_width, self.num_modulations * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "B K N W"],
        vector: Float[Tensor, "B #K V"],
        keys_values: tuple[Tensor, Tensor] | None,
        backend: str,
    ) -> Float[Tensor, "B K N W"]:
        parts = self.modulation(vector)[:, :, None].chunk(self.num_modulations, -1)
        B, K = x.shape[:2]
        h = modulate(self.norm(x), parts[0], parts[1]).flatten(0, 1)
        h = self.attention(h, self.attention.keys_values(h), backend)
        x = x + parts[2] * h.unflatten(0, (B, K))
        if self.cross is not None and keys_values is not None:
            # All hypotheses of a clip ask the same patch tokens, so they are queries of one batch item.
            h = rearrange(modulate(self.norm(x), parts[6], parts[7]), "b k n w -> b (k n) w")
            h = self.cross(h, keys_values, backend)
            x = x + parts[8] * rearrange(h, "b (k n) w -> b k n w", k=K)
        return x + parts[5] * self.mlp(modulate(self.norm(x), parts[3], parts[4]))


class TrajectoryDiT(ModelMixin, ConfigMixin):
    """Noised trajectories and evidence to a velocity, a mean, or a mean and its uncertainty.

    Args:
        num_ctrl: control points a trajectory, M. degree: of the spline. multiplicity: of its interior knots.
        width: channels W. depth: blocks. num_heads: attention heads. mlp_ratio: hidden / W.
        vector_width: channels V of the vector (time, focal length) that modulates every block.
        cross_every: every so many blocks ask the patch tokens.
        token_channels: channels of the encoder's patch tokens; 0 for a network that takes none.
        parallax: the observed motion without that of the whole picture (`parallax`) is part of the input.
        output: "velocity" (v = alpha_t eps - sigma_t x_0, or eps - x_0 on the rectified path),
            "mean" (E[x_0 | evidence]; takes no noised input),
            or "gaussian" (mean and log standard deviation; takes no noised input).
        anchored: the mean and log standard deviation of a "gaussian" network are part of the input.
        path: from noise to data, "cosine" or "rectified" (`denoiser.path_of`).
        trained_steps: steps that a network of few steps was trained for and takes by default; None for one that is
            right in many steps.
        trained_sampler: how it takes these, "angular", or "renoised" for a consistency model.
        temperature: factors on the noise of image-plane offsets and of depth when sampling, fitted for calibration on
            clips kept for choosing.
        coordinates: fields of `coordinates.Coordinates`, and noise: of `noise.PointNoise`, that it was trained with.
        attention_backend: one of `attention.BACKENDS`; "native" is torch's SDPA.

    Raises:
        ValueError: an attention backend that is not known.
    """

    @register_to_config
    def __init__(
        self,
        num_ctrl: int = 12,
        degree: int = 3,
        multiplicity: int = 1,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        vector_width: int = 64,
        cross_every: int = 3,
        token_channels: int = 128,
        parallax: bool = False,
        output: Output = "velocity",
        anchored: bool = False,
        trained_steps: int | None = None,
        trained_sampler: FewSteps = "angular",
        temperature: Sequence[float] = (1.0, 1.0),
        path: PathName = "cosine",
        coordinates: dict | None = None,
        noise: dict | None = None,
        attention_backend: str = "native",
    ) -> None:
        super().__init__()
        check_backend_name(attention_backend)
        M = num_ctrl
        observed = sum(observed_widths(self.config).values())
        self.embed_noised = nn.Linear(3 * M, width) if output == "velocity" else None
        self.embed_observed = nn.Sequential(
            nn.Linear(observed, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.embed_tokens = None
        if token_channels:
            self.embed_tokens = nn.Sequential(
                nn.Linear(token_channels + 3 * 2 * FREQUENCIES, width), nn.LayerNorm(width)
            )
        self.frequencies = Timesteps(128, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_time = TimestepEmbedding(128, vector_width)
        self.embed_clip = nn.Sequential(
            nn.Linear(3, vector_width), nn.SiLU(), nn.Linear(vector_width, vector_width)
        )
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads,
                mlp_ratio,
                vector_width,
                token_channels > 0 and (i + 1) % cross_every == 0,
            )
            for i in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(vector_width, 2 * width)
        self.project_out = nn.Linear(width, (6 if output == "gaussian" else 3) * M)
        for layer in (self.modulation_out, self.project_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def condition(
        self, evidence: Evidence, anchor: Float[Tensor, "B N M 6"] | None = None
    ) -> Conditioning:
        """Embed what depends on the clip alone. `anchor`: mean and log deviation, for anchored networks.

        Raises:
            ValueError: the evidence has another number of control points or token channels than the network, or the
                attention backend cannot run where the evidence is.
        """
        self._check_backend(self.config["attention_backend"], evidence.ctrl.device)
        M = self.config["num_ctrl"]
        if evidence.ctrl.shape[-2] != M:
            raise ValueError(f"need evidence on {M} control points, got {evidence.ctrl.shape[-2]}")
        if self.config["anchored"] != (anchor is not None):
            raise ValueError(
                f"anchored={self.config['anchored']}, anchor given: {anchor is not None}"
            )
        tokens = evidence.tokens if self.embed_tokens is not None else None
        # Differences of places that are nearly alike say most: nothing of this is rounded to half precision.
        with torch.autocast(evidence.ctrl.device.type, enabled=False):
            points = self.embed_observed(self._observed(evidence, anchor).to(self.dtype))
        has_tokens = torch.full_like(evidence.log_focal, float(tokens is not None))
        clip = torch.stack([evidence.log_focal, evidence.focal_known, has_tokens], -1)
        return Conditioning(
            points=points,
            keys_values=None if tokens is None else self._keys_values(tokens, evidence.log_focal),
            clip=self.embed_clip(clip),
        )

    def _observed(
        self, evidence: Evidence, anchor: Float[Tensor, "B N M 6"] | None
    ) -> Float[Tensor, "B N _"]:
        """Everything that a trajectory's token is made of, kind by kind in the order of `observed_widths`."""
        ctrl = evidence.in_view()
        start = ctrl[..., :1, :]
        features = [
            2 * ctrl.flatten(-2),
            # Parallax and small deformations are a few per cent of the image: they get a scale of their own.
            8 * (ctrl - start).flatten(-2),
            evidence.weight,
            fourier(start.squeeze(-2)),
            self._tokens_at_points(evidence),
        ]
        if self.config["parallax"]:
            left = parallax(evidence)
            features.append(20 * left.residual.flatten(-2))
            features.append(left.coordinates)
            features.append(left.strength[:, None].expand_as(left.coordinates) / 4 + 1)
        if anchor is not None:
            features.append(anchor.flatten(-2))
        return torch.cat(features, -1)

    def set_attention_backend(self, backend: str) -> None:
        """Choose the attention backend of this network alone.

        diffusers' own method would change the backend of every model of the process instead.

        Raises:
            ValueError: the backend is not known, or cannot run this network where it is.
        """
        self._check_backend(backend, self.device)
        self.register_to_config(attention_backend=backend)

    def reset_attention_backend(self) -> None:
        """Back to torch's SDPA."""
        self.set_attention_backend("native")

    def _check_backend(self, backend: str, device: torch.device) -> None:
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else self.dtype
        check_backend(backend, self.config["width"] // self.config["num_heads"], dtype, device)

    def _tokens_at_points(self, evidence: Evidence) -> Float[Tensor, "B N C"]:
        channels = self.config["token_channels"]
        if evidence.tokens is None or channels == 0:
            return evidence.weight.new_zeros(*evidence.weight.shape[:2], channels)
        if evidence.tokens.at_points.shape[-1] != channels:
            raise ValueError(
                f"need {channels} token channels, got {evidence.tokens.at_points.shape[-1]}"
            )
        return evidence.tokens.at_points

    def _keys_values(
        self, tokens: Tokens, log_focal: Float[Tensor, "B"]
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        assert self.embed_tokens is not None
        focal = log_focal.to(tokens.positions).exp()[:, None, None, None]
        positions = torch.cat([tokens.positions[..., :2] * focal, tokens.positions[..., 2:]], -1)
        source = torch.cat([tokens.values, fourier(positions)], -1)
        source = self.embed_tokens(source).flatten(1, 2)
        blocks = cast("Iterable[Block]", self.blocks)
        return tuple(b.cross.keys_values(source) for b in blocks if b.cross is not None)

    def vector(
        self, t: Float[Tensor, "B K"] | None, conditioning: Conditioning
    ) -> Float[Tensor, "B #K V"]:
        """What modulates every block: of the clip, and of the diffusion time where the network takes one."""
        vector = conditioning.clip[:, None]
        if self.embed_noised is not None and t is not None:
            frequencies = self.frequencies(1000 * t.flatten()).to(vector.dtype)
            vector = vector + self.embed_time(frequencies).unflatten(0, t.shape)
        return nn.functional.silu(vector)

    def forward(
        self,
        x_t: Float[Tensor, "B K N M 3"] | None,
        t: Float[Tensor, "B K"] | None,
        conditioning: Conditioning,
    ) -> Float[Tensor, "B K N M D"]:
        """One evaluation. `x_t` and `t` are None for "mean" and "gaussian" networks, which return K = 1.

        Raises:
            ValueError: a velocity network without noised control points or time, or with another number of them.
        """
        h = conditioning.points[:, None]
        if self.embed_noised is not None:
            if x_t is None or t is None:
                raise ValueError(
                    "a velocity network needs noised control points and a diffusion time"
                )
            if x_t.shape[-2] != self.config["num_ctrl"]:
                raise ValueError(
                    f"need {self.config['num_ctrl']} noised control points, got {x_t.shape[-2]}"
                )
            h = h + self.embed_noised(x_t.flatten(-2))
        vector = self.vector(t, conditioning)
        backend = self.config["attention_backend"]
        keys_values = iter(conditioning.keys_values or ())
        for block in self.blocks:
            h = block(
                h, vector, next(keys_values, None) if block.cross is not None else None, backend
            )
        shift, scale = self.modulation_out(vector)[:, :, None].chunk(2, -1)
        out = self.project_out(modulate(self.norm_out(h), shift, scale))
        return out.unflatten(-1, (self.config["num_ctrl"], -1))
