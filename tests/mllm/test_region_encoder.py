"""Visual prompts: regions have one embedding each, whatever the resolution, the padding and the company."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from small_mllm import build_model
from torch import Tensor, nn

from services.mllm.batch import Prompt, RunningBatch, link_teacher_forced
from services.mllm.conversation import ConversationError, ImagePart, RegionPart, RoutedPhrase, Text, Turn, render
from services.mllm.extension import load_with_routes
from services.mllm.model import Mllm
from services.mllm.region_encoder import RegionBatch, view_region
from services.mllm.sampling import AllowedTokens, Sampling, WritingState
from services.mllm.tiling import Grid, choose_grid, cut_tiles
from services.mllm.tokenizer import REGION_TOKENS, MllmTokenizer
from services.runtime.weights import WeightsError

SIZE = 64


def picture(scale: int = 1, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth picture, so that scaling changes little."""
    rows, columns = np.mgrid[:height, :width]
    bands = (np.sin(columns / 9) + 1, np.cos(rows / 11) + 1, (np.sin((rows + columns) / 13) + 1))
    plain = Image.fromarray((np.stack(bands, axis=-1) * 127).astype(np.uint8))
    return plain.resize((width * scale, height * scale), Image.Resampling.BICUBIC)


def disc(row: int, column: int, radius: int, scale: int = 1, width: int = 96, height: int = 64) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: height * scale, : width * scale]
    return (rows + 0.5 - row * scale) ** 2 + (columns + 0.5 - column * scale) ** 2 < (radius * scale) ** 2


@torch.no_grad()
def embedded(model: Mllm, image: Image.Image, masks: list[NDArray[np.bool_]], max_tiles: int = 1) -> Tensor:
    grid = choose_grid(image.width, image.height, max_tiles, SIZE)
    views = [view_region(mask, grid, SIZE) for mask in masks]
    tower = model.tower(cut_tiles(image, max_tiles, SIZE))
    return model.encode_regions(tower, RegionBatch.of(views, [view.tile for view in views]))


def test_the_same_region_has_the_same_embedding_in_any_company(model: Mllm) -> None:
    masks = [disc(20, 30, 8), disc(40, 70, 3)]

    both, again = embedded(model, picture(), masks), embedded(model, picture(), masks)
    alone = embedded(model, picture(), masks[1:])

    assert torch.equal(both, again)
    torch.testing.assert_close(alone, both[1:])
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_a_region_scaled_with_its_image_keeps_its_embedding(model: Mllm) -> None:
    plain = embedded(model, picture(), [disc(20, 30, 8), disc(44, 70, 14)])
    large = embedded(model, picture(4), [disc(20, 30, 8, 4), disc(44, 70, 14, 4)])

    apart = (plain[0] - plain[1]).norm()
    assert ((plain - large).norm(dim=-1) < 0.15 * apart).all()


def test_a_single_pixel_of_a_large_image_is_seen(model: Mllm) -> None:
    mask = np.zeros((640, 960), dtype=bool)
    mask[300, 500] = True

    view = view_region(mask, Grid(1, 1), SIZE)

    assert view.mask.sum() > 0
    assert embedded(model, picture(10), [mask]).isfinite().all()


def test_a_region_is_looked_at_on_the_tile_that_holds_it_or_on_the_thumbnail() -> None:
    grid = Grid(columns=2, rows=1)
    right, across = disc(32, 72, 8), disc(32, 48, 8)

    within, beyond = view_region(right, grid, SIZE), view_region(across, grid, SIZE)

    assert (within.tile, beyond.tile) == (1, 2)
    # Column 72 of 96 is the middle of the right half.
    centre = (within.places * within.weights[:, None]).sum(dim=0)
    torch.testing.assert_close(centre, torch.tensor([0.5, 0.5]), atol=0.01, rtol=0)
    assert within.mask[32, 32] == 1
    assert within.mask[:, :10].max() == 0
    torch.testing.assert_close(
        (beyond.places * beyond.weights[:, None]).sum(dim=0), torch.full((2,), 0.5), atol=0.01, rtol=0
    )


def asked(model: Mllm, tokenizer: MllmTokenizer, number: int, question: str) -> Prompt:
    turns = [
        Turn("user", (ImagePart(0), Text(question), *(RegionPart(place + 1) for place in range(number)))),
        Turn("assistant", (RoutedPhrase("[DET]", "dog"),)),
    ]
    rendered = render(turns, tokenizer, [model.config.tokens_per_tile], for_generation=False)
    pixels = cut_tiles(picture(), 1, SIZE)
    with torch.no_grad():
        features = model.encode_images(pixels)[0]
    regions = embedded(model, picture(), [disc(20, 20 + 20 * place, 6) for place in range(number)]) if number else None
    return Prompt(rendered, features, Sampling(max_new_tokens=4), regions)


@torch.inference_mode()
def test_padding_and_company_change_no_link_of_a_conversation_with_regions(
    model: Mllm, tokenizer: MllmTokenizer
) -> None:
    prompts = [
        asked(model, tokenizer, 2, "Find the dog."),
        asked(model, tokenizer, 0, "Where?"),
        asked(model, tokenizer, 1, "Find the dog and the cat, and the dog."),
    ]

    together = link_teacher_forced(model, tokenizer, prompts, ["detection"] * 3)
    unmarked = link_teacher_forced(
        model,
        tokenizer,
        [Prompt(prompts[0].rendered, prompts[0].image_features, region_features=torch.zeros(2, 48))],
        ["detection"],
    )

    for prompt, link in zip(prompts, together, strict=True):
        alone = link_teacher_forced(model, tokenizer, [prompt], ["detection"])[0]
        torch.testing.assert_close(link, alone, atol=1e-4, rtol=1e-4)
    assert (unmarked[0] - together[0]).abs().max() > 1e-5


@torch.inference_mode()
def test_requests_with_and_without_regions_join_together(model: Mllm, tokenizer: MllmTokenizer) -> None:
    def first_tokens(prompts: list[Prompt]) -> list[list[int]]:
        batch = RunningBatch(model, tokenizer, 4)
        return [row.chunk for row, _ in batch.join(prompts)]

    prompts = [asked(model, tokenizer, count, "Find the dog.") for count in (0, 2, 1)]

    assert first_tokens(prompts) == [first_tokens([prompt])[0] for prompt in prompts]


def test_region_tokens_are_neither_typed_nor_sampled(model: Mllm, tokenizer: MllmTokenizer) -> None:
    region_ids = [tokenizer.encode_region(1)[0], *tokenizer.encode_region(1)[-2:]]

    typed = tokenizer.encode_text("".join(REGION_TOKENS) + "<reg>region 1<region></reg>")
    allowed = AllowedTokens(tokenizer, model.config.vocab_size, torch.device("cpu"))
    logits = allowed.apply(torch.zeros(len(WritingState), model.config.vocab_size), list(WritingState))

    assert not set(typed) & set(region_ids)
    assert bool(torch.isneginf(logits[:, region_ids]).all())
    assert tokenizer.decode(tokenizer.encode_region(1)) == "region 1"


def test_only_users_mark_regions(tokenizer: MllmTokenizer) -> None:
    with pytest.raises(ConversationError, match="assistant turn cannot hold a RegionPart"):
        render([Turn("assistant", (RegionPart(1),))], tokenizer, [], for_generation=False)


def old_folder(folder: Path, tokenizer: MllmTokenizer) -> Mllm:
    """What a release without visual prompts wrote."""
    old = build_model(tokenizer, region_token_id=None)
    old.save(folder, tokenizer)
    config = json.loads((folder / "config.json").read_text())
    del config["region_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    return old


def test_a_folder_without_regions_loads_as_before_and_can_gain_them(tokenizer: MllmTokenizer, tmp_path: Path) -> None:
    old = old_folder(tmp_path, tokenizer)

    loaded, _ = Mllm.load(tmp_path)
    extended, its_tokenizer = load_with_routes(tmp_path, old.config.routes)
    extended.save(tmp_path / "extended", its_tokenizer)
    again, _ = Mllm.load(tmp_path / "extended")

    assert loaded.region_encoder is None
    ids = torch.tensor([tokenizer.encode_text("Find the dog.")])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, mask).hidden, extended(ids, mask).hidden)
    torch.testing.assert_close(
        embedded(again, picture(), [disc(20, 30, 8)]), embedded(extended, picture(), [disc(20, 30, 8)])
    )


def test_a_checkpoint_that_lost_its_region_encoder_is_refused(tokenizer: MllmTokenizer, tmp_path: Path) -> None:
    build_model(tokenizer).save(tmp_path, tokenizer)
    state = {name: value for name, value in load_file(tmp_path / "model.safetensors").items() if "region" not in name}
    save_file(state, tmp_path / "model.safetensors")

    with pytest.raises(WeightsError, match="region_encoder"):
        Mllm.load(tmp_path)


def test_regions_learn_to_tell_what_is_marked(tokenizer: MllmTokenizer) -> None:
    """A tiny overfit: the same picture, two marks, two classes."""
    model = build_model(tokenizer).train()
    masks = [disc(20, 30, 8), disc(44, 70, 8)]
    views = [view_region(mask, Grid(1, 1), SIZE) for mask in masks]
    pixels, wanted = cut_tiles(picture(), 1, SIZE), torch.tensor([3, 7])
    optimiser = torch.optim.Adam(model.region_encoder.parameters(), lr=1e-2)

    for _ in range(30):
        with torch.no_grad():
            tower = model.tower(pixels)
        loss = nn.functional.cross_entropy(model.encode_regions(tower, RegionBatch.of(views, [0, 0]))[:, :10], wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert loss.item() < 0.1
