"""Attentive pooling and projection in one (LCL, section 3): one feature an image, and its tokens for the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentivePool(nn.Module):
    """A learned query looks at an image's tokens.

    The pooled feature is, head by head, a convex combination of the very tokens that the decoder reads, because values
    and output projection are shared and the latter has no bias.
    """

    def __init__(self, in_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, in_width))
        self.query_norm = nn.LayerNorm(in_width)
        self.key_norm = nn.LayerNorm(in_width)
        self.value_norm = nn.LayerNorm(in_width)
        self.query_projection = nn.Linear(in_width, width)
        self.key_projection = nn.Linear(in_width, width)
        self.value_projection = nn.Linear(in_width, width)
        self.out_projection = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[images, tokens, in width]`` to pooled ``[images, width]`` and tokens ``[images, tokens, width]``."""
        values = self.value_projection(self.value_norm(tokens))
        keys = self.key_projection(self.key_norm(tokens))
        query = self.query_projection(self.query_norm(self.query)).expand(len(tokens), 1, -1)
        attended = nn.functional.scaled_dot_product_attention(
            self._split(query), self._split(keys), self._split(values)
        )
        pooled = attended.transpose(1, 2).flatten(1)
        return self.out_projection(pooled), self.out_projection(values)

    def _split(self, states: Tensor) -> Tensor:
        """``[images, tokens, width]`` to ``[images, heads, tokens, width / heads]``."""
        images, tokens, width = states.shape
        return states.view(images, tokens, self.heads, width // self.heads).transpose(1, 2)
