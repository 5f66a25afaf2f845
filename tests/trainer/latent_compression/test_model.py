"""The network: sizes, causality, the pool, the merge, and which loss reaches which part."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from services.mllm.towers import ClipTower
from services.trainer.latent_compression.attentive_pool import AttentivePool
from services.trainer.latent_compression.digit_documents import DIGIT_MARKS, DigitDocumentStream
from services.trainer.latent_compression.losses import contrast_loss, generation_loss
from services.trainer.latent_compression.model import LatentCompressionModel
from services.trainer.latent_compression.packing import InterleavedBatch, collate_documents
from services.trainer.latent_compression.plan import DecoderSize
from services.trainer.latent_compression.sequences import SequenceBuilder, Text, TokenSequence
from tests.trainer.latent_compression.small_model import ENCODER, make_model

WORDS = (Text((5, 6, 7)), Text((8, 9)), Text((10, 11, 12, 13)))


def collate(*documents: TokenSequence[Tensor], context: int = 64) -> InterleavedBatch:
    return collate_documents(documents, DIGIT_MARKS, context)


def states(model: LatentCompressionModel, batch: InterleavedBatch) -> Tensor:
    return model.read(batch, model.pool(model.encoder.patch_tokens(batch.pixels))[1])


@pytest.mark.parametrize(
    ("patch", "decoder", "vision", "pool", "language", "head"),
    [
        (16, DecoderSize(), 85_799, 2_367, 123_809, 37_949),
        (32, DecoderSize(hidden_size=512, heads=8, pool_heads=8, context=128), 87_456, 1_449, 63_456, 25_299),
        (32, DecoderSize(hidden_size=512, heads=8, pool_heads=8, context=2048), 87_456, 1_449, 64_439, 25_299),
    ],
)
def test_parameters_of_the_released_sizes(
    patch: int, decoder: DecoderSize, vision: int, pool: int, language: int, head: int
) -> None:
    with torch.device("meta"):
        model = LatentCompressionModel(ClipTower(patch_size=patch), decoder, 49_411)

    def thousands(*modules: nn.Module) -> int:
        return round(sum(each.numel() for module in modules for each in module.parameters()) / 1000)

    assert thousands(model.encoder) == vision
    assert thousands(model.pool) == pool
    assert thousands(model.decoder, model.context_norm, model.context_projection) == language
    assert thousands(model.generation_norm, model.generation_head) == head
    exact = {16: 249_924, 32: 177_660 + (1920 * 512 // 1000 if decoder.context == 2048 else 0)}
    assert sum(each.numel() for each in model.parameters()) // 1000 == pytest.approx(exact[patch], abs=1)


def test_nothing_looks_ahead(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    parts = [WORDS[0], image(0), WORDS[1], image(1), WORDS[2]]
    whole = states(model, collate(builder.interleaved(parts)))
    other_word = states(model, collate(builder.interleaved([*parts[:4], Text((10, 11, 50, 13))])))
    other_image = states(model, collate(builder.interleaved([*parts[:3], image(7), parts[4]])))

    second_image = 1 + 3 + 18 + 2 + 1  # behind its <soi>
    third_word = second_image + 17 + 2
    assert torch.equal(whole[:, :third_word], other_word[:, :third_word])
    assert not torch.allclose(whole[:, third_word:], other_word[:, third_word:])
    assert torch.equal(whole[:, :second_image], other_image[:, :second_image])
    assert not torch.allclose(whole[:, second_image:], other_image[:, second_image:])


def test_a_context_never_sees_its_own_image_but_the_one_before(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    """Two images of a document, and those of another one in the same packed row."""
    documents = [
        builder.interleaved([WORDS[0], image(0), WORDS[1], image(1), WORDS[2]]),
        builder.text_first(WORDS[2], image(2)),
    ]
    batch = collate(*documents, context=128)
    assert len(batch.ids) == 1
    batch.pixels.requires_grad_()
    contexts = model(batch).context_features

    def reach(context: int) -> list[float]:
        # Features are of unit length: the sum of their squares would have no gradient anywhere.
        weighted = (contexts[context] * torch.arange(32.0)).sum()
        (gradient,) = torch.autograd.grad(weighted, batch.pixels, retain_graph=True)
        return gradient.abs().flatten(1).sum(dim=1).tolist()

    assert reach(0) == [0.0, 0.0, 0.0]
    first, own, other = reach(1)
    assert first > 0
    assert (own, other) == (0.0, 0.0)
    assert reach(2) == [0.0, 0.0, 0.0]


def test_which_loss_reaches_the_encoder(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    """Generation teaches it from texts after images, contrast from images after texts, with two candidates at least."""

    def reach(documents: list[TokenSequence[Tensor]], loss: str) -> float:
        batch = collate(*documents)
        batch.pixels.requires_grad_()
        output = model(batch)
        if loss == "contrast":
            value = contrast_loss(output.image_features, output.context_features, torch.tensor(10.0), 8)
        else:
            value = generation_loss(model.generation_head, output.target_states, batch.target_ids)
        (gradient,) = torch.autograd.grad(value, batch.pixels, allow_unused=True)
        return 0.0 if gradient is None else float(gradient.abs().sum())

    text_first = [builder.text_first(words, image(number)) for number, words in enumerate(WORDS)]
    image_first = [builder.image_first(words, image(number)) for number, words in enumerate(WORDS)]
    assert reach(text_first[:1], "contrast") == 0.0
    assert reach(text_first[:2], "contrast") > 0
    assert reach(text_first, "generation") == 0.0
    assert reach(image_first[:1], "generation") > 0
    assert reach(image_first, "contrast") == 0.0


def test_image_tokens_take_the_places_of_their_document(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    first = builder.interleaved([WORDS[0], image(0), WORDS[1], image(1)])
    second = builder.image_first(WORDS[2], image(2))

    together, swapped = states(model, collate(first, second)), states(model, collate(second, first))

    assert torch.allclose(together[0], swapped[1], atol=1e-6)
    assert torch.allclose(together[1, : len(second.ids)], swapped[0, : len(second.ids)], atol=1e-6)


def test_too_few_image_tokens_are_refused(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    with pytest.raises(ValueError, match="15 image tokens for 16 places"):
        model.read(collate(builder.text_first(WORDS[0], image(0))), torch.zeros(1, 15, 32))


def test_packing_and_padding_change_no_loss(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    documents = [
        builder.interleaved([WORDS[0], image(0), WORDS[1], image(1), WORDS[2]]),
        builder.text_first(WORDS[1], image(2)),
        builder.image_first(WORDS[2], image(3)),
    ]

    def losses(context: int) -> list[float]:
        batch = collate(*documents, context=context)
        with torch.no_grad():
            output = model(batch)
        return [
            float(contrast_loss(output.image_features, output.context_features, torch.tensor(10.0), 8)),
            generation_loss(model.generation_head, output.target_states, batch.target_ids).item(),
        ]

    assert losses(128) == pytest.approx(losses(55), abs=1e-5)


def test_a_uniform_query_pools_the_mean_of_the_decoders_tokens() -> None:
    torch.manual_seed(0)
    pool = AttentivePool(24, 32, heads=4)
    nn.init.zeros_(pool.query_projection.weight)
    nn.init.zeros_(pool.query_projection.bias)
    pooled, tokens = pool(torch.randn(3, 9, 24))
    assert torch.allclose(pooled, tokens.mean(dim=1), atol=1e-6)


def test_one_head_pools_a_convex_combination_of_the_decoders_tokens() -> None:
    torch.manual_seed(0)
    pool = AttentivePool(24, 32, heads=1)
    features = torch.randn(3, 9, 24)
    pooled, tokens = pool(features)

    query = pool.query_projection(pool.query_norm(pool.query))
    weights = (pool.key_projection(pool.key_norm(features)) @ query.T / math.sqrt(32)).softmax(dim=1)
    assert torch.allclose(pooled, (weights * tokens).sum(dim=1), atol=1e-6)


def test_losses_begin_where_nothing_is_known() -> None:
    torch.manual_seed(0)
    decoder = DecoderSize(hidden_size=32, layers=1, heads=2, pool_heads=1, context=56)
    model = LatentCompressionModel(ENCODER, decoder, 49_411)
    documents = DigitDocumentStream(SequenceBuilder(DIGIT_MARKS, ENCODER.tokens, 56), seed=0, images_swapped=False)
    batch = collate(*(documents[number] for number in range(64)))
    with torch.no_grad():
        output = model(batch)
        generation = generation_loss(model.generation_head, output.target_states, batch.target_ids)
        contrast = contrast_loss(output.image_features, output.context_features, model.logit_scale.exp(), 128)

    assert float(generation) == pytest.approx(math.log(49_411), abs=0.1)
    # Chance at random features, which CLIP's first temperature makes a little too sure of themselves.
    assert float(contrast) == pytest.approx(math.log(128), abs=0.8)


def test_the_temperature_stays_within_its_bounds(model: LatentCompressionModel) -> None:
    assert model.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    for value, expected in ((-1.0, 0.0), (3.0, 3.0), (9.0, math.log(100))):
        nn.init.constant_(model.logit_scale, value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(expected)


def test_text_features_are_contexts_and_leave_their_ids_alone(
    model: LatentCompressionModel, builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    queries = [builder.query(words) for words in WORDS]
    before = [tuple(query) for query in queries]

    features = model.text_features(queries)

    batch = collate(*(builder.text_first(words, image(0)) for words in WORDS))
    assert torch.allclose(features, model(batch).context_features, atol=1e-6)
    assert queries == before


def test_gradient_checkpointing_changes_nothing_but_memory(
    builder: SequenceBuilder, image: Callable[[int], Tensor]
) -> None:
    batch = collate(builder.interleaved([WORDS[0], image(0), WORDS[1], image(1), WORDS[2]]))
    gradients = []
    for checkpointing in (False, True):
        model = make_model()
        if checkpointing:
            model.use_gradient_checkpointing()
        output = model(batch)
        generation_loss(model.generation_head, output.target_states, batch.target_ids).backward()
        gradients.append([each.grad for each in model.parameters() if each.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*gradients, strict=True))
