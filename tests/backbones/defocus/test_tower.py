"""De-focus as the vision tower of the MLLM, and its scan order on large pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.backbones.defocus.scan_order import inverse, padded_grid, section_order
from services.backbones.defocus.tower import SectionedTower
from services.mllm.model import Mllm
from services.mllm.towers import DefocusTower
from tests.backbones.defocus.small import MIXERS, random_pixels, small_config
from tests.mllm.small_mllm import build_model, build_tokenizer

pytestmark = pytest.mark.backbones


def small_tower(kind: str, section: int) -> SectionedTower:
    torch.manual_seed(0)
    return SectionedTower(small_config(kind), section).double().eval()


def test_sections_follow_one_another() -> None:
    order = section_order(4, 4, 2)
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert order[inverse(order)].tolist() == list(range(16))


def test_grids_are_padded_to_whole_sections() -> None:
    assert padded_grid(14, 15, 14) == (14, 28)
    with pytest.raises(ValueError, match="whole sections of 14"):
        section_order(14, 15, 14)


@pytest.mark.parametrize("kind", list(MIXERS))
def test_a_cell_changes_only_what_the_sequence_reads_later(kind: str) -> None:
    """Also where sections are padded: 5 x 7 cells in sections of 3 x 3."""
    tower = small_tower(kind, section=3)
    pixels = torch.randn(1, 3, 10, 14, dtype=torch.float64)
    changed = pixels.clone()
    row, column = 3, 4
    changed[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 3.0
    with torch.no_grad():
        before, after = tower(pixels), tower(changed)
    assert before.shape == (1, 32, 5, 7)
    place = inverse(section_order(6, 9, 3)).reshape(6, 9)[:5, :7]
    differs = (before != after).any(dim=1)[0]
    assert torch.equal(differs, place >= place[row, column])


@pytest.mark.parametrize("kind", list(MIXERS))
def test_reading_by_sections_gives_what_reading_at_once_gives(kind: str) -> None:
    tower = small_tower(kind, section=3)
    pixels = random_pixels(2, side=14)
    with torch.no_grad():
        by_sections, at_once = tower(pixels), tower.train()(pixels)
    torch.testing.assert_close(by_sections, at_once, atol=1e-12, rtol=1e-12)


def test_a_small_picture_is_read_in_raster_order() -> None:
    tower = small_tower("mamba", section=4)
    pixels = random_pixels(2)
    with torch.no_grad():
        features = tower.encoder(pixels)[:, :-1]
        torch.testing.assert_close(tower(pixels).flatten(2).transpose(1, 2), features)


@pytest.mark.parametrize("kind", list(MIXERS))
def test_an_mllm_sees_through_it_and_learns_with_it(kind: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tower = DefocusTower(encoder=small_config(kind, image_size=32, patch_size=16), section=2)
    model = build_model(tokenizer, vision=tower)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.encode_images(pixels)
    assert features.shape == (2, model.config.tokens_per_tile, model.hidden_size)

    model.save(tmp_path, tokenizer)
    loaded, _ = Mllm.load(tmp_path)
    assert loaded.config.vision == tower
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_images(pixels), features)

    torch.autograd.backward(model.train().encode_images(pixels).square().sum())
    learning = dict(model.internvl.model.vision_tower.named_parameters())
    without = {name for name, parameter in learning.items() if parameter.grad is None}
    assert without == {"encoder.class_token"}
