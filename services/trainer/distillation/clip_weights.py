"""CLIP's vision transformer as the beginning of an InternViT: the paper's student starts from CLIP-ViT-L at 336 pixels.

The blocks are the same. What CLIP has beside them is left behind: a norm before the first block, one after the last,
and another GELU; what it lacks begins so that it changes nothing: layer scale at 1, the patch embedding's bias at 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

MODEL_TYPES = ("clip", "clip_vision_model")
# Where the tensors begin that ``internvit_state`` takes.
PREFIXES = ("vision_model.",)

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_LAYER_NAMES = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.projection_layer",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# CLIP's own spelling.
_LEFT_BEHIND = ("pre_layrnorm.", "post_layernorm.", "embeddings.position_ids")


def internvit_state(clip: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Tensors by InternViT's names from CLIP's without prefix, with places for ``patches``, interpolated bicubically.

    A name that is neither mapped nor left behind stays as it is, for the loader to complain of.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in clip.items():
        if name.startswith(_LEFT_BEHIND):
            continue
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            part, _, kind = layer[2].rpartition(".")
            state[f"encoder.layer.{layer[1]}.{_LAYER_NAMES.get(part, part)}.{kind}"] = tensor
            for scale in ("lambda_1", "lambda_2"):
                state[f"encoder.layer.{layer[1]}.{scale}"] = torch.ones(_width(clip))
        elif name == "embeddings.class_embedding":
            state["embeddings.cls_token"] = tensor.reshape(1, 1, -1)
        elif name == "embeddings.patch_embedding.weight":
            state["embeddings.patch_embeddings.projection.weight"] = tensor
            state["embeddings.patch_embeddings.projection.bias"] = torch.zeros(_width(clip))
        elif name == "embeddings.position_embedding.weight":
            state["embeddings.position_embeddings"] = _resized(tensor, patches)
        else:
            state[name] = tensor
    return state


def _width(clip: Mapping[str, Tensor]) -> int:
    return clip["embeddings.class_embedding"].shape[-1]


def _resized(table: Tensor, patches: int) -> Tensor:
    """``[1 + places, width]`` of a square of places to ``[1, 1 + patches, width]``; the class token's row stays."""
    before, after = (int(count**0.5) for count in (table.shape[0] - 1, patches))
    grid = table[1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    if before != after:
        grid = nn.functional.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat([table[None, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
