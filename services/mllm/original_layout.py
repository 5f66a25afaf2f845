"""The tensors of an InternVL checkpoint in its authors' layout and in transformers'; both ways, exactly.

The authors fuse q, k and v of the vision transformer and, in InternLM2, those of the language model; everything else is
a matter of names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TOWER = "model.vision_tower."
_PROJECTOR = "model.multi_modal_projector."

# Pairs of prefixes: of the original, of transformers.
_OUTER_NAMES = (
    ("vision_model.embeddings.class_embedding", f"{_TOWER}embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", f"{_TOWER}embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", f"{_TOWER}embeddings.patch_embeddings.projection."),
    ("vision_model.encoder.layers.", f"{_TOWER}encoder.layer."),
    ("mlp1.0.", f"{_PROJECTOR}layer_norm."),
    ("mlp1.1.", f"{_PROJECTOR}linear_1."),
    ("mlp1.3.", f"{_PROJECTOR}linear_2."),
)
_LANGUAGE_NAMES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
_INTERNLM2_NAMES = (
    ("language_model.model.tok_embeddings.", "model.language_model.embed_tokens."),
    ("language_model.output.", "lm_head."),
    ("language_model.model.", "model.language_model."),
)
# Inside a layer.
_VISION_LAYER_NAMES = (
    ("attn.q_norm.", "attention.q_norm."),
    ("attn.k_norm.", "attention.k_norm."),
    ("attn.proj.", "attention.projection_layer."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("ls1", "lambda_1"),
    ("ls2", "lambda_2"),
)
_INTERNLM2_LAYER_NAMES = (
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
    ("attention.wo.", "self_attn.o_proj."),
    ("feed_forward.w1.", "mlp.gate_proj."),
    ("feed_forward.w3.", "mlp.up_proj."),
    ("feed_forward.w2.", "mlp.down_proj."),
)
_VISION_FUSED = re.compile(r"(vision_model\.encoder\.layers\.\d+\.)attn\.qkv\.(weight|bias)")
_VISION_SPLIT = re.compile(r"(model\.vision_tower\.encoder\.layer\.\d+\.)attention\.q_proj\.(weight|bias)")
_INTERNLM2_FUSED = re.compile(r"(language_model\.model\.layers\.\d+\.)attention\.wqkv\.(weight|bias)")
_INTERNLM2_SPLIT = re.compile(r"(model\.language_model\.layers\.\d+\.)self_attn\.q_proj\.(weight|bias)")
_LAYER = re.compile(r"(.*\.layers?\.\d+\.)(.*)")
# Old checkpoints of the Llama family store this constant.
_CONSTANT = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class FusedHeads:
    """How InternLM2 fuses q, k and v: for each key-value head its query heads, then k, then v."""

    query_heads: int
    key_value_heads: int

    def split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[(query heads + 2 kv heads)·width, ...]`` to q ``[query heads·width, ...]``, k and v."""
        groups = self.query_heads // self.key_value_heads
        width = fused.shape[0] // (self.key_value_heads * (groups + 2))
        by_head = fused.reshape(self.key_value_heads, groups + 2, width, *fused.shape[1:])
        parts = by_head[:, :groups], by_head[:, groups : groups + 1], by_head[:, groups + 1 :]
        query, key, value = (part.flatten(0, 2).contiguous() for part in parts)
        return query, key, value

    def fuse(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The inverse of ``split``."""
        groups, width = self.query_heads // self.key_value_heads, key.shape[0] // self.key_value_heads
        by_head = (
            query.reshape(self.key_value_heads, groups, width, *query.shape[1:]),
            key.reshape(self.key_value_heads, 1, width, *key.shape[1:]),
            value.reshape(self.key_value_heads, 1, width, *value.shape[1:]),
        )
        return torch.cat(by_head, dim=1).flatten(0, 2)


def to_native(state: Mapping[str, Tensor], internlm2: FusedHeads | None) -> dict[str, Tensor]:
    """Tensors by transformers' names from those by the authors'.

    ``internlm2`` for checkpoints with that language model, None for others. Names that it does not know stay.
    """
    native: dict[str, Tensor] = {}
    for name, tensor in state.items():
        vision = _VISION_FUSED.fullmatch(name)
        language = _INTERNLM2_FUSED.fullmatch(name) if internlm2 is not None else None
        if vision is not None:
            layer = _rename(vision[1], _OUTER_NAMES, backwards=False)
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                native[f"{layer}attention.{part}_proj.{vision[2]}"] = third.clone()
        elif language is not None and internlm2 is not None:
            layer = _rename(language[1], _INTERNLM2_NAMES, backwards=False)
            for part, own in zip("qkv", internlm2.split(tensor), strict=True):
                native[f"{layer}self_attn.{part}_proj.{language[2]}"] = own
        elif not name.endswith(_CONSTANT):
            native[_native_name(name, internlm2 is not None)] = tensor
    return native


def to_original(state: Mapping[str, Tensor], internlm2: FusedHeads | None) -> dict[str, Tensor]:
    """The inverse of ``to_native``."""
    original: dict[str, Tensor] = {}
    fused: set[str] = set()
    for name in state:
        vision = _VISION_SPLIT.fullmatch(name)
        language = _INTERNLM2_SPLIT.fullmatch(name) if internlm2 is not None else None
        if vision is not None:
            names = [f"{vision[1]}attention.{part}_proj.{vision[2]}" for part in "qkv"]
            layer = _rename(vision[1], _OUTER_NAMES, backwards=True)
            original[f"{layer}attn.qkv.{vision[2]}"] = torch.cat([state[each] for each in names])
            fused.update(names)
        elif language is not None and internlm2 is not None:
            names = [f"{language[1]}self_attn.{part}_proj.{language[2]}" for part in "qkv"]
            layer = _rename(language[1], _INTERNLM2_NAMES, backwards=True)
            original[f"{layer}attention.wqkv.{language[2]}"] = internlm2.fuse(*(state[each] for each in names))
            fused.update(names)
    for name, tensor in state.items():
        if name not in fused:
            original[_original_name(name, internlm2 is not None)] = tensor
    return original


def _native_name(name: str, is_internlm2: bool) -> str:
    is_vision = name.startswith("vision_model.")
    outer = _rename(name, (*_OUTER_NAMES, *(_INTERNLM2_NAMES if is_internlm2 else _LANGUAGE_NAMES)), backwards=False)
    return _rename_in_layer(outer, is_vision, is_internlm2, backwards=False)


def _original_name(name: str, is_internlm2: bool) -> str:
    is_vision = name.startswith(_TOWER)
    inner = _rename_in_layer(name, is_vision, is_internlm2, backwards=True)
    return _rename(inner, (*_OUTER_NAMES, *(_INTERNLM2_NAMES if is_internlm2 else _LANGUAGE_NAMES)), backwards=True)


def _rename_in_layer(name: str, is_vision: bool, is_internlm2: bool, backwards: bool) -> str:
    layer = _LAYER.fullmatch(name)
    if layer is None or not (is_vision or is_internlm2):
        return name
    return layer[1] + _rename(layer[2], _VISION_LAYER_NAMES if is_vision else _INTERNLM2_LAYER_NAMES, backwards)


def _rename(name: str, pairs: tuple[tuple[str, str], ...], backwards: bool) -> str:
    """``name`` with the first prefix of ``pairs`` that fits replaced."""
    for original, native in pairs:
        old, new = (native, original) if backwards else (original, native)
        if name.startswith(old):
            return new + name[len(old) :]
    return name
