"""``config.json`` of an InternVL checkpoint in its authors' layout (``internvl_chat``), to transformers' and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError
from transformers import AutoConfig, InternVLConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from services.mllm.original_layout import FusedHeads
from services.mllm.prompt_format import PromptFormat, TemplateName
from services.runtime.weights import WeightsError

MODEL_TYPE = "internvl_chat"
# Beside a converted ``config.json``: what the original said, since transformers' has no place for all of it.
ORIGINAL_CONFIG_FILE = "original_config.json"

# The classes of transformers that carry the language models of the family.
_LANGUAGE_CLASSES = {
    "LlamaForCausalLM": "llama",
    "InternLM2ForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# What they are described by; the rest of an original ``llm_config`` is about generation or empty.
_LANGUAGE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class OriginalVision(BaseModel):
    """The vision transformer; ``model_type`` is ``intern_vit_6b`` in all sizes."""

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    image_size: PositiveInt
    patch_size: PositiveInt
    qkv_bias: bool
    qk_normalization: bool
    norm_type: Literal["layer_norm", "rms_norm"] = "rms_norm"
    layer_norm_eps: PositiveFloat = 1e-6
    hidden_act: str = "gelu"
    initializer_factor: float = 0.1
    initializer_range: float = 0.02

    def native(self) -> InternVLVisionConfig:
        """As transformers says it."""
        return InternVLVisionConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            image_size=(self.image_size, self.image_size),
            patch_size=(self.patch_size, self.patch_size),
            attention_bias=self.qkv_bias,
            use_qk_norm=self.qk_normalization,
            norm_type=self.norm_type,
            layer_norm_eps=self.layer_norm_eps,
            hidden_act=self.hidden_act,
            layer_scale_init_value=self.initializer_factor,
            initializer_range=self.initializer_range,
            use_mean_pooling=True,
        )


class OriginalConfig(BaseModel):
    """The whole model; absent keys mean what the authors' code takes them to mean."""

    vision_config: OriginalVision
    llm_config: dict[str, Any]
    template: TemplateName
    system_message: str | None = None
    ps_version: Literal["v1", "v2"] = "v1"
    select_layer: int = -1
    downsample_ratio: PositiveFloat = 0.5
    force_image_size: PositiveInt | None = None
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    min_dynamic_patch: PositiveInt = 1
    max_dynamic_patch: PositiveInt = 6
    pad2square: bool = False
    use_backbone_lora: int = 0
    use_llm_lora: int = 0

    @property
    def architecture(self) -> str:
        """The class of the language model."""
        return str((self.llm_config.get("architectures") or ["none"])[0])

    @property
    def fused_heads(self) -> FusedHeads | None:
        """How q, k and v of the language model are fused, where they are."""
        if self.architecture != "InternLM2ForCausalLM":
            return None
        heads = self.llm_config["num_attention_heads"]
        return FusedHeads(heads, self.llm_config.get("num_key_value_heads") or heads)

    def native(self, image_token_id: int) -> InternVLConfig:
        """As transformers says it. Raises WeightsError for a language model that its classes do not carry."""
        vision = self.vision_config
        return InternVLConfig(
            vision_config=vision.native(),
            text_config=self._language(),
            image_token_id=image_token_id,
            image_seq_length=int((vision.image_size // vision.patch_size * self.downsample_ratio) ** 2),
            downsample_ratio=self.downsample_ratio,
            vision_feature_layer=self.select_layer,
            # The library's default is to tie; the authors never do.
            tie_word_embeddings=False,
        )

    def _language(self) -> Any:
        if self.architecture not in _LANGUAGE_CLASSES:
            known = ", ".join(_LANGUAGE_CLASSES)
            raise WeightsError(f"Language models of class {self.architecture} are not supported, only {known}.")
        given = self.llm_config
        fields: dict[str, Any] = {key: given[key] for key in _LANGUAGE_KEYS if given.get(key) is not None}
        # Else the library's defaults would come in, which belong to other vocabularies.
        fields |= {key: given.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if self.architecture == "InternLM2ForCausalLM":
            fields["attention_bias"] = given.get("bias", False)
        window = given.get("sliding_window")
        slides = window is not None and given.get("use_sliding_window", self.architecture == "Phi3ForCausalLM")
        # A window that no context outgrows is none.
        if slides and window < given["max_position_embeddings"]:
            raise WeightsError(f"llm_config.sliding_window is {window}; only full attention is supported.")
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": given.get("rope_theta", 10_000.0)}
        if given.get("rope_scaling"):
            scaling = dict(given["rope_scaling"])
            rope |= scaling | {"rope_type": scaling.pop("rope_type", None) or scaling["type"]}
            # Phi-3 of the authors' days calls it by another name, and keeps its old length beside it.
            if rope["rope_type"] in ("su", "longrope"):
                rope |= {"rope_type": "longrope", "type": "longrope"}
                rope.setdefault("original_max_position_embeddings", given["original_max_position_embeddings"])
        return AutoConfig.for_model(
            _LANGUAGE_CLASSES[self.architecture], rope_parameters=rope, tie_word_embeddings=False, **fields
        )


def read_original_config(path: Path) -> OriginalConfig:
    """The original configuration in ``path``. Raises WeightsError that names the key at fault."""
    try:
        config = OriginalConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path}: is not a readable JSON file ({error}).") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        )
        raise WeightsError(f"{path}: is not the configuration of a supported InternVL ({problems}).") from error
    vision = config.vision_config
    refusals = {
        "use_backbone_lora and use_llm_lora: merge the adapters into the weights and set both to 0": (
            config.use_backbone_lora or config.use_llm_lora
        ),
        "pad2square: padded images are not supported": config.pad2square,
        "use_thumbnail: images in tiles need their thumbnail": config.dynamic_image_size and not config.use_thumbnail,
        "min_dynamic_patch: only 1 is supported": config.dynamic_image_size and config.min_dynamic_patch > 1,
        "force_image_size: differs from vision_config.image_size": config.force_image_size
        not in (None, vision.image_size),
    }
    found = [text for text, applies in refusals.items() if applies]
    if found:
        raise WeightsError(f"{path}: {'; '.join(found)}.")
    return config


def original_of(native: InternVLConfig, prompt: PromptFormat) -> dict[str, Any]:
    """An original configuration that says what ``native`` and ``prompt`` do.

    Raises WeightsError for a language model that the authors' code has no class for.
    """
    vision: Any = native.vision_config
    text: Any = native.text_config
    classes = {name: own for own, name in _LANGUAGE_CLASSES.items() if own != "InternLM2ForCausalLM"}
    if text.model_type not in classes:
        raise WeightsError(f"The original layout has no place for a language model of type {text.model_type}.")
    if native.tie_word_embeddings:
        raise WeightsError("The original layout has no place for tied word embeddings.")
    rope = dict(text.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    language = {key: getattr(text, key) for key in _LANGUAGE_KEYS if hasattr(text, key)}
    language |= {
        "architectures": [classes[text.model_type]],
        "model_type": text.model_type,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {**rope, "type": kind},
        "tie_word_embeddings": False,
    }
    if "original_max_position_embeddings" in rope:
        language["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": MODEL_TYPE,
        "template": prompt.template,
        "system_message": prompt.system_message,
        "force_image_size": vision.image_size[0],
        "downsample_ratio": native.downsample_ratio,
        "ps_version": "v2",
        "select_layer": native.vision_feature_layer,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": False,
        "llm_config": language,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size,
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "qkv_bias": vision.attention_bias,
            "qk_normalization": vision.use_qk_norm,
            "norm_type": vision.norm_type,
            "layer_norm_eps": vision.layer_norm_eps,
            "hidden_act": vision.hidden_act,
            "initializer_factor": vision.layer_scale_init_value,
            "initializer_range": vision.initializer_range,
            "drop_path_rate": 0.0,
        },
    }
