"""The two token mixers of transformer blocks: De-focus attention and De-focus retention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from services.backbones.defocus.configuration import Attention, EncoderConfig, Retention
from services.backbones.defocus.decay import make_decay
from services.backbones.defocus.decayed_attention import decayed_attention
from services.backbones.defocus.group_norm import group_rms_norm
from services.backbones.defocus.retention import retention
from services.backbones.defocus.rotary import make_phase

# What a layer keeps of the tokens that it has seen.
LayerState = tuple[Tensor, ...]


class AttentionMixer(nn.Module):
    """Softmax attention with decaying logits and learnable rotary phases; keeps keys and values."""

    def __init__(self, config: EncoderConfig, settings: Attention) -> None:
        super().__init__()
        self.heads, self.causal = settings.heads, settings.causal
        self.projection = nn.Linear(config.width, 3 * config.width)
        self.decay = make_decay(
            settings.heads, settings.decay, settings.slowest_decay, settings.fastest_decay, config.delta_scale
        )
        self.phase = make_phase(config.width // settings.heads, settings.phase, config.rope_scale)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, start: int, past: LayerState | None) -> tuple[Tensor, LayerState]:
        """``hidden`` ``[batch, tokens, width]``, whose first token has the index ``start``, and what it leaves."""
        query, key, value = (_by_head(part, self.heads) for part in self.projection(hidden).chunk(3, dim=-1))
        if self.phase is not None:
            query, key = self.phase(query, start), self.phase(key, start)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        if self.causal:
            mixed = decayed_attention(query, key, value, None if self.decay is None else self.decay())
        else:
            mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2)), (key, value)


class RetentionMixer(nn.Module):
    """Retention with learnable decays and phases, a norm of every head and a gate; keeps one matrix a head."""

    def __init__(self, config: EncoderConfig, settings: Retention) -> None:
        super().__init__()
        self.heads = settings.heads
        values = settings.value_factor * config.width
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, values, bias=False)
        self.gate = nn.Linear(config.width, values, bias=False)
        self.decay = make_decay(
            settings.heads, settings.decay, settings.slowest_decay, settings.fastest_decay, config.delta_scale
        )
        self.phase = make_phase(config.width // settings.heads, settings.phase, config.rope_scale)
        self.out = nn.Linear(values, config.width, bias=False)

    def forward(self, hidden: Tensor, start: int, past: LayerState | None) -> tuple[Tensor, LayerState]:
        """``hidden`` ``[batch, tokens, width]``, whose first token has the index ``start``, and what it leaves."""
        query, key, value = (_by_head(project(hidden), self.heads) for project in (self.query, self.key, self.value))
        key = key * key.shape[-1] ** -0.5
        if self.phase is not None:
            query, key = self.phase(query, start), self.phase(key, start)
        decay = hidden.new_zeros(self.heads) if self.decay is None else self.decay()
        mixed, state = retention(query, key, value, decay, None if past is None else past[0])
        normed = group_rms_norm(mixed.transpose(1, 2).flatten(2), mixed.shape[-1])
        return self.out(normed * silu(self.gate(hidden))), (state,)


def _by_head(features: Tensor, heads: int) -> Tensor:
    """``[batch, tokens, width]`` to ``[batch, heads, tokens, width / heads]``."""
    return features.reshape(*features.shape[:-1], heads, features.shape[-1] // heads).transpose(1, 2)
