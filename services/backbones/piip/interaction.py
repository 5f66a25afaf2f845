"""Interaction units: what neighbouring branches tell each other after a stage (PIIP section 3.2, equations 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.drop_path import DropPath
from services.backbones.piip.configuration import InteractionConfig
from services.backbones.piip.deformable_attention import DeformableAttention
from services.backbones.piip.state import BranchState

_EPSILON = 1e-6


class GridFeedForward(nn.Module):
    """A narrow feed-forward network that also mixes neighbouring cells (ViT-Adapter's)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.contract = nn.Linear(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.expand = nn.Linear(inner, width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[batch, height · width, width]``, and the same back."""
        inner = self.contract(tokens).transpose(1, 2).unflatten(2, grid)
        mixed = functional.gelu(self.depthwise(inner)).flatten(2).transpose(1, 2)
        expanded: Tensor = self.expand(mixed)
        return expanded


class Injector(nn.Module):
    """One direction: what a branch takes from its neighbour. At first nothing, since both gates are zero."""

    def __init__(self, width: int, other_width: int, config: InteractionConfig) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.LayerNorm(width, eps=_EPSILON) if config.projects_and_norms else nn.Identity()

        self.projection: nn.Module = nn.Identity()
        if config.projects_and_norms:
            self.projection = nn.Linear(other_width, width)
        self.query_norm, self.key_norm, self.feed_forward_norm = norm(), norm(), norm()
        self.attention = DeformableAttention(width, width if config.projects_and_norms else other_width, config)
        self.feed_forward = GridFeedForward(width, int(width * config.feed_forward_ratio))
        # The paper's gamma and tau.
        self.attention_gate = nn.Parameter(torch.zeros(width))
        self.feed_forward_gate = nn.Parameter(torch.zeros(width))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, state: BranchState, other: BranchState) -> BranchState:
        """``state`` with what it takes from ``other``; its class token stays as it is."""
        keys = self.key_norm(self.projection(other.tokens))
        attended = self.attention(self.query_norm(state.tokens), state.grid, keys, other.grid)
        tokens = state.tokens + self.attention_gate * attended
        mixed = self.feed_forward(self.feed_forward_norm(tokens), state.grid)
        # Only this residual is dropped; so it is in the released code.
        tokens = tokens + self.feed_forward_gate * self.drop_path(mixed)
        return BranchState(tokens, state.grid, state.class_token)


class InteractionUnit(nn.Module):
    """Both directions between two neighbours; each reads the other as it was before the unit."""

    def __init__(self, larger_width: int, smaller_width: int, config: InteractionConfig) -> None:
        super().__init__()
        self.into_larger = Injector(larger_width, smaller_width, config)
        self.into_smaller = Injector(smaller_width, larger_width, config)

    def forward(self, larger: BranchState, smaller: BranchState) -> tuple[BranchState, BranchState]:
        """The branch of more parameters first."""
        return self.into_larger(larger, smaller), self.into_smaller(smaller, larger)
