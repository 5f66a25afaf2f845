"""Vision towers on disk: InternViT alone or as a part of an MLLM, in every layout that we know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.mllm.model import Mllm, begin_internvit
from services.mllm.original_config import MODEL_TYPE, OriginalVision, read_original_config
from services.mllm.original_layout import to_native
from services.mllm.public_checkpoint import NATIVE_MODEL_TYPE
from services.runtime.weights import CONFIG_FILE, WEIGHTS_PATTERN, WeightsError, load_weights, read_config
from services.trainer.distillation.plan import TowerConfig

_ORIGINAL_TOWER = "intern_vit_6b"
_NATIVE_TOWER = "internvl_vision"
# Where the tower's tensors begin, in transformers' layout and in older checkpoints of it.
_NATIVE_PREFIXES = ("model.vision_tower.", "vision_tower.")
_ORIGINAL_PREFIX = "vision_model."


def read_tower(folder: Path) -> InternVLVisionModel:
    """The tower in ``folder``, in float32 and evaluation mode.

    ``folder`` holds an export of ``superlink train`` (an MLLM or a distilled tower), a public InternVL checkpoint, of
    which nothing but the tower is read, or a public InternViT; the last two in either layout. Raises WeightsError.
    """
    fields = read_fields(folder)
    kind = fields.get("model_type")
    if kind in (MODEL_TYPE, _ORIGINAL_TOWER):
        return _original(folder, fields)
    if kind in (NATIVE_MODEL_TYPE, _NATIVE_TOWER):
        return _native(folder, fields)
    if kind is not None:
        raise WeightsError(f"{folder}: a model of type {kind!r} is no InternViT and has none.")
    if fields.keys() == TowerConfig.model_fields.keys():
        config = read_config(folder, TowerConfig)
        tower = InternVLVisionModel(config.vision.library_config(config.tile_size))
        begin_internvit(tower, config.vision)
        load_weights(tower, folder)
        return _evaluating(tower)
    return internvit_of(Mllm.load(folder)[0], folder)


def internvit_of(mllm: Mllm, folder: Path) -> InternVLVisionModel:
    """The vision tower of an MLLM. Raises WeightsError where that is of another kind."""
    tower: nn.Module = mllm.internvl.model.vision_tower
    if not isinstance(tower, InternVLVisionModel):
        raise WeightsError(f"{folder}: its vision tower is no InternViT.")
    return tower


def read_fields(folder: Path) -> dict[str, Any]:
    """``config.json`` as it is. Raises WeightsError."""
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{folder / CONFIG_FILE}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise WeightsError(f"{folder / CONFIG_FILE}: is not valid JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise WeightsError(f"{folder / CONFIG_FILE}: is no object.")
    return fields


def read_tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors whose names begin with one of ``prefixes``, without it; others are not read. Raises WeightsError."""
    state: dict[str, Tensor] = {}
    paths = sorted(folder.glob(WEIGHTS_PATTERN))
    if not paths:
        raise WeightsError(f"{folder}: there are no {WEIGHTS_PATTERN}. Weights in *.bin files are never opened.")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
                    if prefix is not None:
                        state[name.removeprefix(prefix)] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: is not a readable safetensors file ({error}).") from error
    return state


def fill(tower: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Give ``tower`` all its tensors. Raises WeightsError for missing, unknown and misshapen ones, naming them."""
    try:
        tower.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: the tensors do not fit the vision tower: {error}") from error


def _original(folder: Path, fields: dict[str, Any]) -> InternVLVisionModel:
    is_whole = fields["model_type"] == MODEL_TYPE
    if is_whole:
        config = read_original_config(folder / CONFIG_FILE).vision_config.native()
    else:
        try:
            config = OriginalVision.model_validate(fields).native()
        except ValidationError as error:
            keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise WeightsError(f"{folder / CONFIG_FILE}: is not the configuration of an InternViT ({keys}).") from error
    state = read_tensors(folder, (_ORIGINAL_PREFIX,) if is_whole else ("",))
    native = to_native({f"{_ORIGINAL_PREFIX}{name}": tensor for name, tensor in state.items()}, None)
    return _filled(config, {name.removeprefix(_NATIVE_PREFIXES[0]): each for name, each in native.items()}, folder)


def _native(folder: Path, fields: dict[str, Any]) -> InternVLVisionModel:
    is_whole = fields["model_type"] == NATIVE_MODEL_TYPE
    config = InternVLVisionConfig.from_dict(fields["vision_config"] if is_whole else fields)
    return _filled(config, read_tensors(folder, _NATIVE_PREFIXES if is_whole else ("",)), folder)


def _filled(config: InternVLVisionConfig, state: dict[str, Tensor], folder: Path) -> InternVLVisionModel:
    # Without memory of its own: the tensors of the file become its parameters, a 6B's 22 GB once.
    with torch.device("meta"):
        tower = InternVLVisionModel(config)
    try:
        tower.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: the tensors do not fit its {CONFIG_FILE}: {error}") from error
    return _evaluating(tower)


def _evaluating(tower: InternVLVisionModel) -> InternVLVisionModel:
    # The library's own ``eval`` has no types.
    nn.Module.eval(tower)
    return tower
