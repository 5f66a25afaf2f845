"""Scheduled stochastic depth (De-focus, section 3.3): more and more layers must gather context by themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def drop_path_rates(epoch: int, epochs: int, depth: int, first: float, last: float) -> list[float]:
    """The rate of every layer: linear in training from ``first`` to ``last``, and in depth from 0 to that."""
    rate = first + (last - first) * epoch / max(1, epochs - 1)
    return [rate * layer / max(1, depth - 1) for layer in range(depth)]


class DropPath(nn.Module):
    """In training a sample loses a branch with probability ``rate``; dropped samples are not computed at all."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def choose(self, hidden: Tensor) -> Tensor | None:
        """Numbers of the samples of ``hidden`` that keep the branch; None: all do."""
        if not self.training or self.rate == 0.0:
            return None
        return (torch.rand(len(hidden), device=hidden.device) >= self.rate).nonzero().squeeze(1)

    def add(self, hidden: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
        """``hidden`` and the ``branch`` of the ``kept`` samples, scaled up so that the mean stays."""
        if kept is None:
            return hidden + branch
        return hidden.index_add(0, kept, branch.to(hidden.dtype) / (1.0 - self.rate))
