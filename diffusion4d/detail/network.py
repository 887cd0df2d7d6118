r"""The network that samples detail: messages between neighbouring points of a surface.

One number a point is diffused: the offset along the normal, in units of the spacing h, tails drawn in,

    x = asinh(d / (soft · h)) / deviation

A layer is a convolution over the surface. Each edge has `bases` weights made of its own features (as the filters of
SchNet, Schütt et al. 2017); neighbours are summed under each, and the sums mixed. Time shifts and scales the channels
before (adaLN-Zero, Peebles & Xie 2023). All is local: it reaches some `depth` × 5 h, and
makes no difference between meshes of other sizes.

Shape letters:  K samples   N points   E neighbours   C channels   B bases   D, P features of edges and points
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion4d.detail.points import EDGE_FEATURES, POINT_FEATURES
from diffusion4d.dit import fourier, modulate


class Layer(nn.Module):
    """A convolution over the neighbours and a perceptron, both modulated."""

    def __init__(self, width: int, bases: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.weights = nn.Sequential(nn.Linear(EDGE_FEATURES, 16), nn.SiLU(), nn.Linear(16, bases))
        self.mix = nn.Linear((bases + 1) * width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "K N C"],
        time: Float[Tensor, "K 1 C"],
        neighbours: Int64[Tensor, "N E"],
        edges: Float[Tensor, "N E D"],
    ) -> Float[Tensor, "K N C"]:
        part = self.modulation(time).chunk(6, -1)
        h = modulate(self.norm(x), part[0], part[1])
        weight = self.weights(edges) / neighbours.shape[1] ** 0.5
        # Points are first, so that a point's neighbours are one product of small matrices.
        spoken = h.transpose(0, 1).flatten(1).index_select(0, neighbours.flatten())
        heard = weight.mT @ spoken.unflatten(0, neighbours.shape)
        heard = heard.unflatten(-1, (x.shape[0], -1)).permute(2, 0, 1, 3).flatten(2)
        x = x + part[2] * self.mix(torch.cat([h, heard], -1))
        return x + part[5] * self.mlp(modulate(self.norm(x), part[3], part[4]))


class DetailNetwork(ModelMixin, ConfigMixin):
    """Noised detail and the base to a velocity α ε − σ x_0.

    Args:
        width: channels. depth: layers. bases: of a convolution.
        soft, deviation: of the numbers that are diffused.
        mean, spread: of the points' features, by which they are standardised.
        smooth: length of the smoothing that made the bases it was trained on, in units of h.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 64,
        depth: int = 6,
        bases: int = 6,
        soft: float = 0.2,
        deviation: float = 1.0,
        mean: Sequence[float] = (0.0,) * POINT_FEATURES,
        spread: Sequence[float] = (1.0,) * POINT_FEATURES,
        smooth: float = 2.0,
    ) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("feature_spread", torch.tensor(spread), persistent=False)
        self.project_in = nn.Linear(1, width)
        self.time = nn.Sequential(nn.Linear(12, width), nn.SiLU(), nn.Linear(width, width))
        self.known = nn.Sequential(
            nn.Linear(POINT_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.layers = nn.ModuleList(Layer(width, bases) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, 1)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def encode(self, detail: Tensor) -> Tensor:
        """Offsets in units of h to the numbers that are diffused."""
        return (detail / self.config["soft"]).asinh() / self.config["deviation"]

    def decode(self, x: Tensor) -> Tensor:
        """And back."""
        return self.config["soft"] * (self.config["deviation"] * x).sinh()

    def standardised(self, features: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
        """Features of points as the network wants them."""
        return ((features - self.feature_mean) / self.feature_spread).clamp(-5, 5)

    def forward(
        self,
        x_t: Float[Tensor, "K N"],
        t: Float[Tensor, "K"],
        features: Float[Tensor, "N P"],
        neighbours: Int64[Tensor, "N E"],
        edges: Float[Tensor, "N E D"],
    ) -> Float[Tensor, "K N"]:
        """The velocity; features are standardised ones."""
        time = nn.functional.silu(self.time(fourier(t[:, None].to(x_t))))[:, None]
        x = self.project_in(x_t[..., None]) + self.known(features)
        for layer in self.layers:
            x = layer(x, time, neighbours, edges)
        return self.project_out(self.norm(x)).squeeze(-1)
