"""An MLLM gains routes that it was trained without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_mllm import build_model
from torch import Tensor

from services.mllm.config import MllmConfig
from services.mllm.conversation import ImagePart, RoutedPhrase, Text, Turn, render
from services.mllm.extension import load_with_routes
from services.mllm.model import Mllm
from services.mllm.super_link import Route
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.weights import WeightsError

DETECTION = Route(token="[DET]", decoder="detection", width=24)  # noqa: S106
SEGMENTATION = Route(token="[SEG]", decoder="segmentation", width=24)  # noqa: S106
DIFFUSION = Route(token="[GEN]", decoder="diffusion", queries=6, width=24, pooled=False)  # noqa: S106


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["Find the dog and the cat.", "Segment the dog.", "找出狗。"] * 20
    tokenizer = MllmTokenizer.train(texts, 320, {"[DET]": 4})
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mllm")
    build_model(tokenizer, routes=(DETECTION,)).save(folder, tokenizer)
    return folder


@torch.no_grad()
def link(mllm: Mllm, tokenizer: MllmTokenizer, route: Route) -> tuple[Tensor, Tensor]:
    """The link of "dog" by ``route``, and the logits over the answer."""
    turns = [
        Turn("user", (ImagePart(0), Text("Find the dog."))),
        Turn("assistant", (RoutedPhrase(route.token, "dog"), Text("."))),
    ]
    rendered = render(turns, tokenizer, [mllm.config.tokens_per_tile], for_generation=False)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([rendered.input_ids])
    hidden = mllm(ids, torch.ones_like(ids), mllm.encode_images(image)[0]).hidden
    return mllm.links(hidden, [rendered.groups], route.decoder)[0], mllm.logits(hidden)


def test_what_the_model_could_do_stays_and_a_new_tool_starts_as_one_of_its_shape(folder: Path) -> None:
    old, old_tokenizer = Mllm.load(folder)

    new, tokenizer = load_with_routes(folder, (DETECTION, SEGMENTATION, DIFFUSION))

    assert [route.token for route in new.config.routes] == ["[DET]", "[SEG]", "[GEN]"]
    boxes, logits = link(old, old_tokenizer, DETECTION)
    same, more_logits = link(new, tokenizer, DETECTION)
    masks, _ = link(new, tokenizer, SEGMENTATION)
    pictures, _ = link(new, tokenizer, DIFFUSION)
    torch.testing.assert_close(same, boxes)
    torch.testing.assert_close(more_logits[..., : len(old_tokenizer)], logits[..., : len(old_tokenizer)])
    torch.testing.assert_close(masks, boxes)
    assert pictures.shape == (1, 6, 24)


def test_an_extended_model_is_saved_and_loaded_like_any_other(folder: Path, tmp_path: Path) -> None:
    new, tokenizer = load_with_routes(folder, (SEGMENTATION,))
    new.save(tmp_path, tokenizer)

    again, its_tokenizer = Mllm.load(tmp_path)
    unchanged, _ = load_with_routes(tmp_path, (SEGMENTATION,))

    assert again.config == new.config == unchanged.config
    torch.testing.assert_close(link(again, its_tokenizer, SEGMENTATION)[0], link(new, tokenizer, SEGMENTATION)[0])


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nothing_here"):
        load_with_routes(tmp_path / "nothing_here", MllmConfig.model_fields["routes"].default)
