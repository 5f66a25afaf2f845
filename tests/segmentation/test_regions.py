from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from services.grounding.structures import GroundingOptions
from services.runtime.regions import GroupRegions, RegionPoints, pad_regions, region_points
from services.segmentation.model import Segmenter
from services.segmentation.run_length import decode_mask
from services.segmentation.structures import SegmentationTargets
from tests.segmentation.test_model import CONFIG

SIDE = 64


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(CONFIG).eval()


def look_at(rows: slice, columns: slice) -> RegionPoints:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[rows, columns] = True
    return region_points(mask).scaled(SIDE)


LEFT, RIGHT = look_at(slice(20, 40), slice(4, 24)), look_at(slice(20, 40), slice(40, 60))


def logits_of(segmenter: Segmenter, pixels: Tensor, links: Tensor, regions: GroupRegions | None) -> Tensor:
    mask = torch.ones(links.shape[:2], dtype=torch.bool)
    return segmenter(segmenter.encode(pixels), links, mask, regions=regions).grounding.logits


@torch.no_grad()
def test_neither_company_nor_padding_changes_what_a_mark_means(segmenter: Segmenter) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels, links = torch.randn(2, 3, SIDE, SIDE, generator=generator), torch.randn(2, 3, 16, generator=generator)
    regions = pad_regions([[(1, LEFT)], [(0, RIGHT), (2, LEFT)]])

    both = logits_of(segmenter, pixels, links, regions)
    again = logits_of(segmenter, pixels, links, regions)
    alone = logits_of(segmenter, pixels[:1], links[:1], pad_regions([[(1, LEFT)]]))
    unmarked = logits_of(segmenter, pixels, links, None)

    torch.testing.assert_close(again, both, atol=0, rtol=0)
    torch.testing.assert_close(alone, both[:, :1], atol=1e-4, rtol=1e-4)
    assert (unmarked - both).abs()[:, 0, :, 1].min() > 1e-3


@torch.no_grad()
def test_a_request_without_marks_is_not_changed_by_one_with_them(segmenter: Segmenter) -> None:
    pixels, links = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 3, 16)

    beside = logits_of(segmenter, pixels, links, pad_regions([[(0, LEFT)], []]))
    plain = logits_of(segmenter, pixels, links, None)

    torch.testing.assert_close(beside[:, 1], plain[:, 1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("threshold", [None, 0.0, 1.0])
def test_a_mark_is_answered_by_one_mask_unless_a_threshold_forbids(
    segmenter: Segmenter, threshold: float | None
) -> None:
    regions = pad_regions([[(1, LEFT)]])
    outputs = segmenter(
        segmenter.encode(torch.randn(1, 3, SIDE, SIDE)),
        torch.randn(1, 2, 16),
        torch.ones(1, 2, dtype=torch.bool),
        regions=regions,
    )

    [result] = segmenter.decode(outputs, [(SIDE, SIDE)], [2], [GroundingOptions(score_threshold=threshold)])

    assert (result.groups == 1).sum() == (0 if threshold == 1.0 else 1)
    assert (np.diff(result.scores) <= 0).all()
    assert result.presence_found[1]


def test_one_of_two_things_that_look_alike_is_masked_where_it_was_marked() -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(CONFIG.model_copy(update={"queries": 6})).train()
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    masks = torch.zeros(1, 2, SIDE, SIDE, dtype=torch.bool)
    for place, left in enumerate((4, 40)):
        pixels[:, :, 20:40, left : left + 20] = 2.0
        masks[:, place, 20:40, left : left + 20] = True
    targets = SegmentationTargets(
        boxes=torch.tensor([[[14.0, 30, 20, 20], [50.0, 30, 20, 20]]]) / SIDE,
        groups=torch.eye(2, dtype=torch.bool)[None],
        mask=torch.ones(1, 2, dtype=torch.bool),
        normaliser=2.0,
        masks=masks,
    )
    # The same words for both: only the marks tell them apart.
    links, link_mask = torch.randn(1, 1, 16).expand(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    regions = pad_regions([[(0, look_at(slice(25, 30), slice(10, 14))), (1, look_at(slice(28, 33), slice(46, 50)))]])
    optimiser = torch.optim.Adam(segmenter.parameters(), lr=3e-3)

    for _ in range(60):
        terms = segmenter.loss(segmenter(segmenter.encode(pixels), links, link_mask, targets, regions), targets)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    segmenter.eval()
    with torch.no_grad():
        outputs = segmenter(segmenter.encode(pixels), links, link_mask, regions=regions)
        [result] = segmenter.decode(outputs, [(SIDE, SIDE)], [2], [GroundingOptions()])

    for group, mask in zip(result.groups, result.masks, strict=True):
        found, wanted = decode_mask(mask), masks[0, group].numpy()
        assert (found & wanted).sum() / (found | wanted).sum() > 0.6
    assert sorted(result.groups.tolist()) == [0, 1]
