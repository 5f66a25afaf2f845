"""Layouts of ids, what is generated and what is contrasted, cutting and packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from services.trainer.latent_compression.packing import InterleavedBatch, collate_documents, pack_rows
from services.trainer.latent_compression.sequences import Marks, SequenceBuilder, Text, TokenSequence

# CLIP's words, and what the released model puts behind them; ViT-B/32 has 49 tokens an image.
CLIP = Marks(49406, 49407, 49408, 49409, 49410)
A, B, C = 320, 321, 322
WORDS = Text((A, B, C))
IMAGE = torch.zeros(3, 2, 2)


@pytest.fixture
def pair_builder() -> SequenceBuilder:
    return SequenceBuilder(CLIP, image_tokens=49, context=128)


def collate(*documents: TokenSequence[Tensor], context: int = 128) -> InterleavedBatch:
    return collate_documents(documents, CLIP, context)


def test_a_pair_with_its_text_first_trains_the_contrast(pair_builder: SequenceBuilder) -> None:
    sequence = pair_builder.text_first(WORDS, IMAGE)
    batch = collate(sequence)

    assert sequence.ids == (49406, A, B, C, 49409, *[49408] * 49, 49410)
    assert batch.context_places.tolist() == [4]
    # Three words and the image's start; neither the image's tokens nor its end.
    assert batch.target_places.tolist() == [0, 1, 2, 3]
    assert batch.target_ids.tolist() == [A, B, C, 49409]


def test_a_pair_with_its_image_first_trains_the_generation(pair_builder: SequenceBuilder) -> None:
    sequence = pair_builder.image_first(WORDS, IMAGE)
    batch = collate(sequence)

    assert sequence.ids == (49409, *[49408] * 49, 49410, A, B, C, 49407)
    assert batch.context_places.tolist() == []
    # The first word is generated from the image's end.
    assert batch.target_places.tolist() == [50, 51, 52, 53]
    assert batch.target_ids.tolist() == [A, B, C, 49407]


def test_a_document_has_both_ends_and_every_image_after_text_is_contrasted() -> None:
    builder = SequenceBuilder(CLIP, image_tokens=49, context=2048)
    sequence = builder.interleaved([Text((A,)), IMAGE, Text((B,)), IMAGE, Text((C,))])
    batch = collate(sequence, context=2048)

    image = (49409, *[49408] * 49, 49410)
    assert sequence.ids == (49406, A, *image, B, *image, C, 49407)
    assert batch.context_places.tolist() == [2, 54]
    assert batch.image_places.tolist() == [*range(3, 52), *range(55, 104)]
    assert batch.target_ids.tolist() == [A, 49409, B, 49409, C, 49407]


def test_an_image_without_a_word_before_it_is_not_contrasted() -> None:
    """The start of a text says nothing about an image, nor does another image alone: the released code keeps both."""
    builder = SequenceBuilder(CLIP, image_tokens=49, context=2048)
    batch = collate(builder.interleaved([IMAGE, IMAGE, Text((A,)), IMAGE]), context=2048)

    assert batch.contrasted.tolist() == [2]
    assert batch.context_places.tolist() == [104]


def test_the_word_with_the_paddings_id_is_generated_like_any_other(pair_builder: SequenceBuilder) -> None:
    """CLIP's "!" has id 0; the released code takes it for padding and never generates it."""
    batch = collate(pair_builder.image_first(Text((A, 0)), IMAGE))
    assert batch.target_ids.tolist() == [A, 0, 49407]


def test_half_of_the_candidates_are_left_where_half_the_pairs_begin_with_the_image(
    pair_builder: SequenceBuilder,
) -> None:
    first = np.random.default_rng(0).random(400) < 0.5
    batch = collate(*((pair_builder.image_first if flag else pair_builder.text_first)(WORDS, IMAGE) for flag in first))
    assert len(batch.context_places) == 400 - first.sum()
    assert len(batch.context_places) == pytest.approx(200, abs=4 * 10)


@pytest.mark.parametrize("context", range(56, 330, 7))
def test_no_image_is_ever_cut(context: int) -> None:
    builder = SequenceBuilder(CLIP, image_tokens=49, context=context)
    words = Text(tuple(range(1, 20)))
    sequence = builder.interleaved([words, IMAGE, words, IMAGE, words, IMAGE, words, IMAGE, words])

    starts = sequence.ids.count(CLIP.start_of_image)
    assert len(sequence.ids) <= context
    assert sequence.ids.count(CLIP.image) == 49 * starts
    assert len(sequence.pictures) == starts
    assert sequence.ids[-1] == CLIP.end_of_text


def test_long_captions_leave_room_for_their_image(pair_builder: SequenceBuilder) -> None:
    caption = Text(tuple(range(1, 300)))
    for sequence in (pair_builder.text_first(caption, IMAGE), pair_builder.image_first(caption, IMAGE)):
        assert len(sequence.ids) == 128
        assert sequence.ids.count(CLIP.image) == 49
        assert len(sequence.pictures) == 1


@pytest.mark.parametrize(("image_tokens", "ids"), [(49, 306), (196, 1188)])
def test_ids_that_six_images_take_of_a_long_row(image_tokens: int, ids: int) -> None:
    builder = SequenceBuilder(CLIP, image_tokens, context=2048)
    parts = [part for number in range(6) for part in (Text((number + 1,)), IMAGE)]
    sequence = builder.interleaved(parts)
    framing = {CLIP.image, CLIP.start_of_image, CLIP.end_of_image}
    assert sum(token in framing for token in sequence.ids) == ids


def test_documents_share_rows_and_none_is_lost() -> None:
    assert pack_rows([50, 60, 40, 10, 64], 100) == [[0, 2, 3], [1], [4]]


def test_positions_begin_anew_and_nothing_is_generated_across_documents() -> None:
    builder = SequenceBuilder(Marks(90, 91, 92, 93, 94), image_tokens=2, context=40)
    first, second = builder.interleaved([Text((1,)), IMAGE]), builder.text_first(Text((2, 3)), IMAGE)
    batch = collate_documents([first, second], builder.marks, 40)

    assert batch.ids.tolist() == [[90, 1, 93, 92, 92, 94, 91, 90, 2, 3, 93, 92, 92, 94]]
    assert batch.positions.tolist() == [[*range(7), *range(7)]]
    assert batch.documents.tolist() == [[0] * 7 + [1] * 7]
    assert batch.target_ids.tolist() == [1, 93, 91, 2, 3, 93]
    assert not batch.is_unpacked
