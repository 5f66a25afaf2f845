"""A branch that is a vision transformer: pre-norm layers with factors on both residuals, cut into stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.drop_path import DropPath
from services.backbones.piip.configuration import VitBranchConfig
from services.backbones.piip.relative_positions import RelativePositionBias
from services.backbones.piip.state import BranchState
from services.backbones.piip.windows import attend_in_windows


class QuickGelu(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        return values * torch.sigmoid(1.702 * values)


def make_norm(config: VitBranchConfig) -> nn.Module:
    """The branch's kind of norm over its width."""
    kind = nn.LayerNorm if config.norm == "layer_norm" else nn.RMSNorm
    return kind(config.width, eps=config.norm_epsilon)


class Attention(nn.Module):
    """Multi-head attention among all cells or inside windows."""

    def __init__(self, config: VitBranchConfig, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = config.heads, window
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.projection = nn.Linear(config.width, config.width)
        # Of InternViT-6B: queries and keys of all heads are normed together.
        self.query_norm = make_norm(config) if config.query_key_norm else None
        self.key_norm = make_norm(config) if config.query_key_norm else None
        self.bias: RelativePositionBias | None = None
        if config.relative_positions:
            self.bias = RelativePositionBias(min(window or config.table_side, config.table_side), config.heads)

    def forward(self, tokens: Tensor, grid: tuple[int, int], class_tokens: int) -> Tensor:
        """``[batch, class tokens + height · width, width]``; class tokens stand first and need global attention."""
        together = self.query_key_value(tokens).unflatten(2, (3, -1))
        if self.query_norm is not None and self.key_norm is not None:
            query, key, value = together.unbind(2)
            together = torch.stack([self.query_norm(query), self.key_norm(key), value], dim=2)
        heads = together.unflatten(3, (self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, batch, heads, tokens, head width)
        if self.window is None:
            attended = self._attend(heads[0], heads[1], heads[2], grid, class_tokens)
        else:
            attended = attend_in_windows(heads, grid, self.window, self._attend)
        projected: Tensor = self.projection(attended.transpose(1, 2).flatten(2))
        return projected

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: tuple[int, int], class_tokens: int = 0
    ) -> Tensor:
        bias = None
        if self.bias is not None:
            # Class tokens are at no distance from anything.
            bias = functional.pad(self.bias(window), (class_tokens, 0, class_tokens, 0)).to(query.dtype)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class Layer(nn.Module):
    """Attention and a feed-forward network, each on a residual."""

    def __init__(self, config: VitBranchConfig, number: int) -> None:
        super().__init__()
        window = None if number in config.global_layers else config.window
        inner = int(config.width * config.mlp_ratio)
        self.norm1 = make_norm(config)
        self.attention = Attention(config, window)
        self.scale1 = nn.Parameter(torch.full((config.width,), config.layer_scale))
        self.norm2 = make_norm(config)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, inner),
            nn.GELU() if config.activation == "gelu" else QuickGelu(),
            nn.Linear(inner, config.width),
        )
        self.scale2 = nn.Parameter(torch.full((config.width,), config.layer_scale))
        self.drop_path = DropPath(config.drop_path)

    def forward(self, tokens: Tensor, grid: tuple[int, int], class_tokens: int) -> Tensor:
        """``[batch, class tokens + height · width, width]``, and the same back."""
        attended = self.attention(self.norm1(tokens), grid, class_tokens)
        tokens = tokens + self.drop_path(self.scale1 * attended)
        dropped: Tensor = self.drop_path(self.scale2 * self.feed_forward(self.norm2(tokens)))
        return tokens + dropped


class VitBranch(nn.Module):
    """A transformer cut into stages. Its final norm belongs to whoever has a head for it."""

    def __init__(self, config: VitBranchConfig, stages: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.position_embedding: nn.Parameter | None = None
        if not config.relative_positions:
            self.position_embedding = nn.Parameter(torch.zeros(1, config.width, config.table_side, config.table_side))
            nn.init.trunc_normal_(self.position_embedding, std=0.02)
        # With its position, which the released code drops.
        self.class_token: nn.Parameter | None = None
        if config.class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
            nn.init.trunc_normal_(self.class_token, std=0.02)
        self.embedding_norm: nn.Module = make_norm(config) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.depth))
        self.slices = config.slices(stages)

    def embed(self, pixels: Tensor) -> BranchState:
        """``[batch, 3, height, width]``, both multiples of the patch, to the state before the first layer."""
        embedded = self.patch_embedding(pixels)
        grid = (embedded.shape[2], embedded.shape[3])
        if self.position_embedding is not None:
            embedded = embedded + resize_positions(self.position_embedding, grid)
        tokens = embedded.flatten(2).transpose(1, 2)
        if self.class_token is None:
            return BranchState(self.embedding_norm(tokens), grid)
        # The norm works token by token, so it needs no common sequence.
        first = self.embedding_norm(self.class_token.expand(len(tokens), -1, -1))
        return BranchState(self.embedding_norm(tokens), grid, first)

    def run(self, state: BranchState, stage: int) -> BranchState:
        """The layers of one stage. Class tokens join for them alone."""
        first = sum(self.slices[:stage])
        if state.class_token is None:
            tokens = state.tokens
            for layer in self.layers[first : first + self.slices[stage]]:
                tokens = layer(tokens, state.grid, 0)
            return BranchState(tokens, state.grid)
        tokens = torch.cat([state.class_token, state.tokens], dim=1)
        for layer in self.layers[first : first + self.slices[stage]]:
            tokens = layer(tokens, state.grid, 1)
        return BranchState(tokens[:, 1:], state.grid, tokens[:, :1])


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table ``[1, width, side, side]`` for a grid of any size, bicubic as in the released code."""
    if table.shape[2:] == grid:
        return table
    return functional.interpolate(table, grid, mode="bicubic", align_corners=False)
