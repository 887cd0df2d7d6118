"""Every backend of the fused update against the reference in float64, alone and within the loop; what each refuses."""

import contextlib
import functools
import inspect
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from samplers.grids import uniform
from samplers.guidance import cfg
from samplers.kernels import update_compiled, update_measure
from samplers.kernels.update import Backend, Parts, Row, Update, update_of
from samplers.kernels.update_blocked import BLOCK_BYTES
from samplers.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from samplers.noise import SeededNoise
from samplers.predictions import Kind, Prediction, from_prediction
from samplers.schedules import CosineSchedule, RectifiedSchedule
from samplers.solve import solve
from samplers.tables import ancestral, ddim

F64 = torch.float64
KINDS: list[Kind] = ["sample", "epsilon", "v_prediction", "flow_prediction"]
# Two blocks and a part of one, and shapes of few numbers or none.
SHAPES = [(2 * BLOCK_BYTES // 4 + 5,), (3, 7, 2), (1,), (0, 4)]
ROWS = [
    Row(0.7, 0.4),
    Row(0.0, 1.0),
    Row(1.0, -0.3, (-0.2,)),
    Row(0.9, 0.3, (0.5, 0.0, -0.25), 0.6),
    Row(0.0, 0.0),
]
ASSEMBLIES = [
    {},
    {"keep": 0.8, "gains": (-0.6,)},
    {"keep": 0.8, "gains": (-1.5, 0.9)},
    {"keep": 0.8, "gains": (-0.6, 0.0), "limit": 0.5},
    {"limit": 0.5},
]


# Triton reads this when it is imported: its kernels then run on a CPU, number by number.
os.environ.setdefault("TRITON_INTERPRET", "1")
NO_TRITON = "the extra triton (a gigabyte) is not installed"


def triton_update() -> Update:
    pytest.importorskip("triton", reason=NO_TRITON)
    return update_of("triton")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile up to the graph, which is then run without C++: seconds for what would take a minute."""
    compile_graph = functools.partial(torch.compile, backend="aot_eager")
    # Type checks at run time cannot be captured.
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_graph(inspect.unwrap(f), **k))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    update_compiled._kernel.cache_clear()
    yield
    update_compiled._kernel.cache_clear()


def backend_update(backend: Backend) -> Update:
    return triton_update() if backend == "triton" else update_of(backend)


def drawn(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("backend", ["blocked", "triton"])
@pytest.mark.parametrize("want_answer", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_backend_errs_no_more_than_the_reference(
    backend: Backend, shape: tuple[int, ...], want_answer: bool
) -> None:
    update = backend_update(backend)
    assert_parity(update, shape, want_answer, itertools.product(ROWS, ASSEMBLIES))


@pytest.mark.usefixtures("captured")
def test_the_compiled_formula_errs_no_more_than_the_reference() -> None:
    # A graph takes a second to capture, so every row and every assembly comes once.
    combinations = list(zip(ROWS[::-1], ASSEMBLIES, strict=True))
    assert_parity(update_of("compiled"), (37, 3), True, combinations[:3])
    assert_parity(update_of("compiled"), (37, 3), False, combinations[2:])


def assert_parity(
    update: Update,
    shape: tuple[int, ...],
    want_answer: bool,
    combinations: Iterable[tuple[Row, dict]],
) -> None:
    """Against the reference in float64, an update errs at most twice as much as the reference does in float32."""
    reference = update_of("reference")
    x_t, first, second, noise, *answers = drawn(shape, 7)
    for row, assembly in combinations:
        parts = Parts((first, second)[: len(assembly.get("gains", "1"))], **assembly)
        earlier = tuple(answers[: len(row.d)])
        inputs = (x_t, parts, earlier, noise if row.e else None)
        exact = Parts(tuple(p.double() for p in parts.predictions), **assembly)
        truth = reference(
            row, x_t.double(), exact, tuple(h.double() for h in earlier), noise.double(), True, None
        )
        plain = reference(row, *inputs, True, None)
        fused = update(row, *inputs, want_answer, None)
        assert (fused[1] is None) == (not want_answer)
        for answer, eager, right in zip(fused, plain, truth, strict=True):
            if answer is not None and answer.numel() > 0:
                assert answer.dtype == x_t.dtype
                allowed = 2 * (eager - right).abs().max().item() + 1e-7
                assert (answer - right).abs().max().item() <= allowed


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("backend", ["reference", "blocked", "compiled", "triton"])
def test_outputs_are_written_where_they_were_asked_for(backend: Backend) -> None:
    x_t, prediction = drawn((3, 5), 2)
    out = torch.empty(3, 5), torch.empty(3, 5)
    parts = Parts((prediction,), keep=0.3)
    x_s, x_0 = backend_update(backend)(Row(0.5, 0.25), x_t, parts, (), None, True, out)
    assert x_s is out[0]
    assert x_0 is out[1]
    torch.testing.assert_close(x_0, prediction + 0.3 * x_t)
    torch.testing.assert_close(x_s, 0.5 * x_t + 0.25 * x_0)
    # A prediction that is x̂_0 already needs no second copy.
    whole = backend_update(backend)(Row(0.5, 0.25), x_t, Parts((prediction,)), (), None, True, None)
    assert whole[1] is prediction


def test_strided_inputs_are_read_in_their_own_order() -> None:
    x_t, prediction = drawn((4, 6), 2)
    x_s, _ = update_of("blocked")(
        Row(2.0, 1.0), x_t.T, Parts((prediction.T,)), (), None, False, None
    )
    torch.testing.assert_close(x_s, 2 * x_t.T + prediction.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_triton_rounds_half_precision_once(dtype: torch.dtype) -> None:
    update = triton_update()
    x_t, first, second, noise, earlier = drawn((1000,), 5, dtype)
    row, parts = Row(0.7, 0.4, (-0.2,), 0.3), Parts((first, second), 0.8, (-1.5, 0.9))
    x_s, _ = update(row, x_t, parts, (earlier,), noise, False, None)
    exact = Parts((first.float(), second.float()), 0.8, (-1.5, 0.9))
    right, _ = update_of("reference")(
        row, x_t.float(), exact, (earlier.float(),), noise.float(), False, None
    )
    torch.testing.assert_close(x_s, right.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


AHEAD_OF_TIME = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from samplers.kernels.update_triton import _update_kernel as kernel

flags = {"TWO": True, "LAGS": 2, "NOISE": True, "CLAMP": True, "ANSWER": True, "BLOCK": 1024}
kinds = {"size": "i64", **dict.fromkeys(flags, "constexpr")}
signature = {
    name: kinds.get(name, "*fp32" if name.endswith("_ptr") else "fp32") for name in kernel.arg_names
}
binary = triton.compile(
    ASTSource(kernel, signature, constexprs=flags), target=GPUTarget("cuda", 90, 32)
)
ptx = binary.asm["ptx"]
print(len(binary.asm["cubin"]) > 1000, ptx.count("ld.global"), ptx.count("st.global"))
"""


def test_triton_compiles_ahead_of_time(tmp_path: Path) -> None:
    """For compute capability 9.0, without a GPU: the kernel is accepted, and touches memory as often as it has to."""
    pytest.importorskip("triton", reason=NO_TRITON)
    # In a process of its own, where neither the interpreter nor type checks take the compiler's place.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", AHEAD_OF_TIME]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    accepted, loads, stores = result.stdout.split()
    assert accepted == "True"
    # x_t, two predictions, two earlier answers and noise; x_s and x̂_0. A thread moves its numbers in equal pieces.
    assert int(loads) * 2 == int(stores) * 6 > 0


@contextlib.contextmanager
def without_type_checks() -> Iterator[None]:
    """As for a user."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def test_refusals_come_in_order() -> None:
    x, y = drawn((2, 3), 2)
    bad = torch.ones(3, dtype=F64, requires_grad=True, device="meta")
    update, row, whole = update_of("blocked"), Row(1.0, 1.0), Parts((y,))
    of_list = pytest.raises(
        ValueError, match=r"blocked needs tensors, got predictions\[0\] of list"
    )
    with without_type_checks(), of_list:
        update(row, bad, Parts(([1.0],)), (), None, False, None)  # type: ignore[arg-type]
    cases = [
        (Row(1.0, 1.0, (0.1,)), x, whole, (), None, None, "1 d and 0 earlier"),
        (row, x, Parts((y, y)), (), None, None, "1 gains and 2 predictions"),
        (Row(1.0, 1.0, (), 0.5), x, whole, (), None, None, "need noise for e=0.5, got None"),
        (
            row,
            x,
            Parts((bad,)),
            (),
            None,
            None,
            r"one shape, got x_t \(2, 3\) and predictions\[0\] \(3,\)",
        ),
        (row, x, whole, (), None, (torch.empty(3, 2).T, None), "contiguous outputs"),
        (row, bad, Parts((bad.float(),)), (), None, None, "one dtype .* got predictions"),
        (
            row,
            x.half(),
            Parts((y.half(),)),
            (),
            None,
            None,
            "one dtype out of torch.float32.* got x_t of torch.float16",
        ),
        (row, bad, Parts((bad,)), (), None, None, "on cpu, got x_t on meta"),
        (
            row,
            x,
            whole,
            (),
            None,
            (x, None),
            r"outputs of their own, got out\[0\] in the memory of x_t",
        ),
        (
            row,
            x,
            Parts((y.clone().requires_grad_(),)),
            (),
            None,
            None,
            "has no gradient, got predictions",
        ),
    ]
    for chosen, x_t, parts, earlier, noise, out, message in cases:
        with pytest.raises(ValueError, match=message):
            update(chosen, x_t, parts, earlier, noise, False, out)


def test_backends_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_type_checks(), pytest.raises(ValueError, match="compiled, triton, got 'fast'"):
        update_of("fast")  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="found neither no-such-compiler nor clang"):
        update_of("compiled")
    from samplers.kernels import update_triton

    monkeypatch.setattr(update_triton, "triton", None)
    with pytest.raises(ValueError, match=r"pip install 'diffusion4d\[triton\]'"):
        update_of("triton")


class Network:
    """Linear and different in every direction, so that a swapped weight shows."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.gain * x_t) + 0.1 * t


@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedSchedule()])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [None, 0.7])
def test_a_denoiser_in_parts_is_the_denoiser(schedule, kind: Kind, limit: float | None) -> None:
    grid = uniform(6)[1:]
    noise = SeededNoise([1, 2], (5, 3), dtype=F64)
    denoise = from_prediction(schedule, kind, limit)(Network(0.8))
    for sampler in (ddim, dpmpp_2m, dpmpp_2m_sde, unipc):
        table = sampler(schedule, grid)
        whole = solve(table, lambda x_t, t: denoise(x_t, t), noise.initial(), noise)
        for backend in ("reference", "blocked"):
            in_parts = solve(table, denoise, noise.initial(), noise, backend=backend)
            torch.testing.assert_close(in_parts, whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_guidance_is_mixed_in_the_update(backend: Backend) -> None:
    schedule, noise = CosineSchedule(), SeededNoise([1, 2], (5, 3), dtype=F64)
    cond, uncond = (from_prediction(schedule, "v_prediction")(Network(g)) for g in (0.8, 0.3))
    guided = cfg(cond, uncond, 2.5)
    assert isinstance(guided, Prediction)
    table = ancestral(schedule, uniform(5))
    plain = cfg(lambda x, t: cond(x, t), lambda x, t: uncond(x, t), 2.5)
    expected = solve(table, plain, noise.initial(), noise)
    answer = solve(table, guided, noise.initial(), noise, backend=backend)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-13)
    # A clamp of each cannot be moved behind the mixture.
    limited = from_prediction(schedule, "v_prediction", 0.5)(Network(0.8))
    assert not isinstance(cfg(limited, uncond, 2.5), Prediction)


def test_a_denoiser_that_returns_its_input_is_safe() -> None:
    # Its answers are the loop's own x of earlier rows, which must not be written over.
    table, x_1 = unipc(CosineSchedule(), uniform(8)), SeededNoise([1], (40,)).initial()
    kept = x_1.clone()
    answers = [solve(table, lambda x, t: x, x_1, backend=b) for b in ("reference", "blocked")]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(x_1, kept)


def test_gradients_flow_through_the_reference_alone() -> None:
    gain = torch.ones((), dtype=F64, requires_grad=True)
    denoise = from_prediction(CosineSchedule(), "v_prediction", 3.0)(lambda x, t: gain * x)
    table, x_1 = dpmpp_2m(CosineSchedule(), uniform(3)), torch.ones(2, 3, dtype=F64)
    solve(table, denoise, x_1).sum().backward()
    assert gain.grad is not None
    step = 1e-6
    ends = [
        solve(
            table,
            from_prediction(CosineSchedule(), "v_prediction", 3.0)(lambda x, t, g=g: g * x),
            x_1,
        ).sum()
        for g in (1 + step, 1 - step)
    ]
    torch.testing.assert_close(gain.grad, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="has no gradient"):
        solve(table, denoise, x_1, backend="blocked")
    with torch.no_grad():
        solve(table, denoise, x_1, backend="blocked")


@pytest.mark.parametrize(
    ("gains", "limit", "message"),
    [((0.5, 0.4), None, "sum is 1"), ((1.0,), None, "2 networks"), ((2.0, -1.0), 0.0, "limit=0.0")],
)
def test_a_bad_prediction_is_refused(gains, limit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prediction(CosineSchedule(), "sample", (Network(1.0), Network(2.0)), gains, limit)
    with pytest.raises(ValueError, match="limit=-1"):
        from_prediction(CosineSchedule(), "sample", -1.0)


def test_the_measure_counts_bytes_and_refuses() -> None:
    rates = update_measure.bandwidth((0.01, 0.02), ("blocked",), repeats=2, large_megabytes=0.05)
    assert [(rate.way, rate.megabytes) for rate in rates] == [
        (way, size) for size in (0.01, 0.02) for way in ("eager", "blocked")
    ]
    for rate in rates:
        count = int(rate.megabytes * 2**20) // 4
        assert rate.bytes_per_second * rate.seconds == pytest.approx(7 * 4 * count)
        assert rate.share > 0 < rate.share_of_same
    with pytest.raises(ValueError, match="repeats=0"):
        update_measure.bandwidth((1.0,), repeats=0)


def test_every_backend_has_the_same_signature() -> None:
    folder = Path(update_measure.__file__).parent
    signatures = set()
    for name in ("reference", "blocked", "compiled", "triton"):
        text = (folder / f"update_{name}.py").read_text()
        signatures.add(text[text.index("def update(") : text.index(") -> Outputs:")])
    assert len(signatures) == 1
