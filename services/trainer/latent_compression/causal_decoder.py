"""The causal language model that reads text and image tokens alike: CLIP's text transformer, without its end."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.widening = nn.Linear(width, 4 * width)
        self.narrowing = nn.Linear(4 * width, width)

    def begin(self, layers: int) -> None:
        """Weights as OpenCLIP begins them in a model of so many ``layers``."""
        width = self.qkv.in_features
        residual = (2 * layers) ** -0.5
        for layer, deviation in (
            (self.qkv, width**-0.5),
            (self.projection, width**-0.5 * residual),
            (self.widening, (2 * width) ** -0.5),
            (self.narrowing, width**-0.5 * residual),
        ):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """``[rows, length, width]`` to the same; ``mask`` is ``[rows, 1, length, length]``; None sees all before."""
        rows, length, width = states.shape
        qkv = self.qkv(self.attention_norm(states)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (rows, heads, length, head width)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        states = states + self.projection(attended.transpose(1, 2).flatten(2))
        widened = nn.functional.gelu(self.widening(self.mlp_norm(states)))
        result: Tensor = states + self.narrowing(widened)
        return result


class CausalDecoder(nn.Module):
    """Word embeddings, positions and blocks. What it puts out has not been normed yet: its two heads do that."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        blocks = [Block(width, heads) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.gradient_checkpointing = False
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        for block in blocks:
            block.begin(layers)

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """States ``[rows, length, width]``; ``embeddings`` likewise, ``positions`` ``[rows, length]`` in documents.

        ``mask`` is that of ``document_mask``, or None where every row holds one document.
        """
        states: Tensor = embeddings + self.positions(positions)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                states = checkpoint(block, states, mask, use_reentrant=False)
            else:
                states = block(states, mask)
        return states


def document_mask(documents: Tensor) -> Tensor:
    """``[rows, 1, length, length]``, true where a position may look: at its own document, no further than itself.

    ``documents`` ``[rows, length]`` says which document a position belongs to; padding has a number of its own.
    """
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (documents[:, None, :, None] == documents[:, None, None, :]) & causal
