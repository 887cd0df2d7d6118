r"""One row of a table on tensors, and the backends that can do it.

    x̂_0 = clamp(p x_t + Σ_i g_i m_i, ±limit)
    x_s = a x_t + b x̂_0 + Σ_j d_j x̂_0^(−j) + e ε

m_i are what a network says (conditional, unconditional) and p, g_i hold prediction type and guidance at once, since
both are linear (predictions.py). Every backend reads each input once and writes each output once, where eager
arithmetic passes over memory for every sign in these formulas.

    reference   plain torch: the specification, and the only one that gradients flow through
    blocked     the same sums, in place, block by block within the cache; CPU
    compiled    torch.compile of the reference; CPU with a C++ compiler, a minute for the first call
    triton      one kernel; CUDA. Tested in Triton's interpreter, never timed or run on a GPU by its authors

The backend is chosen by name and never changed behind the caller's back: what one cannot do, it refuses before it
starts, in the order type, shape, dtype, device, gradient.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

Backend = Literal["reference", "blocked", "compiled", "triton"]


@dataclass(frozen=True, eq=False)
class Parts:
    """x̂_0 before it is put together: clamp(keep · x_t + Σ gains · predictions, ±limit).

    predictions: one or two tensors of x_t's shape. limit: None leaves x̂_0 as it is.
    """

    predictions: tuple[Tensor, ...]
    keep: float = 0.0
    gains: tuple[float, ...] = (1.0,)
    limit: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the prediction is x̂_0 already."""
        return self.keep == 0 and self.gains == (1.0,) and self.limit is None


@dataclass(frozen=True)
class Row:
    """One row of a table in Python floats, which every backend casts to what it computes in."""

    a: float
    b: float
    d: tuple[float, ...] = ()
    e: float = 0.0


Outputs = tuple[Tensor, Tensor | None]
"""x_s, and x̂_0 where it was asked for."""

Update = Callable[
    [Row, Tensor, Parts, tuple[Tensor, ...], Tensor | None, bool, Outputs | None], Outputs
]
"""(row, x_t, parts, earlier answers, noise, want_answer, out) → (x_s, x̂_0 or None).

earlier: as many tensors as the row has d, the latest first. noise may be None where e is 0. out: where to write; new
tensors where it is None. It must not overlap the inputs.
"""

_MODULES: Final[dict[Backend, str]] = {
    "reference": "samplers.kernels.update_reference",
    "blocked": "samplers.kernels.update_blocked",
    "compiled": "samplers.kernels.update_compiled",
    "triton": "samplers.kernels.update_triton",
}


def update_of(backend: Backend) -> Update:
    """The update of a backend.

    Raises ValueError for an unknown name, or a backend that cannot work on this machine (no C++ compiler, no triton).
    """
    if backend not in _MODULES:
        raise ValueError(f"need a backend out of {', '.join(get_args(Backend))}, got {backend!r}")
    module = importlib.import_module(_MODULES[backend])
    module.require()
    return module.update


def inputs_of(
    x_t: Tensor, parts: Parts, earlier: tuple[Tensor, ...], noise: Tensor | None
) -> dict[str, Tensor]:
    """Every input by the name that errors call it."""
    named = {"x_t": x_t}
    named |= {f"predictions[{i}]": tensor for i, tensor in enumerate(parts.predictions)}
    named |= {f"earlier[{j}]": tensor for j, tensor in enumerate(earlier)}
    return named if noise is None else {**named, "noise": noise}


def check(
    backend: Backend,
    row: Row,
    inputs: dict[str, Tensor],
    parts: Parts,
    out: Outputs | None,
    *,
    dtypes: tuple[torch.dtype, ...],
    device: str,
) -> None:
    """Raise ValueError for what a fused backend cannot do, in the order type, shape, dtype, device, gradient."""
    outputs = {} if out is None else {"out[0]": out[0]}
    if out is not None and out[1] is not None:
        outputs["out[1]"] = out[1]
    named, x_t = {**inputs, **outputs}, inputs["x_t"]
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{backend} needs tensors, got {name} of {type(tensor).__name__}")
    counts = (len(parts.gains), len(row.d))
    given = (len(parts.predictions), sum(name.startswith("earlier") for name in inputs))
    if counts != given or not 1 <= counts[0] <= 2:
        raise ValueError(
            "need one or two predictions with a gain each, and an earlier answer for every d, "
            f"got {counts[0]} gains and {given[0]} predictions, {counts[1]} d and {given[1]} earlier answers"
        )
    if row.e != 0 and "noise" not in inputs:
        raise ValueError(f"need noise for e={row.e}, got None")
    for name, tensor in named.items():
        if tensor.shape != x_t.shape:
            raise ValueError(
                f"{backend} needs one shape, got x_t {tuple(x_t.shape)} and {name} {tuple(tensor.shape)}"
            )
    for name, tensor in outputs.items():
        if not tensor.is_contiguous():
            raise ValueError(
                f"{backend} needs contiguous outputs, got {name} with strides {tensor.stride()}"
            )
    for name, tensor in named.items():
        if tensor.dtype not in dtypes or tensor.dtype != x_t.dtype:
            raise ValueError(
                f"{backend} needs one dtype out of {', '.join(map(str, dtypes))}, got {name} of {tensor.dtype}"
            )
    for name, tensor in named.items():
        if tensor.device.type != device:
            raise ValueError(f"{backend} needs tensors on {device}, got {name} on {tensor.device}")
    storages = {tensor.untyped_storage().data_ptr(): name for name, tensor in inputs.items()}
    for name, tensor in outputs.items():
        shared = storages.get(tensor.untyped_storage().data_ptr())
        if shared is not None and tensor.numel() > 0:
            raise ValueError(
                f"{backend} needs outputs of their own, got {name} in the memory of {shared}"
            )
    if torch.is_grad_enabled():
        for name, tensor in named.items():
            if tensor.requires_grad:
                raise ValueError(
                    f"{backend} has no gradient, got {name} that requires one: use reference, or torch.no_grad()"
                )


def allocate(x_t: Tensor, parts: Parts, want_answer: bool, out: Outputs | None) -> Outputs:
    """Where to write; x̂_0 needs no place of its own where it is a prediction already."""
    x_s, x_0 = (None, None) if out is None else out
    if x_s is None:
        x_s = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    if x_0 is None and want_answer and not parts.is_whole:
        x_0 = torch.empty_like(x_s)
    return x_s, x_0


def finished(x_s: Tensor, x_0: Tensor | None, parts: Parts, want_answer: bool) -> Outputs:
    """What an update returns, once both are written."""
    if not want_answer:
        return x_s, None
    return x_s, parts.predictions[0] if x_0 is None else x_0
