"""Every annotated shape and type is checked at run time, in tests only. One thread is enough for them."""

import os

# Kernels for CUDA run in triton's interpreter, which it decides when it is first imported, by whomever.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from jaxtyping import install_import_hook

# A run-time shape decorator in shipped code would break torch.compile, so it lives here.
install_import_hook(["diffusion4d", "samplers", "priors"], "beartype.beartype")

# The tensors of the tests are small: more threads cost more than they give.
torch.set_num_threads(1)
