"""Trains a De-focus network to name handwritten digits, and measures how far its attention and gradients spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from services.backbones.defocus.classifier import Classifier
from services.backbones.defocus.drop_path import drop_path_rates
from services.backbones.defocus.over_focus import (
    attention_map,
    loss_gradients,
    mean_participation,
    receptive_fields,
    top_key_share,
)
from services.runtime.weights import save_weights
from services.trainer.classification.digit_stream import DigitBatch, DigitStream, disturbed_passes, stack_digits
from services.trainer.classification.plan import DropPathSchedule
from services.trainer.digits import load_digits
from services.trainer.distributed import world_size
from services.trainer.recipe import Recipe
from services.trainer.stage import Stage
from superlink.configuration import ConfigurationError

_PASSES = 4
# Digits by which over-focus is measured, and by which attention maps are, of which each takes a backward pass a token.
_MEASURED = 256
_MAPPED = 32


class ClassificationStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.classification is None:
            raise ConfigurationError("missing key 'classification', which says what the stage trains.")
        self.recipe, self.plan = recipe, recipe.classification
        self.training_digits, self.held_out_digits = load_digits()
        self.classifier = Classifier(self.plan.network)
        self.model = nn.ModuleDict({"classifier": self.classifier})

    def training_data(self) -> DigitStream:
        """See ``Stage``."""
        return DigitStream(self.training_digits, self.recipe.seed)

    def held_out(self) -> Sequence[DigitBatch]:
        """See ``Stage``."""
        return disturbed_passes(self.held_out_digits, _PASSES)

    def collate(self, samples: Sequence[DigitBatch]) -> DigitBatch:
        """See ``Stage``."""
        return stack_digits(samples)

    def losses(self, batch: DigitBatch) -> dict[str, Tensor]:
        """See ``Classifier.losses``; layers are dropped as often as the epoch says."""
        if self.plan.drop_path is not None:
            self.classifier.encoder.set_drop_path(self._rates(self.plan.drop_path, batch.number))
        device = self.classifier.encoder.class_token.device
        features = self.classifier.encoder(batch.pixels.to(device))
        return self.classifier.losses(features, batch.labels.to(device))

    def _rates(self, plan: DropPathSchedule, number: int) -> list[float]:
        """Drop path rates of the layers in the epoch that sample ``number`` belongs to."""
        schedule, digits = self.recipe.schedule, len(self.training_digits.labels)
        epochs = -(-schedule.steps * schedule.batch_size * world_size() // digits)
        depth = self.plan.network.encoder.depth
        return drop_path_rates(number // digits, epochs, depth, plan.first, plan.last)

    def evaluate(self, held_out: Sequence[DigitBatch]) -> dict[str, float]:
        """Share of digits that are named right (``top1``), and participation ratios of image tokens.

        ``gradient_pr`` and ``class_pr`` are those of the loss's gradients, and of the class token's receptive field, at
        the last layer but one; ``gradient_pr_N`` and ``class_pr_N`` at layer N, from 1. ``top5_share`` is the share of
        all attention in the last layer but one that the five most looked-at tokens get.
        """
        classifier, encoder = self.classifier.eval(), self.classifier.encoder
        device = encoder.class_token.device
        batches = [(batch.pixels.to(device), batch.labels.to(device)) for batch in held_out]
        with torch.no_grad():
            right = [(classifier(pixels).argmax(dim=1) == labels).float().mean() for pixels, labels in batches]
        pixels, labels = (part[:_MEASURED] for part in batches[0])
        gradients = loss_gradients(encoder, lambda: classifier.loss(encoder(pixels), labels))
        by_layer = {
            "gradient_pr": mean_participation(gradients[..., :-1]),
            "class_pr": mean_participation(receptive_fields(encoder, pixels)[..., :-1]),
        }
        attention = attention_map(encoder, pixels[:_MAPPED], encoder.last_but_one)
        return {
            "top1": float(torch.stack(right).mean()),
            **{name: ratios[encoder.last_but_one] for name, ratios in by_layer.items()},
            "top5_share": float(top_key_share(attention).mean()),
            **{f"{name}_{layer}": value for name, ratios in by_layer.items() for layer, value in enumerate(ratios, 1)},
        }

    def export(self, folder: Path) -> None:
        """The classifier with what the recipe says about it."""
        save_weights(self.classifier, folder, self.plan)
