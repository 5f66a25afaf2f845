"""From link embeddings to what the denoising network attends to (VisionLLM v2 section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.diffusion.configuration import MapperConfig


class LinkMapper(nn.Module):
    """A small transformer whose learned queries read the links of one request.

    Links keep their order, as words do: each has an embedding of its place. The empty request has a context of its
    own, learnt with the rest.
    """

    def __init__(self, config: MapperConfig, link_width: int, links: int) -> None:
        super().__init__()
        width = config.width
        self.projection = nn.Sequential(nn.Linear(link_width, width), nn.GELU(), nn.Linear(width, width))
        self.places = nn.Parameter(torch.randn(links, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.transformer = nn.Transformer(
            d_model=width,
            nhead=config.heads,
            num_encoder_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            dim_feedforward=4 * width,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.empty = nn.Parameter(torch.randn(config.queries, width))

    def forward(self, links: Tensor) -> Tensor:
        """``[batch, links, link_width]`` to a context ``[batch, queries, width]``."""
        tokens = self.projection(links) + self.places
        context: Tensor = self.transformer(tokens, self.queries.expand(len(links), -1, -1))
        return context
