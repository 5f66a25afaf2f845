"""A De-focus encoder as the vision tower of a language model: a map of features, without the class token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from services.backbones.defocus.configuration import EncoderConfig
from services.backbones.defocus.encoder import Encoder, StreamState
from services.backbones.defocus.scan_order import inverse, padded_grid, section_order


class SectionedTower(nn.Module):
    """Reads pictures of more than ``section`` patches a side section by section.

    Image tokens never look at the class token, which stands last, so it is left out.
    """

    def __init__(self, config: EncoderConfig, section: int) -> None:
        super().__init__()
        self.encoder, self.section = Encoder(config), section

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, channels, height, width]``, multiples of the patch size, to ``[batch, width, rows, columns]``."""
        patch = self.encoder.config.patch_size
        rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
        if max(rows, columns) <= self.section:
            features, _ = self.encoder.run(self.encoder.embed(pixels))
            return features.transpose(1, 2).reshape(len(pixels), -1, rows, columns)
        high, wide = padded_grid(rows, columns, self.section)
        pixels = pad(pixels, (0, (wide - columns) * patch, 0, (high - rows) * patch))
        order = section_order(high, wide, self.section).to(pixels.device)
        features = self._read(self.encoder.embed(pixels)[:, order])[:, inverse(order)]
        return features.transpose(1, 2).reshape(len(pixels), -1, high, wide)[:, :, :rows, :columns]

    def _read(self, tokens: Tensor) -> Tensor:
        """Features ``[batch, tokens, width]``; outside of training a section at a time, which needs less memory."""
        # In training every section would drop other layers.
        if self.training or not self.encoder.config.causal:
            return self.encoder.run(tokens)[0]
        past: StreamState | None = None
        sections = []
        for section in torch.split(tokens, self.section**2, dim=1):
            features, past = self.encoder.run(section, past)
            sections.append(features)
        return torch.cat(sections, dim=1)
