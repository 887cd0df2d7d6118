# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sampler is a table
#
# `samplers` knows tensors and a callable `denoise(x_t, t)`, nothing of video. Here it samples a mixture of Gaussians in
# the plane, whose denoiser is a formula, so that nothing but the sampler can err.
#
# Every method is rows of
# $x_s = a\,x_t + b\,\hat x_0 + \sum_j d_j\,\hat x_0^{(-j)} + e\,\varepsilon$, and one loop applies them.

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap

from samplers.grids import power, uniform
from samplers.multistep import dpmpp_2m, unipc
from samplers.noise import SeededNoise
from samplers.schedules import CosineSchedule
from samplers.singlestep import heun
from samplers.solve import solve
from samplers.tables import ancestral, angular, ddim

SAMPLES, PATHS = 4000, 42

schedule = CosineSchedule()
angles = torch.arange(5) * (2 * torch.pi / 5) + torch.pi / 2
means = 1.6 * torch.stack([angles.cos(), angles.sin()], 1).double()
weights = torch.tensor([0.35, 0.1, 0.25, 0.1, 0.2], dtype=torch.float64)
DEVIATION = 0.16

# %% [markdown]
# ## The denoiser
#
# Given $x_t = \alpha x_0 + \sigma \varepsilon$, each component knows its own posterior mean, and Bayes' rule says how
# likely each component is.


# %%
def denoise(x_t, t):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = (alpha * DEVIATION) ** 2 + sigma**2
    off = x_t[..., None, :] - alpha * means
    likely = torch.softmax(weights.log() - off.square().sum(-1) / (2 * variance), -1)
    posterior = means + alpha * DEVIATION**2 / variance * off
    return (likely[..., None] * posterior).sum(-2)


# %% [markdown]
# ## One loop, any table
#
# Two evaluations a step (Heun) are two rows; a corrector (UniPC) is an earlier answer with another weight. So the
# number of rows is the number of evaluations, for all of them.

# %%
noise = SeededNoise(range(SAMPLES), (2,), dtype=torch.float64)
for name, table in {
    "DDIM": ddim(schedule, uniform(8)),
    "DPM-Solver++(2M)": dpmpp_2m(schedule, uniform(8)),
    "UniPC-2": unipc(schedule, uniform(8)),
    "Heun": heun(schedule, uniform(4), "circle"),
    "ancestral": ancestral(schedule, uniform(8)),
}.items():
    samples = solve(table, denoise, noise.initial(), noise)
    nearest = torch.cdist(samples, means).argmin(1)
    shares = torch.bincount(nearest, minlength=5) / SAMPLES
    print(f"{name:>17}: {table.num_steps} rows, shares", [f"{share:.2f}" for share in shares])
print(f"{'the truth':>17}:         shares", [f"{weight:.2f}" for weight in weights])

# %% [markdown]
# ## From noise to data, and how fast the error falls
#
# Left: paths of a fine solver, from noise (pale) to data (dark), over the density of the data. Right: the distance to
# where the exact flow would have gone, against evaluations. A slope of −1 is first order, −2 second.


# %%
def path_of(x_1, num_steps):
    """The states of the loop, recorded by a denoiser that looks on."""
    states = []

    def watched(x_t, t):
        states.append(x_t.clone())
        return denoise(x_t, t)

    end = solve(ddim(schedule, uniform(num_steps)), watched, x_1)
    return torch.stack([*states, end], 1)


def grid_of(num_steps):
    """Steps a little denser where the data are near."""
    return power(num_steps, 1.5)


x_1 = noise.initial()
few = x_1[:400]
exact = solve(heun(schedule, uniform(1500), "circle"), denoise, few)
evaluations = [4, 8, 16, 32, 64, 128]
methods = {
    "DDIM": (lambda n: ddim(schedule, grid_of(n)), "#0072B2", "o"),
    "angular": (lambda n: angular(schedule, grid_of(n)), "#56B4E9", "v"),
    "DPM-Solver++(2M)": (lambda n: dpmpp_2m(schedule, grid_of(n)), "#E69F00", "s"),
    "UniPC-2": (lambda n: unipc(schedule, grid_of(n)), "#D55E00", "D"),
    "Heun on the circle": (
        lambda n: heun(schedule, grid_of((n + 1) // 2), "circle"),
        "#009E73",
        "^",
    ),
}

figure, (left, right) = plt.subplots(
    1, 2, figsize=(12, 5.2), layout="constrained", width_ratios=(1, 1.15)
)
axis = torch.linspace(-3.2, 3.2, 240, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
density = (
    weights * torch.exp(-(grid[..., None, :] - means).square().sum(-1) / (2 * DEVIATION**2))
).sum(-1)
paper = LinearSegmentedColormap.from_list("paper", ["#ffffff", "#f3d9a4", "#e69f00"])
left.contourf(axis, axis, density.sqrt(), levels=24, cmap=paper)
for path in path_of(x_1[:PATHS], 60):
    for i in range(0, 60, 3):
        left.plot(*path[i : i + 4].T, color=plt.colormaps["cividis_r"](i / 57), lw=1)
left.plot(*x_1[:PATHS].T, "o", ms=3, color="#b8b07a", mec="none", label="noise")
left.plot(
    *path_of(x_1[:PATHS], 60)[:, -1].T,
    "o",
    ms=4,
    color="#00204d",
    mec="white",
    mew=0.5,
    label="data",
)
left.set(
    title="from noise to data",
    aspect="equal",
    xticks=[],
    yticks=[],
    xlim=(-3.2, 3.2),
    ylim=(-3.2, 3.2),
)
left.legend(loc="lower left", frameon=False)

for name, (table_of, colour, marker) in methods.items():
    tables = [table_of(n) for n in evaluations]
    errors = [(solve(table, denoise, few) - exact).norm(dim=1).mean() for table in tables]
    counts = [table.num_steps for table in tables]
    right.loglog(counts, errors, marker=marker, ms=5, lw=1.6, color=colour, label=name)
right.set(
    title="how fast the error falls",
    xlabel="evaluations of the denoiser",
    ylabel="mean distance to the exact flow",
)
right.set_xticks(evaluations, [str(n) for n in evaluations])
right.minorticks_off()
right.grid(alpha=0.25)
for side in ("top", "right"):
    right.spines[side].set_visible(False)
right.legend(frameon=False)
plt.show()

# %% [markdown]
# DDIM and the angular sampler part in their constants, not in their slope. The others fall faster, but only once
# steps are short enough: which one is best at four evaluations is a property of the data, to be measured on them.
