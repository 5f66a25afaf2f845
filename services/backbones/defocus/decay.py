"""Exponential decay along the sequence: the bandwidth of a head's bandpass filter (eq. 6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from services.backbones.defocus.configuration import Learning


class ExponentialDecay(nn.Module):
    """One decay a head, lambda = -exp(log_rate): below 0 whatever is learned."""

    log_rate: Tensor

    def __init__(self, heads: int, slowest: float, fastest: float, *, learnable: bool, scale: float = 1.0) -> None:
        """``slowest`` and ``fastest`` decay a token; ``scale`` divides distances."""
        super().__init__()
        self.scale = scale
        log_rate = torch.linspace(math.log(slowest), math.log(fastest), heads)
        if learnable:
            self.log_rate = nn.Parameter(log_rate)
        else:
            self.register_buffer("log_rate", log_rate)

    def forward(self) -> Tensor:
        """``[heads]``, what is added to the exponent a token."""
        return -self.log_rate.exp() / self.scale


def make_decay(heads: int, learning: Learning, slowest: float, fastest: float, scale: float) -> ExponentialDecay | None:
    """The decay of a layer, or None where there is none."""
    if learning == "none":
        return None
    return ExponentialDecay(heads, slowest, fastest, learnable=learning == "learnable", scale=scale)
