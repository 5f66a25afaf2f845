"""Figures of masks, marks, drawings, edits and several tools, and the part of a set that asks for them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from services.evaluation.average_precision import FoundBox, PromptBoxes, TrueBox, average_precision
from services.evaluation.drawing_figures import baselines, mean_hue, psnr
from services.evaluation.mean_iou import MeanIou, mask_iou
from services.evaluation.scenes_evaluation import evaluate_scenes
from services.evaluation.scenes_set import ANNOTATIONS_FILE, PROMPTS_FILE, SceneSet, encode_mask, load_scene_set
from services.evaluation.set_extension import extend_scene_set
from services.evaluation.tools_making import tool_parts
from superlink.client import Client
from tests.evaluation.conftest import extend_small_set
from tests.evaluation.oracle_gateway import Oracle, serve
from tests.trainer.conftest import draw_sprites


def evaluated(oracle: Oracle):
    with serve(oracle) as url, Client(url, max_retries=0) as client:
        return evaluate_scenes(client, oracle.scene_set, 4)


def test_what_was_in_the_set_stays_line_by_line(scene_set: SceneSet, tool_set: SceneSet) -> None:
    for name in (ANNOTATIONS_FILE, PROMPTS_FILE):
        before = {line.rstrip(",") for line in (scene_set.folder / name).read_text().splitlines()}
        after = {line.rstrip(",") for line in (tool_set.folder / name).read_text().splitlines()}
        assert before <= after
    for image_id in scene_set.images:
        assert tool_set.image_file(image_id).read_bytes() == scene_set.image_file(image_id).read_bytes()


def test_the_same_is_added_every_time(scene_set: SceneSet, tool_set: SceneSet, tmp_path: Path) -> None:
    shutil.copytree(scene_set.folder, tmp_path / "again")
    again = extend_small_set(tmp_path / "again")
    for name in (ANNOTATIONS_FILE, PROMPTS_FILE):
        assert (again.folder / name).read_bytes() == (tool_set.folder / name).read_bytes()
    assert load_scene_set(again.folder).prompts == again.prompts
    assert load_scene_set(again.folder).annotations == again.annotations


def test_a_set_that_lacks_nothing_stays_as_it_is(tool_set: SceneSet, tmp_path: Path) -> None:
    shutil.copytree(tool_set.folder, tmp_path / "again")
    again = extend_small_set(tmp_path / "again")
    assert again.prompts == tool_set.prompts
    for name in (ANNOTATIONS_FILE, PROMPTS_FILE):
        assert (again.folder / name).read_bytes() == (tool_set.folder / name).read_bytes()


def test_only_what_a_set_lacks_is_added(scene_set: SceneSet, tool_set: SceneSet, tmp_path: Path) -> None:
    shutil.copytree(scene_set.folder, tmp_path / "again")
    *others, _ = parts = tool_parts(draw_sprites(), scenes=4, edits=10, drawings=6, poses=6)
    masks_and_images = extend_scene_set(load_scene_set(tmp_path / "again"), others)
    assert not {"pose", "pose_places"} & {prompt.task for prompt in masks_and_images.prompts}
    assert extend_scene_set(masks_and_images, parts).prompts == tool_set.prompts


def test_every_tool_is_asked_for_in_both_languages(tool_set: SceneSet) -> None:
    asked = Counter((prompt.task, prompt.language) for prompt in tool_set.prompts)
    for task in ("segment", "semantic", "interactive", "several_tools", "draw", "edit", "pose", "pose_places"):
        assert asked[task, "en"] > 0
        assert asked[task, "zh"] > 0
    dialogues = [prompt for prompt in tool_set.prompts if prompt.earlier]
    assert dialogues
    assert all(prompt.phrases for prompt in dialogues)


def test_right_answers_of_all_tools_score_one(tool_set: SceneSet) -> None:
    report, _ = evaluated(Oracle(tool_set))
    assert report.failed_prompts == 0
    assert report.routing.accuracy == report.routing.accuracy_multi == 1.0
    assert report.segmentation.instance_ap50 == pytest.approx(1.0)
    assert report.segmentation.semantic_miou == report.segmentation.referring_miou == 1.0
    assert report.segmentation.interactive_by_kind == {"box": 1.0, "mask": 1.0, "points": 1.0, "stroke": 1.0}
    assert report.generation.detector_agreement == 1.0
    assert report.generation.baseline == 0.0
    assert report.editing.by_kind == dict.fromkeys(("add", "ground", "recolour", "remove", "replace"), 1.0)
    assert report.editing.untouched_psnr == 60.0
    assert report.by_language["zh"].editing.change_verified == 1.0
    assert report.notes == ()


def test_wrong_answers_of_tools_score_nothing(tool_set: SceneSet) -> None:
    oracle = Oracle(tool_set)
    oracle.wrong_tasks = {"draw", "edit", "semantic", "interactive", "several_tools"}
    report, _ = evaluated(oracle)
    assert report.generation.detector_agreement == report.editing.change_verified == 0.0
    assert report.editing.untouched_psnr is None
    assert report.segmentation.semantic_miou == report.segmentation.interactive_miou == 0.0
    assert report.segmentation.referring_miou == 1.0
    assert report.routing.by_task["several_tools"] == 0.0


def test_tools_that_are_not_deployed_are_noted_and_not_asked(tool_set: SceneSet) -> None:
    oracle = Oracle(tool_set)
    oracle.services = ["orchestrator", "mllm", "detection"]
    report, outcomes = evaluated(oracle)
    assert report.failed_prompts == 0
    assert report.routing.accuracy == 1.0
    assert report.segmentation.semantic_miou is report.segmentation.instance_ap50 is None
    assert report.generation.detector_agreement is report.editing.change_verified is None
    assert any("segmentation is not deployed" in note for note in report.notes)
    assert len(outcomes) < len(tool_set.prompts)


def test_iou_of_masks_by_hand() -> None:
    first, second = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    first[:2], second[1:3] = True, True
    assert mask_iou(first, second) == pytest.approx(4 / 12)
    assert mask_iou(first, first) == 1.0
    assert mask_iou(np.zeros_like(first), np.zeros_like(first)) == 0.0


def test_mean_iou_is_over_classes_not_over_images() -> None:
    whole, half, none = np.ones((2, 2), dtype=bool), np.array([[1, 1], [0, 0]], dtype=bool), np.zeros((2, 2), bool)
    figures = MeanIou()
    assert figures.value() is None
    # Class 1: 4 of 4 and 2 of 4 pixels, together 6 of 8; class 2 is never found.
    figures.add({1: whole, 2: half}, {1: whole})
    figures.add({1: whole}, {1: half, 2: none})
    assert figures.value() == pytest.approx((6 / 8 + 0) / 2)


def test_average_precision_compares_masks_where_it_is_told_to() -> None:
    mask, other = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    mask[:4], other[4:] = True, True
    truth = TrueBox(1, (0, 0, 8, 8), 32, encode_mask(mask).model_dump())
    right, wrong = (FoundBox(1, (0, 0, 8, 8), 0.9, encode_mask(found).model_dump()) for found in (mask, other))
    assert average_precision([PromptBoxes((truth,), (right,))], "segm").ap50 == pytest.approx(1.0)
    assert average_precision([PromptBoxes((truth,), (wrong,))], "segm").ap50 == 0.0
    assert average_precision([PromptBoxes((truth,), (wrong,))], "bbox").ap50 == pytest.approx(1.0)


def test_psnr_by_hand() -> None:
    black = np.zeros((2, 2, 3), dtype=np.uint8)
    assert psnr(black, black) == 60.0
    assert psnr(black, black + 255) == pytest.approx(0.0)
    # A mean squared error of 25: 10 log10(255² / 25).
    assert psnr(black, black + 5) == pytest.approx(34.15, abs=0.01)


def test_the_mean_hue_goes_around_the_circle() -> None:
    reds = np.array([[255, 0, 40], [255, 40, 0]], dtype=np.uint8)
    assert min(mean_hue(reds), 1 - mean_hue(reds)) < 0.01
    # White has no hue and does not count.
    assert mean_hue(np.array([[0, 0, 255], [255, 255, 255]], dtype=np.uint8)) == pytest.approx(2 / 3, abs=0.01)


def test_baselines_share_nothing_with_what_was_asked() -> None:
    assert baselines([(1,), (1, 2), (3,), (2,)]) == [(3,), (3,), (2,), (1,)]
    assert baselines([(1,), (1,)]) == [(), ()]
