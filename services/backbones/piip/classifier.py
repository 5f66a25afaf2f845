"""A pyramid as an image classifier.

Released: every branch keeps the norm and the head that it was pre-trained with, and the logits are averaged. That code
reads the top left patch where it means the class token; here the readout is said and done: ``class_token`` or ``mean``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from services.backbones.piip.configuration import PiipConfig, VitBranchConfig
from services.backbones.piip.convnext import ConvNextBranch
from services.backbones.piip.merging import light_merge
from services.backbones.piip.pyramid import ImagePyramid
from services.backbones.piip.state import BranchState

Readout = Literal["class_token", "mean"]


class PyramidClassifier(nn.Module):
    """The mean of the branches' logits, each with a norm and a head of its own."""

    def __init__(self, config: PiipConfig, classes: int, readout: Readout) -> None:
        super().__init__()
        if readout == "class_token" and not all(
            isinstance(branch, VitBranchConfig) and branch.class_token for branch in config.branches
        ):
            raise ValueError("readout: every branch must have class_token: true for the class tokens to be read")
        self.readout = readout
        self.pyramid = ImagePyramid(config)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in config.widths)
        self.heads = nn.ModuleList(nn.Linear(width, classes) for width in config.widths)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, 3, height, width]`` to logits ``[batch, classes]``."""
        logits = [
            head(self._read(branch, norm, state))
            for branch, norm, head, state in zip(
                self.pyramid.branches, self.norms, self.heads, self.pyramid(pixels), strict=True
            )
        ]
        return torch.stack(logits).mean(dim=0)

    def _read(self, branch: nn.Module, norm: nn.Module, state: BranchState) -> Tensor:
        if self.readout == "class_token" and state.class_token is not None:
            first: Tensor = norm(state.class_token)[:, 0]
            return first
        # A ConvNeXt's head was trained on the norm of the mean, a transformer's on the mean of the norms.
        if isinstance(branch, ConvNextBranch):
            pooled: Tensor = norm(state.tokens.mean(dim=1))
            return pooled
        mean: Tensor = norm(state.tokens).mean(dim=1)
        return mean


class MergedClassifier(nn.Module):
    """Branches merged before one head, as the paper's models that were trained from scratch (appendix A.3)."""

    def __init__(self, config: PiipConfig, classes: int) -> None:
        super().__init__()
        self.pyramid = ImagePyramid(config)
        self.merge = light_merge(config.widths)
        self.norm = nn.LayerNorm(max(config.widths), eps=1e-6)
        self.head = nn.Linear(max(config.widths), classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, 3, height, width]`` to logits ``[batch, classes]``."""
        merged = self.merge([state.as_map() for state in self.pyramid(pixels)])
        logits: Tensor = self.head(self.norm(merged.flatten(2).transpose(1, 2)).mean(dim=1))
        return logits
