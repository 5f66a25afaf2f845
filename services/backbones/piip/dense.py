"""A pyramid as the backbone of a detector or a segmenter: maps at four strides."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.feature_pyramid import SimpleFeaturePyramid
from services.backbones.piip.merging import convolutional_merge, light_merge, staged_merge
from services.backbones.piip.pyramid import ImagePyramid

Merge = Literal["light", "convolutional", "staged"]
# After these stages, and the last one, pyramids with convolutional branches are merged.
_MERGED_STAGES = (0, 1, 10)


class DensePyramid(nn.Module):
    """``light`` and ``convolutional`` merge once and make four strides of it; ``staged`` merges after four stages.

    ``staged`` is for pyramids whose finest branch is a ConvNeXt, which has four strides of its own.
    """

    def __init__(self, config: PiipConfig, merge: Merge = "convolutional") -> None:
        super().__init__()
        self.pyramid = ImagePyramid(config)
        self.staged = merge == "staged"
        self.merges = nn.ModuleList()
        if merge == "staged":
            if config.stages <= _MERGED_STAGES[-1] + 1:
                raise ValueError(f"merge: staged merging needs more than {_MERGED_STAGES[-1] + 1} stages")
            self.merged_stages = (*_MERGED_STAGES, config.stages - 1)
            by_branch = [branch.widths_after(config.stages) for branch in config.branches]
            by_stage = [[widths[stage] for widths in by_branch] for stage in self.merged_stages]
            self.merges.extend(staged_merge(widths) for widths in by_stage)
            self.channels = tuple(widths[0] for widths in by_stage)
        else:
            self.merges.append((light_merge if merge == "light" else convolutional_merge)(config.widths))
            self.scales = SimpleFeaturePyramid(max(config.widths))
            self.channels = (max(config.widths),) * 4

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``[batch, 3, height, width]`` to four maps of ``channels``, the largest first."""
        if not self.staged:
            merged = self.merges[0]([state.as_map() for state in self.pyramid(pixels)])
            scales: tuple[Tensor, ...] = self.scales(merged)
            return scales
        history = self.pyramid.every_stage(pixels)
        return tuple(
            merge([state.as_map() for state in history[stage]])
            for merge, stage in zip(self.merges, self.merged_stages, strict=True)
        )
