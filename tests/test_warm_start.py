"""A network that only gains evidence starts as the function that it was."""

import dataclasses

import pytest
import torch

from diffusion4d import denoiser
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evidence import Evidence, Tokens
from diffusion4d.warm_start import take_over

SHAPE = {
    "num_ctrl": 6,
    "width": 24,
    "depth": 3,
    "num_heads": 2,
    "vector_width": 16,
    "parallax": True,
}


def evidence(*, with_tokens: bool) -> Evidence:
    generator = torch.Generator().manual_seed(3)
    ctrl = torch.randn(2, 9, 6, 2, generator=generator) / 4
    given = Evidence(ctrl, torch.rand(2, 9, 6, generator=generator), torch.zeros(2), torch.ones(2))
    if not with_tokens:
        return given
    values = torch.randn(2, 3, 4, 8, generator=generator)
    places = torch.rand(2, 3, 4, 3, generator=generator)
    at_points = torch.randn(2, 9, 8, generator=generator)
    return dataclasses.replace(given, tokens=Tokens(values, places, at_points))


def network(seed: int = 0, **changes: object) -> TrajectoryDiT:
    torch.manual_seed(seed)
    made = TrajectoryDiT(**{**SHAPE, "output": "gaussian", "token_channels": 0, **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_network_that_is_newly_told_tokens_says_what_it_said(with_tokens):
    old = network()
    torch.manual_seed(1)
    new = TrajectoryDiT(**{**SHAPE, "output": "gaussian", "token_channels": 8})
    take_over(new, old, with_output=True)
    without = denoiser.regress(old, evidence(with_tokens=False))
    found = denoiser.regress(new, evidence(with_tokens=with_tokens))
    torch.testing.assert_close(found.mean, without.mean)
    torch.testing.assert_close(found.log_std, without.log_std)


def test_a_sampler_starts_from_the_columns_of_its_regressor():
    regressor = network()
    sampler = network(1, output="velocity", anchored=True, token_channels=8)
    take_over(sampler, regressor, with_output=False)
    theirs, mine = (n.embed_observed[0].weight for n in (regressor, sampler))
    M, tokens = 6, 8
    before = M * 5 + 24
    assert torch.equal(mine[:, :before], theirs[:, :before])
    assert torch.equal(mine[:, before : before + tokens], torch.zeros(24, tokens))
    parallax = mine[:, before + tokens : -6 * M]
    assert torch.equal(parallax, theirs[:, before:])
    assert torch.equal(mine[:, -6 * M :], torch.zeros(24, 6 * M))
    assert not torch.equal(sampler.project_out.bias[: 3 * M], regressor.project_out.bias[: 3 * M])


def test_another_width_is_left_as_it_was():
    small, wide = network(width=12), network(1)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    take_over(wide, small, with_output=True)
    changed = {n for n, t in wide.state_dict().items() if not torch.equal(t, before[n])}
    assert changed <= {n for n, t in small.state_dict().items() if t.shape == before[n].shape}
    assert "embed_observed.0.weight" not in changed
