"""What over-focus looks like in a trained network: gradients and attention, averaged over held-out digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from services.backbones.defocus.classifier import Classifier
from services.backbones.defocus.over_focus import (
    attention_map,
    loss_gradients,
    mean_participation,
    receptive_fields,
)
from services.runtime.weights import load_weights, read_config
from services.trainer.classification.digit_stream import disturbed_passes
from services.trainer.classification.plan import Classification
from services.trainer.digits import load_digits

_DIGITS = 64


@dataclass(frozen=True)
class TokenMap:
    """Something that every image token has a share of."""

    # [rows, columns] float32; the greatest value of every digit is 1, then the mean over digits.
    values: NDArray[np.float32]
    # Participation ratio.
    tokens: float


@dataclass(frozen=True)
class FocusMaps:
    """At the last layer but one."""

    # Of the loss at the layer's input.
    gradients: TokenMap
    # Of the class token.
    receptive_field: TokenMap
    # [tokens, tokens] float32: rows look at columns.
    attention: NDArray[np.float32]


def focus_maps(run: Path) -> FocusMaps:
    """The maps of a finished run of the stage ``classification``. Raises WeightsError where it has no export."""
    folder = run / "export"
    classifier = Classifier(read_config(folder, Classification).network)
    load_weights(classifier, folder)
    encoder = classifier.eval().encoder
    batch = disturbed_passes(load_digits()[1], 1)[0]
    pixels, labels = batch.pixels[:_DIGITS], batch.labels[:_DIGITS]
    layer = encoder.last_but_one
    side = encoder.config.image_size // encoder.config.patch_size
    gradients = loss_gradients(encoder, lambda: classifier.loss(encoder(pixels), labels))
    return FocusMaps(
        gradients=_token_map(gradients[layer], side),
        receptive_field=_token_map(receptive_fields(encoder, pixels)[layer], side),
        attention=attention_map(encoder, pixels, layer).mean(dim=0).numpy(),
    )


def _token_map(norms: Tensor, side: int) -> TokenMap:
    """Of norms ``[digits, tokens + 1]``, without the class token."""
    image = norms[:, :-1]
    normed = image / image.amax(dim=1, keepdim=True)
    return TokenMap(normed.mean(dim=0).reshape(side, side).numpy(), mean_participation(image[None])[0])
