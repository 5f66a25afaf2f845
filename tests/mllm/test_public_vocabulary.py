"""The special tokens of the released vocabularies keep their published ids, and what is added begins as an average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from original_checkpoints import ARCHITECTURES, IMAGE_TOKENS, TURN_TOKENS, write_original
from small_mllm import ROUTES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from services.mllm.model import Mllm
from services.mllm.prompt_format import PromptFormat, TemplateName
from services.mllm.tokenizer import MllmTokenizer

pytestmark = pytest.mark.internvl


@pytest.mark.parametrize(
    ("template", "turn_tokens", "image_start", "last", "size"),
    [
        # InternLM2: places left free in the vocabulary are the turn tokens.
        ("internlm2-chat", {"<|im_end|>": 92_542, "<|im_start|>": 92_543}, 92_544, 92_552, 92_553),
        # Qwen2.
        ("Hermes-2", {"<|im_start|>": 151_644, "<|im_end|>": 151_645}, 151_646, 151_654, 151_655),
        # Phi-3.
        ("phi3-chat", {"<|assistant|>": 32_001, "<|end|>": 32_007}, 32_011, 32_019, 32_020),
        # Qwen2.5, whose own special tokens go on to 151664.
        ("internvl2_5", {"<|im_start|>": 151_644, "<|im_end|>": 151_645}, 151_665, 151_673, 151_674),
    ],
)
def test_image_tokens_have_the_published_ids(
    template: TemplateName, turn_tokens: dict[str, int], image_start: int, last: int, size: int
) -> None:
    words = {number: f"word{number}" for number in range(image_start)}
    words |= dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())))
    words |= {place: token for token, place in turn_tokens.items()}
    others = [token for token in TURN_TOKENS[template] if token not in turn_tokens]
    words |= {300 + place: token for place, token in enumerate(others)}
    public = Tokenizer(models.BPE(vocab={word: number for number, word in words.items()}, merges=[]))
    public.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    public.decoder = decoders.ByteLevel()
    public.add_special_tokens([AddedToken(token, special=True) for token in (*TURN_TOKENS[template], *IMAGE_TOKENS)])
    assert public.get_vocab_size() == size
    queries = {route.token: route.queries for route in ROUTES}
    tokenizer = MllmTokenizer.complete(public, queries, PromptFormat(template=template, grounds_in_text=True))
    ids = (tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.image_context_id)
    assert ids == (image_start, image_start + 1, image_start + 2)
    assert (tokenizer.phrase_start_id, tokenizer.phrase_end_id) == (last - 3, last - 2)
    assert (tokenizer.special_id("<box>"), tokenizer.special_id("</box>")) == (last - 1, last)
    assert {token: tokenizer.special_id(token) for token in turn_tokens} == turn_tokens
    # What Superlink needs beside them comes after them.
    assert min(tokenizer.link_id, tokenizer.observe_id, *tokenizer.route_ids.values()) >= size


@pytest.mark.parametrize("template", list(ARCHITECTURES))
def test_words_that_are_added_begin_as_the_mean_of_the_others(tmp_path: Path, template: str) -> None:
    state = write_original(tmp_path, template)
    name = "language_model.output.weight" if template == "internlm2-chat" else "language_model.lm_head.weight"
    written = state[name]
    model, tokenizer = Mllm.load(tmp_path)
    head = model.internvl.lm_head.weight
    assert head.shape[0] == len(tokenizer) > written.shape[0]
    torch.testing.assert_close(head[: len(written)], written)
    torch.testing.assert_close(head[len(written) :], written.mean(dim=0).expand(len(head) - len(written), -1))
    # Reading and writing a word stay apart in every size.
    assert model.internvl.get_input_embeddings().weight is not head
