"""Tokenizers of public checkpoints: SentencePiece's as that library reads them, and those of vocab.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_mllm import ROUTES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils import sentencepiece_model_pb2_new

from services.mllm.conversation import Text, Turn, render
from services.mllm.prompt_format import PromptFormat
from services.mllm.tokenizer import MllmTokenizer, TextStream
from services.mllm.tokenizer_files import bos_token, read_tokenizer
from services.runtime.weights import WeightsError

pytestmark = pytest.mark.internvl

proto: Any = sentencepiece_model_pb2_new
PIECES = ["▁", "f", "i", "n", "d", "t", "h", "e", "o", "g", "狗"]
MERGED = ["▁t", "he", "▁the", "in", "ind", "▁f", "▁find", "▁d", "▁do", "▁dog"]
ADDED = {"<|im_end|>": 3 + 256, "<|im_start|>": 3 + 257}


def write_sentencepiece(folder: Path, add_dummy_prefix: bool, model_type: str = "BPE") -> int:
    """A model of three control pieces, 256 bytes, two places left free, and words; returns its number of pieces."""
    model = proto.ModelProto()
    kind = proto.ModelProto.SentencePiece

    def add(piece: str, score: float, piece_type: int) -> None:
        model.pieces.add(piece=piece, score=score, type=piece_type)

    add("<unk>", 0, kind.UNKNOWN)
    add("<s>", 0, kind.CONTROL)
    add("</s>", 0, kind.CONTROL)
    for byte in range(256):
        add(f"<0x{byte:02X}>", 0, kind.BYTE)
    add("[UNUSED_TOKEN_1]", 0, kind.USER_DEFINED)
    add("[UNUSED_TOKEN_2]", 0, kind.USER_DEFINED)
    for place, piece in enumerate(MERGED):
        add(piece, -float(place), kind.NORMAL)
    for place, piece in enumerate(PIECES):
        add(piece, -float(len(MERGED) + place), kind.NORMAL)
    model.trainer_spec.model_type = getattr(proto.TrainerSpec, model_type)
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = add_dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    tokens = ["<img>", "</img>", "<IMG_CONTEXT>"]
    added = ADDED | {token: len(model.pieces) + place for place, token in enumerate(tokens)}
    decoder = {str(token_id): {"content": token, "special": True} for token, token_id in added.items()}
    settings = {"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(model.pieces)


# The pieces are what the library sentencepiece 0.2.3 makes of these models.
@pytest.mark.parametrize(
    ("text", "with_prefix", "without"),
    [
        ("find the dog", ["▁find", "▁the", "▁dog"], ["f", "ind", "▁the", "▁dog"]),
        ("the\nthe", ["▁the", "<0x0A>", "t", "he"], ["t", "he", "<0x0A>", "t", "he"]),
        ("  dog狗é", ["▁", "▁", "▁dog", "狗", "<0xC3>", "<0xA9>"], ["▁", "▁dog", "狗", "<0xC3>", "<0xA9>"]),
    ],
)
def test_sentencepiece_models_are_read_as_their_library_reads_them(
    tmp_path: Path, text: str, with_prefix: list[str], without: list[str]
) -> None:
    for begins, expected in ((True, with_prefix), (False, without)):
        pieces = write_sentencepiece(tmp_path / str(begins), begins)
        tokenizer = read_tokenizer(tmp_path / str(begins))
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert encoded.tokens == expected
        assert tokenizer.decode(encoded.ids) == text
        # Places left free are given away, and new tokens follow.
        assert {token: tokenizer.token_to_id(token) for token in ADDED} == ADDED
        assert tokenizer.token_to_id("<IMG_CONTEXT>") == pieces + 2
        assert bos_token(tmp_path / str(begins), tokenizer) == "<s>"


def test_conversations_put_the_first_space_where_a_text_begins(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, add_dummy_prefix=True)
    prompt = PromptFormat(template="internlm2-chat", bos_token="<s>")  # noqa: S106
    queries = {route.token: route.queries for route in ROUTES}
    tokenizer = MllmTokenizer.complete(read_tokenizer(tmp_path), queries, prompt)
    rendered = render([Turn("user", (Text("find the "), Text("dog")))], tokenizer, [], for_generation=True)
    names = [tokenizer.name(each) for each in rendered.input_ids]
    assert names[:2] == ["<s>", "<|im_start|>"]
    assert names[2] == "▁"  # of "user", which this vocabulary has only as bytes
    # The question goes on behind the line break, and its second part inside a word.
    question = names[names.index("<0x0A>") + 1 : names.index("<|im_end|>")]
    assert question == ["f", "ind", "▁the", "▁", "d", "o", "g"]
    tokenizer.save(tmp_path / "saved.json")
    again = MllmTokenizer.load(tmp_path / "saved.json", queries, prompt)
    assert render([Turn("user", (Text("find the "), Text("dog")))], again, [], True) == rendered


def test_answers_begin_without_that_space_and_bytes_become_characters(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, add_dummy_prefix=True)
    prompt = PromptFormat(template="internlm2-chat", bos_token="<s>")  # noqa: S106
    tokenizer = MllmTokenizer.complete(read_tokenizer(tmp_path), {}, prompt)
    stream = TextStream(tokenizer)
    written = [stream.push(each) for each in tokenizer.encode_text("find the dogé")]
    assert written == ["find", " the", " dog", "", "é"]
    assert stream.flush() == ""
    assert stream.push(tokenizer.encode_text("dog")[0]) == "dog"


def test_vocab_and_merges_are_enough(tmp_path: Path) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(["find the dog"] * 9, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    trained.model.save(str(tmp_path))
    size = trained.get_vocab_size()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    decoder = {str(size + place): {"content": token, "special": True} for place, token in enumerate(tokens)}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read_tokenizer(tmp_path)
    assert [tokenizer.token_to_id(token) for token in tokens] == [size + place for place in range(len(tokens))]
    encoded = tokenizer.encode("find the dog")
    assert encoded.ids == trained.encode("find the dog").ids
    assert tokenizer.decode(encoded.ids) == "find the dog"
    assert bos_token(tmp_path, tokenizer) is None


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer\.json, nor vocab\.json and merges\.txt, nor tokenizer\.model"):
        read_tokenizer(tmp_path)
    write_sentencepiece(tmp_path / "unigram", add_dummy_prefix=True, model_type="UNIGRAM")
    with pytest.raises(WeightsError, match="only SentencePiece's BPE"):
        read_tokenizer(tmp_path / "unigram")
    write_sentencepiece(tmp_path / "gap", add_dummy_prefix=True)
    (tmp_path / "gap" / "added_tokens.json").write_text(json.dumps({"<far>": 5000}))
    with pytest.raises(WeightsError, match=r"gap before <far> \(5000\)"):
        read_tokenizer(tmp_path / "gap")
    (tmp_path / "gap" / "tokenizer.model").write_bytes(b"no protocol buffer")
    with pytest.raises(WeightsError, match="not a SentencePiece model"):
        read_tokenizer(tmp_path / "gap")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match="not a tokenizer"):
        read_tokenizer(tmp_path)
