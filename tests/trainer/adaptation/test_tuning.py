"""Additions of LoRA start at nothing, learn, and fold into their layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Phi3Config, Phi3Model

from services.mllm.config import LanguageSize, MllmConfig
from services.mllm.model import Mllm
from services.mllm.tokenizer import MllmTokenizer
from services.mllm.towers import VisionSize
from services.trainer.adaptation.tuning import LANGUAGE_TARGETS, add_language_lora, add_lora, merge_lora

pytestmark = pytest.mark.internvl


@pytest.fixture(scope="module")
def tokenizer() -> MllmTokenizer:
    return MllmTokenizer.train(["Find the dog. Here is the cat."] * 20, 400)


@pytest.fixture
def model(tokenizer: MllmTokenizer) -> Mllm:
    torch.manual_seed(0)
    config = MllmConfig.for_tokenizer(
        tokenizer,
        tile_size=64,
        vision=VisionSize(stem_channels=8, hidden_size=32, layers=1, heads=2, intermediate_size=48),
        language=LanguageSize(hidden_size=48, layers=2, heads=4, key_value_heads=2, intermediate_size=64),
    )
    return Mllm(config).eval()


def states(model: Mllm) -> torch.Tensor:
    ids = torch.arange(50, 70).unsqueeze(0)
    hidden: torch.Tensor = model(ids, torch.ones_like(ids)).hidden
    return hidden


def step(model: Mllm) -> set[str]:
    """One step of training on words and an image; returns the names of parameters that changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.cat([torch.full((4,), model.config.image_token_id), torch.arange(50, 70)]).unsqueeze(0)
    features = model.encode_images(torch.randn(1, 3, 64, 64)).flatten(0, 1)
    hidden = model(ids, torch.ones_like(ids), features).hidden
    optimiser = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    (hidden**3).mean().backward()
    optimiser.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def test_lora_changes_nothing_until_it_has_learned(model: Mllm) -> None:
    before = states(model).detach()
    add_language_lora(model, rank=4)
    torch.testing.assert_close(states(model.eval()), before)


def test_merged_weights_answer_like_the_additions_and_load_as_services_load_them(
    model: Mllm, tokenizer: MllmTokenizer, tmp_path: Path
) -> None:
    names = set(model.state_dict())
    add_language_lora(model, rank=4)
    for _ in range(3):
        step(model)
    learned = states(model).detach()
    assert merge_lora(model) == 2 * 7
    assert set(model.state_dict()) == names
    torch.testing.assert_close(states(model), learned, atol=1e-5, rtol=1e-5)
    model.save(tmp_path, tokenizer)
    torch.testing.assert_close(states(Mllm.load(tmp_path)[0]), learned, atol=1e-5, rtol=1e-5)


def test_the_published_number_of_lora_weights() -> None:
    """InternLM2-1.8B at rank 128 has 125,829,120 of them."""
    with torch.device("meta"):
        layer = nn.ModuleDict(
            {
                "attention": nn.ModuleDict({"wqkv": nn.Linear(2048, 4096), "wo": nn.Linear(2048, 2048)}),
                "feed_forward": nn.ModuleDict(
                    {"w1": nn.Linear(2048, 8192), "w2": nn.Linear(8192, 2048), "w3": nn.Linear(2048, 8192)}
                ),
            }
        )
        targets = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
        assert 24 * add_lora(layer, targets, rank=128) == 125_829_120


def test_every_linear_layer_of_phi_3_is_a_target() -> None:
    """Its q, k and v are one layer, and so are gate and up."""
    config = Phi3Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    phi = Phi3Model(config)
    linear = sum(isinstance(module, nn.Linear) for module in phi.modules())
    add_lora(phi, LANGUAGE_TARGETS, rank=4)
    assert merge_lora(phi) == linear == 2 * 4


def test_targets_that_no_layer_has_are_an_error(model: Mllm) -> None:
    with pytest.raises(ValueError, match="No linear layer is named wqkv"):
        add_lora(model, ("wqkv",), rank=4)
