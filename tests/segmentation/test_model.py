from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as run_length
from torch import Tensor

from services.grounding.losses import assign
from services.grounding.structures import GroundingOptions, Selection
from services.segmentation.configuration import SegmenterConfig
from services.segmentation.losses import dice_loss, mask_loss
from services.segmentation.model import Segmenter
from services.segmentation.structures import SegmentationTargets
from tests.grounding.small import SMALL

CONFIG = SegmenterConfig(**SMALL.model_dump(exclude={"name", "route"}), mask_width=8, mask_points=64)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(CONFIG).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 64, generator=generator), torch.randn(2, 5, 16, generator=generator)


def targets() -> SegmentationTargets:
    """One square thing in each of two images, asked for by the first of three phrases."""
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 16:48, 16:48] = True
    return SegmentationTargets(
        boxes=torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(2, 1, 4),
        groups=torch.tensor([True, False, False]).expand(2, 1, 3),
        mask=torch.ones(2, 1, dtype=torch.bool),
        normaliser=2.0,
        masks=masks,
    )


def mask_logits(segmenter: Segmenter, features: tuple[Tensor, ...], links: Tensor, mask: Tensor) -> Tensor:
    outputs = segmenter(features, links, mask)
    return torch.einsum("bqc,bchw->bqhw", outputs.mask_embeddings[-1], outputs.pixel_embeddings)


@torch.no_grad()
def test_neither_order_nor_padding_nor_company_changes_a_mask(
    segmenter: Segmenter, inputs: tuple[Tensor, Tensor]
) -> None:
    pixels, links = inputs
    mask = torch.ones(2, 5, dtype=torch.bool)
    features = segmenter.encode(pixels)
    junk = torch.cat([links, torch.full((2, 2, 16), 100.0)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)

    plain = mask_logits(segmenter, features, links, mask)
    permuted = mask_logits(segmenter, features, links[:, [3, 0, 4, 1, 2]], mask)
    padded = mask_logits(segmenter, features, junk, padded_mask)
    alone = mask_logits(segmenter, segmenter.encode(pixels[1:]), links[1:], mask[1:])

    torch.testing.assert_close(permuted, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(padded, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone, plain[1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("semantic", [False, True])
def test_masks_have_the_size_of_the_original_and_fill_their_boxes(segmenter: Segmenter, semantic: bool) -> None:
    prepared = segmenter.prepare(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    outputs = segmenter(
        segmenter.encode(prepared.pixels[None]), torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool)
    )
    options = GroundingOptions(semantic=semantic, score_threshold=0.0, most_finds=30)

    [result] = segmenter.decode(outputs, [prepared.original_size], [3], [options])
    masks = [run_length.decode({"size": [mask.height, mask.width], "counts": mask.counts}) for mask in result.masks]

    assert result.presence_scores.shape == (3,)
    assert (np.diff(result.scores) <= 0).all()
    assert {mask.shape for mask in masks} <= {(90, 160)}
    for mask, (x1, y1, x2, y2) in zip(masks, result.boxes.astype(int), strict=True):
        assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
        assert mask[y1:y2, [x1, x2 - 1]].any(axis=0).all()
    if semantic:
        assert len(set(result.groups.tolist())) == len(result.groups)
        assert np.sum(masks, axis=0, initial=0).max() <= 1
    else:
        assert masks


def test_pixels_under_a_mask_belong_to_its_phrase_however_low_the_score(segmenter: Segmenter) -> None:
    """Scores say which phrase a pixel belongs to; whether it belongs to any is the masks' to say."""
    selection = Selection(
        queries=torch.arange(2),
        corners=torch.zeros(2, 4),
        scores=torch.tensor([0.3, 0.6]),
        groups=torch.tensor([0, 1]),
        presence_scores=torch.tensor([0.3, 0.6]),
        presence_found=torch.tensor([True, True]),
    )
    logits = torch.full((2, 16, 16), -5.0)
    logits[0, :, :12] = 3.0
    logits[1, :, 8:12] = 3.0

    finds = segmenter._phrases(selection, logits, (64, 64))

    shares = {group: float(mask.mean()) for mask, _, group in finds}
    assert shares == pytest.approx({0: 0.5, 1: 0.25}, abs=0.04)


def test_masks_lie_where_the_image_is_not_where_the_padding_is(segmenter: Segmenter) -> None:
    """A wide image fills the upper half of the square: the lower half of a map is nowhere in it."""
    maps = torch.zeros(1, 16, 16)
    maps[:, :8, 8:] = 1.0

    enlarged = segmenter._enlarged(maps, (50, 100))[0]

    assert enlarged.shape == (50, 100)
    assert bool((enlarged[:45, 55:] > 0.99).all())
    assert bool((enlarged[:, :45] < 0.01).all())


def test_saving_and_loading_gives_the_same_segmenter(tmp_path: Path, segmenter: Segmenter) -> None:
    segmenter.save(tmp_path)

    loaded = Segmenter.load(tmp_path)

    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.config == segmenter.config


def test_dice_loss_has_its_textbook_values() -> None:
    wanted = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(3, -1)
    logits = torch.tensor([[30.0, 30, -30, -30], [-30, -30, 30, 30], [30, 30, 30, 30]])

    # 1 - (2 * 2 + 1) / (2 + 2 + 1), 1 - 1 / (2 + 2 + 1), 1 - (2 * 2 + 1) / (4 + 2 + 1).
    torch.testing.assert_close(dice_loss(logits, wanted), torch.tensor([0.0, 0.8, 2 / 7]))


def test_masks_are_learned_and_teach_the_links() -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(CONFIG).train()
    pixels, links = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 16, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    optimiser = torch.optim.Adam(segmenter.parameters(), lr=2e-3)
    history = []

    for step in range(12):
        terms = segmenter.loss(segmenter(segmenter.encode(pixels), links, mask, targets()), targets())
        if step == 0:
            (gradient,) = torch.autograd.grad(terms["mask"] + terms["dice"], links, retain_graph=True)
            assert bool((gradient.abs().sum(dim=-1) > 0).all())
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        history.append((terms["mask"] + terms["dice"]).item())

    assert {"denoising_mask", "denoising_dice"} <= terms.keys()
    assert history[-1] < 0.6 * history[0]


def test_an_image_without_objects_teaches_no_mask_and_loses_none() -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(CONFIG).train()
    nothing = SegmentationTargets(
        boxes=torch.full((1, 1, 4), 0.5),
        groups=torch.zeros(1, 1, 3, dtype=torch.bool),
        mask=torch.zeros(1, 1, dtype=torch.bool),
        normaliser=1.0,
        masks=torch.zeros(1, 1, 64, 64, dtype=torch.bool),
    )
    outputs = segmenter(
        segmenter.encode(torch.randn(1, 3, 64, 64)), torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), nothing
    )

    terms = mask_loss(outputs, nothing, assign(outputs.grounding, nothing), 16)
    torch.stack(list(terms.values())).sum().backward()

    assert all(term.item() == 0 for term in terms.values())
    assert segmenter.mask_head[0].weight.grad is not None


@torch.no_grad()
def test_a_mask_stays_near_the_box_that_was_found(segmenter: Segmenter) -> None:
    prepared = segmenter.prepare(np.zeros((64, 64, 3), dtype=np.uint8))
    outputs = segmenter(
        segmenter.encode(prepared.pixels[None]), torch.randn(1, 1, 16), torch.ones(1, 1, dtype=torch.bool)
    )
    boxes = outputs.grounding.boxes.clone()
    boxes[-1] = torch.tensor([0.5, 0.5, 0.25, 0.25])
    everywhere = replace(
        outputs,
        grounding=replace(outputs.grounding, boxes=boxes),
        mask_embeddings=torch.ones_like(outputs.mask_embeddings),
        pixel_embeddings=torch.ones_like(outputs.pixel_embeddings),
    )

    [result] = segmenter.decode(everywhere, [(64, 64)], [1], [GroundingOptions(score_threshold=0.0, most_finds=1)])

    # The box is 24 to 40; a fifth of its side is 3.2 pixels, and masks are made of cells of 4.
    x1, y1, x2, y2 = result.boxes[0]
    assert 16 <= x1 <= 24
    assert 16 <= y1 <= 24
    assert 40 <= x2 <= 48
    assert 40 <= y2 <= 48
