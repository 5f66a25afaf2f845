"""Checkpoints from which a run continues exactly: safetensors and JSON, nothing pickled.

A checkpoint is a folder ``step_00001234`` with ``model.safetensors``, ``optimiser.safetensors`` (moments and random
states) and ``state.json``. It is written beside its final name and renamed, so a killed run leaves no half checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class CheckpointError(Exception):
    """A checkpoint cannot be read or belongs to another recipe."""


def save_checkpoint(
    folder: Path, step: int, recipe_digest: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> Path:
    """Write a checkpoint of ``step`` finished steps and drop all but the two newest."""
    target = folder / f"step_{step:08d}"
    partial = folder / f".partial_{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_unshared(model.state_dict()), partial / "model.safetensors")
    tensors: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.contiguous()
    save_file(tensors, partial / "optimiser.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, "recipe": recipe_digest}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in sorted(folder.glob("step_*"))[:-2]:
        shutil.rmtree(old)
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, if there is any."""
    return max(folder.glob("step_*"), default=None)


def load_checkpoint(checkpoint: Path, recipe_digest: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Restore model, optimiser and random states; returns the number of finished steps.

    Raises CheckpointError when the recipe has changed since.
    """
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["recipe"] != recipe_digest:
        raise CheckpointError(
            f"{checkpoint} was written by a different recipe. "
            "Give the changed recipe another name, or remove the folder."
        )
    saved = load_file(checkpoint / "model.safetensors")
    model.load_state_dict({name: saved[source] for name, source in _sources(model).items()})
    tensors = load_file(checkpoint / "optimiser.safetensors")
    torch.set_rng_state(tensors.pop("random.cpu"))
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors.pop("random.cuda"))
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        parameter = parameters[name]
        optimiser.state[parameter][kind] = value.to(parameter.device) if value.dim() else value
    return int(state["step"])


def _sources(model: nn.Module) -> dict[str, str]:
    """Each state name to the first name that shares its memory."""
    first: dict[tuple[int, torch.Size], str] = {}
    sources = {}
    for name, tensor in model.state_dict().items():
        sources[name] = first.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
    return sources


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    first: dict[tuple[int, torch.Size], str] = {}
    return {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if not tensor.numel() or first.setdefault((tensor.data_ptr(), tensor.shape), name) == name
    }
