"""The small model, and documents of its size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.trainer.latent_compression.digit_documents import DIGIT_MARKS
from services.trainer.latent_compression.model import LatentCompressionModel
from services.trainer.latent_compression.sequences import SequenceBuilder
from tests.trainer.latent_compression.small_model import DECODER, ENCODER, make_model


@pytest.fixture
def model() -> LatentCompressionModel:
    return make_model()


@pytest.fixture
def builder() -> SequenceBuilder:
    return SequenceBuilder(DIGIT_MARKS, ENCODER.tokens, DECODER.context)


@pytest.fixture
def image() -> Callable[[int], Tensor]:
    """A random image by number."""
    return lambda number: torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(number))
