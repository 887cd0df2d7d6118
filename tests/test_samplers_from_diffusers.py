"""A converted scheduler gives what diffusers' own loop gives, and what no table can say is refused."""

import inspect
import itertools
import json

import diffusers
import pytest
import torch
from torch import Tensor

from samplers.flows import Path
from samplers.from_diffusers import Converted, convert
from samplers.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from samplers.predictions import target
from samplers.schedules import DiscreteSchedule, RectifiedSchedule
from samplers.singlestep import heun
from samplers.solve import solve
from samplers.tables import Table, ancestral

# diffusers hands torch tensors to np.array; its arithmetic is what matters here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = [{"timestep_spacing": name} for name in ("leading", "trailing", "linspace")]
GRIDS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
STEPS, SEED, SHAPE = 8, 5, (3, 5)


def crossed(*settings: list[dict]) -> list[dict]:
    """Every combination of one dictionary out of each list."""
    return [
        dict(itertools.chain.from_iterable(d.items() for d in combination))
        for combination in itertools.product(*settings)
    ]


def named(key: str, *values: object) -> list[dict]:
    return [{key: value} for value in values]


UNCLIPPED = [{"clip_sample": False}]
ALGORITHMS = named("algorithm_type", "dpmsolver++", "sde-dpmsolver++")
CASES = [
    *(("DDIM", c) for c in crossed(UNCLIPPED, SPACINGS, named("set_alpha_to_one", True, False))),
    *(
        ("DDPM", c)
        for c in crossed(
            UNCLIPPED,
            SPACINGS,
            named("variance_type", "fixed_small", "fixed_large", "fixed_small_log"),
        )
    ),
    *(("EulerDiscrete", c) for c in crossed(SPACINGS, [*GRIDS, {"use_beta_sigmas": True}])),
    ("EulerDiscrete", {"final_sigmas_type": "sigma_min"}),
    *(("EulerAncestralDiscrete", c) for c in SPACINGS),
    *(("HeunDiscrete", c) for c in crossed(SPACINGS[:1], GRIDS)),
    *(("DPMSolverMultistep", c) for c in crossed(named("solver_order", 1, 2), ALGORITHMS, GRIDS)),
    *(("DPMSolverMultistep", {"solver_order": 2, **c}) for c in SPACINGS[:2]),
    ("DPMSolverMultistep", {"solver_order": 3}),
    ("DPMSolverMultistep", {"solver_type": "heun"}),
    ("DPMSolverMultistep", {"use_lu_lambdas": True}),
    ("DPMSolverMultistep", {"euler_at_final": True}),
    *(
        ("DPMSolverSinglestep", {"lower_order_final": True, **c})
        for c in crossed(named("solver_order", 1, 2, 3), GRIDS)
    ),
    ("DPMSolverSinglestep", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
    *(("UniPCMultistep", c) for c in crossed(named("solver_order", 1, 2, 3), GRIDS)),
    ("UniPCMultistep", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    *(("UniPCMultistep", c) for c in SPACINGS[:2]),
    ("UniPCMultistep", {"disable_corrector": [0, 2]}),
]
# These two raise NotImplementedError for networks that predict the sample.
WITHOUT_SAMPLE = ("EulerAncestralDiscrete", "HeunDiscrete")
FLOWS = [
    *(
        ("FlowMatchEulerDiscrete", c)
        for c in [*GRIDS, {"shift": 3.0}, {"stochastic_sampling": True}]
    ),
    *(("FlowMatchHeunDiscrete", c) for c in [{}, {"shift": 3.0}]),
    *(
        (name, {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"})
        for name in ("DPMSolverMultistep", "UniPCMultistep")
    ),
]


class Network:
    """A nonlinear x̂_0 that depends on x and on the time step, answered as the scheduler wants it."""

    def __init__(self, converted: Converted) -> None:
        self.kind = converted.kind
        levels = zip(converted.alpha.tolist(), converted.sigma.tolist(), strict=True)
        self.levels = dict(zip(converted.timesteps.tolist(), levels, strict=False))

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = torch.tensor(self.levels[timestep.item()], dtype=torch.float64)
        x = x_t.double()
        x_0 = 0.8 * torch.tanh(1.5 * x) + 0.1 * torch.cos(x.flip(-1)) + timestep.double() / 5000
        return target(self.kind, x_0, (x - alpha * x_0) / sigma, alpha, sigma).to(x_t)


class Drawn:
    """The noise that diffusers draws from a generator, in the order in which it draws."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(SEED)

    def initial(self) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def at(self, step: int) -> Tensor:
        return torch.randn(SHAPE, generator=self.generator)


def diffusers_loop(scheduler, network: Network, **options) -> Tensor:
    """As a pipeline does it."""
    generator = torch.Generator().manual_seed(SEED)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    x = Drawn().initial() * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scaled = x
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(network(scaled, timestep), timestep, x, **options).prev_sample
    return x


def assert_agreement(scheduler, converted: Converted, *, atol: float = 1e-5, **options) -> None:
    network = Network(converted)
    expected = diffusers_loop(scheduler, network, **options)
    if "Euler" in type(scheduler).__name__ and converted.sigma[-1] > 0:
        expected = expected * converted.alpha[-1]
    x_1 = Drawn().initial() * converted.initial_scale
    answer = solve(converted.table, converted.denoiser(network), x_1, Drawn())
    torch.testing.assert_close(answer, expected.float(), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_diffusion(name: str, settings: dict, kind: str) -> None:
    if kind == "sample" and name in WITHOUT_SAMPLE:
        return
    make = getattr(diffusers, f"{name}Scheduler")
    scheduler = make(**BETAS, **settings, prediction_type=kind)
    converted = convert(scheduler, STEPS)
    assert converted.kind == kind
    scheduler.set_timesteps(STEPS)
    assert_agreement(scheduler, converted)


@pytest.mark.parametrize(("name", "settings"), FLOWS, ids=str)
def test_flow_matching(name: str, settings: dict) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**settings)
    converted = convert(scheduler, STEPS)
    assert converted.kind == "flow_prediction"
    scheduler.set_timesteps(STEPS)
    assert_agreement(scheduler, converted)


@pytest.mark.parametrize(("name", "settings"), [*CASES, *FLOWS], ids=str)
def test_few_steps(name: str, settings: dict) -> None:
    flow = (name, settings) in FLOWS
    options = settings if flow else {**BETAS, **settings, "prediction_type": "v_prediction"}
    for steps in (2, 3, 4, 5):
        scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
        converted = convert(scheduler, steps)
        scheduler.set_timesteps(steps)
        # Heun weighs two answers by up to ±500 here, so either float32 loop is off by as many roundings.
        assert_agreement(scheduler, converted, atol=5e-5 if "Heun" in name else 1e-5)


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("name", "settings", "path"),
    [
        *(("Heun", c, "exploding") for c in crossed(SPACINGS, GRIDS)),
        *(("FlowMatchHeun", c, "straight") for c in ({}, {"shift": 3.0})),
    ],
    ids=str,
)
def test_heun_keeps_its_digits_where_a_step_leaves_a_thousandth_of_x(
    name: str, settings: dict, path: Path, steps: int
) -> None:
    """Its second row is x_m plus a multiple of the difference of two answers, in x / (α + σ) or x / α."""
    converted = convert(getattr(diffusers, f"{name}DiscreteScheduler")(**settings), steps)
    table, alpha, sigma = converted.table, converted.alpha, converted.sigma
    scale, clock = (alpha, sigma / alpha) if path == "exploding" else (alpha + sigma, sigma)
    rows = range(1, table.num_steps, 2)
    assert len(rows) == steps - 1
    for i in rows:
        t, s = clock[i - 1], clock[i]
        expected = scale[i] * (t - s) / 2 / s
        assert abs(table.a[i] - 1) < 1e-9
        torch.testing.assert_close(table.b[i], expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(table.d[i, 0], -expected, rtol=1e-9, atol=0)


def test_arguments_of_the_step_and_of_the_grid() -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False)
    converted = convert(scheduler, STEPS, eta=0.6)
    assert converted.table.is_stochastic
    scheduler.set_timesteps(STEPS)
    assert_agreement(scheduler, converted, eta=0.6)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = [1.0, 0.7, 0.2]
    converted = convert(flow, sigmas=sigmas, mu=0.8)
    flow.set_timesteps(sigmas=sigmas, mu=0.8)
    assert converted.table.num_steps == 3
    assert_agreement(flow, converted)


def test_a_configuration_is_as_good_as_an_instance_and_both_stay_as_they_were() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, prediction_type="v_prediction")
    saved = json.loads(scheduler.to_json_string())
    before = dict(scheduler.config)
    tables = [convert(source, 7).table for source in (scheduler, saved)]
    assert dict(scheduler.config) == before
    assert scheduler.num_inference_steps is None
    assert all(torch.equal(getattr(tables[0], c), getattr(tables[1], c)) for c in "abde")


def grid_of(converted: Converted, schedule: DiscreteSchedule) -> Tensor:
    return schedule.t_of_log_snr(2 * (converted.alpha / converted.sigma).log())


def assert_same_rows(table: Table, expected: Table) -> None:
    assert table.num_steps == expected.num_steps
    for column in "abe":
        torch.testing.assert_close(
            getattr(table, column), getattr(expected, column), rtol=0, atol=1e-5
        )
    lags = min(table.lags, expected.lags)
    torch.testing.assert_close(table.d[:, :lags], expected.d[:, :lags], rtol=0, atol=1e-5)
    assert table.d[:, lags:].abs().sum() == expected.d[:, lags:].abs().sum() == 0


@pytest.mark.parametrize(
    ("name", "settings", "sampler"),
    [
        ("DPMSolverMultistep", {}, dpmpp_2m),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, dpmpp_2m_sde),
        ("UniPCMultistep", {"solver_order": 1}, lambda s, g: unipc(s, g, 1)),
        ("UniPCMultistep", {"solver_order": 2}, unipc),
        ("EulerAncestralDiscrete", {}, ancestral),
        ("DDPM", {"clip_sample": False}, ancestral),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_our_formulas_are_what_diffusers_does(name: str, settings: dict, sampler) -> None:
    converted = convert(getattr(diffusers, f"{name}Scheduler")(**BETAS, **settings), STEPS)
    schedule = DiscreteSchedule(diffusers.DDPMScheduler(**BETAS).alphas_cumprod)
    assert_same_rows(converted.table, sampler(schedule, grid_of(converted, schedule)))


def test_unipc_of_third_order_is_what_diffusers_does() -> None:
    # diffusers lowers the order of the last steps; away from them the rows are the same.
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, solver_order=3)
    converted = convert(scheduler, 12)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    ours = unipc(schedule, grid_of(converted, schedule), 3)
    for column in ("a", "b", "d"):
        expected = getattr(converted.table, column)[:9]
        torch.testing.assert_close(getattr(ours, column)[:9], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "settings", "path"),
    [("Heun", {}, "exploding"), ("FlowMatchHeun", {"shift": 3.0}, "straight")],
)
def test_our_heun_is_that_of_diffusers(name: str, settings: dict, path: Path) -> None:
    scheduler = getattr(diffusers, f"{name}DiscreteScheduler")(**settings)
    converted = convert(scheduler, 20)
    if path == "straight":
        schedule, times = RectifiedSchedule(), converted.sigma
    else:
        schedule = DiscreteSchedule(scheduler.alphas_cumprod)
        times = grid_of(converted, schedule)
    ours = heun(schedule, torch.cat([times[:1], times[1::2]]), path)
    assert_same_rows(converted.table, ours)


def test_the_larger_variance_is_that_of_unit_data() -> None:
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, variance_type="fixed_large")
    converted = convert(scheduler, STEPS)
    schedule = DiscreteSchedule(scheduler.alphas_cumprod)
    larger = ancestral(schedule, grid_of(converted, schedule), data_variance=1.0)
    # diffusers adds no noise in the last step.
    torch.testing.assert_close(converted.table.e[:-1], larger.e[:-1], rtol=0, atol=1e-5)
    assert converted.table.e[-1] == 0 < larger.e[-1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PNDM", {}, "out of DDIMScheduler, .*, got PNDMScheduler"),
        ("DDIM", {}, "clip_sample=True of DDIMScheduler"),
        ("DDPM", {"thresholding": True, "clip_sample": False}, "thresholding=True"),
        ("DDPM", {"variance_type": "learned", "clip_sample": False}, "variance_type='learned'"),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas=True"),
        # Its B(h) is infinite at the data: diffusers returns NaN.
        (
            "UniPCMultistep",
            {"solver_type": "bh1"},
            "step 5 of UniPCMultistepScheduler is not finite",
        ),
        # Past answers of an ε-network are made of past x.
        (
            "UniPCMultistep",
            {"predict_x0": False, "final_sigmas_type": "sigma_min"},
            "earlier x or noise",
        ),
        (
            "DPMSolverMultistep",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            "earlier x or noise",
        ),
        # The second half of a step starts again from before the noise of the first.
        (
            "DPMSolverSinglestep",
            {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
            "DPMSolverSinglestepScheduler, whose step 1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver and:FutureWarning")
def test_what_a_table_cannot_say_is_refused(name: str, settings: dict, message: str) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**settings)
    with pytest.raises(ValueError, match=message):
        convert(scheduler, 6)


@pytest.mark.parametrize("config", [{"_class_name": "Unheard"}, {"beta_start": 0.1}])
def test_a_configuration_of_no_known_class_is_refused(config: dict) -> None:
    with pytest.raises(ValueError, match=r"got Unheard|got None"):
        convert(config, 6)


def test_bad_arguments_are_refused() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    with pytest.raises(ValueError, match="takes eta, got EulerDiscreteScheduler"):
        convert(scheduler, 6, eta=0.5)
    scheduler.register_to_config(prediction_type="other")
    with pytest.raises(ValueError, match="got 'other'"):
        convert(scheduler, 6)
