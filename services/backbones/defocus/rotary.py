"""Rotary phases: with a decay beside them every channel becomes a bandpass filter along the sequence (eq. 6 to 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.backbones.defocus.configuration import Learning

_SLOWEST = 100.0


def initial_frequencies(count: int) -> Tensor:
    """``[count]`` radians a token, from fast to 0, as the released models begin."""
    steps = torch.arange(1, count + 1, dtype=torch.float64) / count
    return ((_SLOWEST**-steps - 1 / _SLOWEST) / (1 - 1 / _SLOWEST)).float()


class RotaryPhase(nn.Module):
    """Turns channels 2k and 2k+1 of a token by its index times frequency k."""

    frequencies: Tensor

    def __init__(self, width: int, learning: Learning, *, scale: float = 1.0, released: bool = False) -> None:
        """``scale`` divides indices; ``released`` gives each channel of a pair its own frequency."""
        super().__init__()
        self.scale, self.released = scale, released
        frequencies = initial_frequencies(width if released else width // 2)
        if learning == "learnable":
            self.frequencies = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)

    def forward(self, vectors: Tensor, start: int = 0) -> Tensor:
        """``[..., tokens, width]``, whose first token has the index ``start``, turned."""
        index = torch.arange(start, start + vectors.shape[-2], device=vectors.device) / self.scale
        angles = index[:, None] * self.frequencies  # (tokens, width / 2), or width if released
        if not self.released:
            angles = angles.repeat_interleave(2, dim=-1)
        even, odd = vectors[..., 0::2], vectors[..., 1::2]
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        rotated: Tensor = vectors * angles.cos() + turned * angles.sin()
        return rotated


def make_phase(width: int, learning: Learning, scale: float, released: bool = False) -> RotaryPhase | None:
    """The phase of a layer, or None where there is none."""
    return None if learning == "none" else RotaryPhase(width, learning, scale=scale, released=released)
