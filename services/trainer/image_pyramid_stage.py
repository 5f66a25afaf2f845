"""Trains an image pyramid to name the cells of pattern fields (docs/piip.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.piip.cost import pyramid_cost
from services.runtime.weights import save_weights
from services.trainer.image_pyramid.cell_classifier import CellClassifier
from services.trainer.image_pyramid.pattern_fields import (
    HELD_OUT_STREAM,
    ORIENTATIONS,
    PATTERNS,
    PatternField,
    PatternFields,
    stack_fields,
)
from services.trainer.recipe import Recipe
from services.trainer.stage import Stage
from superlink.configuration import ConfigurationError

_HELD_OUT_BATCH = 64


class ImagePyramidStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        if recipe.image_pyramid is None:
            raise ConfigurationError("missing key 'image_pyramid', which says what the stage trains.")
        self.recipe, self.plan = recipe, recipe.image_pyramid
        self.classifier = CellClassifier(self.plan)
        self.model = nn.ModuleDict({"classifier": self.classifier})

    def training_data(self) -> PatternFields:
        """See ``Stage``."""
        return PatternFields(self.recipe.seed)

    def held_out(self) -> Sequence[PatternField]:
        """The same fields for every seed and every recipe."""
        fields = PatternFields(HELD_OUT_STREAM)
        return [fields[number] for number in range(self.recipe.evaluation.scenes)]

    def collate(self, samples: Sequence[PatternField]) -> PatternField:
        """See ``Stage``."""
        return stack_fields(list(samples))

    def losses(self, batch: PatternField) -> dict[str, Tensor]:
        """Cross-entropy over all cells."""
        device = self.classifier.head.weight.device
        logits = self.classifier(batch.pixels.to(device))
        return {"cells": functional.cross_entropy(logits, batch.classes.to(device))}

    @torch.no_grad()
    def evaluate(self, held_out: Sequence[PatternField]) -> dict[str, float]:
        """Shares of the cells with a pattern that are named right, and what the network is like.

        ``foreground_accuracy``: pattern and orientation; ``pattern_accuracy``: the pattern; ``context_accuracy``: the
        orientation that is likeliest over all patterns, whose chance is 1 in 4. ``mean_gate`` is the mean size of the
        gates of the interactions' attention; ``mega_macs`` the cost of branches and interactions.
        """
        classifier = self.classifier.eval()
        device = classifier.head.weight.device
        right = torch.zeros(3)
        cells = 0
        for start in range(0, len(held_out), _HELD_OUT_BATCH):
            batch = stack_fields(list(held_out[start : start + _HELD_OUT_BATCH]))
            shares = classifier(batch.pixels.to(device)).softmax(dim=1).permute(0, 2, 3, 1).cpu()
            marked = batch.classes > 0
            shares, wanted = shares[marked], batch.classes[marked]
            named = shares.argmax(dim=1)
            pattern = (wanted - 1) // ORIENTATIONS
            context = shares[:, 1:].unflatten(1, (PATTERNS, ORIENTATIONS)).sum(dim=1).argmax(dim=1)
            right += torch.stack(
                [
                    (named == wanted).sum(),
                    ((named > 0) & ((named - 1) // ORIENTATIONS == pattern)).sum(),
                    (context == (wanted - 1) % ORIENTATIONS).sum(),
                ]
            )
            cells += len(wanted)
        names = ("foreground_accuracy", "pattern_accuracy", "context_accuracy")
        return {
            **dict(zip(names, (right / cells).tolist(), strict=True)),
            "mean_gate": classifier.mean_gate(),
            "mega_macs": pyramid_cost(self.plan.piip).without_merge / 1e6,
        }

    def export(self, folder: Path) -> None:
        """The classifier with what the recipe says about it."""
        save_weights(self.classifier, folder, self.plan)
