"""Diffusion samplers for anything: tensors and a callable denoise(x_t, t), nothing of 4D.

A *schedule* says how much signal and noise there is at time t, a *grid* where the steps go, a
*table* what each step does; `solve` applies a table to a denoiser, and *guidance* maps denoisers to
denoisers:

    from samplers.grids import uniform
    from samplers.guidance import cfg
    from samplers.noise import SeededNoise
    from samplers.schedules import CosineSchedule
    from samplers.solve import solve
    from samplers.tables import dpmpp_2m

    noise = SeededNoise(seeds=[3, 7], shape=(128, 8, 3))
    table = dpmpp_2m(CosineSchedule(), uniform(8))
    x_0 = solve(table, cfg(cond, uncond, 1.5), noise.initial(), noise)

Names live in their modules and nowhere else, so importing the package costs nothing (torch comes
with the first module) and `samplers.solve` is always the module, never sometimes its function.
"""

__distribution__ = "diffusion4d"
