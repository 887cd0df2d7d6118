"""The objective of a configuration: what a network is trained to say, and the frozen networks it learns with.

A sampler may stand on a regressor, and one of few steps may learn from a teacher, a sampler of more. Neither is
trained, so neither is in a run's checkpoint: a run that goes on reads them where it read them at first.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from diffusion4d import denoiser, objectives, sampling
from diffusion4d.config import Train
from diffusion4d.dit import Output, TrajectoryDiT
from diffusion4d.errors import UserError
from diffusion4d.scenes.batches import Example

DISTILLED = ("progressive", "consistency")
FEW_STEPS = ("energy", *DISTILLED)
"""Objectives of samplers that take the number of steps they were trained for."""


def output_of(config: Train) -> Output:
    """What a network with this objective says."""
    match config.objective:
        case "energy" | "progressive" | "consistency":
            return "velocity"
        case "median":
            return "mean"
    return config.objective


def few_steps_of(config: Train) -> dict:
    """What a checkpoint says of the steps its network was trained for."""
    return {
        "trained_steps": config.solver_steps[-1] if config.objective in FEW_STEPS else None,
        "trained_sampler": "renoised" if config.objective == "consistency" else "angular",
    }


class Objective(nn.Module):
    """The configured loss as a module, so that accelerate may distribute it."""

    def __init__(
        self,
        config: Train,
        network: TrajectoryDiT,
        regressor: TrajectoryDiT | None,
        teacher: TrajectoryDiT | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        # Hidden from the module tree: what is frozen is neither trained nor distributed.
        self.frozen = (regressor, teacher)

    def forward(self, example: Example, generator: torch.Generator) -> torch.Tensor:
        network, evidence = self.network, example.evidence
        x = denoiser.coordinates_of(network).encode(example.ctrl, evidence)
        match self.config.objective:
            case "mean":
                return objectives.mean_loss(network, evidence, x)
            case "median":
                return objectives.median_loss(network, evidence, x)
            case "gaussian":
                return objectives.gaussian_loss(network, evidence, x)
            case "energy":
                regressor, _ = self.frozen
                choices = self.config.solver_steps
                drawn = int(torch.randint(len(choices), (), generator=generator))
                return objectives.energy_loss(
                    denoiser.prepare(network, evidence, regressor),
                    example,
                    generator,
                    table=sampling.table_for("angular", choices[drawn]),
                    num_samples=self.config.solver_samples,
                )
            case "progressive" | "consistency":
                return self._distilled(example, generator)
            case "velocity":
                regressor, _ = self.frozen
                with torch.no_grad():
                    anchor = None if regressor is None else denoiser.regress(regressor, evidence)
                power = self.config.noisy_power
                return objectives.velocity_loss(
                    network, evidence, x, generator, anchor=anchor, noisy_power=power
                )

    def _distilled(self, example: Example, generator: torch.Generator) -> torch.Tensor:
        config, (regressor, teacher) = self.config, self.frozen
        assert teacher is not None
        student = denoiser.prepare(self.network, example.evidence, regressor)
        with torch.no_grad():
            taught = denoiser.prepare(teacher, example.evidence, regressor)
        if config.objective == "progressive":
            return objectives.progressive_loss(
                student, taught, example, generator, num_steps=config.solver_steps[-1]
            )
        return objectives.consistency_loss(
            student,
            taught,
            example,
            generator,
            num_intervals=config.intervals,
            noisy_power=config.noisy_power,
        )


def read_network(folder: Path) -> TrajectoryDiT:
    """A finished network.

    Raises:
        UserError: there is none in the folder, or it is damaged.
    """
    try:
        return TrajectoryDiT.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"need a finished model in {folder}: {error}") from error


def load_regressor(config: Train) -> TrajectoryDiT | None:
    """The frozen regressor a sampler stands on, if one was asked for.

    Raises:
        UserError: it is given for another objective, or is no "gaussian" network.
    """
    if config.regressor is None:
        return None
    if output_of(config) != "velocity":
        raise UserError(
            f"--regressor goes with --objective velocity, {', '.join(FEW_STEPS)}, got {config.objective}"
        )
    regressor = read_network(config.regressor)
    if regressor.config["output"] != "gaussian":
        raise UserError(
            f'need a "gaussian" regressor, {config.regressor} is a {regressor.config["output"]!r} network'
        )
    return regressor.requires_grad_(False).eval()


def load_teacher(config: Train, regressor: TrajectoryDiT | None) -> TrajectoryDiT | None:
    """The frozen sampler that a few-step one learns from, if the objective has one.

    Raises:
        UserError: it is missing, not wanted, or no sampler of the kind and number of steps that can be learnt from.
    """
    if config.teacher is None:
        if config.objective in DISTILLED:
            raise UserError(f"--objective {config.objective} needs a --teacher, got none")
        return None
    if config.objective not in DISTILLED:
        raise UserError(
            f"--teacher goes with --objective {' or '.join(DISTILLED)}, got {config.objective}"
        )
    if config.start_from is not None:
        raise UserError("a network that has a --teacher starts from it: leave out --start-from")
    teacher = read_network(config.teacher)
    told = teacher.config
    if (told["output"], told["path"]) != ("velocity", "cosine"):
        raise UserError(
            f"need a teacher that says velocities on the cosine path, {config.teacher} says "
            f"{told['output']!r} on the {told['path']} path"
        )
    if told["anchored"] != (regressor is not None):
        raise UserError(
            f"the teacher stands on a regressor: {told['anchored']}, got a regressor: {regressor is not None}"
        )
    if config.objective == "progressive" and len(config.solver_steps) != 1:
        raise UserError(
            f"--objective progressive is for one number of --solver-steps, got {config.solver_steps}"
        )
    known = (None, 2 * config.solver_steps[-1]) if config.objective == "progressive" else (None,)
    if told["trained_steps"] not in known or told["trained_sampler"] != "angular":
        wanted = " or ".join(
            "a velocity network" if n is None else f"one of {n} steps" for n in known
        )
        raise UserError(
            f"need {wanted} as a teacher, {config.teacher} takes {told['trained_steps']} steps "
            f"({told['trained_sampler']})"
        )
    return teacher.requires_grad_(False).eval()
