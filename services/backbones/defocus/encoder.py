"""The De-focus encoder: patches in raster order, the class token last, one causal pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.backbones.defocus.blocks import Block, make_block
from services.backbones.defocus.configuration import EncoderConfig
from services.backbones.defocus.mamba import MambaMixer
from services.backbones.defocus.mixers import LayerState

_NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class StreamState:
    """What the layers keep of the tokens that they have seen, and how many these were."""

    tokens: int
    layers: tuple[LayerState, ...]


class Encoder(nn.Module):
    """Pixels to features of the image tokens and of the class token, which stands last and so sees all others."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        kernel = config.patch_size + 2 * config.patch_margin
        self.patch_embedding = nn.Conv2d(
            config.channels, config.width, kernel, config.patch_size, padding=config.patch_margin
        )
        self.class_token = nn.Parameter(torch.zeros(config.width))
        self.positions: nn.Parameter | None = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(config.tokens + 1, config.width))
        self.blocks: Sequence[Block] = nn.ModuleList(make_block(config) for _ in range(config.depth))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPSILON)
        self.apply(self._initialise)
        for parameter in (self.class_token, self.positions):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=config.initial_deviation)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.config.initial_deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        # Called after its own layers, whose time step must not begin at zero.
        elif isinstance(module, MambaMixer):
            module.begin_time_steps()

    @property
    def last_but_one(self) -> int:
        """Number of the layer, from 0, at which over-focus is told best: the last one feeds the class token alone."""
        return max(0, self.config.depth - 2)

    def set_drop_path(self, rates: Sequence[float]) -> None:
        """The drop path rate of every layer, first to last, from now on."""
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path.rate = rate

    def embed(self, pixels: Tensor) -> Tensor:
        """Image tokens ``[batch, rows · columns, width]`` of ``pixels`` ``[batch, channels, height, width]``, in raster
        order.

        Raises ValueError for another size than the positions were learned for.
        """
        tokens: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if self.positions is None:
            return tokens
        if tokens.shape[1] != self.config.tokens:
            raise ValueError(
                f"The image has {tokens.shape[1]} patches, but positions were learned for {self.config.tokens}."
            )
        return tokens + self.positions[:-1]

    def class_tokens(self, batch: int) -> Tensor:
        """``[batch, 1, width]``, what stands after the image tokens."""
        token = self.class_token if self.positions is None else self.class_token + self.positions[-1]
        return token.expand(batch, 1, -1)

    def run(self, tokens: Tensor, past: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Features ``[batch, tokens, width]`` of the tokens that follow those of ``past``, and the state after them.

        Feeding a sequence in pieces, down to single tokens, gives what feeding it at once does. Raises ValueError for a
        ``past`` where attention looks both ways.
        """
        if past is not None and not self.config.causal:
            raise ValueError("Attention that looks both ways needs the whole sequence at once.")
        start = past.tokens if past else 0
        hidden, layers = tokens, []
        for number, block in enumerate(self.blocks):
            hidden, kept = block(hidden, start, past.layers[number] if past else None)
            layers.append(kept)
        return self.norm(hidden), StreamState(start + tokens.shape[1], tuple(layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[batch, rows · columns + 1, width]``; those of the class token are the last."""
        tokens = torch.cat([self.embed(pixels), self.class_tokens(len(pixels))], dim=1)
        features, _ = self.run(tokens)
        return features
