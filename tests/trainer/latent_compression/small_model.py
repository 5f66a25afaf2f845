"""A small model: 16 tokens an image, 64 a document, words 1 to 100."""

from __future__ import annotations

import torch

from services.mllm.towers import ClipTower
from services.trainer.latent_compression.digit_documents import DIGIT_VOCABULARY
from services.trainer.latent_compression.model import LatentCompressionModel
from services.trainer.latent_compression.plan import DecoderSize

ENCODER = ClipTower(image_size=12, patch_size=3, hidden_size=32, layers=2, heads=2)
DECODER = DecoderSize(hidden_size=32, layers=2, heads=2, pool_heads=1, context=64)


def make_model() -> LatentCompressionModel:
    torch.manual_seed(0)
    return LatentCompressionModel(ENCODER, DECODER, DIGIT_VOCABULARY)
