r"""Few steps from many: what a sampler of few steps should answer, found with a network that is right in many.

On a variance-preserving schedule a sample moves along the circle: x = cos φ x_0 + sin φ ε, φ = atan2(σ, α), and
dx/dφ is the velocity (Salimans & Ho 2022, appendix D). Over an arc the mean of the velocity is all a step needs:

    x_s = x_t − (φ_t − φ_s) V,    V = 1/(φ_t − φ_s) ∫ v dφ.

So a network keeps its meaning, its first weights and its sampler (`tables.angular`): it only says V for v. Of what
arc V is the mean is settled before training, so that no second time goes into the network, as it does in shortcut
models (Frans et al. 2025) and mean flows (Geng et al. 2025), which this is otherwise.

    progressive    V = (x_t − x'_s) / (φ_t − φ_s)       x'_s two steps of the teacher      Salimans & Ho 2022, alg. 2
    consistency    V = (x_t − f(x'_s, s)) / φ_t         x'_s one step of the teacher       Song et al. 2023, alg. 2

with f(x, s) = x − φ_s V(x, s), the network's own way from s to the data; f(x, 0) = x whatever it says. A progressive
network of S steps takes its teacher's 2S: one network for each S. A consistency network says the way to the data from
every t; its further steps put fresh noise on (`tables.renoised`). For standard normal data v = V = 0: both start right.

Times are `[K]` or broadcast against it; x is `[K, ...]`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from samplers.schedules import Schedule

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t `[K, ...]`, t) → dx/dφ, or its mean over an arc, `[K, ...]`."""


def angle(schedule: Schedule, t: Tensor, like: Tensor) -> Tensor:
    """φ_t, with as many axes as `like`. Worked out in float64, as the tables are."""
    phi = torch.atan2(schedule.sigma(t.double()), schedule.alpha(t.double()))
    return phi.to(like).reshape(t.shape + (1,) * (like.dim() - t.dim()))


def along(
    schedule: Schedule, velocity: Velocity, x_t: Float[Tensor, "K *shape"], t: Tensor, s: Tensor
) -> Float[Tensor, "K *shape"]:
    """One step along the circle."""
    turn = angle(schedule, t, x_t) - angle(schedule, s, x_t)
    return x_t - turn * velocity(x_t, t)


@torch.no_grad()
def progressive_target(
    schedule: Schedule,
    teacher: Velocity,
    x_t: Float[Tensor, "K *shape"],
    times: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, "K *shape"]:
    """The one velocity that goes where the teacher's two steps go, t → middle → s."""
    t, middle, s = times
    half = along(schedule, teacher, x_t, t, middle)
    x_s = along(schedule, teacher, half, middle, s)
    return (x_t - x_s) / (angle(schedule, t, x_t) - angle(schedule, s, x_t))


@torch.no_grad()
def consistency_target(
    schedule: Schedule,
    teacher: Velocity,
    student: Velocity,
    x_t: Float[Tensor, "K *shape"],
    times: tuple[Tensor, Tensor],
) -> Float[Tensor, "K *shape"]:
    """The one velocity that goes to the data by way of the teacher's step t → s and the student's own from there."""
    t, s = times
    x_s = along(schedule, teacher, x_t, t, s)
    x_0 = along(schedule, student, x_s, s, torch.zeros_like(s))
    return (x_t - x_0) / angle(schedule, t, x_t)
