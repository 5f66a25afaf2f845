"""The three parts that learn together: vision encoder, attentive pool and causal decoder, and the decoder's heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.mllm.towers import ClipTower
from services.trainer.latent_compression.attentive_pool import AttentivePool
from services.trainer.latent_compression.causal_decoder import CausalDecoder, document_mask
from services.trainer.latent_compression.packing import InterleavedBatch
from services.trainer.latent_compression.plan import DecoderSize

# CLIP's temperature of 0.07, and the bound that its scale is held to.
_FIRST_LOGIT_SCALE = math.log(1 / 0.07)
LARGEST_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class LatentOutput:
    """What the losses compare; everything of unit length is float32."""

    # [contrasted, width], of unit length: the images with text before them, and the decoder's state before each.
    image_features: Tensor
    context_features: Tensor
    # [targets, width]: normed states before the tokens that are generated.
    target_states: Tensor


class LatentCompressionModel(nn.Module):
    """See the module's docstring."""

    def __init__(self, encoder: ClipTower, decoder: DecoderSize, vocabulary: int) -> None:
        super().__init__()
        self.encoder = encoder.build()
        width = decoder.hidden_size
        self.pool = AttentivePool(encoder.hidden_size, width, decoder.pool_heads)
        self.decoder = CausalDecoder(vocabulary, decoder.context, width, decoder.layers, decoder.heads)
        self.context_norm = nn.LayerNorm(width)
        self.context_projection = nn.Linear(width, width, bias=False)
        self.generation_norm = nn.LayerNorm(width)
        self.generation_head = nn.Linear(width, vocabulary, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(_FIRST_LOGIT_SCALE))
        nn.init.normal_(self.context_projection.weight, std=width**-0.5)
        nn.init.normal_(self.generation_head.weight, std=0.02)

    def forward(self, batch: InterleavedBatch) -> LatentOutput:
        """One pass over a batch."""
        pooled, tokens = self.pool(self.encoder.patch_tokens(batch.pixels))
        states = self.read(batch, tokens).flatten(0, 1)
        return LatentOutput(
            image_features=_unit(pooled[batch.contrasted]),
            context_features=self.context_features(states[batch.context_places]),
            target_states=self.generation_norm(states[batch.target_places]),
        )

    def read(self, batch: InterleavedBatch, image_tokens: Tensor) -> Tensor:
        """The decoder's states ``[rows, length, width]``; ``image_tokens`` is ``[images, tokens, width]``.

        Raises ValueError where tokens and their places do not match in number.
        """
        given = image_tokens.shape[0] * image_tokens.shape[1]
        if given != len(batch.image_places):
            raise ValueError(f"There are {given} image tokens for {len(batch.image_places)} places.")
        words = self.decoder.words(batch.ids)
        embeddings = (
            words.flatten(0, 1)
            .index_copy(0, batch.image_places, image_tokens.flatten(0, 1).to(words.dtype))
            .view_as(words)
        )
        # A row with one document needs no mask: what lies behind a position is out of its sight anyway.
        mask = None if batch.is_unpacked else document_mask(batch.documents)
        states: Tensor = self.decoder(embeddings, batch.positions, mask)
        return states

    def context_features(self, states: Tensor) -> Tensor:
        """What images are expected to look like, ``[n, width]`` of unit length, from states before them."""
        return _unit(self.context_projection(self.context_norm(states)))

    def image_features(self, patch_tokens: Tensor) -> Tensor:
        """Pooled features ``[images, width]`` of unit length, from the encoder's ``[images, patches, width]``."""
        return _unit(self.pool(patch_tokens)[0])

    def text_features(self, queries: list[tuple[int, ...]]) -> Tensor:
        """Features ``[queries, width]`` of ``SequenceBuilder.query``'s ids: what an image after them should look like.

        The ids are left as they are.
        """
        device = self.logit_scale.device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(query) for query in queries], batch_first=True).to(device)
        positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
        states = self.decoder(self.decoder.words(ids), positions, None)
        last = torch.tensor([len(query) - 1 for query in queries], device=device)
        return self.context_features(states[torch.arange(len(queries), device=device), last])

    def use_gradient_checkpointing(self) -> None:
        """In both transformers."""
        self.encoder.use_gradient_checkpointing()
        self.decoder.gradient_checkpointing = True

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Hold the scale within 1 to 100, as CLIP does after every step."""
        self.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)
