"""Public InternVL checkpoints, in the layout of transformers (``*-hf``) or in their authors'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from services.mllm.original_config import (
    MODEL_TYPE,
    ORIGINAL_CONFIG_FILE,
    OriginalConfig,
    read_original_config,
)
from services.mllm.original_layout import FusedHeads, to_native
from services.mllm.prompt_format import PromptFormat
from services.mllm.tokenizer import IMAGE_CONTEXT
from services.mllm.tokenizer_files import bos_token, read_tokenizer
from services.runtime.weights import CONFIG_FILE, WEIGHTS_PATTERN, WeightsError

NATIVE_MODEL_TYPE = "internvl"
# How many names an error lists before it only counts.
_LISTED = 5


@dataclass(frozen=True)
class PublicCheckpoint:
    """What a folder says, but for its weights."""

    folder: Path
    layout: Literal["native", "original"]
    # The configuration of transformers' classes.
    internvl: InternVLConfig
    tokenizer: Tokenizer
    prompt: PromptFormat
    # What the authors' configuration says, where the folder has it, and how.
    original: OriginalConfig | None = None
    original_fields: dict[str, Any] | None = None

    @property
    def pixel_unshuffle(self) -> Literal["v1", "v2"]:
        """The version of pixel unshuffle that it was trained with."""
        return "v2" if self.original is None else self.original.ps_version

    @property
    def max_tiles(self) -> int | None:
        """1 where it never saw an image in several tiles."""
        return None if self.original is None or self.original.dynamic_image_size else 1

    @property
    def fused_heads(self) -> FusedHeads | None:
        """How the authors fuse q, k and v of its language model, where they do."""
        return None if self.original is None else self.original.fused_heads

    def native_state(self) -> dict[str, Tensor]:
        """Its tensors by transformers' names, each in the dtype of the file. Raises WeightsError."""
        state = read_state(self.folder)
        if self.layout == "original":
            state = to_native(state, self.fused_heads)
        check_fit(self.folder, state, self.internvl)
        return state

    def load(self) -> InternVLForConditionalGeneration:
        """The model with its weights, in float32. Raises WeightsError."""
        # What it returns depends on a flag, which its types do not know.
        load: Any = InternVLForConditionalGeneration.from_pretrained
        model: InternVLForConditionalGeneration
        if self.layout == "original":
            model = load(None, config=self.internvl, state_dict=self.native_state(), dtype=torch.float32)
            return model
        try:
            model, report = load(
                self.folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{self.folder} is not an InternVL checkpoint with safetensors: {error}") from error
        _refuse_misfits(self.folder, set(report["missing_keys"]), set(report["unexpected_keys"]), [])
        return model


def is_public(folder: Path) -> bool:
    """Whether ``folder`` holds a public InternVL checkpoint, in either layout."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in (NATIVE_MODEL_TYPE, MODEL_TYPE)


def read_public(folder: Path) -> PublicCheckpoint:
    """The checkpoint in ``folder``. Raises WeightsError when it is none or needs what is not supported."""
    tokenizer = read_tokenizer(folder)
    if not is_public(folder):
        raise WeightsError(f"{folder} is not an InternVL checkpoint: no {CONFIG_FILE} says so.")
    fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if fields["model_type"] == MODEL_TYPE:
        original = read_original_config(folder / CONFIG_FILE)
        image_token_id = tokenizer.token_to_id(IMAGE_CONTEXT)
        if image_token_id is None:
            raise WeightsError(f"{folder}: its tokenizer lacks {IMAGE_CONTEXT}.")
        prompt = _prompt_of(folder, tokenizer, original)
        return PublicCheckpoint(
            folder, "original", original.native(image_token_id), tokenizer, prompt, original, fields
        )
    native = InternVLConfig.from_dict(fields)
    if (folder / ORIGINAL_CONFIG_FILE).is_file():
        original = read_original_config(folder / ORIGINAL_CONFIG_FILE)
        fields = json.loads((folder / ORIGINAL_CONFIG_FILE).read_text(encoding="utf-8"))
        return PublicCheckpoint(
            folder, "native", native, tokenizer, _prompt_of(folder, tokenizer, original), original, fields
        )
    return PublicCheckpoint(folder, "native", native, tokenizer, PromptFormat(grounds_in_text=True))


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``folder``. Raises WeightsError where there are none, or a file is damaged."""
    paths = sorted(folder.glob(WEIGHTS_PATTERN))
    if not paths:
        raise WeightsError(f"{folder}: there are no {WEIGHTS_PATTERN}. Weights in *.bin files are never opened.")
    state: dict[str, Tensor] = {}
    for path in paths:
        try:
            state.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: is not a readable safetensors file ({error}).") from error
    return state


def check_fit(folder: Path, state: Mapping[str, Tensor], config: InternVLConfig) -> None:
    """Raises WeightsError when tensors by transformers' names are missing, unknown, or of another shape."""
    with torch.device("meta"):
        wanted = InternVLForConditionalGeneration(config).state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(state.keys() & wanted.keys())
        if state[name].shape != wanted[name].shape
    ]
    _refuse_misfits(folder, wanted.keys() - state.keys(), state.keys() - wanted.keys(), shapes)


def _refuse_misfits(folder: Path, missing: set[str], unknown: set[str], of_another_shape: list[str]) -> None:
    named = {"missing": sorted(missing), "unknown": sorted(unknown), "of another shape": of_another_shape}
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''})"
        for what, names in named.items()
        if names
    ]
    if problems:
        raise WeightsError(f"{folder}: the tensors do not fit its {CONFIG_FILE}: {'; '.join(problems)}.")


def _prompt_of(folder: Path, tokenizer: Tokenizer, original: OriginalConfig) -> PromptFormat:
    prompt = PromptFormat(template=original.template, bos_token=bos_token(folder, tokenizer), grounds_in_text=True)
    said = original.system_message
    return prompt.model_copy(update={"system_message": prompt.shape.default_system_message if said is None else said})
