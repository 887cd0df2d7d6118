r"""The network as the loop runs it on a CPU: what `TrajectoryDiT.forward` computes, in fewer passes over memory.

The hypotheses of one clip share their diffusion time. So what modulates a block is the same for all of them, is worked
out for all steps at once, and goes where it costs nothing:

    LN(x) (1 + scale) + shift    a layer norm with these as its weight and bias
    x + gate (A y + b)           one pass, in place
    query, key, value            one product
    q / rms(q) / sqrt(D)         the length of every head, then one factor, in place

Products go to oneDNN, which runs GELU while the result is still in registers. For float32 torch itself calls another
library, which takes twice as long where that does not know the processor (measured: AMD Zen 5).

In "bf16" what enters a product is rounded to bfloat16; sums, norms, modulation, the trunk x, and the first and the last
layer stay in float32. Attention is then written out in three products: torch's fused one is no faster in bfloat16.

`TrajectoryDiT.forward` is the specification, and what runs everywhere else; gradients need it as well.

Shape letters:  K hypotheses   N points   M control points   R = K N rows   S keys   W width   H heads
D head channels.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion4d.dit import Block, Conditioning, TrajectoryDiT

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
EPS = 1e-6
"""Of every norm, as in `dit` and `attention`."""


def check_fusable(network: TrajectoryDiT) -> None:
    """Refuse what this cannot run: by kind, precision, device, build, backend, gradient, in this order.

    Raises:
        ValueError: what was required and what arrived.
    """
    output = network.config["output"]
    if output != "velocity":
        raise ValueError(f'the fused loop needs a "velocity" network, got a {output!r} one')
    if network.dtype != torch.float32:
        raise ValueError(f"the fused loop needs weights in torch.float32, got {network.dtype}")
    if network.device.type != "cpu":
        raise ValueError(f"the fused loop runs on a CPU, got a network on {network.device.type!r}")
    if not torch.backends.mkldnn.is_available():
        raise ValueError("the fused loop needs a torch that was built with oneDNN, got one without")
    backend = network.config["attention_backend"]
    if backend != "native":
        raise ValueError(f"the fused loop needs the attention backend 'native', got {backend!r}")


@dataclasses.dataclass(frozen=True)
class Product:
    """x A^T + b, with what enters it in the precision of A."""

    weight: Float[Tensor, "O I"]
    bias: Float[Tensor, "O"]

    @classmethod
    def of(cls, layers: Sequence[nn.Module], dtype: torch.dtype) -> "Product":
        """One product that answers what these layers answer, side by side."""
        linear = cast("Sequence[nn.Linear]", layers)
        weight = torch.cat([layer.weight.detach() for layer in linear])
        bias = torch.cat([layer.bias.detach() for layer in linear])
        return cls(weight.to(dtype), bias.to(dtype))

    def __call__(self, x: Float[Tensor, "R I"], then: str = "none") -> Float[Tensor, "R O"]:
        """`then`: "none", or "gelu" for its tanh form."""
        how = "tanh" if then == "gelu" else ""
        # What torch's own compiler calls for a linear layer on a CPU.
        run = torch.ops.mkldnn._linear_pointwise
        return run(x.to(self.weight.dtype), self.weight, self.bias, then, [], how)


@dataclasses.dataclass(frozen=True)
class FusedBlock:
    """Weights of one block as they are used; `cross` holds its query, out, and the clip's keys and values [H, S, D]."""

    qkv: Product
    out: Product
    cross: tuple[Product, Product, Tensor, Tensor] | None
    hidden: Product
    mlp_out: Product
    num_heads: int

    @classmethod
    def of(
        cls, block: Block, keys_values: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> "FusedBlock":
        """Pack a block for a clip."""
        own, cross = block.attention, None
        if block.cross is not None and keys_values is not None:
            key, value = (x.squeeze(0).transpose(0, 1).to(dtype).contiguous() for x in keys_values)
            query = Product.of([block.cross.query], dtype)
            cross = (query, Product.of([block.cross.out], dtype), key, value)
        return cls(
            Product.of([own.query, own.key_value], dtype),
            Product.of([own.out], dtype),
            cross,
            Product.of([block.mlp[0]], dtype),
            Product.of([block.mlp[2]], dtype),
            own.num_heads,
        )

    def __call__(
        self, x: Float[Tensor, "R W"], parts: Sequence[Float[Tensor, "W"]], num_points: int
    ) -> None:
        """Carry the trunk through the block, in place."""
        H, (R, W) = self.num_heads, x.shape
        qkv = self.qkv(_normed(x, parts[0], parts[1])).view(R, 3 * H, W // H)
        _divide_by_rms(qkv[:, :H], (W // H) ** -0.5)
        _divide_by_rms(qkv[:, H : 2 * H])
        query, key, value = qkv.view(-1, num_points, 3, H, W // H).permute(2, 0, 3, 1, 4)
        mixed = _attend(query, key, value).transpose(1, 2).reshape(R, W)
        _add(x, parts[2], self.out(mixed))
        if self.cross is not None:
            ask, answer, key, value = self.cross
            query = ask(_normed(x, parts[6], parts[7])).view(R, H, W // H)
            _divide_by_rms(query, (W // H) ** -0.5)
            # All hypotheses ask the same patch tokens, so they are queries of one batch item.
            mixed = _attend(query.transpose(0, 1)[None], key[None], value[None])
            _add(x, parts[8], answer(mixed[0].transpose(0, 1).reshape(R, W)))
        hidden = self.hidden(_normed(x, parts[3], parts[4]), then="gelu")
        _add(x, parts[5], self.mlp_out(hidden))


@dataclasses.dataclass(frozen=True)
class Modulation:
    """What a diffusion time does to the network: shifts, scales (1 already added) and gates of its blocks, and last."""

    blocks: tuple[tuple[Float[Tensor, "W"], ...], ...]
    last: tuple[Float[Tensor, "W"], Float[Tensor, "W"]]


@dataclasses.dataclass(frozen=True)
class FusedNetwork:
    """A velocity network and one clip, ready for the loop. steps: the modulation of each time it was prepared for."""

    points: Float[Tensor, "N W"]
    first: Product
    blocks: tuple[FusedBlock, ...]
    last: Product
    steps: dict[float, Modulation]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        network: TrajectoryDiT,
        conditioning: Conditioning,
        times: Float[Tensor, "S"],
        precision: Precision = "fp32",
    ) -> "FusedNetwork":
        """Pack the weights, and work out what modulates every block at each of these diffusion times.

        Raises:
            ValueError: more than one clip, or a network that the fused loop cannot run.
        """
        check_fusable(network)
        if len(conditioning.points) != 1:
            raise ValueError(f"the fused loop takes one clip, got {len(conditioning.points)}")
        assert network.embed_noised is not None
        dtype = DTYPES[precision]
        keys_values = iter(conditioning.keys_values or ())
        blocks = tuple(
            FusedBlock.of(b, next(keys_values, None) if b.cross is not None else None, dtype)
            for b in cast("Iterable[Block]", network.blocks)
        )
        return cls(
            conditioning.points[0].float(),
            Product.of([network.embed_noised], torch.float32),
            blocks,
            Product.of([network.project_out], torch.float32),
            dict(zip(_keys(times), _modulations(network, conditioning, times), strict=True)),
        )

    @torch.no_grad()
    def __call__(
        self, x_t: Float[Tensor, "K N M 3"], t: Float[Tensor, ""]
    ) -> Float[Tensor, "K N M 3"]:
        """What the network says of x_t at one of the times it was prepared for.

        Raises:
            ValueError: another time, or x_t wants gradients.
        """
        if x_t.requires_grad:
            raise ValueError("the fused loop has no gradients: use the network itself")
        (key,) = _keys(t[None])
        if key not in self.steps:
            raise ValueError(f"need a time out of {list(self.steps)}, got {key}")
        step, (K, N) = self.steps[key], x_t.shape[:2]
        x = self.first(x_t.float().reshape(K * N, -1)).view(K, N, -1).add_(self.points)
        x = x.flatten(0, 1)
        for block, parts in zip(self.blocks, step.blocks, strict=True):
            block(x, parts, N)
        return self.last(_normed(x, *step.last)).view(x_t.shape).to(x_t)


def _keys(times: Float[Tensor, "S"]) -> list[float]:
    # The loop hands a time over in float32, a table keeps it in float64.
    return times.float().tolist()


def _modulations(
    network: TrajectoryDiT, conditioning: Conditioning, times: Float[Tensor, "S"]
) -> list[Modulation]:
    vector_SV = network.vector(times.float()[None], conditioning)[0]
    blocks = cast("Iterable[Block]", network.blocks)
    inner = [_parts(block.modulation(vector_SV), block.num_modulations) for block in blocks]
    last = _parts(network.modulation_out(vector_SV), 2)
    return [
        Modulation(tuple(parts[i] for parts in inner), (last[i][0], last[i][1]))
        for i in range(len(times))
    ]


def _parts(raw: Float[Tensor, "S P"], count: int) -> list[tuple[Tensor, ...]]:
    """At each time: (shift, scale, gate) of attention, of the MLP, of cross-attention; 1 is added to every scale."""
    parts_SPW = raw.float().unflatten(-1, (count, -1)).clone()
    parts_SPW[:, 1::3] += 1
    return [tuple(parts.unbind()) for parts in parts_SPW]


def _normed(x: Float[Tensor, "R W"], shift: Tensor, scale: Tensor) -> Float[Tensor, "R W"]:
    return nn.functional.layer_norm(x, shift.shape, scale, shift, EPS)


def _divide_by_rms(x: Float[Tensor, "R H D"], factor: float = 1.0) -> None:
    """RMS norm of every head, times a factor, in place."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = length.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
    x.mul_(inverse.mul_(factor).to(x.dtype))


def _attend(
    query: Float[Tensor, "B H Q D"], key: Float[Tensor, "B H S D"], value: Float[Tensor, "B H S D"]
) -> Float[Tensor, "B H Q D"]:
    """Attention whose queries already carry the factor 1 / sqrt(D)."""
    if query.dtype == torch.float32:
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    return torch.softmax(query @ key.mT, -1) @ value


def _add(x: Float[Tensor, "R W"], gate: Float[Tensor, "W"], y: Float[Tensor, "R W"]) -> None:
    x.addcmul_(gate, y.float())
