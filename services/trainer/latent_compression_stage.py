"""Trains a vision encoder from scratch on interleaved documents: latent compression learning.

Encoder, attentive pool and causal decoder learn together, from one pass over each document: the state before an image
is contrasted with the image, and the text after it is generated. The encoder is what is exported: as weights of the
MLLM's vision tower, whose kind is ``clip``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from services.runtime.weights import save_weights
from services.trainer.latent_compression.digit_documents import (
    DIGIT_MARKS,
    DIGIT_VOCABULARY,
    DigitDocumentStream,
)
from services.trainer.latent_compression.document_stream import DocumentStream, open_corpora
from services.trainer.latent_compression.document_tokenizer import DocumentTokenizer
from services.trainer.latent_compression.judging import Judges, digit_judges, folder_judges, judge
from services.trainer.latent_compression.losses import contrast_loss, generation_loss
from services.trainer.latent_compression.model import LatentCompressionModel
from services.trainer.latent_compression.packing import InterleavedBatch, collate_documents
from services.trainer.latent_compression.plan import DigitDocuments
from services.trainer.latent_compression.sequences import SequenceBuilder, TokenSequence
from services.trainer.recipe import Recipe
from services.trainer.stage import Stage
from superlink.configuration import ConfigurationError


class LatentCompressionStage(Stage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises ConfigurationError where the recipe has no ``latent_compression``."""
        if recipe.latent_compression is None:
            raise ConfigurationError("latent_compression: this stage needs the section.")
        self.recipe = recipe
        self.plan = recipe.latent_compression
        # None: digits, whose words are numbers from the start.
        self.tokenizer = DocumentTokenizer.load(self.plan.tokenizer) if self.plan.tokenizer else None
        self.marks = self.tokenizer.marks if self.tokenizer else DIGIT_MARKS
        self.builder = SequenceBuilder(self.marks, self.plan.encoder.tokens, self.plan.decoder.context)
        vocabulary = self.tokenizer.vocabulary if self.tokenizer else DIGIT_VOCABULARY
        self.latent = LatentCompressionModel(self.plan.encoder, self.plan.decoder, vocabulary)
        if self.plan.gradient_checkpointing:
            self.latent.use_gradient_checkpointing()
        self.model = nn.ModuleDict({"latent": self.latent})

    def training_data(self) -> Dataset[Any]:
        """Documents of the recipe's corpora."""
        if self.tokenizer is None:
            digits = self.plan.documents.digits or DigitDocuments()
            return DigitDocumentStream(self.builder, self.recipe.seed, digits.images_swapped)
        corpora = open_corpora(self.plan.documents)
        return DocumentStream(corpora, self.tokenizer, self.builder, self.plan.encoder.image_size, self.recipe.seed)

    def held_out(self) -> Sequence[Judges]:
        """What the encoder is judged on, if anything."""
        if self.tokenizer is None:
            return [digit_judges(self.builder)]
        if self.plan.judged_on is None:
            return []
        return [folder_judges(self.plan.judged_on, self.plan.encoder.image_size, self.tokenizer, self.builder)]

    def collate(self, samples: Sequence[TokenSequence[Tensor]]) -> InterleavedBatch:
        """See ``Stage``."""
        return collate_documents(samples, self.marks, self.plan.decoder.context)

    def losses(self, batch: InterleavedBatch) -> dict[str, Tensor]:
        """See ``losses.py``. A loss of weight 0 is left out."""
        batch = batch.to(self.latent.logit_scale.device)
        output = self.latent(batch)
        terms = {}
        if self.plan.contrast_weight:
            contrast = contrast_loss(
                output.image_features, output.context_features, self.latent.logit_scale.exp(), self.contrast_capacity
            )
            terms["contrast"] = self.plan.contrast_weight * contrast
        if self.plan.generation_weight:
            generation = generation_loss(self.latent.generation_head, output.target_states, batch.target_ids)
            terms["generation"] = self.plan.generation_weight * generation
        return terms

    @property
    def contrast_capacity(self) -> int:
        """The most images that a rank's batch can have in the contrast."""
        documents = self.plan.documents
        corpora = (documents.mmc4, documents.obelics, documents.omnicorpus)
        images = [corpus.most_images for corpus in corpora if corpus is not None]
        if documents.digits is not None:
            images.append(2)
        return self.recipe.schedule.batch_size * max(images, default=1)

    def after_step(self) -> None:
        """The temperature stays within its bounds."""
        self.latent.clamp_logit_scale()

    def evaluate(self, scenes: Sequence[Judges]) -> dict[str, float]:
        """See ``judge``."""
        was_training = self.latent.training
        self.latent.eval()
        figures = {name: value for judges in scenes for name, value in judge(self.latent, judges).items()}
        self.latent.train(was_training)
        return figures

    def export(self, folder: Path) -> None:
        """The encoder alone, as the MLLM's vision tower loads it; ``config.json`` says which tower that is."""
        save_weights(self.latent.encoder, folder, self.plan.encoder)
