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
# # One video, sixteen motions
#
# A video is one 2D shadow of a 3D motion. `diffusion4d` samples several 3D motions that cast the same shadow. Here we
# sample a clip, look at the fan of hypotheses, and ask where they agree.
#
# Set `VIDEO` to a file of your own. Without one, a world is rendered, whose true motion is known.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from diffusion4d import Diffusion4DPipeline, read_clip
from diffusion4d.scenes.video import write_video

VIDEO = None
HYPOTHESES, POINTS = 16, 96

video = VIDEO or Path(tempfile.mkdtemp()) / "world.mp4"
if VIDEO is None:
    write_video(video, seed=2**31 + 6, frames=32)
clip = read_clip(video)
print(f"{clip.T} frames of {clip.size[1]} x {clip.size[0]} px")

# %% [markdown]
# ## Sample
#
# The clip is read, tracked and encoded once; all hypotheses share that. Hypothesis k has a seed of its own, so it
# is the same whichever others are sampled beside it.

# %%
pipe = Diffusion4DPipeline.from_pretrained("tiny")
pipe.set_progress_bar_config(disable=True)
hyp = pipe(clip, num_hypotheses=HYPOTHESES, num_points=POINTS, seed=0)
print("K hypotheses, N points, M control points, xyz:", list(hyp.control_points.shape))

# %% [markdown]
# ## The fan
#
# Left: what the camera saw. Every hypothesis projects onto the same tracks. Right: the same trajectories from above.
# Along the viewing ray they part.

# %%
paths = hyp.evaluate(torch.linspace(0, 1, 64, dtype=torch.float64))
moved = (hyp.tracks[-1] - hyp.tracks[0]).norm(dim=-1)
shown = moved.argsort(descending=True)[:12]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
left.imshow(clip.frames[0].permute(1, 2, 0))
pixels = hyp.project()
for k in range(HYPOTHESES):
    colour = plt.colormaps["viridis"](k / HYPOTHESES)
    for n in shown.tolist():
        left.plot(*pixels[k, n].T, color=colour, lw=0.6)
        right.plot(paths[k, n, :, 0], paths[k, n, :, 2], color=colour, lw=0.8)
left.set(title="projected: they agree", xticks=[], yticks=[])
right.set(title="from above: they part", xlabel="right", ylabel="depth (scene units)")
plt.show()

# %% [markdown]
# ## Where the video leaves room
#
# The spread of the hypotheses says what the video did not show: along the ray more than across it, and hidden points
# more than visible ones.

# %%
spread = hyp.spread
seen = hyp.seen.T
lateral, depth = spread[..., :2].norm(dim=-1), spread[..., 2]
for name, mask in (("seen", seen), ("hidden", ~seen)):
    if mask.any():
        print(
            f"{name:>6}: across the ray {lateral[mask].median():.3f}, "
            f"along it {depth[mask].median():.3f} scene units"
        )

# %% [markdown]
# ## Keep it
#
# `save` writes `hypotheses.npz`, which numpy alone opens. The command `diffusion4d sample` writes the animated GLB, the
# overlay video and the summary picture as well.

# %%
folder = Path(tempfile.mkdtemp())
hyp.save(folder)
again = type(hyp).load(folder)
assert torch.equal(again.control_points, hyp.control_points)
print("nearest to the mean of all:", hyp.rank()[:3].tolist(), "of", HYPOTHESES)
