"""Every annotated shape and type is checked at run time, in tests only."""

from jaxtyping import install_import_hook

# A run-time shape decorator in shipped code would break torch.compile, so it lives here.
install_import_hook(["diffusion4d", "samplers", "priors"], "beartype.beartype")
