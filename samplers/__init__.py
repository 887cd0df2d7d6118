"""Diffusion samplers for anything: tensors and a callable denoise(x_t, t), nothing of 4D.

A *schedule* says how much signal and noise there is at time t, a *grid* where the steps go, a
*table* what each step does, one row an evaluation; `solve` applies a table to a denoiser, and *guidance* maps
denoisers to denoisers:

    from samplers.grids import uniform
    from samplers.guidance import cfg
    from samplers.multistep import dpmpp_2m
    from samplers.noise import SeededNoise
    from samplers.predictions import from_prediction
    from samplers.schedules import CosineSchedule
    from samplers.solve import solve

    noise = SeededNoise(seeds=[3, 7], shape=(128, 8, 3))
    schedule = CosineSchedule()
    table = dpmpp_2m(schedule, uniform(8))
    denoiser = from_prediction(schedule, "v_prediction")
    guided = cfg(denoiser(network), denoiser(network_without_evidence), 1.5)
    with torch.no_grad():
        x_0 = solve(table, guided, noise.initial(), noise, backend="blocked")

A scheduler of diffusers becomes a table by `from_diffusers.convert`. The `backend` is who does the sums of a row, see
`kernels`; gradients flow through the default one.

Names live in their modules and nowhere else, so importing the package costs nothing (torch comes
with the first module) and `samplers.solve` is always the module, never sometimes its function.
"""

__distribution__ = "diffusion4d"
