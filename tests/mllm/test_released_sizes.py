"""The released pairings at full size, on the meta device: what a token of context costs."""

from __future__ import annotations

import pytest
import torch
from small_mllm import ROUTES, build_tokenizer
from transformers import InternVLConfig, InternVLForConditionalGeneration

from services.backbones.internvit import InternVitSize, internvit_config
from services.mllm.config import MllmConfig
from services.mllm.model import Mllm
from services.mllm.slots import Step

pytestmark = pytest.mark.internvl

# Vision transformer; hidden size, layers, heads, key-value heads and feed-forward width of the language model; bytes of
# keys and values a token in bfloat16, and MiB for 13 and for 41 tiles.
SIZES: dict[str, tuple[InternVitSize, tuple[int, int, int, int, int], int, int, int]] = {
    "1B": ("300M-448px", (896, 24, 14, 2, 4864), 12_288, 39, 123),
    "2B": ("300M-448px", (2048, 24, 16, 8, 8192), 98_304, 312, 984),
    "4B": ("300M-448px", (3072, 32, 32, 32, 8192), 393_216, 1_248, 3_936),
    "8B": ("300M-448px", (4096, 32, 32, 8, 14_336), 131_072, 416, 1_312),
    "26B": ("6B-448px", (6144, 48, 48, 8, 16_384), 196_608, 624, 1_968),
}


@pytest.mark.parametrize("size", list(SIZES))
def test_keys_and_values_take_the_published_memory(size: str) -> None:
    vit, (hidden, layers, heads, key_value_heads, feed_forward), per_token, mib_of_13, mib_of_41 = SIZES[size]
    tokenizer = build_tokenizer()
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": feed_forward,
        "max_position_embeddings": 32_768,
    }
    public = InternVLConfig(vision_config=internvit_config(vit), text_config=text, tie_word_embeddings=False)
    config = MllmConfig.for_tokenizer(
        tokenizer, routes=ROUTES, region_token_id=None, tile_size=448, public=public.to_dict()
    )
    assert config.tokens_per_tile == 256
    with torch.device("meta"):
        cache = Mllm(config).to(torch.bfloat16).slot_cache(1)
        cache.begin(Step.plan(0, [0], [1], torch.device("meta")))
    stored = sum(tensor.nbytes for tensor in (*cache._keys, *cache._values))
    assert stored / cache.capacity == per_token
    for tiles, mib in ((13, mib_of_13), (41, mib_of_41)):
        assert per_token * config.tokens_per_tile * tiles / 2**20 == mib


@pytest.mark.parametrize(
    ("size", "kind", "vocabulary", "bias", "billions"),
    [
        ("1B", "qwen2", 151_655, None, 0.9),
        ("2B", "llama", 92_553, False, 2.2),
        ("8B", "llama", 92_553, False, 8.1),
        ("26B", "llama", 92_553, False, 25.5),
    ],
)
def test_whole_models_have_the_published_size(
    size: str, kind: str, vocabulary: int, bias: bool | None, billions: float
) -> None:
    vit, (hidden, layers, heads, key_value_heads, feed_forward), *_ = SIZES[size]
    text = {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": feed_forward,
    } | ({} if bias is None else {"attention_bias": bias})
    config = InternVLConfig(vision_config=internvit_config(vit), text_config=text, tie_word_embeddings=False)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 1) == billions
