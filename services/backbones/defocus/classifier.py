"""A De-focus encoder with its two heads, and what they are trained by (section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.backbones.defocus.configuration import ClassifierConfig
from services.backbones.defocus.encoder import Encoder


class Classifier(nn.Module):
    """The head on the class token answers; the auxiliary one is for training alone."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.head = self._make_head()
        self.auxiliary_head: nn.Module | None = None
        if config.auxiliary != "none":
            self.auxiliary_head = self._make_head()

    def _make_head(self) -> nn.Module:
        width, classes = self.config.encoder.width, self.config.classes
        layers = [nn.Linear(width, classes)]
        if self.config.head == "tanh":
            layers = [nn.Linear(width, 3 * width), nn.Linear(3 * width, classes)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=self.config.encoder.initial_deviation)
            nn.init.zeros_(layer.bias)
        return layers[0] if len(layers) == 1 else nn.Sequential(layers[0], nn.Tanh(), layers[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[batch, classes]`` of pixels ``[batch, channels, height, width]``."""
        logits: Tensor = self.head(self.encoder(pixels)[:, -1])
        return logits

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The sum of ``losses``."""
        return torch.stack(list(self.losses(features, labels).values())).sum()

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss terms to be summed, for features ``[batch, tokens + 1, width]`` and labels ``[batch]`` int64.

        ``pooled``: the cross-entropies of the class token and of the mean image token, as the paper adds them.
        ``tokens``: half the class token's and half the mean over the cross-entropies of all image tokens, as released.
        """
        on_class = cross_entropy(self.head(features[:, -1]), labels)
        if self.auxiliary_head is None:
            return {"class": on_class}
        image = features[:, :-1]
        if self.config.auxiliary == "pooled":
            return {"class": on_class, "auxiliary": cross_entropy(self.auxiliary_head(image.mean(dim=1)), labels)}
        logits = self.auxiliary_head(image)
        repeated = labels[:, None].expand(logits.shape[:2])
        on_tokens = cross_entropy(logits.flatten(0, 1), repeated.flatten())
        return {"class": on_class / 2, "auxiliary": on_tokens / 2}
