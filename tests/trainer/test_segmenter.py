from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.detection.configuration import DetectorConfig
from services.detection.model import Detector
from services.segmentation.configuration import SegmenterConfig
from services.segmentation.model import Segmenter
from services.trainer.recipe import Data, Recipe, Schedule
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.referring import members
from services.trainer.segmenter_stage import SegmenterStage, image_masks

SIZES = {
    "image_side": 64,
    "width": 32,
    "heads": 2,
    "backbone_base_channels": 16,
    "feed_forward_width": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "sampling_points": 2,
    "queries": 12,
    "denoising_queries": 8,
    "link_width": 16,
}


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    Detector(DetectorConfig(**SIZES, vocabulary=len(CATEGORIES))).save(folder)
    return folder


@pytest.fixture(scope="module")
def stage(sprite_file: Path, detector_folder: Path) -> SegmenterStage:
    torch.manual_seed(1)
    return SegmenterStage(
        Recipe(
            name="small",
            stage="segmenter",
            threads=1,
            schedule=Schedule(steps=1, batch_size=2, learning_rate=1e-3),
            data=Data(sprites=sprite_file, workers=0, largest_side=160),
            segmenter=SegmenterConfig(**SIZES, mask_width=8, mask_points=64),
            start_from={"detector": detector_folder},
        )
    )


@torch.no_grad()
def test_a_segmenter_finds_what_the_detector_found_that_it_took_over(
    stage: SegmenterStage, detector_folder: Path, composer: Composer
) -> None:
    detector, segmenter = Detector.load(detector_folder), stage.segmenter.eval()
    pixels = detector.prepare(composer.compose(0).image).pixels[None]
    links, mask = detector.vocabulary.weight[None, :3], torch.ones(1, 3, dtype=torch.bool)

    boxes = detector(detector.encode(pixels), links, mask)
    masks = segmenter(segmenter.encode(pixels), links, mask).grounding

    torch.testing.assert_close(masks.logits, boxes.logits)
    torch.testing.assert_close(masks.boxes, boxes.boxes)


def test_masks_of_the_targets_lie_in_their_boxes(composer: Composer) -> None:
    scene = composer.compose(3)
    groups = [members(scene, category) for category in CATEGORIES]

    masks = image_masks(scene, groups, 64).numpy()

    scale = 64 / max(scene.height, scene.width)
    assert masks.shape == (len(scene.objects), 64, 64)
    for mask, thing in zip(masks, scene.objects, strict=True):
        rows, columns = np.nonzero(mask)
        x1, y1, x2, y2 = (side * scale for side in thing.box)
        assert x1 - 1 <= columns.min() <= columns.max() <= x2
        assert y1 - 1 <= rows.min() <= rows.max() <= y2
        assert mask.sum() == pytest.approx(thing.area * scale**2, rel=0.2, abs=6)


def test_a_step_teaches_masks_and_the_evaluation_says_how_good_they_are(
    stage: SegmenterStage, composer: Composer, tmp_path: Path
) -> None:
    stage.model.train()
    scenes = [composer.compose(seed) for seed in range(2)]

    terms = stage.losses(stage.collate([stage.prepare(scene, seed) for seed, scene in enumerate(scenes)]))
    torch.stack(list(terms.values())).sum().backward()
    figures = stage.evaluate(scenes)
    stage.export(tmp_path)

    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert {"mask", "dice", "class", "box"} <= terms.keys()
    assert stage.segmenter.pixel_decoder[0].weight.grad.abs().sum() > 0
    assert figures.keys() == {"mask_ap", "mask_ap50", "semantic_miou"}
    assert all(0 <= figure <= 1 for figure in figures.values())
    assert Segmenter.load(tmp_path).config.vocabulary == len(CATEGORIES)
