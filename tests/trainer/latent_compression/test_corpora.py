"""Readers, on small files in the published layouts, and the stream that is made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from services.trainer.latent_compression.corpora.mmc4 import Mmc4Corpus
from services.trainer.latent_compression.corpora.pairs import PairCorpus
from services.trainer.latent_compression.corpora.parallel_lists import ObelicsCorpus, OmniCorpusCorpus
from services.trainer.latent_compression.document_stream import (
    DocumentStream,
    centre_crop,
    open_corpora,
    random_crop,
)
from services.trainer.latent_compression.document_tokenizer import DocumentTokenizer
from services.trainer.latent_compression.plan import Documents, Obelics, OmniCorpus
from services.trainer.latent_compression.sequences import SequenceBuilder
from superlink.configuration import ConfigurationError
from tests.trainer.latent_compression.small_corpora import COLOURS, encode, make_tokenizer, write_mmc4, write_pairs

ADDRESS = "https://pictures.example/{}.png"


def digest(colour: str) -> str:
    return hashlib.sha256(ADDRESS.format(colour).encode()).hexdigest()


def shown(parts: Sequence[str | Image.Image]) -> list[str]:
    """Texts as they are, images by their colours."""
    names = {colour: name for name, colour in COLOURS.items()}
    return [part if isinstance(part, str) else f"<{names[part.getpixel((0, 0))]}>" for part in parts]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zip"])
def test_mmc4_images_stand_beside_their_sentences(tmp_path: Path, ending: str) -> None:
    corpus = Mmc4Corpus(write_mmc4(tmp_path, ending))
    rows = corpus.rows(corpus.shards()[0])

    seen = set()
    for seed in range(40):
        document = corpus.document(rows[0], np.random.default_rng(seed))
        assert document is not None
        assert document.form == "interleaved"
        seen.add(tuple(shown(document.parts)))

    # Before or after its sentence each; what is too unlike, missing or broken is left out.
    assert seen == {
        ("<red>", "One. Two.", "<green>", "Three."),
        ("<red>", "One. Two. Three.", "<green>"),
        ("One.", "<red>", "Two.", "<green>", "Three."),
        ("One.", "<red>", "Two. Three.", "<green>"),
    }
    assert corpus.document(rows[1], np.random.default_rng(0)) is None


def test_mmc4_keeps_one_image_a_sentence_and_the_first_few(tmp_path: Path) -> None:
    settings = write_mmc4(tmp_path).model_copy(update={"most_images": 2})
    infos = [
        {"image_name": f"{colour}.png", "matched_text_index": place, "matched_sim": 0.5}
        for place, colour in ((2, "grey"), (1, "blue"), (0, "green"), (0, "red"))
    ]
    row = json.dumps({"text_list": ["One.", "Two.", "Three."], "image_info": infos}).encode()
    corpus = Mmc4Corpus(settings)
    seen = set()
    for seed in range(40):
        document = corpus.document(row, np.random.default_rng(seed))
        assert document is not None
        seen.add(frozenset(part for part in shown(document.parts) if part.startswith("<")))
    assert seen == {frozenset({"<red>", "<blue>"}), frozenset({"<green>", "<blue>"})}


def parallel_columns() -> dict[str, list[object]]:
    return {
        "images": [[None, ADDRESS.format("red"), None, None, ADDRESS.format("gone"), ADDRESS.format("blue")]],
        "texts": [["One.", None, "Two.", "Three.", None, None]],
    }


def write_downloads(folder: Path, *colours: str) -> Path:
    folder.mkdir()
    for colour in colours:
        (folder / f"{digest(colour)}.jpg").write_bytes(encode(colour))
    return folder


def test_obelics_images_are_found_by_their_addresses(tmp_path: Path) -> None:
    columns = parallel_columns() | {"metadata": [json.dumps([None] * 6)], "general_metadata": ["{}"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train-00000-of-00001.parquet")
    corpus = ObelicsCorpus(Obelics(shards=tmp_path, images=write_downloads(tmp_path / "images", "red", "blue")))

    (row,) = corpus.rows(corpus.shards()[0])
    document = corpus.document(row, np.random.default_rng(0))

    assert document is not None
    assert shown(document.parts) == ["One.", "<red>", "Two. Three.", "<blue>"]


def test_omnicorpus_images_are_found_by_their_digests(tmp_path: Path) -> None:
    about = [
        {"img_url_sha": None if colour is None else hashlib.sha256(colour.encode()).hexdigest(), "width": 24}
        for colour in (None, "red", None, None, "gone", "blue")
    ]
    columns = parallel_columns() | {"metadata": [about], "general_metadata": [{"url": "…", "id": "1"}]}
    images = tmp_path / "images"
    images.mkdir()
    for colour in ("red", "blue"):
        name = hashlib.sha256(colour.encode()).hexdigest()
        # Downloads are spread over folders where there are many.
        (images / name[:2]).mkdir(exist_ok=True)
        (images / name[:2] / f"{name}.webp").write_bytes(encode(colour, "PNG"))
    parquet.write_table(pyarrow.table(columns), tmp_path / "train-00000-of-00001.parquet")
    corpus = OmniCorpusCorpus(OmniCorpus(shards=tmp_path, images=images, most_images=1))

    (row,) = corpus.rows(corpus.shards()[0])
    document = corpus.document(row, np.random.default_rng(0))

    assert document is not None
    assert shown(document.parts) == ["One.", "<red>", "Two. Three."]


def test_names_from_a_corpus_cannot_leave_the_folder_of_images(tmp_path: Path) -> None:
    settings = write_mmc4(tmp_path)
    (tmp_path / "secret.png").write_bytes(encode("red"))
    info = {"image_name": "../secret.png", "matched_text_index": 0, "matched_sim": 0.9}
    row = json.dumps({"text_list": ["One."], "image_info": [info]}).encode()
    assert Mmc4Corpus(settings).document(row, np.random.default_rng(0)) is None


def test_pairs_begin_with_either(tmp_path: Path) -> None:
    corpus = PairCorpus(write_pairs(tmp_path))
    rows = corpus.rows(corpus.shards()[0])
    assert len(rows) == 2
    seen = set()
    for seed in range(20):
        document = corpus.document(rows[0], np.random.default_rng(seed))
        assert document is not None
        seen.add((document.form, *shown(document.parts)))
    # The image is a JPEG in name alone, as many are.
    assert seen == {("image_first", "<red>", "a red one"), ("text_first", "a red one", "<red>")}


def make_stream(documents: Documents, tokenizer: DocumentTokenizer, seed: int = 0) -> DocumentStream:
    builder = SequenceBuilder(tokenizer.marks, image_tokens=4, context=40)
    return DocumentStream(open_corpora(documents), tokenizer, builder, image_size=8, seed=seed)


def test_corpora_are_mixed_by_weight_and_follow_from_their_numbers(tmp_path: Path) -> None:
    tokenizer = DocumentTokenizer.load(make_tokenizer(tmp_path / "tokenizer.json"))
    mmc4 = write_mmc4(tmp_path / "mmc4").model_copy(update={"weight": 3.0})
    mixed = Documents(pairs=write_pairs(tmp_path / "pairs"), mmc4=mmc4)
    stream = make_stream(mixed, tokenizer)

    samples = [stream[number] for number in range(200)]

    interleaved = [len(sample.pictures) == 2 for sample in samples]
    assert sum(interleaved) == pytest.approx(150, abs=25)
    assert all(sample.ids.count(tokenizer.marks.image) == 4 * len(sample.pictures) for sample in samples)
    again = make_stream(mixed, tokenizer)[57]
    assert again.ids == samples[57].ids
    assert all(torch.equal(one, other) for one, other in zip(again.pictures, samples[57].pictures, strict=True))


def test_a_corpus_whose_images_were_not_downloaded_is_named(tmp_path: Path) -> None:
    tokenizer = DocumentTokenizer.load(make_tokenizer(tmp_path / "tokenizer.json"))
    settings = write_mmc4(tmp_path / "mmc4")
    for file in settings.images.iterdir():
        file.unlink()
    with pytest.raises(ConfigurationError, match=r"documents\.mmc4: none of 100 documents"):
        make_stream(Documents(mmc4=settings), tokenizer)[0]


@pytest.mark.parametrize("missing", ["shards", "images"])
def test_a_folder_that_is_not_there_is_named_with_its_key(tmp_path: Path, missing: str) -> None:
    tokenizer = DocumentTokenizer.load(make_tokenizer(tmp_path / "tokenizer.json"))
    settings = write_mmc4(tmp_path / "mmc4").model_copy(update={missing: tmp_path / "nowhere"})
    with pytest.raises(ConfigurationError, match=rf"documents\.mmc4\.{missing}: .*nowhere"):
        make_stream(Documents(mmc4=settings), tokenizer)


def test_a_parquet_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["One."]}), tmp_path / "other.parquet")
    corpus = ObelicsCorpus(Obelics(shards=tmp_path, images=tmp_path))
    with pytest.raises(ConfigurationError, match=r"other\.parquet: there is no column images, texts"):
        corpus.rows(corpus.shards()[0])


def test_marks_stand_behind_the_tokenizers_words_and_cannot_be_typed(tmp_path: Path) -> None:
    tokenizer = DocumentTokenizer.load(make_tokenizer(tmp_path / "tokenizer.json"))
    marks = tokenizer.marks
    assert (marks.start_of_text, marks.end_of_text) == (8, 9)
    assert (marks.image, marks.start_of_image, marks.end_of_image, tokenizer.vocabulary) == (10, 11, 12, 13)
    typed = tokenizer.encode("one <|endoftext|>").ids
    assert typed[0] == 0
    assert marks.end_of_text not in typed


def test_crops_are_square_and_normalised_like_tiles() -> None:
    image = Image.new("RGB", (30, 20), (255, 0, 0))
    for crop in (random_crop(image, 8, np.random.default_rng(0)), centre_crop(image, 8)):
        assert crop.shape == (3, 8, 8)
        assert crop[:, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], abs=1e-4)
