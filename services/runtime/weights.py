"""Weights on disk: a folder with ``config.json`` and ``model*.safetensors``. Nothing is ever unpickled or executed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import nn

from superlink.configuration import ConfigurationError, Section

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Large models come in several files: ``model-00001-of-00003.safetensors``.
WEIGHTS_PATTERN = "model*.safetensors"

# How many names an error lists before it only counts.
_LISTED = 5

Config = TypeVar("Config", bound=Section)


class WeightsError(ConfigurationError):
    """Weights are missing or do not fit the model. The text says what is wrong and how to get them."""


def read_config(folder: Path, model: type[Config]) -> Config:
    """``config.json`` in ``folder`` as ``model``. Raises WeightsError naming the folder, file or key at fault."""
    path = _existing_file(folder, CONFIG_FILE)
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path}: is not valid JSON ({error}).{_remedy(folder)}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        )
        raise WeightsError(f"{path}: does not fit this release ({problems}).{_remedy(folder)}") from error


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fill ``module`` from ``model*.safetensors`` in ``folder``, each tensor in the dtype and device it has there.

    Other safetensors in the folder are somebody else's: an optimiser's state, parts that only training needs. Tied
    parameters may be stored once. Raises WeightsError when a file is missing or damaged, when a tensor is missing,
    unknown, of another shape, or not finite.
    """
    paths = sorted(folder.glob(WEIGHTS_PATTERN)) or [_existing_file(folder, WEIGHTS_FILE)]
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        state.update(_read_tensors(path, folder))
    wanted = module.state_dict()
    problems = [
        *_problem("missing", _untied_missing(wanted, state)),
        *_problem("unknown", sorted(state.keys() - wanted.keys())),
        *_problem(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
                for name in sorted(state.keys() & wanted.keys())
                if state[name].shape != wanted[name].shape
            ],
        ),
    ]
    if problems:
        raise WeightsError(f"{folder}: the weights do not fit the model: {'; '.join(problems)}.{_remedy(folder)}")
    damaged = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if damaged:
        raise WeightsError(f"{folder}: {'; '.join(_problem('not finite', damaged))}.{_remedy(folder)}")
    module.load_state_dict(state, strict=False)


def save_weights(module: nn.Module, folder: Path, config: Section) -> None:
    """Write ``module`` and ``config`` to ``folder`` so that ``load_weights`` and ``read_config`` read them back.

    Each file is written beside its place and then moved, so that a reader never meets half of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, text = folder / f".{WEIGHTS_FILE}", folder / f".{CONFIG_FILE}"
    save_model(module, str(weights))
    text.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    # Written readable by its owner alone, which a container under another user could not load.
    weights.chmod(0o644)
    weights.replace(folder / WEIGHTS_FILE)
    text.replace(folder / CONFIG_FILE)


def _read_tensors(path: Path, folder: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is not a readable safetensors file ({error}).{_remedy(folder)}") from error


def _existing_file(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: there is no such folder of weights.{_remedy(folder)}")
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.{_remedy(folder)}")
    return path


def _remedy(folder: Path) -> str:
    return (
        f" The repository ships weights/tiny; `git checkout -- {folder}` restores it, `superlink train` makes new "
        "weights, and `superlink doctor` checks them."
    )


def _untied_missing(wanted: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> list[str]:
    """Names that ``state`` lacks and that do not share memory with one that it has."""
    filled = {wanted[name].data_ptr() for name in state.keys() & wanted.keys()}
    return sorted(
        name
        for name in wanted.keys() - state.keys()
        if wanted[name].numel() == 0 or wanted[name].data_ptr() not in filled
    )


def _problem(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    noun = "tensor" if len(names) == 1 else "tensors"
    return [f"{len(names)} {noun} {what} ({', '.join(names[:_LISTED])}{more})"]
