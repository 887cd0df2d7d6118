__distribution__ = "diffusion4d"
