from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.detection.configuration import DetectorConfig
from services.detection.model import Detector
from services.runtime.regions import region_mask
from services.segmentation.configuration import SegmenterConfig
from services.segmentation.model import Segmenter
from services.trainer.recipe import Data, Recipe, Schedule
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.marks import MARK_KINDS, draw_mark, markable
from services.trainer.scenes.referring import members
from services.trainer.segment_names import REGION_ROW, SEGMENT_NAMES
from services.trainer.segmenter_stage import SegmenterStage, image_masks, start_segmenter

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
    assert figures.keys() == {
        "mask_ap",
        "mask_ap50",
        "semantic_miou",
        "ground_miou",
        "interactive_miou",
        *(f"interactive_miou_{kind}" for kind in MARK_KINDS),
    }
    assert all(0 <= figure <= 1 for figure in figures.values())
    assert Segmenter.load(tmp_path).config.vocabulary == len(SEGMENT_NAMES)


@pytest.mark.parametrize("kind", MARK_KINDS)
def test_marks_lie_on_what_they_mark(composer: Composer, kind: str) -> None:
    rng = np.random.default_rng(0)
    for scene in map(composer.compose, range(4)):
        for index in markable(scene):
            thing = scene.objects[index]

            mask = region_mask(draw_mark(thing, kind, rng), scene.height, scene.width)

            assert (mask & thing.mask).any()
            if kind == "mask":
                assert (mask == thing.mask).all()
            if kind == "box":
                assert (mask & thing.mask).sum() > 0.7 * thing.area


def test_a_run_with_fewer_names_and_no_regions_is_taken_over(stage: SegmenterStage, tmp_path: Path) -> None:
    state = {
        name: tensor.clone().contiguous()
        for name, tensor in stage.segmenter.state_dict().items()
        if "region" not in name
    }
    state["vocabulary.weight"] = state["vocabulary.weight"][: len(CATEGORIES)] + 1
    save_file(state, tmp_path / "model.safetensors")
    rows = torch.randn_like(stage.segmenter.vocabulary.weight)
    (tmp_path / "rows").mkdir()
    save_file({"vocabulary.weight": rows}, tmp_path / "rows" / "model.safetensors")
    recipe = stage.recipe.model_copy(update={"start_from": {"segmenter": tmp_path}})

    taken = start_segmenter(recipe)
    renamed = start_segmenter(
        recipe.model_copy(update={"start_from": {"segmenter": tmp_path, "vocabulary": tmp_path / "rows"}})
    )

    torch.testing.assert_close(taken.vocabulary.weight[: len(CATEGORIES)], state["vocabulary.weight"])
    torch.testing.assert_close(taken.mask_head[0].weight, stage.segmenter.mask_head[0].weight)
    torch.testing.assert_close(renamed.vocabulary.weight, rows)


def test_the_row_of_regions_stands_beside_no_request(stage: SegmenterStage) -> None:
    segmenter = stage.segmenter.eval()
    features = segmenter.encode(torch.randn(1, 3, 64, 64))
    links, mask = torch.randn(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)

    with torch.no_grad():
        before = segmenter(features, links, mask).grounding.logits
        kept = segmenter.vocabulary.weight[REGION_ROW].clone()
        segmenter.vocabulary.weight[REGION_ROW] = 100.0
        after = segmenter(features, links, mask).grounding.logits
        segmenter.vocabulary.weight[REGION_ROW] = kept

    torch.testing.assert_close(after, before, atol=0, rtol=0)
