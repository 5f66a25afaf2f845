"""InternViT, the vision transformer of InternVL (Chen et al., 2023 and 2024), in its published sizes.

The network itself is transformers' ``InternVLVisionModel``; here are the sizes, and the stochastic depth that its
training needs and that class lacks.
"""

from __future__ import annotations

from typing import Any, Literal

from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from services.backbones.drop_path import DropPath

InternVitSize = Literal["300M-448px", "6B-448px", "6B-224px"]

_6B: dict[str, Any] = {
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "use_qk_norm": True,
    "attention_bias": False,
    "layer_scale_init_value": 0.1,
}

_SIZES: dict[InternVitSize, dict[str, Any]] = {
    # Mini-InternVL and the small models of InternVL 2 and later.
    "300M-448px": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "norm_type": "layer_norm",
        "use_qk_norm": False,
        "attention_bias": True,
        "layer_scale_init_value": 1.0,
    },
    # InternVL 1.5: the first 45 of the 48 layers, whose features serve a language model best.
    "6B-448px": {**_6B, "num_hidden_layers": 45},
    # The original, before it met a language model.
    "6B-224px": {**_6B, "num_hidden_layers": 48, "image_size": (224, 224)},
}


def internvit_config(size: InternVitSize) -> InternVLVisionConfig:
    """The configuration of a published InternViT; all have patches of 14 pixels and no final norm."""
    return InternVLVisionConfig(**_SIZES[size])


def set_drop_path(tower: InternVLVisionModel, rate: float) -> None:
    """Give ``tower`` stochastic depth that grows linearly from 0 in the first layer to ``rate`` in the last.

    Names and values of its parameters stay. Raises ValueError for a rate outside 0 to 1, without the 1.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"The drop path rate is {rate}; it must lie in 0..1, 1 excluded.")
    layers: Any = tower.encoder.layer
    for number, layer in enumerate(layers):
        own_rate = rate * number / max(1, len(layers) - 1)
        # The library's dropouts stand at the end of either branch; layer scale comes after, which commutes.
        layer.attention.projection_dropout = DropPath(own_rate).train(tower.training)
        layer.dropout = DropPath(own_rate).train(tower.training)
