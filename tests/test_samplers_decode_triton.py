"""The Triton twins of decoding: in the interpreter against the plain ones, and compiled for GPUs that are not here."""

import importlib
import importlib.util
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from test_samplers_decode import agree, case

# Read when the kernels are declared, that is on the first use of the backend.
os.environ.setdefault("TRITON_INTERPRET", "1")

from samplers.kernels import decode, decode_reference

if importlib.util.find_spec("triton") is not None:
    # Triton reads a kernel's source and its globals, and the checker of shapes would stand before both.
    unchecked = [f for f in sys.meta_path if not type(f).__module__.startswith("jaxtyping")]
    with mock.patch.object(sys, "meta_path", unchecked):
        importlib.import_module("samplers.kernels.decode_triton")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (an extra)"
)

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from samplers.kernels import decode_triton as kernels

tiles = {"BK": 16, "BM": 16, "BT": 16}
for kernel, pointers, more in (
    (kernels.moments_kernel, ("ctrl", "basis", "mean", "spread"), {}),
    (
        kernels.reprojection_kernel,
        ("ctrl", "basis", "tracks", "intrinsics", "cameras", "error"),
        {"WORLD": True},
    ),
):
    constants = tiles | more
    signature = {
        name: "*fp32" if name in pointers else "constexpr" if name in constants else "i32"
        for name in kernel.arg_names
    }
    for capability in (80, 90):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        # Full float32: no tensor-core product of TF32 may have crept in.
        assert "tf32" not in built.asm["ptx"], kernel
        print(kernel.__name__, capability, len(built.asm["cubin"]) > 0)
"""


@pytest.mark.parametrize("shape", [(1, 2, 4, 5), (17, 2, 12, 33), (5, 1, 20, 16)])
def test_moments_match_the_plain_twin(shape: tuple[int, int, int, int]) -> None:
    ctrl, basis, _ = case(*shape)
    agree("moments", "triton", ctrl, basis)


@pytest.mark.parametrize("world", [False, True])
def test_reprojection_matches_the_plain_twin(world: bool) -> None:
    ctrl, basis, view = case(17, 2, 12, 33, world=world)
    agree("reprojection", "triton", ctrl, basis, view)
    ctrl[3] = -ctrl[3]
    error = decode.reprojection(ctrl, basis, view, backend="triton")
    expected = decode_reference.reprojection(ctrl, basis, view)
    assert torch.equal(error.isinf(), expected.isinf())
    assert error[3].isinf().any()


def test_compiles_for_gpus_that_are_not_here() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("True") == 4


def test_what_it_cannot_do_is_refused() -> None:
    ctrl, basis, _ = case(2, 2, 12, 9)
    with pytest.raises(ValueError, match="has moments and reprojection, got positions"):
        decode.positions(ctrl, basis, backend="triton")
    with pytest.raises(ValueError, match="takes float32"):
        decode.moments(ctrl.double(), basis.double(), backend="triton")
    with pytest.raises(ValueError, match="at most 128 control points, got 130"):
        decode.moments(torch.zeros(2, 2, 130, 3), torch.zeros(9, 130), backend="triton")


def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    ctrl, basis, _ = case(2, 2, 12, 9)
    with pytest.raises(ValueError, match="takes tensors on cuda"):
        decode.moments(ctrl, basis, backend="triton")
