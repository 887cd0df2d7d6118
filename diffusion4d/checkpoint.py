"""State of a training run, as one safetensors file written whole or not at all.

A run killed at any moment finds the last complete state. Weights, their moving average and the optimiser's moments are
tensors; the step and the network's configuration are metadata: the whitening in it was fitted to worlds that a later
start may hold more of. Random numbers need no saving: a step's batch is a function of its number.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion4d.atomic import replace_when_done
from diffusion4d.dit import TrajectoryDiT
from diffusion4d.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def _tensors(
    model: nn.Module, ema: EMAModel, optimiser: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for (name, parameter), average in zip(trained, ema.shadow_params, strict=True):
        yield f"model.{name}", parameter.data
        yield f"ema.{name}", average.data
        state = optimiser.state[parameter]
        for moment in MOMENTS:
            if moment not in state:
                state[moment] = torch.zeros_like(
                    parameter.data if moment != "step" else torch.zeros(())
                )
            yield f"{moment}.{name}", state[moment]


def save(
    path: Path,
    step: int,
    model: nn.Module,
    ema: EMAModel,
    optimiser: torch.optim.Optimizer,
    purpose: Mapping[str, str] | None = None,
) -> None:
    """Write the state after `step` steps, the configuration of a model that has one, and what it is trained for."""
    metadata = {"step": str(step), "purpose": json.dumps(purpose or {})}
    if isinstance(model, TrajectoryDiT):
        metadata["network"] = model.to_json_string()
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(model, ema, optimiser)}
    with replace_when_done(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load(path: Path, model: nn.Module, ema: EMAModel, optimiser: torch.optim.Optimizer) -> int:
    """Restore the state in place; returns the number of steps that were done.

    Raises:
        UserError: the file belongs to another network, or is damaged.
    """
    with _opened(path) as file:
        step = int(_metadata(path, file)["step"])
        wanted = dict(_tensors(model, ema, optimiser))
        if set(wanted) != set(file.keys()) or any(
            list(tensor.shape) != file.get_slice(name).get_shape()
            for name, tensor in wanted.items()
        ):
            raise UserError(f"{path} is the checkpoint of another network; choose another --out")
        for name, tensor in wanted.items():
            tensor.copy_(file.get_tensor(name))
    ema.optimization_step = step
    return step


def network(path: Path) -> TrajectoryDiT | None:
    """An untrained network with the configuration in the file; None where it holds none.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        held = _metadata(path, file).get("network")
    return None if held is None else TrajectoryDiT(**_arguments(json.loads(held)))


def purpose(path: Path) -> dict[str, str]:
    """What the run was for, as it was saved; empty where nothing was said.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(path) as file:
        return json.loads(_metadata(path, file).get("purpose", "{}"))


def digest(model: nn.Module | None) -> str:
    """A short hash of a model's weights; nothing for none."""
    if model is None:
        return ""
    state = model.state_dict()
    hashed = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        hashed.update(state[name].detach().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _metadata(path: Path, file: Any) -> dict[str, str]:
    found = file.metadata() or {}
    if "step" not in found:
        raise UserError(
            f"need the checkpoint of a training run, {path} is none; choose another --out"
        )
    return found


def _arguments(config: dict) -> dict:
    # diffusers adds the names of class and version to what it was given.
    return {name: value for name, value in config.items() if not name.startswith("_")}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); delete it to start again") from error
