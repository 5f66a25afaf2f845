"""How public checkpoints name the parts of a vision transformer, and how those names become ours.

A layout is known by a name that only it has. Each gives back a state of ``VitBranch`` but for tables that depend on the
picture's size, which are still as they were stored: ``positions`` ``[cells, width]``, or BEiT's bias tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass
class StoredBranch:
    """What a checkpoint holds for a branch, under our names."""

    state: State = field(default_factory=dict)
    # [cells, width], row by row, without the class token's.
    positions: Tensor | None = None
    # Names that nothing here is made for.
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """One way of naming."""

    name: str
    # Only this layout has it.
    sign: str
    read: Callable[[Mapping[str, Tensor]], StoredBranch]


# Of names that all layouts descending from timm's vision transformer share.
_TIMM = {
    "patch_embed.proj.weight": "patch_embedding.weight",
    "patch_embed.proj.bias": "patch_embedding.bias",
    # Of BEiT, which has no positions to add to it.
    "cls_token": "class_token",
}
_TIMM_LAYER = {
    "norm1": "norm1",
    "attn.qkv": "attention.query_key_value",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
    "attn.proj": "attention.projection",
    "norm2": "norm2",
    "mlp.fc1": "feed_forward.0",
    "mlp.fc2": "feed_forward.2",
}
# DeiT III and BEiT, DINOv2, InternViT.
_SCALES = {
    "gamma_1": "scale1",
    "gamma_2": "scale2",
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
    "ls1": "scale1",
    "ls2": "scale2",
}
# The final norm and the heads belong to whoever classifies; the rest is for pre-training alone.
_LEFT_OUT = re.compile(
    r"(norm|fc_norm|head|head_dist|post_layernorm|lm_head)\.|dist_token$|mask_token$|register_tokens$|"
    r".*relative_position_index$|.*position_ids$|text_model\.|text_projection|visual_projection|logit_scale$"
)
_LAYER = re.compile(r"(?:blocks|encoder\.layers)\.(\d+)\.(.+)")


def find_layout(names: Mapping[str, Tensor]) -> Layout | None:
    """The layout that ``names`` are in, if it is known."""
    return next((layout for layout in LAYOUTS if layout.sign in names), None)


def _read_timm(stored: Mapping[str, Tensor]) -> StoredBranch:
    """DeiT, DeiT III, MAE, DINOv2 and BEiT."""
    result = StoredBranch()
    biases: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        layer = _LAYER.fullmatch(name)
        if name == "pos_embed":
            result.positions, token = _split_positions(stored, value[0])
            if token is not None:
                result.state["class_token"] = token
        elif layer and layer[2] in ("attn.q_bias", "attn.v_bias"):
            biases.setdefault(layer[1], {})[layer[2]] = value
        elif layer and layer[2] == "attn.relative_position_bias_table":
            # The last three are for the class token.
            side = round(len(value[:-3]) ** 0.5)
            table = value[:-3].reshape(side, side, -1).permute(2, 0, 1)
            result.state[f"layers.{layer[1]}.attention.bias.table"] = table
        elif (ours := _rename(name, _TIMM)) is not None:
            result.state.setdefault(ours, value)
        elif not _LEFT_OUT.match(name):
            result.unknown.append(name)
    for number, parts in biases.items():
        # BEiT's keys have none.
        query, value = parts["attn.q_bias"], parts["attn.v_bias"]
        result.state[f"layers.{number}.attention.query_key_value.bias"] = torch.cat(
            [query, torch.zeros_like(query), value]
        )
    return result


_CLIP = {
    "embeddings.patch_embedding.weight": "patch_embedding.weight",
    # The misspelling is the library's.
    "pre_layrnorm.weight": "embedding_norm.weight",
    "pre_layrnorm.bias": "embedding_norm.bias",
}
_CLIP_LAYER = {
    "layer_norm1": "norm1",
    "self_attn.out_proj": "attention.projection",
    "layer_norm2": "norm2",
    "mlp.fc1": "feed_forward.0",
    "mlp.fc2": "feed_forward.2",
}


def _read_clip(stored: Mapping[str, Tensor]) -> StoredBranch:
    """CLIP as transformers stores it, whole or its vision model alone."""
    result = StoredBranch()
    own = {name.removeprefix("vision_model."): value for name, value in stored.items()}
    for name, value in own.items():
        layer = _LAYER.fullmatch(name)
        if name == "embeddings.position_embedding.weight":
            result.positions = value[1:]
            result.state["class_token"] = (own["embeddings.class_embedding"] + value[0]).view(1, 1, -1)
        elif layer and (part := re.fullmatch(r"self_attn\.q_proj\.(weight|bias)", layer[2])):
            three = [own[f"encoder.layers.{layer[1]}.self_attn.{which}_proj.{part[1]}"] for which in "qkv"]
            result.state[f"layers.{layer[1]}.attention.query_key_value.{part[1]}"] = torch.cat(three)
        elif name in _CLIP:
            result.state[_CLIP[name]] = value
        elif layer and (ours := _rename_in_layer(layer[2], _CLIP_LAYER)) is not None:
            result.state[f"layers.{layer[1]}.{ours}"] = value
        elif not re.search(r"class_embedding|self_attn\.[kv]_proj", name) and not _LEFT_OUT.match(name):
            result.unknown.append(name)
    return result


_INTERNVIT = {
    "embeddings.patch_embedding.weight": "patch_embedding.weight",
    "embeddings.patch_embedding.bias": "patch_embedding.bias",
}


def _read_internvit(stored: Mapping[str, Tensor]) -> StoredBranch:
    """InternViT as its authors store it, alone or as the ``vision_model`` of InternVL."""
    result = StoredBranch()
    own = {name.removeprefix("vision_model."): value for name, value in stored.items()}
    for name, value in own.items():
        if name == "embeddings.position_embedding":
            result.positions = value[0, 1:]
            result.state["class_token"] = own["embeddings.class_embedding"] + value[:, :1]
        elif (ours := _rename(name, _INTERNVIT)) is not None:
            result.state[ours] = value
        elif name != "embeddings.class_embedding" and not _LEFT_OUT.match(name):
            result.unknown.append(name)
    return result


def _rename(name: str, outside: Mapping[str, str]) -> str | None:
    if name in outside:
        return outside[name]
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return None
    inner = _SCALES.get(layer[2]) or _rename_in_layer(layer[2], _TIMM_LAYER)
    return None if inner is None else f"layers.{layer[1]}.{inner}"


def _rename_in_layer(name: str, names: Mapping[str, str]) -> str | None:
    module, _, kind = name.rpartition(".")
    return f"{names[module]}.{kind}" if module in names else None


def _split_positions(stored: Mapping[str, Tensor], table: Tensor) -> tuple[Tensor, Tensor | None]:
    """``table`` ``[tokens, width]`` without what stands before the cells, and the class token with its row added.

    A distilled DeiT has a second row before the cells, for its distillation token; a DeiT III has none at all.
    """
    before = len(table) - math.isqrt(len(table)) ** 2
    token = stored.get("cls_token")
    if token is not None and before:
        token = token + table[0]
    return table[before:], token


LAYOUTS = (
    Layout("timm", "patch_embed.proj.weight", _read_timm),
    Layout("clip", "vision_model.pre_layrnorm.weight", _read_clip),
    Layout("clip", "pre_layrnorm.weight", _read_clip),
    Layout("internvit", "vision_model.embeddings.position_embedding", _read_internvit),
    Layout("internvit", "embeddings.position_embedding", _read_internvit),
)
