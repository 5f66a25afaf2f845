"""Prompts of the released families, literally, and the markup that their answers show."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from original_checkpoints import write_tokenizer
from small_mllm import ROUTES

from services.mllm.answer import AnswerWriter
from services.mllm.conversation import ImagePart, Part, Text, Turn, VideoPart, render
from services.mllm.grounding_text import Grounded, parse_grounded
from services.mllm.prompt_format import SYSTEM_MESSAGE_1_5, SYSTEM_MESSAGE_2_5, TEMPLATES, PromptFormat, TemplateName
from services.mllm.sampling import AllowedTokens
from services.mllm.tiling import choose_grid
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.tokenizer_files import read_tokenizer

pytestmark = pytest.mark.internvl

SHAPES: dict[TemplateName, str] = {
    "internlm2-chat": (
        "<s><|im_start|>system\nSYS<|im_end|><|im_start|>user\nQ<|im_end|><|im_start|>assistant\nA<|im_end|>"
        "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n"
    ),
    "Hermes-2": (
        "<|im_start|>system\nSYS<|im_end|><|im_start|>user\nQ<|im_end|><|im_start|>assistant\nA<|im_end|>"
        "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n"
    ),
    # Its own tokens swallow the line breaks that the template has behind them.
    "phi3-chat": "<|system|>SYS<|end|><|user|>Q<|end|><|assistant|>A<|end|><|user|>Q<|end|><|assistant|>",
    "internvl2_5": (
        "<|im_start|>system\nSYS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    ),
}


def tokenizer_of(folder: Path, template: TemplateName, **fields: object) -> MllmTokenizer:
    write_tokenizer(folder, template)
    prompt = PromptFormat.model_validate({"template": template, **fields})
    return MllmTokenizer.complete(read_tokenizer(folder), {route.token: route.queries for route in ROUTES}, prompt)


def spelled(ids: list[int], tokenizer: MllmTokenizer) -> str:
    """Ids as text, special tokens by their names."""
    return "".join(tokenizer.name(each) if each in tokenizer.special_ids else tokenizer.decode([each]) for each in ids)


@pytest.mark.parametrize("template", list(SHAPES))
def test_conversations_have_the_literal_shape(tmp_path: Path, template: TemplateName) -> None:
    fields = {"system_message": "SYS", "bos_token": "<s>" if template == "internlm2-chat" else None}
    tokenizer = tokenizer_of(tmp_path, template, **fields)
    asked, answered = Turn("user", (Text("Q"),)), Turn("assistant", (Text("A"),))
    rendered = render([asked, answered, asked], tokenizer, [], for_generation=True)
    assert spelled(rendered.input_ids, tokenizer) == SHAPES[template]
    learned = [each for each in rendered.labels if each >= 0]
    assert spelled(learned, tokenizer) == f"A{TEMPLATES[template].turn_end}"
    # A system turn of one's own takes the default's place.
    own = render([Turn("system", (Text("OWN"),)), asked], tokenizer, [], for_generation=True)
    assert spelled(own.input_ids, tokenizer).count("OWN") == 1
    assert "SYS" not in spelled(own.input_ids, tokenizer)


def test_the_template_itself_keeps_phi3s_line_breaks() -> None:
    assert TEMPLATES["phi3-chat"].header("user") == ("<|user|>", "\n")


@pytest.mark.parametrize(
    ("message", "length", "digest"),
    [(SYSTEM_MESSAGE_1_5, 59, "da22fdde9f422876"), (SYSTEM_MESSAGE_2_5, 58, "bdb4d179c4c458dd")],
)
def test_default_system_messages_are_the_released_ones(message: str, length: int, digest: str) -> None:
    assert len(message) == length
    assert hashlib.sha256(message.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("parts", "counts", "expected"),
    [
        ((ImagePart(0), Text("Q")), [2], "<img>**</img>\nQ"),
        ((Text("Q"), ImagePart(0)), [2], "<img>**</img>\nQ"),
        (
            (ImagePart(0), ImagePart(1), Text("Q")),
            [1, 3],
            "Image-1: <img>*</img>\nImage-2: <img>***</img>\nQ",
        ),
        (
            (VideoPart(0, 3), Text("Q")),
            [1, 1, 1],
            "Frame1: <img>*</img>\nFrame2: <img>*</img>\nFrame3: <img>*</img>\nQ",
        ),
        (
            (VideoPart(0, 2), ImagePart(2), ImagePart(3), Text("Q")),
            [1, 1, 2, 2],
            "Frame1: <img>*</img>\nFrame2: <img>*</img>\nImage-1: <img>**</img>\nImage-2: <img>**</img>\nQ",
        ),
    ],
)
def test_images_and_frames_are_framed(
    tmp_path: Path, parts: tuple[Part, ...], counts: list[int], expected: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, "internvl2_5")
    rendered = render([Turn("user", parts)], tokenizer, counts, for_generation=True)
    text = spelled(rendered.input_ids, tokenizer).replace("<IMG_CONTEXT>", "*")
    assert text == f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("frames", "tokens"), [(8, 2064), (16, 4128), (40, 10_320)])
def test_a_frame_costs_258_tokens_beside_its_label(tmp_path: Path, frames: int, tokens: int) -> None:
    tokenizer = tokenizer_of(tmp_path, "internvl2_5")
    rendered = render([Turn("user", (VideoPart(0, frames),))], tokenizer, [256] * frames, for_generation=True)
    frame_tokens = {tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.image_context_id}
    assert sum(each in frame_tokens for each in rendered.input_ids) == tokens


def test_two_pictures_of_seven_tiles_and_one_take_2048_tokens(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "internvl2_5")
    counts = [256 * choose_grid(width, height, 12, 448).tiles for width, height in ((800, 1300), (448, 448))]
    assert counts == [256 * 7, 256]
    shown = Turn("user", (ImagePart(0), ImagePart(1), Text("Q")))
    ids = render([shown], tokenizer, counts, for_generation=True).input_ids
    assert ids.count(tokenizer.image_context_id) == 2048
    assert ids.count(tokenizer.image_start_id) == ids.count(tokenizer.image_end_id) == 2


def test_a_public_models_boxes_stay_in_its_answer(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "internvl2_5", grounds_in_text=True)
    box = [tokenizer.special_id("<box>"), *tokenizer.encode_text("[[1, 2, 300, 400]]"), tokenizer.special_id("</box>")]
    ids = [tokenizer.phrase_start_id, *tokenizer.encode_text("find"), tokenizer.phrase_end_id, *box]
    writer = AnswerWriter(tokenizer)
    allowed = AllowedTokens(tokenizer, len(tokenizer), torch.device("cpu"))
    text = ""
    for each in ids:
        assert torch.isfinite(allowed.apply(torch.zeros(1, len(tokenizer)), [writer.state])[0, each])
        text += writer.push(each)
    text += writer.finish()
    assert text == "<ref>find</ref><box>[[1, 2, 300, 400]]</box>"
    assert parse_grounded(text)[0].grounded == Grounded("find", ((1, 2, 300, 400),))
    assert text[writer.phrase.start : writer.phrase.end] == "find"
    # Typed by a user they are words like others.
    assert tokenizer.special_id("<box>") not in tokenizer.encode_text("<box>[[1, 2, 3, 4]]</box>")
