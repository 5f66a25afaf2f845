"""Stochastic depth (Huang et al. 2016), for all transformers and convolutional networks here."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: in training a sample loses a whole branch with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """``[samples, ...]``, with some samples zero and the others scaled up so that the mean stays."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = torch.rand(branch.shape[0], *[1] * (branch.dim() - 1), device=branch.device) >= self.rate
        return branch * keep / (1.0 - self.rate)
