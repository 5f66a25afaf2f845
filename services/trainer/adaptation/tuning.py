"""What of an MLLM learns: everything, all but the vision tower, only what joins them, or low-rank additions (LoRA).

Adapting to a domain, ``full`` gives the best scores, ``vit_frozen`` costs little of them, ``lora`` is clearly weaker on
grounding (Mini-InternVL, Table 13). Of the two training stages before that the first trains the ``projector``, in the
2B model with the tower (``vit_and_projector``), the second everything.

LoRA adds to a linear layer the product of two thin matrices, with scale alpha / rank and alpha = 2 * rank; before a
model is served the products are folded into the layers and nothing of LoRA is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.mllm.model import Mllm
from services.trainer.adaptation.plan import Trains

_TOWER = "internvl.model.vision_tower"
_PROJECTOR = "internvl.model.multi_modal_projector"
_LANGUAGE = ("internvl.model.language_model", "internvl.lm_head")

# Modules of an ``Mllm`` that do not learn.
_FROZEN: dict[Trains, tuple[str, ...]] = {
    "full": (),
    "vit_frozen": (_TOWER,),
    "projector": (_TOWER, *_LANGUAGE),
    "vit_and_projector": _LANGUAGE,
    # Of the language model the additions learn.
    "lora": (_TOWER, _PROJECTOR, "internvl.lm_head"),
}

# Linear layers of the language model by their last names: Qwen2 and Llama, and those that Phi-3 fuses.
LANGUAGE_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)
# As published.
DROPOUT = 0.05
ALPHA_PER_RANK = 2.0


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank addition, which starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        weight = linear.weight
        self.down = nn.Parameter(weight.new_empty(rank, linear.in_features))
        self.up = nn.Parameter(weight.new_zeros(linear.out_features, rank))
        self.dropout = nn.Dropout(DROPOUT)
        # alpha / rank.
        self.scale = ALPHA_PER_RANK
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in features]`` to ``[..., out features]``."""
        low = nn.functional.linear(self.dropout(inputs), self.down)  # (..., rank)
        output: Tensor = self.linear(inputs) + self.scale * nn.functional.linear(low, self.up)
        return output

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer with the addition folded in."""
        self.linear.weight += self.scale * (self.up @ self.down)
        return self.linear


def add_lora(model: nn.Module, targets: Sequence[str], rank: int) -> int:
    """Freeze ``model`` and give every linear layer named by ``targets`` a trainable addition of ``rank``.

    A target is the end of a module's path: "q_proj", "attention.wqkv". Returns how many weights learn. Raises
    ValueError when no layer fits.
    """
    model.requires_grad_(False)
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f".{path}".endswith(f".{target}") for target in targets)
    ]
    if not found:
        raise ValueError(f"No linear layer is named {', '.join(targets)}.")
    added = 0
    for path in found:
        linear = _linear(model, path)
        # New modules are in training mode, whatever the model is in.
        adapted = LoraLinear(linear, rank).train(linear.training)
        added += adapted.down.numel() + adapted.up.numel()
        model.set_submodule(path, adapted)
    return added


def merge_lora(model: nn.Module) -> int:
    """Fold every addition into its layer; the model then has the layout that services load. Returns how many."""
    paths = [path for path, module in model.named_modules() if isinstance(module, LoraLinear)]
    for path in paths:
        adapted = model.get_submodule(path)
        assert isinstance(adapted, LoraLinear)  # noqa: S101
        model.set_submodule(path, adapted.merged())
    return len(paths)


def frozen_modules(trains: Trains) -> tuple[str, ...]:
    """Paths of the modules of an ``Mllm`` that do not learn. Its links never do: no conversation here calls a tool."""
    return (*_FROZEN[trains], "link")


def add_language_lora(mllm: Mllm, rank: int) -> int:
    """Give the language model trainable additions of ``rank`` and freeze the rest of it; see ``add_lora``."""
    return add_lora(mllm.internvl.model.language_model, LANGUAGE_TARGETS, rank)


def _linear(model: nn.Module, path: str) -> nn.Linear:
    module = model.get_submodule(path)
    assert isinstance(module, nn.Linear)  # noqa: S101
    return module
