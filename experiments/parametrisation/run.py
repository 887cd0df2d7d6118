r"""Does the basis a trajectory is written in matter to the denoiser that learns it?

A trajectory is the projective residual of a point as a function of clip time u,

    r(u) = ((X, Y) / Z - e(u), log Z) = sum_m phi_m(u) (mu_m + s_m x_m),

with e the evidence curve. Four bases phi, and nothing else, are compared: monomials 1 ... u^(M-1); one Bézier curve of
degree M - 1 (the same polynomials); the clamped uniform cubic B-spline with M control points; T per-frame values.
Coefficients are least squares, whitened one by one with mean mu and deviation s of the training clips; x is
diffused with white noise. Every arm is told the same curves e(u) and w(u) (the share that was seen) as samples: at the
M Greville abscissae, or at the T frames where it has T coefficients.

    .venv/bin/python experiments/parametrisation/run.py            all arms; those in results.json are skipped

Shape letters:  B clips   K samples   N points   M coefficients   T frames.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import tyro
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor

from diffusion4d import metrics, sampling, splines
from diffusion4d.atomic import replace_when_done
from diffusion4d.config import Dropout, PoolSpec
from diffusion4d.denoiser import SCHEDULE
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.evaluation.summary import ratio_with_interval
from diffusion4d.evidence import Evidence
from diffusion4d.scenes.batches import Example, draw
from diffusion4d.scenes.pool import HELD_OUT, Worlds, draw_pool, load_pool
from diffusion4d.train import seeded
from samplers.noise import SeededNoise
from samplers.predictions import from_prediction
from samplers.solve import solve

ARMS = ("monomial", "bezier", "bspline", "per-frame")
REFERENCE = "bspline"
CHOOSING = HELD_OUT + 100_000
"""Worlds from this seed on choose the learning rate; they are not scored."""
WIDEST, NEAREST, FARTHEST = 1.0, 0.05, 30.0
"""Image-plane offsets and depths are clipped to these, before they are fitted and after they are sampled."""
SUBSETS = ("all", "visible", "occluded")
SPIKE, WINDOW = 3.0, 50
"""A step is a spike when its gradient norm, or loss, is above SPIKE times the median of the WINDOW steps before it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compare four parametrisations of a trajectory with the same denoiser."""

    out: Path = Path(__file__).parent / "results.json"
    pool: Path = Path("runs/pool")
    """Folder of training worlds; those that are missing are generated."""
    held_out: Path = Path("runs/held-out-32")
    worlds: int = 2_560
    """Training worlds."""
    pool_points: int = 128
    """Points a training world has, of which `points` are drawn."""
    scored: int = 128
    """Held-out worlds that are scored."""
    choosing: int = 32
    """Held-out worlds that choose the learning rate."""
    frames: int = 32
    points: int = 32
    num_ctrl: int = 12
    width: int = 96
    depth: int = 3
    num_heads: int = 2
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    steps: int = 1_500
    warmup: int = 100
    batch: int = 16
    ema: float = 0.995
    noise_batches: int = 32
    """Batches that a gradient noise scale is estimated from."""
    sampling_steps: int = 8
    samples: int = 16
    seed: int = 0
    processes: int = 1

    def recorded(self) -> dict:
        """What the numbers depend on: no folders, no processes."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if not isinstance(v, Path) and k != "processes"}
        return json.loads(json.dumps(kept))


@dataclasses.dataclass(frozen=True)
class Clips:
    """A batch: what is to be found, and what was observed, at the frames u. `evidence` is in the B-spline basis."""

    residual: Float[Tensor, "B N T 3"]
    curve: Float[Tensor, "B N T 2"]
    evidence: Evidence
    example: Example

    @classmethod
    def of(cls, example: Example) -> "Clips":
        evidence = example.evidence
        curve = splines.basis_matrix(example.u, evidence.ctrl.shape[-2]) @ evidence.ctrl
        depth = example.points[..., 2:].clamp(NEAREST, FARTHEST)
        offset = (example.points[..., :2] / depth - curve).clamp(-WIDEST, WIDEST)
        return cls(torch.cat([offset, depth.log()], -1), curve, evidence, example)


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """Basis functions at the frames, float64, and the whitening of their coefficients."""

    matrix: Float[Tensor, "T M"]
    instants: Float[Tensor, "M"]
    mean: Float[Tensor, "M 3"]
    scale: Float[Tensor, "M 3"]

    @classmethod
    def fit(cls, name: str, num_ctrl: int, clips: Clips) -> "Basis":
        """The basis of this name, whitened on these clips."""
        u = clips.example.u.double()
        matrix = {
            "monomial": u[:, None] ** torch.arange(num_ctrl),
            "bezier": splines.basis_matrix(u, num_ctrl, degree=num_ctrl - 1),
            "bspline": splines.basis_matrix(u, num_ctrl),
            "per-frame": torch.eye(len(u), dtype=u.dtype),
        }[name]
        instants = u if name == "per-frame" else splines.greville(num_ctrl)
        coefficients = matrix.pinverse() @ clips.residual.double()
        flat = coefficients.flatten(0, 1)
        return cls(matrix, instants.float(), flat.mean(0), flat.std(0))

    def encode(self, residual: Float[Tensor, "B N T 3"]) -> Float[Tensor, "B N M 3"]:
        """Residual curves to what is diffused."""
        coefficients = self.matrix.pinverse() @ residual.double()
        return ((coefficients - self.mean) / self.scale).float()

    def decode(self, x: Float[Tensor, "*batch N M 3"], curve: Tensor) -> Tensor:
        """What was diffused to points [*batch, N, T, 3]: camera frame, scene units."""
        residual = self.matrix @ (self.mean + self.scale * x.double())
        # An arm that leaves the range of the data is brought back to it: the kindest thing for an unstable one.
        offset = residual[..., :2].nan_to_num().clamp(-WIDEST, WIDEST)
        depth = residual[..., 2:].nan_to_num().exp().clamp(NEAREST, FARTHEST)
        return torch.cat([(offset + curve) * depth, depth], -1).float()

    def evidence(self, given: Evidence) -> Evidence:
        """The evidence curves, sampled at this basis' instants."""
        sample = splines.basis_matrix(self.instants, given.ctrl.shape[-2])
        weight = (given.weight @ sample.mT).clamp(0, 1)
        return dataclasses.replace(given, ctrl=sample @ given.ctrl, weight=weight)

    def describe(self, scored: list[Clips]) -> dict[str, float]:
        """Condition, amplification of a unit error on every coefficient, and what the basis can't represent."""
        errors = []
        for clips in scored:
            answer = self.decode(self.encode(clips.residual)[0], clips.curve[0])
            errors.append((answer - clips.example.points[0]).square().sum(-1).mean())
        residual = torch.cat([c.residual.flatten(0, 1) for c in scored]).double()
        power = (self.matrix.square() @ self.scale.square()).mean(0)
        return {
            "coefficients": self.matrix.shape[1],
            "condition": float(torch.linalg.cond(self.matrix)),
            "amplification": float((power / residual.var((0, 1))).mean().sqrt()),
            "fit_rms": float(torch.stack(errors).mean().sqrt()),
        }


def velocity_loss(
    network: TrajectoryDiT, basis: Basis, clips: Clips, generator: torch.Generator
) -> Tensor:
    """v-prediction with white noise; diffusion times are the same for every basis."""
    r = basis.encode(clips.residual)[:, None]
    t = torch.rand((len(r), 1), generator=generator) ** 0.5
    noise = torch.randn(r.shape, generator=generator)
    alpha, sigma = (f(t)[..., None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    conditioning = network.condition(basis.evidence(clips.evidence))
    velocity = network(alpha * r + sigma * noise, t, conditioning)
    return (velocity - (alpha * noise - sigma * r)).square().mean()


def simple_noise_scale(gradients: Float[Tensor, "R P"], batch: int) -> float:
    r"""tr(Sigma) / |G|^2 in clips, from R gradients of a batch each (McCandlish et al. 2018, eq. 2.9).

    Neither part is biased. Where the mean drowns in the noise its unbiased square may be negative; the
    scale is then above what R batches can show, which is 10 R batches.
    """
    variance = gradients.var(0).sum()
    squared_mean = gradients.mean(0).square().sum() - variance / len(gradients)
    return float(batch * variance / squared_mean.clamp_min(variance / len(gradients) / 10))


def noise_scale(
    network: TrajectoryDiT, basis: Basis, batch_of: Callable[[int], Clips], settings: Settings
) -> float:
    """On batches that training does not use, the same for every arm."""
    gradients = []
    for index in range(settings.steps, settings.steps + settings.noise_batches):
        loss = velocity_loss(network, basis, batch_of(index), seeded(settings.seed, index, 1))
        parts = torch.autograd.grad(loss, list(network.parameters()))
        gradients.append(torch.cat([p.flatten() for p in parts]))
    return simple_noise_scale(torch.stack(gradients), settings.batch)


def spikes(values: Float[Tensor, "S"], start: int) -> float:
    """Share of steps from `start` on above SPIKE times the median of the WINDOW steps before."""
    start = max(start, WINDOW)
    if len(values) <= start:
        return 0.0
    before = values.unfold(0, WINDOW, 1)[start - WINDOW : -1].nanmedian(-1).values
    return float((~(values[start:] <= SPIKE * before)).float().mean())


def train(
    basis: Basis, rate: float, batch_of: Callable[[int], Clips], settings: Settings
) -> tuple[TrajectoryDiT, dict]:
    """One arm at one learning rate: the averaged network, and how its training went."""
    torch.manual_seed(settings.seed)
    network = TrajectoryDiT(
        num_ctrl=len(basis.instants),
        width=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        token_channels=0,
    )
    parameters = list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimiser, settings.warmup, settings.steps)
    ema = EMAModel(parameters, decay=settings.ema, use_ema_warmup=True, power=0.75)
    checkpoints = {settings.steps // 10, settings.steps // 2, settings.steps}
    losses, norms, seconds, scales = [], [], [], {}
    for step in range(settings.steps):
        clips = batch_of(step)
        # Processor time, not the clock's: the machine is shared.
        begun = time.process_time()
        loss = velocity_loss(network, basis, clips, seeded(settings.seed, step, 1))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        ema.step(parameters)
        seconds.append(time.process_time() - begun)
        losses.append(loss.detach())
        norms.append(norm.detach())
        if step + 1 in checkpoints:
            scales[step + 1] = noise_scale(network, basis, batch_of, settings)
    ema.copy_to(parameters)
    loss_S, norm_S = torch.stack(losses), torch.stack(norms)
    return network, {
        "parameters": sum(p.numel() for p in parameters),
        "milliseconds": 1000 * float(torch.tensor(seconds).median()),
        "final_loss": float(loss_S[-settings.steps // 10 :].mean()),
        "noise_scale": scales,
        "gradient_spikes": spikes(norm_S, settings.warmup),
        "loss_spikes": spikes(loss_S, settings.warmup),
        "clipped": float((norm_S > 1).float().mean()),
        "not_finite": int((~(loss_S.isfinite() & norm_S.isfinite())).sum()),
    }


@torch.no_grad()
def sample(
    network: TrajectoryDiT, basis: Basis, clips: Clips, index: int, settings: Settings
) -> Float[Tensor, "K N T 3"]:
    """Points of K samples, ancestral sampling, scaled to a median anchor depth of 1."""
    conditioning = network.condition(basis.evidence(clips.evidence))
    seeds = sampling.seeds_from(index, settings.samples)
    noise = SeededNoise(seeds, (clips.residual.shape[1], len(basis.instants), 3))

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t[None], t.expand(1, len(x_t)), conditioning).squeeze(0)

    table = sampling.table_for("ancestral", settings.sampling_steps)
    denoise = from_prediction(SCHEDULE, "v_prediction")(velocity)
    points = basis.decode(solve(table, denoise, noise.initial(), noise), clips.curve[0])
    return points / points[:, :, 0, 2].median(-1).values[:, None, None, None]


def jitter(points: Float[Tensor, "*batch T 3"]) -> float:
    """Root mean square third difference over frames."""
    return float(points.diff(n=3, dim=-2).square().sum(-1).mean().sqrt())


def score(
    network: TrajectoryDiT, basis: Basis, scenes: list[Clips], settings: Settings
) -> dict[str, list]:
    """Of every scene: energy score by subset (None where it has no such point), rms of the mean, jitters."""
    rows: dict[str, list] = {name: [] for name in (*SUBSETS, "rms", "jitter", "true_jitter")}
    for index, clips in enumerate(scenes):
        truth, visible = clips.example.points[0], clips.example.visible[0]
        points = sample(network, basis, clips, index, settings)
        masks = {"all": torch.ones_like(visible), "visible": visible, "occluded": ~visible}
        for name, mask in masks.items():
            value = float(metrics.energy_score(points, truth, mask)) if mask.any() else None
            rows[name].append(value if value is None else round(value, 5))
        rows["rms"].append(round(float(metrics.rms_error(points.mean(0), truth, masks["all"])), 5))
        rows["jitter"].append(round(jitter(points), 6))
        rows["true_jitter"].append(round(jitter(truth), 6))
    return rows


def mean(values: list[float | None]) -> float:
    """Over the scenes that have one."""
    held = [v for v in values if v is not None]
    return sum(held) / len(held)


def summarise(results: dict) -> dict[str, dict]:
    """Each arm's scores, and their ratios to the reference's, at its better learning rate.

    The rate is chosen on scenes that are not scored, among the rates that every arm has been run at: an arm with more
    tries than the others would have an advantage.
    """
    runs: dict[str, list[dict]] = {}
    for run in results["runs"].values():
        runs.setdefault(run["arm"], []).append(run)
    common = set.intersection(*({run["learning_rate"] for run in held} for held in runs.values()))
    best = {
        arm: min(
            (run for run in held if run["learning_rate"] in common),
            key=lambda run: run["choosing_score"],
        )
        for arm, held in runs.items()
    }
    summary = {}
    for arm, run in best.items():
        row = {"learning_rate": run["learning_rate"]}
        for subset in SUBSETS:
            ours, theirs = (r["scores"][subset] for r in (run, best.get(REFERENCE, run)))
            held = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
            row[subset] = mean(ours)
            row[f"{subset}_ratio"] = ratio_with_interval(*map(list, zip(*held, strict=True)))
        row["rms"] = mean(run["scores"]["rms"])
        sampled, true = (torch.tensor(run["scores"][key]) for key in ("jitter", "true_jitter"))
        row["jitter"] = float((sampled.square().mean() / true.square().mean()).sqrt())
        summary[arm] = row
    return summary


def write(results: dict, path: Path) -> None:
    """Whole or not at all; a list of numbers is one line."""
    text = json.dumps(results, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_done(path) as temporary:
        temporary.write_text(text + "\n")


def held_out(settings: Settings, first_seed: int, count: int) -> list[Clips]:
    """Held-out worlds through a tracker, one by one; the focal length is withheld in three of ten."""
    spec = PoolSpec(count, settings.points, settings.frames, first_seed)
    worlds = load_pool(draw_pool(settings.held_out, spec, processes=settings.processes))
    return [batch(worlds, torch.tensor([i]), seeded(1, i), settings) for i in range(count)]


def batch(worlds: Worlds, chosen: Tensor, generator: torch.Generator, settings: Settings) -> Clips:
    """Chosen worlds as clips of the full length: time is not cropped, since per-frame values need a fixed T."""
    example = draw(
        worlds.take(chosen),
        generator,
        num_ctrl=settings.num_ctrl,
        num_points=settings.points,
        dropout=Dropout(tracks=0.0, focal=0.3),
        augment=False,
    )
    return Clips.of(example)


def pending(results: dict, settings: Settings) -> Iterator[tuple[str, str, float]]:
    """(name, arm, learning rate) of the runs that have no result yet; every arm once before any arm twice."""
    for rate in settings.learning_rates:
        for arm in ARMS:
            name = f"{arm} {rate:g}"
            if name not in results["runs"]:
                yield name, arm, rate


def main(settings: Settings) -> dict:
    """Run what is missing; results.json is replaced after every run.

    Raises:
        ValueError: results.json was made with other settings.
    """
    results: dict = {"settings": settings.recorded(), "bases": {}, "runs": {}, "summary": {}}
    if settings.out.exists():
        results = json.loads(settings.out.read_text())
        if results["settings"] != settings.recorded():
            raise ValueError(f"need the settings of {settings.out}, or another --out")
    spec = PoolSpec(settings.worlds, settings.pool_points, settings.frames)
    worlds = load_pool(draw_pool(settings.pool, spec, processes=settings.processes))
    scored = held_out(settings, HELD_OUT, settings.scored)
    choosing = held_out(settings, CHOOSING, settings.choosing)
    drawn: dict[int, Clips] = {}

    def batch_of(step: int) -> Clips:
        if step not in drawn:
            generator = seeded(settings.seed, step)
            chosen = torch.randint(len(worlds), (settings.batch,), generator=generator)
            drawn[step] = batch(worlds, chosen, generator, settings)
        return drawn[step]

    first = torch.arange(min(512, len(worlds)))
    calibration = batch(worlds, first, seeded(settings.seed, -1), settings)
    for name, arm, rate in pending(results, settings):
        basis = Basis.fit(arm, settings.num_ctrl, calibration)
        results["bases"].setdefault(arm, basis.describe(scored))
        network, training = train(basis, rate, batch_of, settings)
        shown = sample(network, basis, scored[0], 0, settings)[:8, 0, :, 2]
        results["runs"][name] = {
            "arm": arm,
            "learning_rate": rate,
            "choosing_score": mean(score(network, basis, choosing, settings)["all"]),
            "training": training,
            "scores": score(network, basis, scored, settings),
            "depths": [[round(z, 4) for z in row] for row in shown.tolist()],
        }
        results["truth"] = [round(z, 4) for z in scored[0].example.points[0, 0, :, 2].tolist()]
        results["summary"] = summarise(results)
        write(results, settings.out)
        print(name, json.dumps({**training, **results["summary"][arm]}), flush=True)
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings))
