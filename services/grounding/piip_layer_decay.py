"""Learning rates that fall from a pyramid's last layers to its first (PIIP, appendix of training settings).

A layer of a branch learns at ``decay_rate`` to the power of its distance from the end, counted in layers of the deepest
branch; interactions, merging and everything outside the backbone learn at the full rate. Vectors do not decay.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from services.backbones.piip.configuration import VitBranchConfig
from services.grounding import compiled_operations  # noqa: F401  (must come before mmdet)
from services.grounding.piip_backbone import PiipBackbone

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS  # isort: skip
from mmengine.optim import DefaultOptimWrapperConstructor  # isort: skip

_BRANCH = re.compile(r"backbone\.dense\.pyramid\.branches\.(\d+)\.(?:(?:layers|blocks)\.(\d+)\.)?")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name="PiipLayerDecay")
class PiipLayerDecay(DefaultOptimWrapperConstructor):  # type: ignore[misc]
    """For detectors whose backbone is ``PIIP``; ``paramwise_cfg`` is ``{"decay_rate": 0.85}``."""

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """Append a group for each rate and decay. Raises ValueError for detectors with another backbone."""
        backbone = module.backbone
        if not isinstance(backbone, PiipBackbone):
            raise ValueError(f"PiipLayerDecay: the backbone is {type(backbone).__name__}, not PIIP.")
        depths = [
            branch.depth if isinstance(branch, VitBranchConfig) else branch.blocks
            for branch in backbone.dense.pyramid.config.branches
        ]
        rate = float(self.paramwise_cfg["decay_rate"])
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                decay = self.base_wd if parameter.dim() > 1 else 0.0
                groups.setdefault((layer_factor(name, depths, rate), decay), []).append(parameter)
        params.extend(
            {"params": members, "lr": self.base_lr * factor, "weight_decay": decay}
            for (factor, decay), members in groups.items()
        )


def layer_factor(name: str, depths: list[int], rate: float) -> float:
    """What the learning rate of the parameter ``name`` of a detector is multiplied by.

    ``depths`` has the layers, or blocks, of each branch.
    """
    found = _BRANCH.match(name)
    if found is None:
        return 1.0
    deepest = max(depths)
    # Embeddings come before the first layer.
    place = 0.0 if found[2] is None else (int(found[2]) + 1) * deepest / depths[int(found[1])]
    return float(rate ** (deepest + 1 - place))
