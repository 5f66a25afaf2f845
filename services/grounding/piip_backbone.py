"""Image pyramids as a backbone of mmdet, under the name ``PIIP``: for any of its detectors, by configuration.

A configuration imports this module and names the backbone: ::

    custom_imports = dict(imports=["services.grounding.piip_backbone"])
    model = dict(backbone=dict(type="PIIP", branches=[...], merge="light"), neck=dict(in_channels=[768] * 4))

``services/grounding/mmdet_configs`` has complete ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.dense import DensePyramid, Merge
from services.backbones.piip.pretrained import load_branch
from services.grounding import compiled_operations  # noqa: F401  (must come before mmdet)

from mmdet.registry import MODELS  # isort: skip


@MODELS.register_module(name="PIIP")
class PiipBackbone(nn.Module):
    """A pyramid that makes maps at four strides, of which ``out_indices`` go to the neck."""

    def __init__(
        self,
        branches: Sequence[dict[str, Any]],
        interaction: dict[str, Any] | None = None,
        merge: Merge = "convolutional",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: Sequence[str | None] = (),
        init_cfg: None = None,  # noqa: ARG002  (mmdet passes it to every backbone)
    ) -> None:
        """``branches`` and ``interaction`` are those of ``PiipConfig``; ``pretrained`` has a file for each branch.

        Raises ValueError for sizes that do not fit, CheckpointError for files that do not.
        """
        super().__init__()
        config = PiipConfig.model_validate({"branches": tuple(branches), "interaction": interaction or {}})
        if pretrained and len(pretrained) != len(config.branches):
            raise ValueError(f"pretrained: {len(config.branches)} files are wanted, None for branches without one")
        self.dense = DensePyramid(config, merge)
        self.out_indices = tuple(out_indices)
        self.pretrained = tuple(pretrained)
        # Channels of each map that the neck gets.
        self.out_channels = tuple(self.dense.channels[index] for index in self.out_indices)

    def init_weights(self) -> None:
        """Fill the branches from ``pretrained``; all else was initialised when it was made."""
        branches: Any = self.dense.pyramid.branches
        for branch, file in zip(branches, self.pretrained, strict=False):
            if file is not None:
                load_branch(branch, Path(file))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``[batch, 3, height, width]``, padded to whole cells, to the maps of ``out_indices``."""
        maps: tuple[Tensor, ...] = self.dense(pixels)
        return tuple(maps[index] for index in self.out_indices)
