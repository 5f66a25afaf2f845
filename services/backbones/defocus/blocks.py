"""Residual blocks around the mixers."""

from __future__ import annotations

from torch import Tensor, nn

from services.backbones.defocus.configuration import Attention, EncoderConfig, Mamba, Retention
from services.backbones.defocus.drop_path import DropPath
from services.backbones.defocus.mamba import MambaMixer
from services.backbones.defocus.mixers import AttentionMixer, LayerState, RetentionMixer

_NORM_EPSILON = 1e-6
_MAMBA_NORM_EPSILON = 1e-5


class TransformerBlock(nn.Module):
    """A mixer and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, config: EncoderConfig, settings: Attention | Retention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_NORM_EPSILON)
        self.mixer: AttentionMixer | RetentionMixer
        if isinstance(settings, Attention):
            self.mixer = AttentionMixer(config, settings)
        else:
            self.mixer = RetentionMixer(config, settings)
        self.norm2 = nn.LayerNorm(config.width, eps=_NORM_EPSILON)
        inner = round(settings.mlp_ratio * config.width)
        self.mlp = nn.Sequential(nn.Linear(config.width, inner), nn.GELU(), nn.Linear(inner, config.width))
        self.drop_path = DropPath()

    def forward(self, hidden: Tensor, start: int, past: LayerState | None) -> tuple[Tensor, LayerState]:
        """``[batch, tokens, width]`` to the same, and what the layer keeps of the tokens."""
        kept = self.drop_path.choose(hidden)
        mixed, state = self.mixer(self.norm1(hidden if kept is None else hidden[kept]), start, past)
        hidden = self.drop_path.add(hidden, mixed, kept)
        kept = self.drop_path.choose(hidden)
        added = self.mlp(self.norm2(hidden if kept is None else hidden[kept]))
        return self.drop_path.add(hidden, added, kept), state


class MambaBlock(nn.Module):
    """A Mamba mixer behind a norm and beside a shortcut."""

    def __init__(self, config: EncoderConfig, settings: Mamba) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=_MAMBA_NORM_EPSILON)
        self.mixer = MambaMixer(config, settings)
        self.drop_path = DropPath()

    def forward(self, hidden: Tensor, start: int, past: LayerState | None) -> tuple[Tensor, LayerState]:
        """``[batch, tokens, width]`` to the same, and what the layer keeps of the tokens."""
        kept = self.drop_path.choose(hidden)
        mixed, state = self.mixer(self.norm(hidden if kept is None else hidden[kept]), start, past)
        return self.drop_path.add(hidden, mixed, kept), state


Block = TransformerBlock | MambaBlock


def make_block(config: EncoderConfig) -> Block:
    """A block with the mixer that ``config`` names."""
    if isinstance(config.mixer, Mamba):
        return MambaBlock(config, config.mixer)
    return TransformerBlock(config, config.mixer)
